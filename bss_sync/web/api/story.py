"""A message's whole story by one id."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import JSONResponse, Response

from bss_sync.adapters.sql.reading.story import tell_story
from bss_sync.web.api import examples
from bss_sync.web.api.answers import shows
from bss_sync.web.api.parameters import Reader, Text, reach_of
from bss_sync.web.auth import transaction

router = APIRouter(prefix="/v1/messages", tags=["messages"])

_STORY = {
    **examples.MESSAGE,
    "dropped": [],
    "trace": None,
    "steps": [
        {
            "at": "2026-03-02T10:15:00.412000Z",
            "step": "received",
            "words": "received by the webhook door from cloud-resell: subscription sub-4711, version 7",
            "origin": "door",
        },
        {
            "at": "2026-03-02T10:15:00.431000Z",
            "step": "waited",
            "words": "waited (account_unknown: account cust-x) for 1.204 s",
            "reason": "account_unknown: account cust-x",
            "seconds": 1.204,
        },
        {
            "at": "2026-03-02T10:15:01.635000Z",
            "step": "changed",
            "words": "changed, effective 2026-03-01T00:00:00Z: quantity 10 → 25",
            "effective_at": "2026-03-01T00:00:00Z",
            "late": False,
            "fields": {"quantity": {"from": 10, "to": 25}},
        },
        {
            "at": "2026-03-02T10:15:01.902000Z",
            "step": "confirmed",
            "words": "updated in the distributor's BSS as S-1009, attempt 1",
            "external_id": "S-1009",
            "attempt": 1,
            "revision": 4,
        },
    ],
}


# A sender's id may hold slashes, so the whole of CONNECTION/MESSAGE_ID is one parameter.
@router.get("/{id:path}/story", summary="A message's whole story", responses=shows(_STORY))
def story(
    request: Request,
    caller: Reader,
    message: Annotated[
        Text,
        Path(
            alias="id",
            max_length=1000,
            description="Our id of the message, or CONNECTION/MESSAGE_ID with the sender's.",
            examples=[examples.MESSAGE["id"]],
        ),
    ],
) -> Response:
    """Received, waited, decided, changed, delivered, confirmed: in order, with times and reasons.

    Resellers are told of the mirror, not of the distributor's own BSS.
    """
    with transaction(request, caller) as connection:
        return JSONResponse(tell_story(connection, reach_of(caller), message))
