"""Scale out: the same backlog with one worker process and with two, by turns.

Bound by the remote: every call to the distributor's BSS takes 20 ms longer than it would, as over a network; this is
what a second worker is for. Bound by the processor: inbox → mirror on one machine, where PostgreSQL, both workers and
the measurement share the cores; it is shown, and nothing is asked of it.
"""

from __future__ import annotations

import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import psutil
import psycopg

from bench.apply import psycopg_address, wait_until
from bench.figures import Goal, Row, series
from bench.messages import changes, fill_inbox
from bench.places import Installation, Place, installation, running

REMOTE_SECONDS = 0.02
"""What each call to the remote takes longer."""
RESELLERS = 8
_NO_ONE = "http://127.0.0.1:9"
"""Nobody listens there: what is bound by the processor ends at the outbox."""
_TARGET = """
    insert into target (connector, settings)
    values ('simulator', jsonb_build_object('base_url', %s::text, 'allow_http_private', true))"""
_ALL_CONFIRMED = """
    select not exists (select from message
                       where state in ('pending', 'waiting') and settled_on(state, decided_at) = 'infinity')
       and not exists (select from delivery where state <> 'confirmed')"""
_ALL_DECIDED = """
    select not exists (select from message
                       where state in ('pending', 'waiting') and settled_on(state, decided_at) = 'infinity')"""

_SERVERS = """
    select array_agg(pid) from pg_stat_activity
    where (datname = current_database() and pid <> pg_backend_pid()) or backend_type <> 'client backend'"""

_CONFIRMED_SIZE = "select pg_total_relation_size('delivery')"
_DISK = """
    select coalesce(pg_partition_root(c.oid), c.oid)::regclass::text, sum(pg_total_relation_size(c.oid))
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'public' and c.relkind = 'r' group by 1"""


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one backlog. Processor milliseconds are per record: of the workers, and of PostgreSQL."""

    per_second: float
    worker_milliseconds: float
    postgres_milliseconds: float
    disk_bytes: dict[str, float] = field(default_factory=dict)
    """By table, with its indexes, per mirrored subscription."""


def measure(at: Place, *, delivered: int, applied: int, rounds: int) -> list[Row]:
    """Three rows; ``delivered`` and ``applied`` are records of each round."""
    by_remote: dict[int, list[Run]] = {1: [], 2: []}
    by_processor: dict[int, list[Run]] = {1: [], 2: []}
    for number in range(rounds):
        # By turns, and not always the same first: a machine that grows slower favours nobody.
        for workers in (1, 2) if number % 2 == 0 else (2, 1):
            by_remote[workers].append(_delivered(at, delivered, workers))
            by_processor[workers].append(_applied(at, applied, workers))
    disks = [run.disk_bytes for run in by_processor[1]]
    confirmed = by_remote[1][-1].disk_bytes["delivery"]
    return [
        _row(
            "scale-out-remote",
            f"Scale out, each call to the remote {REMOTE_SECONDS * 1000:.0f} ms",
            by_remote,
            Goal("≥ 1.6", 1.6),
            (
                f"{delivered:,} records of {RESELLERS} resellers from the inbox to their confirmation by the remote.",
                "Each record is looked up and created; the log of the remote shows one create each and no step back.",
            ),
        ),
        _row(
            "scale-out-processor",
            "Scale out, bound by the processor of one machine",
            by_processor,
            None,
            (
                f"{applied:,} records of {RESELLERS} resellers from the inbox to mirror, history, audit and outbox.",
                f"PostgreSQL and the workers share {psutil.cpu_count()} cores: this is no measure of several machines.",
            ),
        ),
        Row(
            "disk-per-subscription",
            "Disk per mirrored subscription after its first message",
            series("bss_sync", "bytes", [sum(disk.values()) for disk in disks]),
            notes=(
                "Tables with their indexes, its share of its account (one for four) included, no write-ahead log.",
                "; ".join(f"{name} {size:,.0f}" for name, size in _largest(disks[-1])),
                f"A delivery that is confirmed takes {confirmed:,.0f} bytes for each record.",
            ),
            details={"bytes_by_table": disks[-1]},
        ),
    ]


def _row(name: str, what: str, runs: dict[int, list[Run]], goal: Goal | None, notes: Sequence[str]) -> Row:
    one, two = (series(words, "records/s", [run.per_second for run in runs[number]]) for number, words in _NAMES)
    return Row(name, what, two, goal, one, tuple(notes), {"processor": {f"workers {n}": _costs(runs[n]) for n in runs}})


_NAMES = ((1, "one worker"), (2, "two workers"))


def _largest(disk: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(disk.items(), key=lambda pair: -pair[1])[:8]


def _costs(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "worker_milliseconds_per_record": [round(run.worker_milliseconds, 3) for run in runs],
        "postgres_milliseconds_per_record": [round(run.postgres_milliseconds, 3) for run in runs],
    }


def _delivered(at: Place, records: int, workers: int) -> Run:
    with _remote() as url, _installed(at, url) as here:
        # The newer version first, in no order otherwise.
        run = _timed(here, workers, records, (2, 1), _ALL_CONFIRMED)
        _check_order(url, records)
        return replace(run, disk_bytes={"delivery": here.ask(_CONFIRMED_SIZE) / records})


def _applied(at: Place, records: int, workers: int) -> Run:
    with _installed(at, _NO_ONE) as here:
        run = _timed(here, workers, records, (1,), _ALL_DECIDED)
        outbox = here.ask("select count(*) from delivery")
        assert outbox == records, f"{outbox} of {records} records are in the outbox"
        return replace(run, disk_bytes=_disk(here))


def _disk(here: Installation) -> dict[str, float]:
    subscriptions = here.ask("select count(*) from subscription")
    with psycopg.connect(psycopg_address(here.database)) as connection:
        return {name: float(size) / subscriptions for name, size in connection.execute(_DISK).fetchall()}


@contextmanager
def _installed(at: Place, target_url: str) -> Iterator[Installation]:
    with installation(at, resellers=RESELLERS) as here:
        with psycopg.connect(psycopg_address(here.database)) as connection:
            connection.execute(_TARGET, (target_url,))
        yield here


@contextmanager
def _remote() -> Iterator[str]:
    """A distributor's BSS in a process of its own, each of whose calls takes its time; its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "connectors.simulator", "--role", "distributor", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with running(command, {}, "{"):
        fault = {"path": "/records", "delay_seconds": REMOTE_SECONDS}
        httpx.post(f"{url}/faults", json=fault).raise_for_status()
        yield url


