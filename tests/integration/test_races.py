"""What two may do to one thing at the same moment: each test holds the window open in which they could meet."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from bss_sync.adapters.sql.admin import closing, connections
from bss_sync.adapters.sql.deliveries import SqlDeliveries
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.adapters.sql.streams import SqlStreams
from bss_sync.adapters.sql.upkeep import SqlUpkeep
from bss_sync.domain.change import Action, Change
from bss_sync.domain.errors import DependencyDown, LeaseLost, MessageConflict
from bss_sync.jobs.reconciling import make_reconciler, make_replayer
from bss_sync.pipeline.deliver import Deliverer, intent_of, write
from bss_sync.pipeline.reconcile import Request
from bss_sync.pipeline.settle import settle
from bss_sync.ports.connector import Page, PagedSource, SourceClient
from bss_sync.ports.delivery import Claimed, Delivered
from bss_sync.ports.inbox import Accepted, Arrival, Origin, Stale
from bss_sync.ports.sources import OpenSource, Sources
from bss_sync.ports.streams import Batch, Claim, Settled
from bss_sync.testing.simulation.chunks import NoChunks
from tests.scenario import ACCOUNT, SUBSCRIPTION, account_body
from tests.scenario_postgres import postgres_scenario
from tests.servers import Database
from tests.world import PRODUCT, World, eventually, world

MEETING_SECONDS = 1.0
"""How long one waits for the other where a lock keeps them apart."""


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home) as one:
        bss = one.simulator.reseller
        bss.put(ACCOUNT, "x", {"name": "Customer X"})
        bss.put(SUBSCRIPTION, "sub", {"account_id": "x", "product": PRODUCT, "quantity": 5})
        one.settle()
        yield one


def _change(one: World, quantity: int) -> SqlDeliveries:
    """The source changes the subscription, and the mirror knows."""
    one.simulator.reseller.patch(SUBSCRIPTION, "sub", {"quantity": quantity})
    one.poll()
    return SqlDeliveries(one.app.database, lease_seconds=30)


def _run_out(one: World) -> None:
    """As if every lease of a delivery had run out."""
    one.execute("update delivery set due_at = now(), lease_until = null where due_at is not null")


# --- the inbox --------------------------------------------------------------------------------------------------------


def _array(one: World, *message_ids: str, revision: int | None = None) -> Arrival:
    now = datetime.now(UTC)
    changes = [
        Change(
            message_id=message_id,
            kind=ACCOUNT,
            source_id="x",
            action=Action.NOTIFIED,
            version=None,
            sent_at=now,
            effective_at=now,
            body={},
            digest=message_id.encode(),
        )
        for message_id in message_ids
    ]
    return Arrival(one.source.tenant_id, one.source.id, revision, Origin.DOOR, changes)


def _is_blocked(one: World) -> bool:
    return bool(one.value("select count(*) from pg_locks where not granted"))


def _insert_key(one: World, connection: Connection, message_id: str) -> None:
    connection.execute(
        text(
            """insert into message_key (tenant_id, connection_id, message_id, digest)
               values (:t, :c, cast(:m as text), cast(cast(:m as text) as bytea))"""
        ),
        {"t": one.source.tenant_id, "c": one.source.id, "m": message_id},
    )


def test_keys_are_taken_in_one_order_however_an_array_has_them(mirror: World) -> None:
    known = mirror.value("select revision from connection")
    with ThreadPoolExecutor(1) as other:
        with mirror.app.database.engine() as first:
            _insert_key(mirror, first, "m")
            waiting = other.submit(
                SqlInbox(mirror.app.database).accept, [_array(mirror, "z", "m", "a", revision=known)]
            )
            eventually(lambda: _is_blocked(mirror))
            with mirror.app.database.engine() as third:
                third.execute(text("set local lock_timeout = '1s'"))
                # It has come as far as "m": what is behind that in the common order is nobody's yet.
                _insert_key(mirror, third, "z")
                third.rollback()
        (answer,) = waiting.result(30)
    assert isinstance(answer, Accepted)
    assert answer.accepted == 2


def test_what_we_asked_for_waits_for_an_activation_under_way(mirror: World) -> None:
    mirror.execute("update connection set state = 'paused'")
    with ThreadPoolExecutor(1) as other:
        with mirror.app.database.engine() as admin:
            admin.execute(text("update connection set state = 'live' where id = :id"), {"id": mirror.source.id})
            waiting = other.submit(SqlInbox(mirror.app.database).accept, [_array(mirror, "asked")])
            eventually(lambda: waiting.done() or _is_blocked(mirror))
        waiting.result(30)
    assert mirror.value("select shard is not null from message where message_id = 'asked'")


def test_what_was_verified_before_a_change_is_not_stored_after_it(mirror: World) -> None:
    known = mirror.value("select revision from connection")
    mirror.execute("update connection set revision = revision + 1")
    inbox = SqlInbox(mirror.app.database)
    assert inbox.accept([_array(mirror, "old", revision=known)]) == [Stale()]
    (answer,) = inbox.accept([_array(mirror, "new", revision=known + 1)])
    assert isinstance(answer, Accepted)


def test_a_key_of_89_days_ago_is_still_remembered(mirror: World) -> None:
    inbox = SqlInbox(mirror.app.database)
    inbox.accept([_array(mirror, "once")])
    mirror.execute("update message_key set received_at = now() - interval '89 days'")
    SqlUpkeep(mirror.app.database).prune()
    (answer,) = inbox.accept([_array(mirror, "once")])
    assert isinstance(answer, Accepted)
    assert (answer.accepted, answer.duplicates) == (0, 1)


# --- two workers ------------------------------------------------------------------------------------------------------


def test_two_workers_at_once_never_close_a_cycle_between_them(database: Database) -> None:
    with postgres_scenario(database, accounts_at_once=True) as line:
        line.account("a")
        line.account("b")
        claims = []
        for name, parent in (("a", "b"), ("b", "a")):
            line.send(line.change(ACCOUNT, name, 2, account_body(parent)), work=False)
            claims.append(line.streams.claim(line.shard, 1))
        meeting = threading.Barrier(2)

        def settle_beside_the_other(batch: Batch) -> Settled:
            with suppress(threading.BrokenBarrierError):
                meeting.wait(MEETING_SECONDS)
            return settle(batch)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda one: line.streams.work(one, settle_beside_the_other), claims))
        assert [line.shown(ACCOUNT, name).parent for name in ("a", "b")].count(None) == 1
        assert sorted(line.states()) == ["applied", "applied", "applied", "waiting"]


def _under_way(mirror: World, state: str) -> tuple[SqlStreams, list[Claim]]:
    """A worker's claim on a subscription that is in the mirror already, or new."""
    streams = SqlStreams(mirror.app.database, lambda _connector: True)
    if state == "known":
        mirror.simulator.reseller.put(SUBSCRIPTION, "late", {"account_id": "x", "product": PRODUCT, "quantity": 1})
        mirror.poll()
    mirror.simulator.reseller.put(SUBSCRIPTION, "late", {"account_id": "x", "product": PRODUCT, "quantity": 2})
    mirror.hear()
    claims = streams.claim(mirror.value("select shard from connection"), 10)
    assert len(claims) == 1
    return streams, claims


