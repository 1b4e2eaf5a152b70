"""Contacts and activities of an account. Creation honours Idempotency-Key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.responses import JSONResponse, Response

from bss_sync.adapters.sql import editing
from bss_sync.adapters.sql.reading.relations import get_relation, list_relations
from bss_sync.domain.change import Json
from bss_sync.domain.errors import FieldProblem, InvalidRequest
from bss_sync.domain.relation import REQUIRED, ActivityKind, Relation
from bss_sync.pipeline.json_text import canonical_bytes
from bss_sync.web.api import examples
from bss_sync.web.api.answers import an_object, list_answer, shows, shows_list, takes
from bss_sync.web.api.parameters import Editor, JsonObject, PagingQuery, RecordId, RelationId, Staff, reach_of
from bss_sync.web.auth import Principal, transaction

KEY_CHARACTERS_MAX = 255
_TEXT = {"type": ["string", "null"]}
_NAME = {"type": "string", "minLength": 1, "maxLength": 255}
_SCHEMAS: Mapping[Relation, Mapping[str, Any]] = {
    Relation.CONTACT: {"name": _NAME, "email": _TEXT, "phone": _TEXT},
    Relation.ACTIVITY: {
        "kind": {"type": "string", "enum": list(ActivityKind)},
        "subject": _NAME,
        "body": _TEXT,
        "due_at": {**_TEXT, "description": "RFC 3339, or a date: its end in the distributor's time zone."},
    },
}
_EXAMPLES = {Relation.CONTACT: examples.CONTACT, Relation.ACTIVITY: examples.ACTIVITY}
_BODIES: Mapping[Relation, dict[str, Any]] = {
    Relation.CONTACT: {"name": "Ada Example", "email": "ada@customer-x.example", "phone": None},
    Relation.ACTIVITY: {"kind": "task", "subject": "Talk about renewal", "due_at": "2026-11-30"},
}
PLURALS = {Relation.CONTACT: "contacts", Relation.ACTIVITY: "activities"}


def relation_router(relation: Relation) -> APIRouter:
    """Every route of contacts, or of activities."""
    router = APIRouter(prefix=f"/v1/accounts/{{id}}/{PLURALS[relation]}", tags=[PLURALS[relation]])
    _add_reading(router, relation)
    _add_writing(router, relation)
    return router


def _add_reading(router: APIRouter, relation: Relation) -> None:
    plural = PLURALS[relation]

    @router.get("", summary=f"List an account's {plural}", responses=shows_list(_EXAMPLES[relation]))
    def list_all(request: Request, caller: Staff, account_id: RecordId, paging: PagingQuery) -> Response:
        """The distributor's own: resellers do not see them."""
        with transaction(request, caller) as connection:
            return list_answer(request, list_relations(connection, reach_of(caller), relation, account_id, paging))

    @router.get("/{relation_id}", summary=f"One {relation}", responses=shows(_EXAMPLES[relation]))
    def get_one(request: Request, caller: Staff, account_id: RecordId, relation_id: RelationId) -> Response:
        """404 once it is deleted."""
        with transaction(request, caller) as connection:
            return JSONResponse(get_relation(connection, reach_of(caller), relation, account_id, relation_id))


def _add_writing(router: APIRouter, relation: Relation) -> None:
    schema = an_object(REQUIRED[relation], **_SCHEMAS[relation])

    @router.post(
        "",
        summary=f"Add {'a contact' if relation is Relation.CONTACT else 'an activity'}",
        status_code=201,
        responses=shows(_EXAMPLES[relation], 201, "Created; Location says where"),
        openapi_extra=takes(schema, _BODIES[relation]),
    )
    def create(
        request: Request,
        caller: Editor,
        account_id: RecordId,
        body: JsonObject,
        key: Annotated[str | None, Header(alias="Idempotency-Key", max_length=KEY_CHARACTERS_MAX)] = None,
    ) -> Response:
        """The same Idempotency-Key with the same body gives the same answer; with another body it is 409."""
        once = _once(request, caller, key, body)
        with transaction(request, caller) as connection:
            reach = reach_of(caller)
            tenant_id = editing.tenant_of_account(connection, reach, account_id)
            made = editing.answer_once(
                connection,
                once,
                tenant_id,
                lambda: editing.create_relation(connection, reach, caller.actor, relation, account_id, body),
            )
        return JSONResponse(made, 201, headers={"Location": f"{request.url.path}/{made['id']}"})

    @router.patch(
        "/{relation_id}",
        summary=f"Edit {'a contact' if relation is Relation.CONTACT else 'an activity'}",
        responses=shows(_EXAMPLES[relation]),
        openapi_extra=takes(an_object(**_SCHEMAS[relation]), {next(iter(_BODIES[relation])): _first(relation)}),
    )
    def edit(
        request: Request, caller: Editor, account_id: RecordId, relation_id: RelationId, body: JsonObject
    ) -> Response:
        """Only the members sent change; null clears what is not required."""
        with transaction(request, caller) as connection:
            reach = reach_of(caller)
            return JSONResponse(
                editing.edit_relation(connection, reach, caller.actor, relation, account_id, relation_id, body)
            )

    @router.delete(
        "/{relation_id}",
        summary=f"Delete {'a contact' if relation is Relation.CONTACT else 'an activity'}",
        status_code=204,
        response_class=Response,
    )
    def delete(request: Request, caller: Editor, account_id: RecordId, relation_id: RelationId) -> Response:
        """404 when it is deleted already."""
        with transaction(request, caller) as connection:
            editing.delete_relation(connection, reach_of(caller), caller.actor, relation, account_id, relation_id)
        return Response(status_code=204)


def _first(relation: Relation) -> Json:
    return next(iter(_BODIES[relation].values()))


def _once(request: Request, caller: Principal, key: str | None, body: dict[str, Json]) -> editing.Once | None:
    if key is None:
        return None
    if not key or not key.isprintable():
        detail = f"must be 1 to {KEY_CHARACTERS_MAX} printable characters"
        raise InvalidRequest(f"Idempotency-Key {detail}.", fields=(FieldProblem("Idempotency-Key", detail),))
    try:
        said = canonical_bytes(body)
    except OverflowError:
        detail = "holds a number beyond a double's range"
        raise InvalidRequest(f"The body {detail}.", fields=(FieldProblem("body", detail),)) from None
    digest = hashlib.sha256(request.url.path.encode() + b"\n" + said).digest()
    return editing.Once(caller.token_id, key, digest)