def _timed(here: Installation, workers: int, records: int, versions: Sequence[int], done: str) -> Run:
    """From the first wake-up until ``done`` is true."""
    with ExitStack() as stack:
        processes = [stack.enter_context(here.process("worker", ready="working")) for _ in range(workers)]
        scheduler = stack.enter_context(here.process("scheduler", ready="scheduling"))
        # It would find the work while it is being stored.
        scheduler.suspend()
        try:
            for version in versions:
                share = changes(records // len(here.resellers), version, shuffled=version)
                fill_inbox(here, [(one, share) for one in here.resellers])
            before = _processor_seconds(here, processes)
            started = time.perf_counter()
            here.wake()
        finally:
            scheduler.resume()
        wait_until(here.database, done)
        seconds = time.perf_counter() - started
        after = _processor_seconds(here, processes)
    worker, postgres = (1000 * (late - early) / records for early, late in zip(before, after, strict=True))
    return Run(records / seconds, worker, postgres)


def _processor_seconds(here: Installation, workers: Sequence[psutil.Process]) -> tuple[float, float]:
    """What the workers, and PostgreSQL for this database, have used until now."""
    servers = here.ask(_SERVERS) or []
    return sum(map(_used, (one.pid for one in workers))), sum(map(_used, servers))


def _used(process: int) -> float:
    with suppress(psutil.NoSuchProcess):
        times = psutil.Process(process).cpu_times()
        return float(times.user + times.system)
    return 0.0


def _check_order(url: str, records: int) -> None:
    """The remote's own log: one create for each record, nothing twice, no older version after a newer one."""
    effects = httpx.get(f"{url}/effects", timeout=60).json()["effects"]
    creates = Counter(one["reference"] for one in effects if one["action"] == "create")
    assert len(creates) == records, f"{len(creates)} of {records} records were created"
    assert set(creates.values()) == {1}, "a record was created twice"
    last: dict[str, int] = {}
    for one in effects:
        assert one["changed"], f"effect {one['number']} changed nothing"
        quantity = int(one["after"].get("quantity", 0))
        assert quantity >= last.get(one["reference"], 0), f"{one['reference']} went back to {quantity}"
        last[one["reference"]] = quantity
