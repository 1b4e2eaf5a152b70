"""Accounts and subscriptions: the mirror, its past, its explanations, and what may and may not be written."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import JSONResponse, Response

from bss_sync.adapters.sql import editing
from bss_sync.adapters.sql.editing import Edited, Refused
from bss_sync.adapters.sql.reading.changes import list_changes
from bss_sync.adapters.sql.reading.explain import explain
from bss_sync.adapters.sql.reading.reach import EVERYTHING
from bss_sync.adapters.sql.reading.records import get_record, list_records
from bss_sync.domain.change import Kind
from bss_sync.domain.ownership import MIRRORED
from bss_sync.domain.permissions import REFUSED_OPERATIONS
from bss_sync.domain.tenancy import Role
from bss_sync.web.api import examples
from bss_sync.web.api.answers import an_object, list_answer, shows, shows_list, takes
from bss_sync.web.api.parameters import (
    Editor,
    JsonObject,
    MomentQuery,
    PagingQuery,
    Reader,
    RecordId,
    RecordQuery,
    Words,
    one_of,
    reach_of,
    text_of,
)
from bss_sync.web.auth import Principal, application, transaction

_TEXT = {"type": ["string", "null"]}
_PATCH: dict[Kind, tuple[dict[str, Any], dict[str, Any]]] = {
    Kind.ACCOUNT: (
        an_object(notes=_TEXT, tags={"type": ["array", "null"], "items": {"type": "string"}}, responsible_user=_TEXT),
        {"notes": "Prefers calls in the morning", "tags": ["key account"]},
    ),
    Kind.SUBSCRIPTION: (
        an_object(
            price={
                "description": "A decimal number, in the distributor's currency, or with a currency of its own.",
                "oneOf": [
                    {"type": ["string", "number", "null"]},
                    an_object(("amount",), amount={"type": ["string", "number"]}, currency={"type": "string"}),
                ],
            },
            bill_to_contact=_TEXT,
            custom_fields={"type": ["object", "null"]},
            notes=_TEXT,
        ),
        {"price": {"amount": "9.90", "currency": "EUR"}},
    ),
}
_EXAMPLE = {Kind.ACCOUNT: examples.ACCOUNT, Kind.SUBSCRIPTION: examples.SUBSCRIPTION}


def record_router(kind: Kind) -> APIRouter:
    """Every route of one kind of record."""
    router = APIRouter(prefix=f"/v1/{kind}s", tags=[f"{kind}s"])
    _add_reading(router, kind)
    _add_history(router, kind)
    _add_writing(router, kind)
    return router


def _add_reading(router: APIRouter, kind: Kind) -> None:
    @router.get("", summary=f"List {kind}s, now or as of a time", responses=shows_list(_EXAMPLE[kind]))
    def list_all(
        request: Request,
        caller: Reader,
        moment: MomentQuery,
        paging: PagingQuery,
        wanted: Annotated[RecordQuery, Depends()],
    ) -> Response:
        """Ordered by change. A finished list's cursor can be resumed later: it may repeat a row, it misses none."""
        with transaction(request, caller) as connection:
            at = moment.read(connection)
            page = list_records(connection, reach_of(caller), kind, wanted.read(connection), paging, at)
        return list_answer(request, page)

    @router.get("/{id}", summary=f"One {kind}, now or as of a time", responses=shows(_EXAMPLE[kind]))
    def get_one(request: Request, caller: Reader, record_id: RecordId, moment: MomentQuery) -> Response:
        """Deleted ones too: `deleted_at` says so. As of a time before it existed: 404. The past has no own fields."""
        with transaction(request, caller) as connection:
            at = moment.read(connection)
            return JSONResponse(get_record(connection, reach_of(caller), kind, record_id, at))


def _add_history(router: APIRouter, kind: Kind) -> None:
    @router.get("/{id}/history", summary="What changed when, by which message", responses=shows_list(examples.CHANGE))
    def history(request: Request, caller: Reader, record_id: RecordId, paging: PagingQuery) -> Response:
        """In the order of recording. A `late` state came after a higher version and changed only the past."""
        with transaction(request, caller) as connection:
            return list_answer(request, list_changes(connection, reach_of(caller), kind, record_id, paging))

    @router.get(
        "/{id}/explain",
        summary="Who owns a field, what wrote it, what was refused",
        responses=shows(examples.EXPLANATION),
    )
    def explain_fields(
        request: Request,
        caller: Reader,
        record_id: RecordId,
        field: Annotated[Words | None, Query(description="One field; all of them without it.")] = None,
    ) -> Response:
        """Of the present value."""
        with transaction(request, caller) as connection:
            return JSONResponse(explain(connection, reach_of(caller), kind, record_id, field))


def _add_writing(router: APIRouter, kind: Kind) -> None:
    schema, example = _PATCH[kind]
    operations = REFUSED_OPERATIONS[kind]

    @router.patch(
        "/{id}",
        summary="Edit the fields that the distributor owns",
        responses=shows(_EXAMPLE[kind]),
        openapi_extra=takes(schema, example),
    )
    def edit(request: Request, caller: Editor, record_id: RecordId, changes: JsonObject) -> Response:
        """All or nothing; null clears. One locked field among them: 409 naming every such field and its owner.

        A field that an admin has taken over is edited by admins only; the mirror follows within moments.
        """
        outcome = _edit(request, caller, kind, record_id, changes)
        if isinstance(outcome, Refused):
            raise outcome.error
        if outcome.wake_shard is not None:
            application(request).wake.process(outcome.wake_shard)
        with transaction(request, caller) as connection:
            return JSONResponse(get_record(connection, reach_of(caller), kind, record_id))

    @router.post(
        "/{id}/operations",
        summary="Refused: only the tenant reseller can do this",
        status_code=403,
        responses={403: {"description": "operation-refused, naming who can"}},
        openapi_extra=takes(
            an_object(("operation",), operation={"type": "string", "enum": list(operations)}),
            {"operation": operations[0]},
        ),
    )
    def operate(request: Request, caller: Editor, record_id: RecordId, body: JsonObject) -> Response:
        """The reseller keeps full control of its subscriptions and customers. The attempt is recorded."""
        one_of(body, ("operation",))
        operation = text_of(body, "operation")
        with transaction(request, caller) as connection:
            refused = editing.refuse(connection, reach_of(caller), caller.actor, kind, record_id, operation)
        raise refused.error


def _edit(
    request: Request, caller: Principal, kind: Kind, record_id: RecordId, changes: dict[str, Any]
) -> Edited | Refused:
    if caller.role is Role.ADMIN and any(field in MIRRORED[kind] for field in changes):
        # A field taken over becomes a mirrored column: only the engine's role may write that.
        with application(request).database.engine() as connection:
            return editing.edit_fields(
                connection, EVERYTHING, caller.actor, kind, record_id, changes, may_edit_taken=True
            )
    with transaction(request, caller) as connection:
        return editing.edit_fields(connection, reach_of(caller), caller.actor, kind, record_id, changes)