def _close(mirror: World) -> str:
    with mirror.app.database.engine() as sql:
        source = connections.find(sql, mirror.source.name, lock=True)
        return closing.request(sql, source, datetime.now(UTC).date(), actor="test").state


@pytest.mark.parametrize("state", ["known", "new"])
def test_work_that_is_under_way_writes_nothing_into_a_closed_connection(mirror: World, state: str) -> None:
    streams, claims = _under_way(mirror, state)
    assert _close(mirror) == "done"
    with pytest.raises(LeaseLost):
        streams.work(claims, settle)
    assert mirror.value("select count(*) from subscription where ended_at is null") == 0


def test_a_closing_waits_for_what_is_being_written_of_a_new_stream(mirror: World) -> None:
    streams, claims = _under_way(mirror, "new")
    begun, may_end = threading.Event(), threading.Event()

    def slow(batch: Batch) -> Settled:
        begun.set()
        may_end.wait(10)
        return settle(batch)

    with ThreadPoolExecutor(2) as pool:
        work = pool.submit(streams.work, claims, slow)
        assert begun.wait(10)
        closed = pool.submit(_close, mirror)
        wait([closed], MEETING_SECONDS)
        may_end.set()
        work.result()
        assert closed.result() == "done"
    assert mirror.value("select count(*) from subscription where source_id = 'late'") == 1
    assert mirror.value("select count(*) from subscription where ended_at is null") == 0


# --- two deliverers ---------------------------------------------------------------------------------------------------


def test_a_delivery_that_is_under_way_is_nobody_elses(mirror: World) -> None:
    store = _change(mirror, 6)
    assert len(store.claim(10)) == 1
    assert store.claim(10) == []


def test_whose_lease_was_taken_over_calls_nobody(mirror: World) -> None:
    _change(mirror, 6)

    class Slow(SqlDeliveries):
        """Another deliverer takes over before this one begins."""

        def claim(self, limit: int, retries: int | None = None) -> Sequence[Claimed]:
            claimed = super().claim(limit, retries)
            _run_out(mirror)
            assert len(super().claim(limit, retries)) == len(claimed) == 1
            return claimed

    before = len(mirror.simulator.distributor.effects())
    Deliverer(Slow(mirror.app.database), mirror.work.deliverer.targets).deliver()
    assert len(mirror.simulator.distributor.effects()) == before


