"""What the next tier's instance of bss_sync mirrors of this one (docs/decisions/0020-chained-tiers.md)."""

from __future__ import annotations

import re
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import JSONResponse, Response

from bss_sync.adapters.sql.ranges import DIGITS
from bss_sync.adapters.sql.reading import chain
from bss_sync.adapters.sql.reading.context import read_installation
from bss_sync.domain.change import Kind
from bss_sync.domain.errors import FieldProblem, InvalidRequest, NotFound
from bss_sync.domain.permissions import Right
from bss_sync.ports.connector import RangeForm
from bss_sync.web.api.answers import shows
from bss_sync.web.api.parameters import PagingQuery, RecordId, Words
from bss_sync.web.auth import Principal, application, require, transaction

FORMAT = 1
"""Grows when an older instance could not read the answers any more."""

router = APIRouter(prefix="/v1/chain", tags=["chain"])

Follower = Annotated[Principal, Depends(require(Right.FOLLOW))]
KindPath = Annotated[Kind, Path(alias="kind", description="account or subscription", examples=["subscription"])]

_RANGE = re.compile(f"[0-9a-f]{{{DIGITS}}}")
_LINK = {"format": FORMAT, "instance": "5f0c8f0e-3c1d-4a6e-9a43-7f3f6d1c2b10", "distributor": "Cloud Resell"}
_ITEM: dict[str, Any] = {
    "kind": "account",
    "id": "0d9cc8c1-4f8b-5c0e-9a53-2f6f1f0f9a11",
    "version": 3,
    "deleted": False,
    "body": {
        "name": "Cloud Customer X",
        "number": "C-1001",
        "email": "it@customer-x.example",
        "kind": "customer",
        "parent_id": "7be7a9a5-3df4-4f43-8bb4-b13a6d3a9ed0",
    },
    "effective_at": "2026-03-01T00:00:00Z",
    "changed_at": "2026-03-02T10:15:00Z",
    "passed": ["5f0c8f0e-3c1d-4a6e-9a43-7f3f6d1c2b10"],
}
_CHANGES = {"items": [_ITEM | {"past": True}], "next_cursor": "WyJjaGFpbiIsMTAsWyIwIl0sbnVsbF0", "has_more": False}
_RANGES = {"digits": DIGITS, "of": "text", "ranges": {"0d9": [245, "-8101144112230943445"]}}


@router.get("", summary="Who this is", responses=shows(_LINK))
def link(request: Request, caller: Follower) -> Response:
    """The instance's own id, which every message that passes it carries, and whose it is."""
    with transaction(request, caller) as connection:
        name = read_installation(connection).distributor
    return JSONResponse({"format": FORMAT, "instance": str(_own(request)), "distributor": name})


@router.get("/changes", summary="List what changed", responses=shows(_CHANGES))
def changes(request: Request, caller: Follower, paging: PagingQuery) -> Response:
    """Every state of history of accounts and subscriptions, in the order in which they were recorded (`past`).

    What history does not tell is told as it is now: tenant resellers, fields taken over, links made later. A finished
    list's cursor can be resumed later: it may repeat a state, it misses none. `anew` says that this page is the
    beginning, because the cursor was from before a restored backup.
    """
    with transaction(request, caller) as connection:
        return JSONResponse(chain.list_changes(connection, _own(request), paging).as_json())


@router.get("/records/{kind}", summary="List a kind by id", responses=shows({"items": [_ITEM], "next_cursor": None}))
def records(
    request: Request,
    caller: Follower,
    kind: KindPath,
    paging: PagingQuery,
    ranges: Annotated[
        Words | None,
        Query(alias="range", description=f"Only ids that begin so: up to {chain.RANGES_MAX}, separated by commas."),
    ] = None,
) -> Response:
    """Every entity, deleted ones too. `next_cursor` is null at the end."""
    with transaction(request, caller) as connection:
        return JSONResponse(chain.list_by_id(connection, _own(request), kind, _ranges_of(ranges), paging))


@router.get("/records/{kind}/{id}", summary="One entity", responses=shows(_ITEM))
def one_record(request: Request, caller: Follower, kind: KindPath, record_id: RecordId) -> Response:
    """As it is now, deleted or not."""
    with transaction(request, caller) as connection:
        found = chain.load(connection, _own(request), [record_id], kind)
    if not found:
        raise NotFound(f"There is no {kind} {record_id}.")
    return JSONResponse(found[0])


@router.get("/digests", summary="What each range of ids comes to", responses=shows(_RANGES))
def digests(
    request: Request,
    caller: Follower,
    without: Annotated[Words | None, Query(description="An instance's id: what came through it is left out.")] = None,
    of: Annotated[RangeForm, Query(description="What of an id is hashed: its text, or its 16 bytes.")] = RangeForm.UUID,
) -> Response:
    """Range → [number of entities, a hash over their ids, versions and deletions]. Empty ranges are absent."""
    with transaction(request, caller) as connection:
        return JSONResponse({"digits": DIGITS, "of": of, "ranges": chain.read_ranges(connection, without, of)})


def _own(request: Request) -> UUID:
    return application(request).instance_id


def _ranges_of(words: str | None) -> list[str]:
    names = [] if words is None else words.split(",")
    if len(names) > chain.RANGES_MAX or not all(_RANGE.fullmatch(name) for name in names):
        problem = f"must be 1 to {chain.RANGES_MAX} names of {DIGITS} hexadecimal digits, separated by commas"
        raise InvalidRequest(f"range {problem}.", fields=(FieldProblem("range", problem),))
    return names
