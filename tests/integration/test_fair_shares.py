"""Fair shares: one reseller's flood is not the others' delay (goals: reliability 15)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from bss_sync.adapters.sql.deliveries import SqlDeliveries
from bss_sync.adapters.sql.fetches import SqlFetches
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.adapters.sql.streams import SqlStreams
from bss_sync.bootstrap import App
from bss_sync.domain.change import Action, Change, Kind, shard_of, stream_id
from bss_sync.domain.tenancy import Connection
from bss_sync.jobs.work import make_work
from bss_sync.ports.inbox import Accepted, Arrival, Origin
from bss_sync.ports.streams import SHARED_STREAMS
from bss_sync.runner import Parts, running_scheduler, running_worker
from tests.app import add_connection, wired
from tests.servers import Database
from tests.world import AllWakeUps

FLOOD = 10_000
NOBODY = '{"base_url": "https://192.0.2.1"}'
"""An address that is never called."""
ROUNDS_MAX = 3
RATIO_MAX = 2 * 3
"""The goal's figure, three times: `make test` runs on whatever machine there is."""
FLOOR_SECONDS = 0.02
"""Below this a p95 is the machine's noise, not a delay that anybody has."""


@pytest.fixture
def app(database: Database, server_home: Path) -> Iterator[App]:
    with wired(database, server_home) as (app, _clock, _wake):
        yield app


def _change(source_id: str, version: int = 1) -> Change:
    now = datetime.now(UTC)
    identity = uuid4()
    body = {"parent_id": None, "kind": "customer", "name": f"Account {source_id}", "number": None, "email": None}
    return Change(str(identity), Kind.ACCOUNT, source_id, Action.STATE, version, now, now, body, identity.bytes)


def _send(app: App, source: Connection, changes: Sequence[Change]) -> None:
    arrival = Arrival(source.tenant_id, source.id, None, Origin.DOOR, changes)
    (answer,) = SqlInbox(app.database).accept([arrival])
    assert isinstance(answer, Accepted)


def _connections(app: App, number: int, *, one_shard: bool) -> list[Connection]:
    """Live connections that mirror every account; all in one shard, or each where its id puts it."""
    found = []
    for index in range(number):
        source, _secret = add_connection(app, f"reseller-{index}", settings={"account_scope": "all"})
        found.append(source)
    if one_shard:
        with app.database.engine() as sql:
            sql.execute(text("update connection set shard = 3"))
    return found


def _flood(app: App, source: Connection, number: int, name: str = "f") -> None:
    for start in range(0, number, 500):
        _send(app, source, [_change(f"{name}-{index}") for index in range(start, min(start + 500, number))])


def _number(app: App, statement: str, **values: object) -> int:
    with app.database.engine() as sql:
        return int(sql.execute(text(statement), values).scalar_one())


def _claimed(app: App, limit: int = 500, *, light: bool = False) -> dict[UUID, int]:
    """How many streams of each connection one claim takes, in the shard of these tests."""
    claims = SqlStreams(app.database, lambda _name: False).claim(3, limit, light=light)
    with app.database.engine() as sql:
        rows = sql.execute(
            text("select connection_id, count(*) as number from stream where id = any(:ids) group by 1"),
            {"ids": [claim.stream_id for claim in claims]},
        )
        return {row.connection_id: row.number for row in rows}


def test_one_alone_fills_the_whole_batch(app: App) -> None:
    (flood,) = _connections(app, 1, one_shard=True)
    _flood(app, flood, 700)
    assert _claimed(app) == {flood.id: 500}


def test_who_sends_little_is_in_the_next_batch_whole_and_that_batch_is_short(app: App) -> None:
    flood, small = _connections(app, 2, one_shard=True)
    _flood(app, flood, 1_000)
    _send(app, small, [_change(f"s-{index}") for index in range(5)])
    assert _claimed(app) == {flood.id: SHARED_STREAMS - 5, small.id: 5}
    with app.database.engine() as sql:
        sql.execute(text("update message set state = 'applied' where connection_id = :id"), {"id": small.id})
    assert _claimed(app) == {flood.id: 500}, "alone again, the flood has all of it"