def test_a_create_whose_end_is_unknown_is_sent_again_word_for_word(mirror: World) -> None:
    mirror.simulator.reseller.put(SUBSCRIPTION, "new", {"account_id": "x", "product": PRODUCT, "quantity": 1})
    mirror.poll()
    store = SqlDeliveries(mirror.app.database, lease_seconds=30)
    (first,) = store.claim(10)
    sent = intent_of(first)
    store.write_intents([(first, sent)])  # its call is on the way, and nobody knows whether it will arrive
    mirror.simulator.reseller.patch(SUBSCRIPTION, "new", {"quantity": 2})
    mirror.poll()
    _run_out(mirror)
    (second,) = store.claim(10)
    again = intent_of(second)
    store.write_intents([(second, again)])
    target = mirror.work.deliverer.targets.target()
    assert target is not None
    assert target.client.look_up(SUBSCRIPTION, str(second.record_id)) is None
    created = len(mirror.effects("create"))
    late = write(target, first, sent)  # the first call arrives behind the second's look-up
    outcome = write(target, replace(second, external_id=None), again)
    assert isinstance(late, Delivered)
    assert isinstance(outcome, Delivered)
    assert outcome.external_id == late.external_id
    assert again == sent
    assert len(mirror.effects("create")) == created + 1
    store.settle([outcome])
    mirror.deliver()
    assert mirror.target_fields(SUBSCRIPTION, "new")["quantity"] == "2"


def test_an_edit_that_meets_a_delivery_is_judged_afterwards(mirror: World) -> None:
    store = _change(mirror, 6)
    (claimed,) = store.claim(10)
    (record,) = [one for one in mirror.simulator.distributor.records() if one["kind"] == "subscription"]
    mirror.simulator.distributor.edit(record["id"], {"status": "suspended"}, user="clerk@distributor.example")

    def look() -> int:
        mirror.execute("update target set poll_due_at = now()")
        mirror.work.poll()
        return int(mirror.value("select count(*) from drift"))

    assert look() == 0
    store.release([claimed], 3600)
    assert look() == 1
    mirror.deliver()
    fields = mirror.target_fields(SUBSCRIPTION, "sub")
    assert (fields["status"], fields["quantity"]) == ("active", "6")


# --- the source -------------------------------------------------------------------------------------------------------


def test_a_poll_that_dies_before_the_inbox_has_its_page_reads_that_page_again(mirror: World) -> None:
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub", {"quantity": 6})
    mirror.execute("update connection set poll_due_at = now()")

    class Down(SqlInbox):
        """PostgreSQL goes away between the page and its messages."""

        def accept(self, arrivals: Sequence[Arrival]) -> list[Accepted | MessageConflict | Stale]:
            raise DependencyDown(f"PostgreSQL is down for {len(arrivals)} arrivals.")

    down = replace(mirror.work.poller, inbox=Down(mirror.app.database), chunks=NoChunks())
    assert down.poll()
    assert mirror.value("select quantity from subscription") == 5
    mirror.poll()
    assert mirror.value("select quantity from subscription") == 6


@dataclass
class Forgetful:
    """Sources whose listing forgets what it was asked for the last time."""

    sources: Sources
    forgotten: str

    def source(self, connection_id: UUID, *, push_only: bool = False) -> OpenSource:
        opened = self.sources.source(connection_id, push_only=push_only)
        return replace(opened, client=_Forgetting(opened.client, self.forgotten))


@dataclass
class _Forgetting:
    _client: SourceClient
    _forgotten: str
    answer_page: None = None
    """Its pages are only had as it says them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def list_page(self, cursor: str | None) -> Page:
        assert isinstance(self._client, PagedSource), "the simulator lists page by page"
        page = self._client.list_page(cursor)
        return replace(page, observations=[one for one in page.observations if one.source_id != self._forgotten])


def test_what_a_listing_forgot_is_asked_for_and_lives_on(mirror: World) -> None:
    reconciler = make_reconciler(mirror.app)
    result = replace(reconciler, sources=Forgetful(reconciler.sources, "sub")).reconcile(Request(mirror.source.id))
    mirror.process()
    assert (result.ends, result.source_error) == (0, None)
    assert mirror.value("select deleted_at is null from subscription")


# --- a replay ---------------------------------------------------------------------------------------------------------


def test_what_is_decided_while_a_replay_runs_is_not_opened_again(mirror: World) -> None:
    fields = {"account_id": "x", "product": PRODUCT, "status": "hibernating"}
    mirror.simulator.reseller.put(SUBSCRIPTION, "odd", fields)
    mirror.poll()
    replayer = make_replayer(mirror.app)
    held = mirror.value("select id from message where state = 'quarantined'")
    run_id = replayer.begin([held], actor="test")
    assert run_id is not None
    mirror.execute(
        """insert into value_map (tenant_id, connection_id, field, source_value, canonical)
           select tenant_id, id, 'status', 'hibernating', 'suspended' from connection"""
    )
    mirror.execute("update message set state = 'pending' where id = :id", id=held)
    mirror.process()
    assert mirror.value("select state from message where id = :id", id=held) == "applied"
    replayer.carry(run_id)
    assert mirror.value("select state from message where id = :id", id=held) == "applied"
    mirror.process()
    assert mirror.value("select state from message where id = :id", id=held) == "applied"
