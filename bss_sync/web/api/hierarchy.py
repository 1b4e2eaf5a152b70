"""The hierarchy, nested as deep as it is. Written without recursion: depth is not limited."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from bss_sync.adapters.sql.reading.tree import Node, read_tree
from bss_sync.web.api import examples
from bss_sync.web.api.answers import shows
from bss_sync.web.api.parameters import MomentQuery, Reader, Words, reach_of
from bss_sync.web.auth import transaction

router = APIRouter(prefix="/v1/tree", tags=["hierarchy"])


@router.get("", summary="The hierarchy, now or as of a time", responses=shows(examples.TREE))
def tree(
    request: Request,
    caller: Reader,
    moment: MomentQuery,
    wanted: Annotated[Words | None, Query(alias="connection", description="A connection's id or name.")] = None,
    subtree: Annotated[UUID | None, Query(description="An account's id: it and all below it.")] = None,
) -> Response:
    """Tenants (the bill-to), their accounts, subscriptions at each, add-ons below theirs.

    Every node has `kind` (tenant, customer, reseller, subscription), `id` and `name`; tenants and accounts have
    `accounts` and `subscriptions`, subscriptions have `subscriptions` (their add-ons). What hangs below a deleted
    record is `orphaned` and stands directly below the tenant. At most 20,000 records are shown at once: choose a
    connection, or an account by `subtree`.
    """
    with transaction(request, caller) as connection:
        roots = read_tree(connection, reach_of(caller), wanted, moment.read(connection), subtree)
    return Response("".join(write_tree(roots)), media_type="application/json")


def write_tree(roots: Sequence[Node]) -> Iterator[str]:
    """The JSON text of ``{"tree": […]}``, piece by piece."""
    stack: list[str | Node] = ["]}", *_joined(roots)]
    yield '{"tree":['
    while stack:
        piece = stack.pop()
        if isinstance(piece, str):
            yield piece
            continue
        yield json.dumps(piece.as_json(), ensure_ascii=False, separators=(",", ":"))[:-1]
        stack.append("}")
        for branch in reversed(piece.branches()):
            stack.append("]")
            stack.extend(_joined(getattr(piece, branch)))
            stack.append(f',"{branch}":[')


def _joined(nodes: Sequence[Node]) -> list[str | Node]:
    """Nodes with commas between them, the first on top of the stack."""
    pieces: list[str | Node] = []
    for node in reversed(nodes):
        pieces.extend((node, ","))
    return pieces[:-1]
