"""A load generator in a process of its own: ``python -m bench.sender HOST PORT CONNECTIONS < requests > answers``.

Standard input holds prepared requests, each after its length in four bytes. They are dealt out to keep-alive
connections, one request in flight on each, in a closed loop. Standard output is one JSON document: seconds, the number
of each status, and the latency of every request in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import cast

import uvloop

_LENGTH = struct.Struct(">I")


def pack(requests: list[bytes]) -> bytes:
    """What the generator reads."""
    return b"".join(_LENGTH.pack(len(one)) + one for one in requests)


class _Client(asyncio.Protocol):
    """One connection: the next request as soon as the last is answered."""

    def __init__(self, requests: Iterator[bytes], statuses: Counter[int], milliseconds: list[float]) -> None:
        self._requests = requests
        self._statuses = statuses
        self._milliseconds = milliseconds
        self._buffer = b""
        self._sent_at = 0.0
        self.done = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's own class is no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        """Collect one answer; only its status is looked at."""
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if len(body) < length:
            return
        self._milliseconds.append((time.perf_counter() - self._sent_at) * 1000)
        self._statuses[int(head[9:12])] += 1
        self._buffer = body[length:]
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        """An end before the last answer is an error of the run."""
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed the connection"))

    def _next(self) -> None:
        assert self._transport is not None, "it is connected"
        request = next(self._requests, None)
        if request is None:
            self.done.set_result(None)
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(request)


async def _send(host: str, port: int, connections: int, requests: list[bytes]) -> dict[str, object]:
    statuses: Counter[int] = Counter()
    milliseconds: list[float] = []
    left = iter(requests)
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    clients = [
        (await loop.create_connection(lambda: _Client(left, statuses, milliseconds), host, port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(client.done for client in clients))
    return {
        "seconds": time.perf_counter() - started,
        "statuses": {str(status): number for status, number in statuses.items()},
        "milliseconds": milliseconds,
    }


def main() -> None:
    """Read, send, tell."""
    host, port, connections = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    data, place, requests = sys.stdin.buffer.read(), 0, []
    while place < len(data):
        (length,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size
        requests.append(data[place : place + length])
        place += length
    json.dump(uvloop.run(_send(host, port, connections, requests)), sys.stdout)


if __name__ == "__main__":
    main()
