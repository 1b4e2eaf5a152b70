"""The admin's acts over HTTP: tokens, approvals, taking fields over. The same functions as the CLI's."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from bss_sync.adapters.sql.admin import connections, runs, takeovers, tokens
from bss_sync.adapters.sql.admin.takeovers import Taken
from bss_sync.adapters.sql.admin.tokens import Token
from bss_sync.adapters.sql.reading.entity import show_moment, show_value
from bss_sync.domain.change import Kind
from bss_sync.domain.errors import FieldProblem, InvalidRequest
from bss_sync.domain.moment import rfc3339
from bss_sync.domain.tenancy import Role
from bss_sync.web.api import examples
from bss_sync.web.api.answers import an_object, shows, takes
from bss_sync.web.api.parameters import Administrator, JsonObject, RecordId, RunId, TokenId, one_of, text_of
from bss_sync.web.auth import application

router = APIRouter(prefix="/v1/tokens", tags=["administration"])

_REASON = {"type": "string", "minLength": 1, "description": "Why, for the audit."}


@router.post(
    "",
    summary="Create a token",
    status_code=201,
    responses=shows({"id": examples.TOKEN["id"], "token": "bst_…"}, 201, "Created; shown this once"),
    openapi_extra=takes(
        an_object(
            ("role", "name"),
            role={"type": "string", "enum": list(Role)},
            name={"type": "string"},
            connection={"type": "string", "description": "For resellers: the connection's id or name."},
        ),
        {"role": "operator", "name": "mara"},
    ),
)
def create_token(request: Request, caller: Administrator, body: JsonObject) -> Response:
    """Its text is shown this once; only its digest is kept."""
    one_of(body, ("role", "name"), ("connection",))
    if body["role"] not in tuple(Role):
        known = f"known: {', '.join(Role)}"
        raise InvalidRequest("There is no such role.", fields=(FieldProblem("role", known),))
    with application(request).database.engine() as connection:
        source = connections.find(connection, text_of(body, "connection")) if "connection" in body else None
        made = tokens.create(
            connection, role=Role(body["role"]), name=text_of(body, "name"), source=source, actor=caller.actor
        )
    return JSONResponse({"id": str(made.id), "token": made.token}, 201)


@router.get("", summary="List tokens", responses=shows({"items": [examples.TOKEN]}))
def list_tokens(request: Request, _caller: Administrator, revoked: bool = False) -> Response:
    """Those in use; with `revoked` also those that are not. All of them: there are as many as people and programs."""
    with application(request).database.engine() as connection:
        found = [_token(token) for token in tokens.list_all(connection, revoked=revoked)]
    return JSONResponse({"items": found})


@router.delete("/{id}", summary="Revoke a token", status_code=204, response_class=Response)
def revoke_token(request: Request, caller: Administrator, token_id: TokenId) -> Response:
    """Refused at once from then on."""
    with application(request).database.engine() as connection:
        tokens.revoke(connection, str(token_id), actor=caller.actor)
    return Response(status_code=204)


def _token(token: Token) -> dict[str, Any]:
    return {
        "id": str(token.id),
        "name": token.name,
        "role": str(token.role),
        "tenant": token.tenant,
        "connection": token.connection,
        "created_at": rfc3339(token.created_at),
        "revoked_at": show_moment(token.revoked_at),
    }


approvals = APIRouter(prefix="/v1/runs/{id}", tags=["administration"])


@approvals.post(
    "/approve",
    summary="Let go on what the guard has stopped",
    responses=shows({"id": examples.RUN["id"], "kind": "reconcile", "state": "approved"}),
)
def approve(request: Request, caller: Administrator, run_id: RunId) -> Response:
    """Only a stopped run waits for a word: 409 otherwise."""
    with application(request).database.engine() as connection:
        decided = runs.approve(connection, run_id, actor=caller.actor)
    application(request).wake.deliver()
    return JSONResponse({"id": str(run_id), "kind": decided.kind, "state": decided.state})


@approvals.post(
    "/reject",
    summary="Let nothing happen of what the guard has stopped",
    responses=shows({"id": examples.RUN["id"], "kind": "reconcile", "state": "rejected"}),
)
def reject(request: Request, caller: Administrator, run_id: RunId) -> Response:
    """Only a stopped run waits for a word: 409 otherwise."""
    with application(request).database.engine() as connection:
        decided = runs.reject(connection, run_id, actor=caller.actor)
    return JSONResponse({"id": str(run_id), "kind": decided.kind, "state": decided.state})


def takeover_router(kind: Kind) -> APIRouter:
    """Taking a locked field over by force, and giving it back."""
    fields = APIRouter(prefix=f"/v1/{kind}s/{{id}}/fields/{{field}}", tags=["administration"])
    said = takes(an_object(("reason",), reason=_REASON), {"reason": "The reseller cannot correct it before Monday"})
    example = {"id": examples.ACCOUNT["id"], "kind": str(kind), "field": "product", "value": "M365-BUS-PREM"}

    @fields.post("/take", summary="Take a field over", responses=shows(example), openapi_extra=said)
    def take(request: Request, caller: Administrator, record_id: RecordId, field: str, body: JsonObject) -> Response:
        """The field keeps its present value until it is edited, and does not follow the source."""
        one_of(body, ("reason",))
        _known(kind, field)
        with application(request).database.engine() as connection:
            taken = takeovers.take(
                connection, kind, record_id, field, reason=text_of(body, "reason"), actor=caller.actor
            )
        return _done(request, record_id, taken)

    @fields.post("/release", summary="Give a field back", responses=shows(example), openapi_extra=said)
    def release(request: Request, caller: Administrator, record_id: RecordId, field: str, body: JsonObject) -> Response:
        """The field returns to the latest value of the source."""
        one_of(body, ("reason",))
        _known(kind, field)
        with application(request).database.engine() as connection:
            taken = takeovers.release(
                connection, kind, record_id, field, reason=text_of(body, "reason"), actor=caller.actor
            )
        return _done(request, record_id, taken)

    return fields


def _known(kind: Kind, field: str) -> None:
    if "\x00" in field:
        raise InvalidRequest(f"That is no field of {kind}.", fields=(FieldProblem("field", "is unknown"),))


def _done(request: Request, record_id: UUID, taken: Taken) -> Response:
    application(request).wake.process(taken.shard)
    value = show_value(taken.field, taken.value)
    return JSONResponse({"id": str(record_id), "kind": str(taken.kind), "field": taken.field, "value": value})
