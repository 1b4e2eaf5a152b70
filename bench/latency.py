"""End-to-end latency: from the 202's arrival at the sender to the change being visible in the mirror.

Real processes: a door, workers, a scheduler, a sender and an observer. The full rate is measured first (as fast as 32
connections go, until the last change is visible); then the same number of changes comes at half of that rate, each at
its own moment; then a hundred single messages, each to a system at rest.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import psutil

from bench import sender
from bench.apply import psycopg_address, wait_until, workers
from bench.door import door_port, post, send
from bench.figures import Goal, Row, series
from bench.messages import bodies, changes, fill_inbox
from bench.places import Installation, Place, installation
from bss_sync.domain.change import stream_id

CONNECTIONS = 32
RESELLERS = 8
REST_PER_SECOND = 5.0
P50_MILLISECONDS_MAX, P99_MILLISECONDS_MAX = 30.0, 250.0
_SETTLED = "select not exists (select from message where settled_on(state, decided_at) = 'infinity')"
_PATIENCE_SECONDS = 400


@dataclass(frozen=True)
class _Sent:
    """Requests, each about one record that is there already."""

    requests: list[bytes]
    records: list[str]


@dataclass(frozen=True)
class _Tail:
    """Milliseconds from the answer to being visible, in the order of the requests."""

    milliseconds: list[float]
    behind_seconds: float

    @property
    def p50(self) -> float:
        """The median."""
        return quantiles(self.milliseconds, n=100)[49]

    @property
    def p99(self) -> float:
        """The slowest hundredth."""
        return quantiles(self.milliseconds, n=100)[98]


def measure(at: Place, *, messages: int, single: int, rounds: int) -> list[Row]:
    """Four rows: p50 and p99 at half of the full rate, and of single messages at rest. Latencies in milliseconds."""
    full, half, rest = [], [], []
    with filled_town(at, messages) as (here, port):
        versions = iter(range(2, 2 + 3 * rounds))
        for _ in range(rounds):
            full.append(_full_rate(here, port, _sent(here, messages, next(versions))))
            half.append(_paced(here, port, _sent(here, messages, next(versions)), full[-1] / 2, CONNECTIONS))
            rest.append(_paced(here, port, _sent(here, messages, next(versions), most=single), REST_PER_SECOND, 1))
    load = (
        (
            f"{messages:,} changes of {messages:,} records of {RESELLERS} resellers, one signed message per request; "
            f"full rate {_spread(full)} messages/s end to end, sent at half of it; "
            f"the sender was at most {max(one.behind_seconds for one in half) * 1000:.0f} ms behind its moments."
        ),
        "One door, two workers, one scheduler, the sender and the observer share the machine.",
    )
    alone = (f"{single:,} messages, {1000 / REST_PER_SECOND:.0f} ms apart, nothing else to do.",)
    return [
        _row("half-p50", "Accepted → visible at half load, median", "p50", [one.p50 for one in half], load),
        _row("half-p99", "Accepted → visible at half load, slowest hundredth", "p99", [one.p99 for one in half], load),
        _row("rest-p50", "Accepted → visible, single message at rest, median", "p50", [one.p50 for one in rest], alone),
        _row("rest-p99", "The same, slowest hundredth", "p99", [one.p99 for one in rest], alone),
    ]


def _row(name: str, what: str, figure: str, milliseconds: Sequence[float], notes: tuple[str, ...]) -> Row:
    most = P50_MILLISECONDS_MAX if figure == "p50" else P99_MILLISECONDS_MAX
    goal = Goal(f"≤ {most:.0f} ms", most, at_least=False)
    return Row(f"latency-{name}", what, series(figure, "ms", milliseconds), goal, None, notes)


def _spread(rates: Sequence[float]) -> str:
    return f"{min(rates):,.0f} to {max(rates):,.0f}" if len(rates) > 1 else f"{rates[0]:,.0f}"


@contextmanager
def filled_town(at: Place, streams: int) -> Iterator[tuple[Installation, int]]:
    """An installation whose mirror holds that many records, all of its processes, and the door's port."""
    with installation(at, resellers=RESELLERS) as here, ExitStack() as stack:
        stack.enter_context(workers(here))
        stack.enter_context(here.process("scheduler", ready="scheduling"))
        fill_inbox(here, [(one, changes(streams // RESELLERS)) for one in here.resellers])
        here.wake()
        wait_until(here.database, _SETTLED)
        here.analyze()
        door = stack.enter_context(here.process("web", "--bind", "127.0.0.1:0", ready="listening on "))
        yield here, door_port(door.pid)


def _sent(here: Installation, messages: int, version: int, *, most: int | None = None) -> _Sent:
    """One change of each record, the resellers by turns."""
    shares = [bodies(messages // RESELLERS, version)] * RESELLERS
    requests: list[bytes] = []
    records: list[str] = []
    for place in range(len(shares[0])):
        for one, share in zip(here.resellers, shares, strict=True):
            if most is not None and len(requests) == most:
                return _Sent(requests, records)
            kind, body = share[place]
            document = {"type": f"{kind.value}.updated", "timestamp": "2026-01-01T00:00:00Z", "data": body}
            if kind.value == "account":
                document["data"] = body | {"name": f"{body['name']}, as of {version}"}
            requests.append(post(one, f"{body['id']}-v{version}", document))
            records.append(str(stream_id(one.id, kind, body["id"])))
    return _Sent(requests, records)


def _full_rate(here: Installation, port: int, sent: _Sent) -> float:
    """Messages per second from the first request to the last change that is visible."""
    seen, told = _observed(here, len(sent.records), lambda: send(port, sent.requests))
    last = max(seen[record] for record in sent.records)
    first = min(seen.values())
    # The first change is visible some milliseconds after the first request, which the sender does not date.
    return len(sent.records) / max(last - first, float(told["seconds"]))


def _paced(here: Installation, port: int, sent: _Sent, per_second: float, connections: int) -> _Tail:
    seen, told = _observed(here, len(sent.records), lambda: _send_paced(port, sent.requests, per_second, connections))
    late = [
        max(0.0, (seen[record] - answered) * 1000)
        for record, answered in zip(sent.records, told["answered"], strict=True)
    ]
    return _Tail(late, told["behind_seconds"])


def _send_paced(port: int, requests: Sequence[bytes], per_second: float, connections: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.paced_sender", "127.0.0.1", str(port), str(connections), str(per_second)],
        input=sender.pack(list(requests)),
        stdout=subprocess.PIPE,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["statuses"] == {"202": len(requests)}, f"not only 202: {told['statuses']}"
    return told


def _observed(
    here: Installation, records: int, act: Callable[[], dict[str, Any]]
) -> tuple[dict[str, float], dict[str, Any]]:
    """What was seen when, and what ``act`` told."""
    command = [sys.executable, "-m", "bench.observer", psycopg_address(here.database), str(records)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as observer:
        try:
            assert observer.stdout is not None, "it was asked for"
            assert observer.stdout.readline() == "looking\n", "the observer does not look"
            told = act()
            out, _ = observer.communicate(timeout=_PATIENCE_SECONDS)
        finally:
            if observer.poll() is None:
                psutil.Process(observer.pid).kill()
    assert observer.returncode == 0, "the observer has not seen everything"
    return json.loads(out), told