def test_two_floods_share_by_priority(app: App) -> None:
    first, second = _connections(app, 2, one_shard=True)
    for source in (first, second):
        _flood(app, source, 300)
    with app.database.engine() as sql:
        sql.execute(text("update connection set priority = 1 where id = :id"), {"id": first.id})
        sql.execute(text("update connection set priority = 3 where id = :id"), {"id": second.id})
    assert _claimed(app) == {first.id: SHARED_STREAMS // 4, second.id: 3 * SHARED_STREAMS // 4}


def test_beside_a_batch_that_is_under_way_only_light_connections_are_claimed(app: App) -> None:
    flood, small = _connections(app, 2, one_shard=True)
    _flood(app, flood, 200)
    _send(app, small, [_change("s")])
    assert _claimed(app, light=True) == {small.id: 1}
    assert _claimed(app, light=True) == {}


def _enqueue(app: App, table: str, source: Connection, number: int) -> None:
    """Due work without its history: only who is served how much is looked at."""
    with app.database.engine() as sql:
        sql.execute(
            text(
                """insert into stream (id, tenant_id, connection_id, shard, kind, source_id)
                   select gen_random_uuid(), :tenant, :id, 3, 'account', n::text from generate_series(1, :number) n"""
            ),
            {"tenant": source.tenant_id, "id": source.id, "number": number},
        )
        if table == "fetch_request":
            sql.execute(
                text(
                    """insert into fetch_request (stream_id, tenant_id, connection_id, kind, source_id, reason, due_at)
                       select id, tenant_id, connection_id, kind, source_id, 'test', now() - interval '1 minute'
                       from stream where connection_id = :id"""
                ),
                {"id": source.id},
            )


def test_fetches_are_shared_fairly(app: App) -> None:
    flood, small = _connections(app, 2, one_shard=True)
    _enqueue(app, "fetch_request", flood, 500)
    _enqueue(app, "fetch_request", small, 40)
    tasks = SqlFetches(app.database).claim(32)
    served = [task.connection_id for task in tasks]
    assert (served.count(flood.id), served.count(small.id)) == (16, 16)


def test_deliveries_are_shared_fairly_and_what_some_do_not_need_goes_to_the_others(app: App) -> None:
    flood, small = _connections(app, 2, one_shard=True)
    _flood(app, flood, 200)
    _send(app, small, [_change(f"s-{index}") for index in range(4)])
    with app.database.engine() as sql:
        sql.execute(text("insert into target (connector, settings) values ('simulator', :reach)"), {"reach": NOBODY})
    make_work(app, AllWakeUps()).process(3)
    claimed = SqlDeliveries(app.database).claim(64)
    served = [one.connection_id for one in claimed]
    assert (served.count(flood.id), served.count(small.id)) == (60, 4)


def _wait(fact: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"not within {seconds} seconds"
        time.sleep(0.005)


def _latencies(app: App, parts: Parts, sources: Sequence[Connection], rounds: int, name: str) -> list[float]:
    """Seconds from each commit at the door until its effect is visible; one message at a time."""
    found = []
    for index in range(rounds):
        source = sources[index % len(sources)]
        _send(app, source, [_change(f"{name}-{index}")])
        begun = time.perf_counter()
        parts.wake.process(_shard(app, source))
        _wait(partial(_is_there, app, stream_id(source.id, Kind.ACCOUNT, f"{name}-{index}")))
        found.append(time.perf_counter() - begun)
        time.sleep(0.02)
    return found


def _is_there(app: App, record_id: UUID) -> bool:
    return _number(app, "select count(*) from account where id = :id", id=record_id) == 1


def _shard(app: App, source: Connection) -> int:
    return _number(app, "select shard from connection where id = :id", id=source.id)


@pytest.mark.slow
@pytest.mark.parametrize("one_shard", [True, False], ids=["same shard", "own shards"])
def test_a_flood_of_one_reseller_leaves_the_others_latency(app: App, one_shard: bool) -> None:
    flood, *others = _connections(app, 4, one_shard=one_shard)
    assert one_shard or shard_of(flood.id) == _shard(app, flood)
    parts = Parts(None)
    measured = []
    with running_worker(app, parts), running_scheduler(app, parts.wake):
        _latencies(app, parts, others, 10, "warm")
        # Whatever else this machine does only makes it worse: the best of three rounds is nearest to the truth.
        for round_number in range(ROUNDS_MAX):
            calm = _latencies(app, parts, others, 30, f"calm-{round_number}")
            _flood(app, flood, FLOOD, f"flood-{round_number}")
            parts.wake.process(_shard(app, flood))
            during = _latencies(app, parts, others, 30, f"during-{round_number}")
            assert _pending_of(app, flood) > 0, "the flood lasted as long as the measurement"
            p95 = [statistics.quantiles(one, n=20)[-1] for one in (calm, during)]
            measured.append(f"{p95[0]:.3f} s → {p95[1]:.3f} s")
            if p95[1] <= RATIO_MAX * max(p95[0], FLOOR_SECONDS):
                return
            _wait(lambda: _pending_of(app, flood) == 0)
    pytest.fail(f"p95 without and with the flood: {'; '.join(measured)}")


def _pending_of(app: App, source: Connection) -> int:
    return _number(app, "select count(*) from message where state = 'pending' and connection_id = :id", id=source.id)
