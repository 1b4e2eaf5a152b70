"""Apply: inbox → mirror, history, audit and outbox, beside a bare actor and beside the usual engine, by turns."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import dramatiq
import psycopg
from dramatiq.brokers.redis import RedisBroker
from sqlalchemy import make_url

from bench import bare_actor, usual_engine
from bench.figures import Goal, Row, series
from bench.messages import bodies, changes, fill_inbox
from bench.places import Installation, Place, installation, running
from tests.servers import Database

PROCESSES = 2
"""Worker processes of each: as many as there are cores."""
RESELLERS = 8
"""The streams are spread over so many connections, as they are in life."""
_LOOK_SECONDS = 0.1
"""A look costs milliseconds on a core that is measured: every 20 ms it took a twentieth of it."""
_ALL_SETTLED = """
    select not exists (select from message
                       where state in ('pending', 'waiting') and settled_on(state, decided_at) = 'infinity')"""
_PATIENCE_SECONDS = 900.0


def measure(at: Place, *, streams: int, usual_streams: int, rounds: int) -> list[Row]:
    """Two rows: against the bare actor and against the usual engine. Rates are messages per second."""
    ours, bare, usual = [], [], []
    for _ in range(rounds):
        ours.append(_ours(at, streams))
        bare.append(_bare(at, streams))
        usual.append(_usual(at, usual_streams))
    own = series("bss_sync", "messages/s", ours)
    notes = (
        (
            f"{streams:,} streams ({usual_streams:,} for the usual engine) of {RESELLERS} resellers, "
            f"{PROCESSES} worker processes each, everything new, one customer for four subscriptions."
        ),
    )
    return [
        Row(
            "apply-bare-actor",
            "Apply, beside a bare Dramatiq actor",
            own,
            Goal("≥ 3", 3.0),
            series("bare actor", "messages/s", bare),
            (*notes, "The bare actor does one raw upsert per message: no history, audit, outbox, order or ownership."),
        ),
        Row(
            "apply-usual-engine",
            "Apply, beside the usual engine",
            own,
            Goal("≥ 6", 6.0),
            series("usual engine", "messages/s", usual),
            (*notes, "The usual engine has the same tables and rules, one Dramatiq message and one transaction each."),
        ),
    ]


def _ours(at: Place, streams: int) -> float:
    with filled(at, streams) as here, workers(here):
        started = time.perf_counter()
        here.wake()
        wait_until(here.database, _ALL_SETTLED)
        seconds = time.perf_counter() - started
        _check(here, streams)
        return streams / seconds


def _bare(at: Place, streams: int) -> float:
    with at.postgres.database(migrated=False) as database:
        conninfo = psycopg_address(database)
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(bare_actor.TABLE)
        events = [(body["id"], kind.value, body["version"], json.dumps(body)) for kind, body in bodies(streams)]
        broker = redis_broker(at, "bare")
        actor = bare_actor.actor_on(broker, conninfo)
        _send(broker, [actor.message(*event) for event in events])
        with ExitStack() as stack:
            started = time.perf_counter()
            for _ in range(PROCESSES):
                command = [sys.executable, "-m", "bench.bare_actor", at.redis_url, conninfo]
                stack.enter_context(running(command, {}, "working"))
            return _rate(database, "bare", started, streams)


def _usual(at: Place, streams: int) -> float:
    with filled(at, streams) as here:
        broker = redis_broker(at, usual_engine.QUEUE)
        actor = usual_engine.actor_on(broker, here.database.login_url)
        with psycopg.connect(psycopg_address(here.database)) as connection:
            rows = connection.execute("select id from message order by seq").fetchall()
        _send(broker, [actor.message(str(row[0])) for row in rows])
        with ExitStack() as stack:
            started = time.perf_counter()
            for _ in range(PROCESSES):
                command = [sys.executable, "-m", "bench.usual_engine", at.redis_url, here.database.login_url]
                stack.enter_context(running(command, {}, "working"))
            rate = _rate(here.database, "audit", started, streams)
        states = here.ask("select string_agg(distinct state, ',') from message")
        assert states in ("applied", "applied,waiting"), f"the usual engine left messages {states}"
        return rate


def _rate(database: Database, table: str, started: float, number: int) -> float:
    """Messages per second from the first effect to the last: the start of the processes is not counted."""
    with psycopg.connect(psycopg_address(database), autocommit=True) as connection:
        first: tuple[float, int] | None = None
        while True:
            row = connection.execute(f"select count(*) from {table}").fetchone()  # noqa: S608  our own tables
            now = time.perf_counter()
            assert row is not None, "a count is one row"
            if first is None and row[0] > 0:
                first = now, row[0]
            if row[0] >= number:
                assert first is not None, "what is complete has begun"
                return (number - first[1]) / max(now - first[0], 1e-9)
            assert now - started < _PATIENCE_SECONDS, f"{row[0]} of {number} in {table}"
            time.sleep(_LOOK_SECONDS)


def redis_broker(at: Place, namespace: str) -> dramatiq.Broker:
    """Dramatiq's own Redis broker, as lean as it goes."""
    broker: dramatiq.Broker = RedisBroker(url=at.redis_url, middleware=[], namespace=namespace)  # type: ignore[no-untyped-call]  # as published
    return broker


def _send(broker: dramatiq.Broker, messages: Sequence[dramatiq.Message[None]]) -> None:
    for message in messages:
        broker.enqueue(message)


def _check(here: Installation, streams: int) -> None:
    done = {
        "applied": here.ask("select count(*) from message where state = 'applied'"),
        "history": here.ask("select count(*) from history"),
        "records": here.ask("select (select count(*) from account) + (select count(*) from subscription)"),
        "audit": here.ask("select count(*) from audit where action = 'message.applied'"),
        "outbox": here.ask("select count(*) from delivery"),
    }
    assert set(done.values()) == {streams}, f"not everything was done: {done} of {streams}"


@contextmanager
def filled(at: Place, streams: int, resellers: int = RESELLERS) -> Iterator[Installation]:
    """An installation whose inbox holds that many new streams, nobody being awake."""
    with installation(at, resellers=resellers, target=True) as here:
        share = streams // resellers
        fill_inbox(here, [(one, changes(share)) for one in here.resellers])
        yield here


@contextmanager
def workers(here: Installation, number: int = PROCESSES) -> Iterator[None]:
    """Worker processes, ready."""
    with ExitStack() as stack:
        for _ in range(number):
            stack.enter_context(here.process("worker", ready="working"))
        yield


def wait_until(
    database: Database, fact: str, given: Callable[[], str] | None = None, *, look_seconds: float = _LOOK_SECONDS
) -> None:
    """Wait until a query says true."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with psycopg.connect(psycopg_address(database), autocommit=True) as connection:
        while True:
            row = connection.execute(fact).fetchone()
            if row is not None and row[0]:
                return
            assert time.monotonic() < deadline, given() if given else f"never true: {fact}"
            time.sleep(look_seconds)


def psycopg_address(database: Database) -> str:
    """Libpq's address of a database, as superuser."""
    url = make_url(database.superuser_url)
    return f"host={url.query['host']} port={url.query['port']} user={url.username} dbname={url.database}"
