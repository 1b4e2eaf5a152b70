"""What a stranger sends, bounded before anything is parsed: headers and raw body."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from bss_sync.domain.errors import InvalidMessage, Overloaded
from bss_sync.pipeline.envelope import CONTRACT_LIMITS, check_length

BODY_SECONDS_MAX = 30.0
HELD_BYTES_MAX = 64 * 1024 * 1024
"""Bodies in memory at one time, of all senders together."""


def header_mapping(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by lower-case name; a repeated one is joined with commas, as HTTP reads it."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


class BodyReader:
    """Reads bodies into memory, and knows how much of it all requests hold together."""

    def __init__(self, held_bytes_max: int = HELD_BYTES_MAX, seconds_max: float = BODY_SECONDS_MAX) -> None:
        self._held_bytes_max = held_bytes_max
        self._seconds_max = seconds_max
        self._held_bytes = 0

    async def read(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """The raw body, held until it is released.

        InvalidMessage: 413 as soon as it is too long, 415 when it is encoded, 408 when it does not arrive in time.
        Overloaded when the bodies of all requests hold too much memory.
        """
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise InvalidMessage(
                "Content-Encoding must be identity.",
                status=415,
                next_step="Send the body uncompressed, as it was signed.",
            )
        length = headers.get("content-length", "")
        if length.isdecimal():
            check_length(int(length[:20]))
        body = bytearray()
        try:
            await self._fill_in_time(body, receive)
        except BaseException:
            self._held_bytes -= len(body)
            raise
        return bytes(body)

    def hold(self, body: bytes) -> bool:
        """Hold a body that has been received, until it is released. Whether there is memory for it."""
        if self._held_bytes + len(body) > self._held_bytes_max:
            return False
        self._held_bytes += len(body)
        return True

    def release(self, body: bytes) -> None:
        """Its request has been worked on."""
        self._held_bytes -= len(body)

    async def _fill_in_time(self, body: bytearray, receive: Receive) -> None:
        try:
            async with asyncio.timeout(self._seconds_max):
                await self._fill(body, receive)
        except TimeoutError:
            raise InvalidMessage(
                "The body did not arrive in time.", status=408, next_step="Send the same message again."
            ) from None

    async def _fill(self, body: bytearray, receive: Receive) -> None:
        more = True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk: bytes = event.get("body", b"")
            check_length(len(body) + len(chunk), CONTRACT_LIMITS.body_bytes_max)
            if self._held_bytes + len(chunk) > self._held_bytes_max:
                raise Overloaded("More is being received here than memory is set aside for.", retry_after_seconds=2)
            self._held_bytes += len(chunk)
            body += chunk
            more = event.get("more_body", False)
