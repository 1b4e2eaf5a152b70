"""What a stranger sends is bounded in memory, whichever way it takes."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from bss_sync.domain.errors import Overloaded
from bss_sync.web.body import BodyReader


async def _received() -> Message:
    return {"type": "http.request", "body": b"12345", "more_body": False}


def test_bodies_that_are_held_leave_less_room_for_others_until_they_are_released() -> None:
    bodies = BodyReader(held_bytes_max=10)
    assert bodies.hold(b"123456")
    assert not bodies.hold(b"12345")
    with pytest.raises(Overloaded):
        asyncio.run(bodies.read({}, _received))
    bodies.release(b"123456")
    assert bodies.hold(b"12345")
    assert asyncio.run(bodies.read({}, _received)) == b"12345"
    assert not bodies.hold(b"1")
