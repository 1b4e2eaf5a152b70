"""The inbox: what came in, and what became of it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from bss_sync.adapters.sql.reading.messages import MessageFilter, get_message, list_messages
from bss_sync.domain.tenancy import Role
from bss_sync.web.api import examples
from bss_sync.web.api.answers import list_answer, shows, shows_list
from bss_sync.web.api.parameters import MessageId, PagingQuery, Reader, Since, Words, reach_of, read_since
from bss_sync.web.auth import transaction

router = APIRouter(prefix="/v1/messages", tags=["messages"])
_INSIDERS = (Role.ADMIN, Role.OPERATOR)


@router.get("", summary="List the inbox", responses=shows_list(examples.MESSAGE))
def list_all(
    request: Request,
    caller: Reader,
    paging: PagingQuery,
    wanted_connection: Annotated[
        Words | None, Query(alias="connection", description="A connection's id or name.")
    ] = None,
    source_id: Words | None = None,
    message_id: Annotated[Words | None, Query(description="The sender's id of the message.")] = None,
    kind: Annotated[Words | None, Query(description="account or subscription")] = None,
    state: Annotated[
        Words | None,
        Query(description="pending, waiting, applied, superseded, out_of_scope, quarantined, dead or discarded"),
    ] = None,
    updated_since: Since = None,
) -> Response:
    """Without bodies. Dead letters: `?state=dead`."""
    with transaction(request, caller) as connection:
        since = read_since(connection, updated_since)
        wanted = MessageFilter(wanted_connection, source_id, message_id, kind, state, since)
        return list_answer(request, list_messages(connection, reach_of(caller), wanted, paging))


@router.get("/{id}", summary="One message", responses=shows({**examples.MESSAGE, "dropped": ["sales_price"]}))
def get_one(request: Request, caller: Reader, message: MessageId) -> Response:
    """With the names of members that were dropped. Admins and operators also see `payload` and `stack`."""
    inside = caller.role in _INSIDERS
    with transaction(request, caller) as connection:
        shown = get_message(connection, reach_of(caller), message, with_payload=inside, with_stack=inside)
    return JSONResponse(shown)
