"""What a poll tells of known subscriptions is decided at once, and is what the line would have made of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from bss_sync.adapters.sql.audit import verify_chains
from bss_sync.adapters.sql.first_load import SqlFirstLoad
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.domain.change import Action, Change, OrderKind
from bss_sync.pipeline.entrance import enter, follow
from bss_sync.pipeline.settle import settle
from bss_sync.ports.inbox import Accepted, Arrival, Origin
from bss_sync.ports.loading import Entered, NewBatch, Taken
from bss_sync.ports.streams import Batch, Settled
from bss_sync.testing.simulation.chunks import NoChunks
from connectors.simulator.reseller import ResellerBss
from tests.app import add_connection
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, eventually, world

# What was written, without ids and times that differ from poll to poll.
_TABLES = {
    "stream": "kind, source_id, epoch, version, digest, deleted, version_sent_at, version_message_id, lease_until, "
    "unfinished, solo_claims, ready_at, token",
    "account": "source_id, name, parent_source_id, version, source, effective_at, revision, chain_version",
    "subscription": "source_id, account_source_id, account_id is null, parent_source_id, parent_id is null, product, "
    "status, source_status, trial, start_date, end_date, cancellation_date, auto_renew, billing_cycle, term, quantity, "
    "characteristics, epoch, version, order_kind, source, passed, effective_at, deleted_at, ended_at, ended_reason, "
    "revision, chain_version, chain_effective_at",
    "history": "kind, epoch, version, effective_at, state, deleted, ended_reason, late, chain_version, chain_linked",
    "staging": "action, kind, version, sent_at, effective_at, body, passed, reason, product",
    "message": "origin, message_id, kind, source_id, action, order_kind, version, sent_at, effective_at, body, "
    "passed, digest, state, verdict, reason, held_field, held_value, wait_reason, attempts > 0, applied_at is null",
    "delivery": "kind, desired_revision, confirmed_revision, state, due_at is null",
    "gap": "from_version, to_version, missing, closed_at is null",
    "fetch_request": "kind, source_id, reason",
    "ending": "number",
    "audit": "action, kind, detail",
}


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, connection={"page_size": 4}) as one:
        yield one


def _fill(bss: ResellerBss) -> None:
    for name in ("x", "y"):
        bss.put(ACCOUNT, name, {"name": name})
    for name in (
        "plain",
        "twice",
        "moves",
        "homeless",
        "ends",
        "deleted",
        "foreign",
        "strange",
        "trial",
        "hung",
        "far",
    ):
        bss.put(SUBSCRIPTION, name, {"account_id": "x", "product": PRODUCT, "quantity": 5})
    bss.put(SUBSCRIPTION, "ended", {"account_id": "x", "product": PRODUCT, "status": "terminated"})
    bss.put(SUBSCRIPTION, "held", {"account_id": "x", "product": PRODUCT})
    bss.put(SUBSCRIPTION, "own", {"account_id": None, "product": PRODUCT})
    bss.put(SUBSCRIPTION, "add-on", {"account_id": "x", "product": PRODUCT, "parent_id": "plain"})
    bss.put(SUBSCRIPTION, "staged", {"account_id": "x", "product": PRODUCT, "trial": True})


def _first_changes(bss: ResellerBss) -> None:
    changes: dict[str, dict[str, Any]] = {
        "plain": {"quantity": 6, "characteristics": {"share": 1.5, "text": "Mü"}},
        "twice": {"quantity": 7, "effective_at": "2026-01-05T00:00:00Z"},
        "moves": {"account_id": "y"},
        "homeless": {"account_id": "nobody"},
        "ends": {"status": "terminated"},
        "foreign": {"product": "other"},
        "strange": {"status": "weird"},
        "trial": {"trial": True},
        "hung": {"parent_id": "plain"},
        "ended": {"status": "active"},
        "held": {"status": "weird"},
        "own": {"term": "P1Y", "auto_renew": False},
        "add-on": {"quantity": 9},
        "staged": {"trial": False},
    }
    for name, change in changes.items():
        bss.patch(SUBSCRIPTION, name, change)
    bss.delete(SUBSCRIPTION, "deleted")
    bss.patch(ACCOUNT, "y", {"name": "Y"})
    bss.put(SUBSCRIPTION, "new", {"account_id": "y", "product": PRODUCT})


def _second_changes(bss: ResellerBss) -> None:
    for name in ("plain", "twice", "moves", "held", "strange", "own", "new", "ended", "trial"):
        bss.patch(SUBSCRIPTION, name, {"quantity": 70, "status": "active"})


def _written(one: World) -> dict[str, list[str]]:
    found = {}
    for table, columns in _TABLES.items():
        acts = " and action like 'message.%'" if table == "audit" else ""
        statement = f"select {columns} from {table} where connection_id = :id{acts}"
        found[table] = sorted(map(repr, one.rows(statement, id=one.source.id)))
    return found


def _beside(one: World) -> World:
    """Another connection to the same source, of which every message goes through the inbox."""
    reach = {"base_url": one.simulator.url, "allow_http_private": True, "page_size": 4}
    source, _secret = add_connection(one.app, "beside", connector="simulator", settings=reach)
    one.execute("update connection set state = 'live' where id = :id", id=source.id)
    slow = replace(one.work, poller=replace(one.work.poller, chunks=NoChunks()))
    return replace(one, source=source, work=slow)


def _poll(one: World) -> int:
    """Poll one connection; how much of it was decided before a worker looked."""
    one.calm()
    one.execute("update connection set poll_due_at = now() + interval '1 hour'")
    one.execute("update connection set poll_due_at = now() where id = :id", id=one.source.id)
    applied = "select count(*) from message where connection_id = :id and state = 'applied'"
    before = one.value(applied, id=one.source.id)
    one.work.poll()
    done = one.value(applied, id=one.source.id) - before
    one.process()
    return int(done)


def test_a_poll_that_is_taken_at_once_leaves_what_the_line_would_have_left(mirror: World) -> None:
    beside = _beside(mirror)
    bss = mirror.simulator.reseller
    _fill(bss)
    steps: list[Callable[[ResellerBss], None]] = [lambda _bss: None, _first_changes, _second_changes]
    at_once = []
    for step in steps:
        step(bss)
        at_once.append(_poll(mirror))
        assert _poll(beside) == 0, "workers have decided everything"
    assert min(at_once) >= 4, "what is plain is applied before any worker looks"
    found, wanted = _written(mirror), _written(beside)
    for table in _TABLES:
        assert found[table] == wanted[table], table
    with mirror.app.database.engine() as connection:
        assert set(verify_chains(connection).values()) == {None}


def _change(version: int, quantity: str = "9", source_id: str = "sub", **body: Any) -> Change:
    now = datetime.now(UTC)
    content: dict[str, Any] = {
        "account_id": None, "parent_id": None, "product": PRODUCT, "status": "active", "trial": False,
        "start_date": None, "end_date": None, "activation_date": None, "cancellation_date": None, "auto_renew": True,
        "billing_cycle": "P1M", "term": None, "quantity": quantity, "characteristics": {},
    }  # fmt: skip
    name = f"{source_id}-{version}-{quantity}"
    digest = name.encode().ljust(32)[:32]
    return Change(name, SUBSCRIPTION, source_id, Action.STATE, version, now, now, content | body, digest)


def _arrival(one: World, *changes: Change, origin: Origin = Origin.POLL) -> Arrival:
    return Arrival(one.source.tenant_id, one.source.id, None, origin, changes)


@pytest.fixture
def known(mirror: World) -> World:
    """A subscription at version 3 is in the mirror."""
    SqlInbox(mirror.app.database).accept([_arrival(mirror, _change(3, "3"), origin=Origin.DOOR)])
    mirror.process()
    assert mirror.value("select version from subscription") == 3
    return mirror


def _chunks(one: World) -> SqlFirstLoad:
    return SqlFirstLoad(one.app.database, lambda _name: True)


def test_what_is_plain_is_applied_with_its_message_its_history_and_its_place(known: World) -> None:
    taken = _chunks(known).take(_arrival(known, _change(5)), enter, follow)
    assert (taken.accepted, list(taken.left), taken.fetches) == (1, [], True)
    (message,) = known.rows("select * from message where version = 5")
    assert (message.state, message.verdict, message.origin) == ("applied", "updated", "poll")
    (stream,) = known.rows("select * from stream")
    assert (stream.version, stream.version_seq, stream.version_message_id) == (5, message.seq, message.message_id)
    assert known.value("select quantity from subscription") == 9
    assert [row.version for row in known.rows("select version from history order by version")] == [3, 5]
    assert known.value("select reason from fetch_request") == "gap"


_OPEN = """
    insert into message (id, tenant_id, connection_id, stream_id, shard, origin, message_id, kind, source_id, action,
                         order_kind, version, sent_at, effective_at, body, digest, state)
    select gen_random_uuid(), tenant_id, connection_id, id, shard, 'door', 'open', kind, source_id, 'state', 'sequence',
           2, now(), now(), '{}', '', '%s' from stream"""
_STAGED = """
    insert into staging (stream_id, action, tenant_id, connection_id, kind, message, message_id, version, order_kind,
                         sent_at, effective_at, body, passed, reason, product)
    select id, 'state', tenant_id, connection_id, kind, gen_random_uuid(), 'staged', 2, 'sequence', now(), now(), '{}',
           '{}', 'trial', 'M365' from stream"""
_TAKEN = """
    insert into takeover (id, tenant_id, connection_id, record_id, kind, field, value, taken_by, reason)
    select gen_random_uuid(), tenant_id, connection_id, id, kind, 'quantity', '"8"', 'test', 'test' from stream"""


@pytest.mark.parametrize(
    "statement",
    [
        *(_OPEN % state for state in ("pending", "waiting", "quarantined", "dead")),
        _STAGED,
        _TAKEN,
        "insert into claim (shard, streams, lease_until) select shard, array[id], now() + interval '1 h' from stream",
        "update stream set lease_until = now() + interval '1 hour'",
        "update stream set unfinished = 1",
        "update stream set solo_claims = 1",
        "update stream set ready_at = now()",
        "update stream set deleted = true",
        "update subscription set quantity = 77",
        "update connection set state = 'paused'",
    ],
)
def test_where_somebody_is_at_it_or_something_is_open_it_is_left(known: World, statement: str) -> None:
    known.execute(statement)
    change = _change(4)
    taken = _chunks(known).take(_arrival(known, change), enter, follow)
    assert (taken.accepted, list(taken.left)) == (0, [change])
    assert known.value("select count(*) from message where version = 4") == 0


@pytest.mark.parametrize(
    "change",
    [
        _change(2),
        _change(3),
        _change(4, parent_id="sub"),
        _change(4, parent_id="nobody"),
        _change(4, account_id="nobody"),
        _change(4, status="terminated"),
        _change(4, status="weird"),
        _change(4, product="other"),
        replace(_change(4), action=Action.DELETED, body={}),
        replace(_change(4), order=OrderKind.TIMESTAMP),
    ],
)
def test_what_is_not_newer_or_concerns_others_or_ends_it_is_left(known: World, change: Change) -> None:
    taken = _chunks(known).take(_arrival(known, change), enter, follow)
    assert (taken.accepted, list(taken.left)) == (0, [change])


def test_of_what_a_chunk_tells_twice_nothing_is_taken(known: World) -> None:
    changes = [_change(4), _change(5)]
    taken = _chunks(known).take(_arrival(known, *changes), enter, follow)
    assert (taken.accepted, list(taken.left)) == (0, changes)


def test_a_live_message_that_comes_while_it_is_decided_has_its_turn_afterwards(known: World) -> None:
    inbox = SqlInbox(known.app.database)
    with ThreadPoolExecutor(1) as pool:
        workers: list[Future[None]] = []

        def meanwhile(batch: Batch) -> Settled:
            inbox.accept([_arrival(known, _change(9, "99"), origin=Origin.DOOR)])
            workers.append(pool.submit(known.process))
            # It has claimed the stream and waits for its row.
            eventually(lambda: known.value("select exists (select from claim)"))
            return follow(batch)

        taken = _chunks(known).take(_arrival(known, _change(4)), enter, meanwhile)
        workers[0].result(timeout=30)
    assert taken.accepted == 1
    assert known.value("select quantity from subscription") == 99
    rows = known.rows("select version, late from history order by version")
    assert [(row.version, row.late) for row in rows] == [(3, False), (4, False), (9, False)]
    assert known.value("select version_seq from stream") == known.value("select seq from message where version = 9")


def test_what_a_worker_is_at_is_left_to_it_and_nobody_waits(known: World) -> None:
    inbox, streams = SqlInbox(known.app.database), known.work.streams
    inbox.accept([_arrival(known, _change(6, "6"), origin=Origin.DOOR)])
    claims = streams.claim(known.value("select shard from connection"), 10)
    late, taken = _change(5), list[Taken]()

    def meanwhile(batch: Batch) -> Settled:
        taken.append(_chunks(known).take(_arrival(known, late), enter, follow))
        return settle(batch)

    streams.work(claims, meanwhile)
    assert [(one.accepted, list(one.left)) for one in taken] == [(0, [late])]
    assert known.value("select version from subscription") == 6


def test_what_is_being_written_is_passed_over_and_nobody_waits(known: World) -> None:
    change = _change(5)
    with known.app.database.engine() as somebody:
        somebody.execute(text("select from stream for no key update"))
        taken = _chunks(known).take(_arrival(known, change), enter, follow)
    assert (taken.accepted, list(taken.left)) == (0, [change])


def test_of_two_who_poll_the_same_one_decides_and_the_other_finds_it_done(known: World) -> None:
    arrival, others = _arrival(known, _change(4)), list[Taken]()

    def meanwhile(batch: Batch) -> Settled:
        others.append(_chunks(known).take(arrival, enter, follow))
        return follow(batch)

    taken = _chunks(known).take(arrival, enter, meanwhile)
    assert (taken.accepted, [one.accepted for one in others]) == (1, [0])
    (answer,) = SqlInbox(known.app.database).accept([replace(arrival, changes=others[0].left)])
    assert isinstance(answer, Accepted)
    assert (answer.accepted, answer.duplicates) == (0, 1)
    assert known.value("select count(*) from message where version = 4") == 1


def test_a_message_that_is_known_undoes_what_was_decided_beside_it(known: World) -> None:
    """The key is older than the stream tells: the message was given up by an admin, say."""
    inbox = SqlInbox(known.app.database)
    inbox.accept([_arrival(known, _change(4), origin=Origin.DOOR)])
    known.execute("update message set state = 'discarded', decided_at = now() where version = 4")
    inbox.accept([_arrival(known, _change(3, "3", "other"), origin=Origin.DOOR)])
    known.process()
    changes = [_change(4), _change(4, "8", "other")]
    taken = _chunks(known).take(_arrival(known, *changes), enter, follow)
    assert (taken.accepted, list(taken.left)) == (0, changes)
    assert known.value("select count(*) from message where message_id = 'other-4-8'") == 0
    assert known.value("select max(version) from stream") == 3


def test_what_follows_for_an_entity_of_the_page_before_is_decided_after_it(mirror: World) -> None:
    _fill(mirror.simulator.reseller)
    _poll(mirror)
    for number in range(1, 25):
        mirror.simulator.reseller.patch(SUBSCRIPTION, "plain", {"quantity": number})
        for name in ("twice", "moves", "ends"):
            mirror.simulator.reseller.patch(SUBSCRIPTION, name, {"quantity": number})
    slow = replace(mirror.work.poller, chunks=_SlowAtEveryOtherPage(_chunks(mirror)))
    _poll(replace(mirror, work=replace(mirror.work, poller=slow)))
    assert mirror.value("select count(*) from history where late") == 0
    assert mirror.value("select count(*) from gap") == 0
    assert mirror.value("select count(*) from message where state <> 'applied' and kind = 'subscription'") == 1


class _SlowAtEveryOtherPage:
    """Takes its time with every other page."""

    def __init__(self, inner: SqlFirstLoad) -> None:
        self._inner = inner
        self._pages = itertools.count()

    def take(self, arrival: Arrival, enter: Callable[[NewBatch], Entered], follow: Callable[[Batch], Settled]) -> Taken:
        """See ChunkStore."""
        if next(self._pages) % 2 == 0:
            time.sleep(0.05)
        return self._inner.take(arrival, enter, follow)


def test_who_polls_after_one_that_was_lost_lets_workers_decide_what_came_next(mirror: World) -> None:
    """What killed it may be one of these: the line finds out which, and quarantines it."""
    _fill(mirror.simulator.reseller)
    _poll(mirror)
    for name in ("plain", "twice"):
        mirror.simulator.reseller.patch(SUBSCRIPTION, name, {"quantity": 6})
    mirror.execute("update connection set poll_due_at = now(), poll_lease_until = now() - interval '1 second'")
    mirror.work.poll()
    states = "select state from message where origin = 'poll' and version = 2"
    assert [row.state for row in mirror.rows(states)] == ["pending", "pending"]
    mirror.process()
    for name in ("plain", "twice"):
        mirror.simulator.reseller.patch(SUBSCRIPTION, name, {"quantity": 7})
    assert _poll(mirror) >= 2, "it came back, and nothing was lost since"


def test_a_poll_is_a_sign_of_life(known: World) -> None:
    known.execute("update connection set last_received_at = null, silent_since = now()")
    _chunks(known).take(_arrival(known, _change(4)), enter, follow)
    (row,) = known.rows("select last_received_at is not null as heard, silent_since from connection")
    assert (row.heard, row.silent_since) == (True, None)
