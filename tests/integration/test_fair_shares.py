"""Fair shares: one reseller's flood is not the others' delay (goals: reliability 15)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from bss_sync.adapters.sql.deliveries import SqlDeliveries
from bss_sync.adapters.sql.fetches import SqlFetches
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.adapters.sql.neighbours import NEAR_SECONDS, SqlNeighbours
from bss_sync.adapters.sql.streams import LIGHT_MESSAGES, SqlStreams
from bss_sync.bootstrap import App
from bss_sync.domain.change import Action, Change, Kind, shard_of
from bss_sync.domain.tenancy import Connection
from bss_sync.jobs.courtesy import POLITE_STREAMS
from bss_sync.jobs.work import make_work
from bss_sync.pipeline.line import ProcessResult, process_little
from bss_sync.pipeline.settle import settle
from bss_sync.ports.inbox import Accepted, Arrival, Origin
from bss_sync.ports.streams import SHARED_STREAMS
from tests.app import add_connection, wired
from tests.servers import Database
from tests.stream_stores import Counting, Meanwhile, MeanwhileClaiming
from tests.world import AllWakeUps

NOBODY = '{"base_url": "https://192.0.2.1"}'
"""An address that is never called."""


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
    streams = SqlStreams(app.database, lambda _name: False)
    claims = streams.claim_little([3], limit).claims if light else streams.claim(3, limit)
    with app.database.engine() as sql:
        rows = sql.execute(
            text(
                """select connection_id, count(distinct stream_id) as number from message
                   where stream_id = any(:ids) group by 1"""
            ),
            {"ids": [claim.stream_id for claim in claims]},
        )
        return {row.connection_id: row.number for row in rows}


def test_one_alone_fills_the_whole_batch(app: App) -> None:
    (flood,) = _connections(app, 1, one_shard=True)
    _flood(app, flood, 700)
    assert _claimed(app) == {flood.id: 500}


def test_a_busy_shard_gives_its_thread_back_and_is_hinted_at(app: App) -> None:
    (flood,) = _connections(app, 1, one_shard=True)
    _flood(app, flood, 600)
    wake = AllWakeUps()
    make_work(app, wake, turn_seconds=0).process(3)
    assert (_pending(app, flood), wake.shards) == (100, [3])


def test_who_sends_little_shares_no_transaction_with_a_flood_whose_batches_are_short_then(app: App) -> None:
    flood, small = _connections(app, 2, one_shard=True)
    _flood(app, flood, 1_000)
    _send(app, small, [_change(f"s-{index}") for index in range(5)])
    assert _claimed(app) == {flood.id: SHARED_STREAMS}
    assert _claimed(app, light=True) == {small.id: 5}
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


def test_a_few_messages_of_many_resellers_share_one_batch(app: App) -> None:
    sources = _connections(app, 5, one_shard=False)
    for source in sources:
        _send(app, source, [_change("a"), _change("b")])
    streams = SqlStreams(app.database, lambda _name: False)
    shards = [shard_of(source.id) for source in sources]
    result, behind = process_little(streams, shards)
    assert (result.decided, result.more, behind) == (10, True, frozenset())
    assert _number(app, "select count(distinct xmin::text) from account") == 1, "one transaction"
    assert _number(app, "select count(*) from claim") == 0
    result, _behind = process_little(streams, shards)
    assert (result.decided, result.more) == (0, False)


def test_of_many_with_a_little_each_has_a_part_of_the_batch(app: App) -> None:
    for source in _connections(app, 8, one_shard=True):
        _flood(app, source, LIGHT_MESSAGES)
    served = _claimed(app, SHARED_STREAMS, light=True)
    assert sum(served.values()) == SHARED_STREAMS
    assert max(served.values()) <= 2 * SHARED_STREAMS // 8 + 1, "who came first does not fill it alone"


def test_where_many_have_a_little_batches_grow(app: App) -> None:
    for source in _connections(app, 14, one_shard=True):
        _flood(app, source, LIGHT_MESSAGES)
    work = make_work(app, AllWakeUps(), turn_seconds=math.inf)
    streams = Counting(work.streams)
    replace(work, streams=streams).process(3)
    assert streams.little == [128, 256, 500, 12]
    assert _number(app, "select count(*) from message where state = 'pending'") == 0


def test_what_comes_while_its_stream_is_at_work_is_decided_by_who_is_at_it(app: App) -> None:
    (source,) = _connections(app, 1, one_shard=True)
    _send(app, source, [_change("a", 1)])
    work = make_work(app, AllWakeUps(), turn_seconds=math.inf)
    streams = Meanwhile(work.streams, lambda: _send(app, source, [_change("a", 2)]))
    replace(work, streams=streams).process(3)
    assert _number(app, "select count(*) from message where state = 'applied'") == 2


_MANY_WOKEN = f"""
    insert into stream (id, tenant_id, connection_id, shard, kind, source_id, ready_at)
    select gen_random_uuid(), tenant_id, connection_id, 3, 'account', n::text, now()
    from stream, generate_series(1, {LIGHT_MESSAGES + 1}) n"""


@pytest.mark.parametrize(
    ("left", "statement"),
    [
        ("a flood", None),
        ("a claim that ran out", "insert into claim (shard, streams, lease_until) values (3, '{}', now())"),
        ("a stream to be claimed alone", "update stream set shard = 3, unfinished = 1"),
        ("more streams that were woken than is little", _MANY_WOKEN),
    ],
)
def test_a_shard_with_other_work_is_named(app: App, left: str, statement: str | None) -> None:
    flood, small = _connections(app, 2, one_shard=True)
    streams = SqlStreams(app.database, lambda _name: False)
    _send(app, small, [_change("s")])
    assert process_little(streams, [3])[1] == frozenset(), "none of it is there yet"
    if statement is None:
        _flood(app, flood, 200)
    else:
        with app.database.engine() as sql:
            sql.execute(text(statement))
    assert process_little(streams, [3, 4]) == (ProcessResult(0, more=False), frozenset({3})), left


def test_few_that_were_woken_share_a_batch_with_what_little_is_pending_elsewhere(app: App) -> None:
    here, there = _connections(app, 2, one_shard=True)
    _wake(app, here, LIGHT_MESSAGES)
    with app.database.engine() as sql:
        sql.execute(text("update connection set shard = 5 where id = :id"), {"id": there.id})
    _send(app, there, [_change("s")])
    little = SqlStreams(app.database, lambda _name: False).claim_little([3, 5], 500)
    assert (len(little.claims), little.behind) == (LIGHT_MESSAGES + 1, frozenset())


def test_what_was_woken_of_a_flood_shares_no_transaction_with_little_work(app: App) -> None:
    flood, small = _connections(app, 2, one_shard=True)
    _wake(app, flood, 1)
    _flood(app, flood, 200)
    _send(app, small, [_change("s")])
    little = SqlStreams(app.database, lambda _name: False).claim_little([3], 500)
    assert (len(little.claims), little.behind) == (1, frozenset({3}))


def _wake(app: App, source: Connection, number: int) -> None:
    """So many streams without a message of their own are to be looked at."""
    _enqueue(app, "stream", source, number)
    with app.database.engine() as sql:
        sql.execute(text("update stream set ready_at = now() where connection_id = :id"), {"id": source.id})


def test_of_several_shards_with_much_to_do_one_is_worked_on_and_the_others_are_hinted_at(app: App) -> None:
    here, there = _two_floods(app, 100, 100)
    wake = AllWakeUps()
    make_work(app, wake, turn_seconds=math.inf).process(3, 5)
    assert _pending(app, here) == 0
    assert (_pending(app, there), wake.shards) == (100, [5])


def test_much_that_is_hinted_at_while_its_worker_looks_for_little_is_not_forgotten(app: App) -> None:
    here, there = _two_floods(app, 600, 100)
    wake = AllWakeUps()
    work = make_work(app, wake, turn_seconds=math.inf)
    work = replace(work, streams=MeanwhileClaiming(work.streams, lambda: work.process(5)))
    work.process(3)
    assert _pending(app, here) == 0
    assert _pending(app, there) == 0 or 5 in wake.shards


def _two_floods(app: App, first: int, second: int) -> tuple[Connection, Connection]:
    """In shards 3 and 5."""
    here, there = _connections(app, 2, one_shard=True)
    with app.database.engine() as sql:
        sql.execute(text("update connection set shard = 5 where id = :id"), {"id": there.id})
    _flood(app, here, first)
    _flood(app, there, second)
    return here, there


def _pending(app: App, source: Connection) -> int:
    counted = "select count(*) from message where state = 'pending' and connection_id = :id"
    return _number(app, counted, id=source.id)


def test_who_chooses_what_to_do_does_not_stand_back_while_others_wait_to_choose(app: App) -> None:
    """A claim has its shard's turn: little work would wait for a flood that waits for little work."""
    (flood,) = _connections(app, 1, one_shard=True)
    _flood(app, flood, 100)
    made = []
    app.database.before_statement = lambda: made.append("statement")
    streams = SqlStreams(app.database, lambda _name: False)
    claims = streams.claim(3, 10)
    streams.claim_little([3], 10)
    assert len(claims) == 10
    assert made == []
    streams.work(claims, settle)
    assert made, "a batch stands back"


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
    make_work(app, AllWakeUps(), turn_seconds=math.inf).process(3)
    claimed = SqlDeliveries(app.database).claim(64)
    served = [one.connection_id for one in claimed]
    assert (served.count(flood.id), served.count(small.id)) == (60, 4)


