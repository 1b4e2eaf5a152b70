"""Durable accept: signed requests at the real door, beside an empty handler and beside a bare ``COPY``."""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import quantiles
from typing import Any
from uuid import uuid4

import psutil
import psycopg

from bench import sender
from bench.apply import psycopg_address
from bench.figures import Goal, Row, series
from bench.messages import bodies
from bench.places import Installation, Place, Reseller, installation, running
from bss_sync.domain.change import Kind, stream_id

CONNECTIONS = 32
BATCH = 500
_LISTENING = "listening on "
_COPIED = "copied"


def measure(at: Place, *, single: int, batched: int, rounds: int) -> list[Row]:
    """Two rows. Rates are requests per second, and messages per second for arrays of 500."""
    ours, empty, p99 = [], [], []
    arrays, copied = [], []
    for _ in range(rounds):
        rate, milliseconds = _signed(at, single)
        ours.append(rate)
        p99.append(quantiles(milliseconds, n=100)[98])
        empty.append(_empty(single))
        arrays.append(_arrays(at, batched))
        copied.append(_copied(at, batched))
    tail = sorted(p99)
    return [
        Row(
            "door-single",
            "Durable accept, one signed message per request",
            series("door", "requests/s", ours),
            Goal("≥ 0.25", 0.25),
            series("empty handler", "requests/s", empty),
            (f"{single:,} requests on {CONNECTIONS} connections; every answer was 202, after the commit.",),
        ),
        Row(
            "door-p99",
            "The same: latency of the slowest hundredth",
            series("door, p99", "ms", tail),
            Goal("≤ 50 ms", 50.0, at_least=False),
        ),
        Row(
            "door-batches",
            "Durable accept, arrays of 500 messages",
            series("door", "messages/s", arrays),
            Goal("≥ 0.25", 0.25),
            series("COPY", "rows/s", copied),
            (f"{batched:,} messages; COPY into the same columns and indexes, without row-level security.",),
        ),
    ]


def _signed(at: Place, number: int) -> tuple[float, list[float]]:
    with installation(at) as here:
        documents = [_document(kind.value, body) for kind, body in bodies(number)]
        requests = [post(here.resellers[0], f"one-{place}", one) for place, one in enumerate(documents)]
        told = _through_the_door(here, requests)
        assert here.ask("select count(*) from message") == len(requests), "every 202 is a stored message"
        return len(requests) / told["seconds"], told["milliseconds"]


def _arrays(at: Place, number: int) -> float:
    with installation(at) as here:
        elements = [
            {"id": f"many-{place}", **_document(kind.value, body)} for place, (kind, body) in enumerate(bodies(number))
        ]
        requests = [
            post(here.resellers[0], f"array-{first}", elements[first : first + BATCH])
            for first in range(0, len(elements), BATCH)
        ]
        told = _through_the_door(here, requests)
        stored = here.ask("select count(*) from message")
        assert stored == len(elements), f"{stored} of {len(elements)} messages are stored"
        return len(elements) / float(told["seconds"])


def _through_the_door(here: Installation, requests: Sequence[bytes]) -> dict[str, Any]:
    command = [sys.executable, "-m", "bss_sync.cli.main", "web", "--bind", "127.0.0.1:0"]
    with running(command, here.environment, _LISTENING) as door:
        return send(door_port(door.pid), requests)


def _empty(number: int) -> float:
    """The same requests, signed by somebody, at a handler that only reads them."""
    somebody = Reseller(uuid4(), uuid4(), secrets.token_bytes(32))
    requests = [
        post(somebody, f"one-{place}", _document(kind.value, body)) for place, (kind, body) in enumerate(bodies(number))
    ]
    with running([sys.executable, "-m", "bench.empty_door"], {}, _LISTENING) as server:
        told = send(door_port(server.pid), requests)
    return number / float(told["seconds"])


def _copied(at: Place, number: int) -> float:
    """A bare COPY of the same rows into a table with the inbox's columns and indexes."""
    with installation(at) as here:
        one = here.resellers[0]
        with psycopg.connect(psycopg_address(here.database), autocommit=True) as connection:
            connection.execute(f"create table {_COPIED} (like message_unsettled including defaults including indexes)")
            blocks = _formatted(
                connection,
                [_columns(one, kind.value, body, place) for place, (kind, body) in enumerate(bodies(number))],
            )
            started = time.perf_counter()
            with connection.cursor() as cursor, cursor.copy(f"copy {_COPIED} ({_COPY_COLUMNS}) from stdin") as copy:
                for block in blocks:
                    copy.write(block)
            seconds = time.perf_counter() - started
            stored = connection.execute(f"select count(*) from {_COPIED}").fetchone()  # noqa: S608  our own table
            assert stored == (number,), f"{stored} of {number} rows were copied"
        return number / seconds


def _formatted(connection: psycopg.Connection[Any], rows: Sequence[tuple[object, ...]]) -> list[bytes]:
    """The rows as COPY reads them, made before the clock starts: what is measured is the server's."""
    connection.execute(f"create temp table formatted as select {_COPY_COLUMNS} from {_COPIED} limit 0")  # noqa: S608  our own table
    with connection.cursor() as cursor, cursor.copy("copy formatted from stdin") as copy:
        for row in rows:
            copy.write_row(row)
    with connection.cursor() as cursor, cursor.copy("copy formatted to stdout") as copy:
        lines = [bytes(line) for line in copy]
    connection.execute("drop table formatted")
    return [b"".join(lines[first : first + BATCH]) for first in range(0, len(lines), BATCH)]


_COPY_COLUMNS = (
    "id, seq, tenant_id, connection_id, stream_id, shard, origin, message_id, kind, source_id, action, order_kind, "
    "version, sent_at, effective_at, body, digest"
)


def _columns(one: Reseller, kind: str, body: dict[str, Any], place: int) -> tuple[object, ...]:
    now = datetime.now(UTC)
    stream = stream_id(one.id, Kind(kind), body["id"])
    text = json.dumps(body)
    return (
        *(str(uuid4()), place, str(one.tenant_id), str(one.id), str(stream), one.shard, "door", f"copy-{place}", kind),
        *(body["id"], "state", "sequence", body["version"], now, now, text, secrets.token_bytes(32)),
    )


def _document(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"type": f"{kind}.updated", "timestamp": "2026-01-01T00:00:00Z", "data": body}


def post(one: Reseller, message_id: str, document: Any) -> bytes:
    """A signed request, ready to be sent."""
    body = json.dumps(document).encode()
    moment = str(int(time.time()))
    signed = hmac.digest(one.key, f"{message_id}.{moment}.".encode() + body, "sha256")
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": moment,
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }
    return _request(f"/v1/connections/{one.id}/messages", body, headers)


def _request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "host: 127.0.0.1",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def send(port: int, requests: Sequence[bytes]) -> dict[str, Any]:
    """Send everything, and what came of it: only 202 is allowed."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.sender", "127.0.0.1", str(port), str(min(CONNECTIONS, len(requests)))],
        input=sender.pack(list(requests)),
        stdout=subprocess.PIPE,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["statuses"] == {"202": len(requests)}, f"not only 202: {told['statuses']}"
    return told


def door_port(pid: int) -> int:
    """The port that a process listens on."""
    for one in psutil.Process(pid).net_connections(kind="tcp"):
        if one.status == psutil.CONN_LISTEN:
            return int(one.laddr.port)
    raise AssertionError(f"process {pid} listens nowhere")
