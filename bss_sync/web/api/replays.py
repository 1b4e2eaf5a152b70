"""Deciding stored messages anew by today's rules: one, or all that a selection names; with a dry run."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from sqlalchemy import Connection
from starlette.responses import JSONResponse, Response

from bss_sync.adapters.sql.admin.message_selection import Selection, chosen_ids
from bss_sync.adapters.sql.reading.context import find_connection, read_installation
from bss_sync.adapters.sql.reading.messages import get_message
from bss_sync.adapters.sql.reading.paging import is_uuid
from bss_sync.domain.change import Json, MessageState
from bss_sync.domain.errors import FieldProblem, InvalidRequest
from bss_sync.domain.moment import parse_moment, parse_since
from bss_sync.jobs.reconciling import make_replayer
from bss_sync.pipeline.replay import REHEARSED_MAX, Begun
from bss_sync.web.api import examples
from bss_sync.web.api.answers import an_object, shows, takes
from bss_sync.web.api.parameters import JsonObject, MessageId, Replayer, one_of, reach_of, text_of
from bss_sync.web.auth import Principal, application, transaction

router = APIRouter(prefix="/v1", tags=["messages"])

_TEXT = {"type": "string"}
_RATE = {"type": "number", "exclusiveMinimum": 0, "description": "At most so many messages a second."}
_DRY_RUN = {"type": "boolean", "default": False, "description": "Only say what would happen."}
_CHOICES = ("ids", "state", "connection", "subtree", "source_id", "error", "since", "until", "field")
_EXAMPLE = {
    "dry_run": True,
    "run_id": None,
    "chosen": 1,
    "messages": [
        {
            "id": examples.MESSAGE["id"],
            "message_id": "m-2",
            "kind": "subscription",
            "source_id": "sub-4711",
            "state": "dead",
            "becomes": "applied",
            "verdict": "applied",
            "reason": None,
        }
    ],
    "changes": 1,
}


@router.post(
    "/messages/{id}/replay",
    summary="Decide one message anew",
    responses=shows(_EXAMPLE),
    openapi_extra=takes(an_object(dry_run=_DRY_RUN), {"dry_run": True}),
)
def replay_one(request: Request, caller: Replayer, message: MessageId, body: JsonObject) -> Response:
    """What was applied or superseded answers "no change": no entity ever goes back to a lower version."""
    one_of(body, (), ("dry_run",))
    with transaction(request, caller) as connection:
        get_message(connection, reach_of(caller), message, with_payload=False, with_stack=False)
    return _replay(request, caller, [message], body)


@router.post(
    "/replays",
    summary="Decide every message of a selection anew",
    responses=shows(_EXAMPLE),
    openapi_extra=takes(
        an_object(
            ids={"type": "array", "items": {"type": "string", "format": "uuid"}},
            state={"type": "string", "enum": list(MessageState)},
            connection=_TEXT,
            subtree={"type": "string", "format": "uuid", "description": "An account's id: it and all below it."},
            source_id=_TEXT,
            error={"type": "string", "description": "Whose reason contains this."},
            since={"type": "string", "description": "Received then or later."},
            until={"type": "string", "description": "Received then or earlier; a date is the end of that day."},
            field={"type": "string", "description": "Held for an unknown value of this field."},
            rate=_RATE,
            dry_run=_DRY_RUN,
        ),
        {"state": "dead", "connection": "cloud-resell", "dry_run": True},
    ),
)
def replay_many(request: Request, caller: Replayer, body: JsonObject) -> Response:
    """At least one choice is needed. The workers decide; the answer is what today's rules say of the first thousand.

    A replay is a run, which survives its process: `run_id`; null when everything chosen is decided.
    """
    one_of(body, (), (*_CHOICES, "rate", "dry_run"))
    with transaction(request, caller) as connection:
        selection = _selection(connection, caller, body)
        if selection.is_everything:
            raise InvalidRequest("Choose at least something.", fields=(FieldProblem("state", "or another choice"),))
        chosen = chosen_ids(connection, reach_of(caller), selection)
    return _replay(request, caller, chosen, body)


def _selection(connection: Connection, caller: Principal, body: dict[str, Json]) -> Selection:
    words = {name: text_of(body, name) for name in _CHOICES if name in body and name != "ids"}
    zone = read_installation(connection).time_zone
    wanted = words.get("connection")
    return Selection(
        ids=tuple(_id("ids", value) for value in _ids(body)),
        state=words.get("state"),
        connection_id=None if wanted is None else find_connection(connection, reach_of(caller), wanted).id,
        below=_id("subtree", words["subtree"]) if "subtree" in words else None,
        source_id=words.get("source_id"),
        error=words.get("error"),
        since=parse_since(words["since"], zone, field="since") if "since" in words else None,
        until=parse_moment(words["until"], zone, field="until") if "until" in words else None,
        field=words.get("field"),
    )


def _ids(body: dict[str, Json]) -> list[Json]:
    given = body.get("ids", [])
    if not isinstance(given, list) or ("ids" in body and not given):
        raise InvalidRequest("ids must be a list of ids.", fields=(FieldProblem("ids", "must be a list of ids"),))
    return given


def _id(field: str, value: Json) -> UUID:
    if not isinstance(value, str) or not is_uuid(value):
        raise InvalidRequest(f"{field}: no id.", fields=(FieldProblem(field, "must be an id (UUID)"),))
    return UUID(value)


def _replay(request: Request, caller: Principal, ids: list[UUID], body: dict[str, Any]) -> Response:
    dry_run = body.get("dry_run", False)
    if not isinstance(dry_run, bool):
        raise InvalidRequest("dry_run must be true or false.", fields=(FieldProblem("dry_run", "true or false"),))
    replayer = make_replayer(application(request))
    if dry_run:
        begun = Begun(None, len(ids), replayer.plan(ids[:REHEARSED_MAX]))
    else:
        begun = replayer.replay(ids, actor=caller.actor, rate=_rate(body))
    return JSONResponse(
        {
            "dry_run": dry_run,
            "run_id": None if begun.run_id is None else str(begun.run_id),
            "chosen": begun.chosen,
            "messages": [one.as_json() for one in begun.planned],
            "changes": sum(one.changes for one in begun.planned),
        }
    )


def _rate(body: dict[str, Any]) -> float | None:
    rate = body.get("rate")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float)):
        raise InvalidRequest("rate must be a number.", fields=(FieldProblem("rate", "messages a second"),))
    return rate
