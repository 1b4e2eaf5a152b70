"""An open-loop load generator: ``python -m bench.paced_sender HOST PORT CONNECTIONS PER_SECOND < requests > answers``.

Standard input is as for ``bench.sender``. Each request has its moment, however long the answers before it take; it
goes out on a free keep-alive connection, or waits for one. Standard output is one JSON document: the number of each
status, when each request was sent and answered (seconds of the machine's monotonic clock, in the order of the
requests), and by how much the latest was behind its moment.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import cast

import uvloop

_LENGTH = struct.Struct(">I")


class _Client(asyncio.Protocol):
    """One connection, one request in flight."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready."""
        # uvloop's own class is no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

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
        if len(body) >= length:
            self._buffer = body[length:]
            assert self._answer is not None, "nothing was asked"
            self._answer.set_result(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        """An end before the answer is an error of the run."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("the server closed the connection"))

    async def ask(self, request: bytes) -> int:
        """Send one request and return the status of its answer."""
        assert self._transport is not None, "it is connected"
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """The end."""
        if self._transport is not None:
            self._transport.close()


async def _send(host: str, port: int, connections: int, per_second: float, requests: Sequence[bytes]) -> object:
    loop = asyncio.get_running_loop()
    free: asyncio.Queue[_Client] = asyncio.Queue()
    for _ in range(connections):
        free.put_nowait((await loop.create_connection(_Client, host, port))[1])
    statuses: Counter[str] = Counter()
    sent, answered = [0.0] * len(requests), [0.0] * len(requests)
    started = time.monotonic()

    async def one(place: int, client: _Client) -> None:
        sent[place] = time.monotonic()
        status = await client.ask(requests[place])
        answered[place] = time.monotonic()
        statuses[str(status)] += 1
        free.put_nowait(client)

    tasks = []
    for place in range(len(requests)):
        wait = started + place / per_second - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(place, await free.get())))
    await asyncio.gather(*tasks)
    while not free.empty():
        free.get_nowait().close()
    behind = max(moment - started - place / per_second for place, moment in enumerate(sent))
    return {"statuses": statuses, "sent": sent, "answered": answered, "behind_seconds": max(0.0, behind)}


def main() -> None:
    """Read, send, tell."""
    host, port, connections, per_second = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    data, place, requests = sys.stdin.buffer.read(), 0, []
    while place < len(data):
        (length,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size
        requests.append(data[place : place + length])
        place += length
    json.dump(uvloop.run(_send(host, port, connections, per_second, requests)), sys.stdout)


if __name__ == "__main__":
    main()