def test_a_neighbour_with_little_to_do_is_noticed_while_it_sends_and_has_no_backlog(app: App) -> None:
    flood, small = _connections(app, 2, one_shard=False)
    neighbours = SqlNeighbours(app.database)
    assert not neighbours.light(), "nobody sends"
    _flood(app, flood, 200)
    assert not neighbours.light(), "who has a backlog is no neighbour to itself"
    _send(app, small, [_change("s")])
    assert neighbours.light()
    with app.database.engine() as sql:
        sql.execute(
            text("update connection set last_received_at = now() - make_interval(secs => :near) where id = :id"),
            {"near": NEAR_SECONDS, "id": small.id},
        )
    assert not neighbours.light(), "it has gone"


def test_beside_a_neighbour_a_backlog_is_worked_off_in_short_batches(app: App) -> None:
    flood, small = _connections(app, 2, one_shard=True)
    _flood(app, flood, 4 * POLITE_STREAMS)  # the last of it is little work
    _send(app, small, [_change("s")])
    with app.database.engine() as sql:
        sql.execute(text("update message set state = 'applied' where connection_id = :id"), {"id": small.id})
        # It goes on sending, however long this machine takes.
        about = "update connection set last_received_at = now() + interval '1 hour' where id = :id"
        sql.execute(text(about), {"id": small.id})
    work = make_work(app, AllWakeUps(), turn_seconds=math.inf)
    streams = Counting(work.streams)
    work = replace(work, streams=streams)
    work.process(3)
    assert streams.sizes[:3] == [POLITE_STREAMS] * 3, "from the first one on"
    assert _number(app, "select count(*) from message where state = 'pending'") == 0
