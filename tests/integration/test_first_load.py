"""What enters by a listing at once is what the line would have made of it, whoever else is at the same entity."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from bss_sync.adapters.sql.audit import verify_chains
from bss_sync.adapters.sql.first_load import SqlFirstLoad
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.domain.change import Action, Change, Kind
from bss_sync.domain.errors import DependencyDown
from bss_sync.jobs.reconciling import make_loader
from bss_sync.pipeline.entrance import enter, follow
from bss_sync.pipeline.load import Loader
from bss_sync.ports.inbox import Arrival, Origin
from bss_sync.ports.loading import Entered, NewBatch, Taken
from bss_sync.ports.streams import Batch, Settled
from bss_sync.testing.simulation.chunks import NoChunks
from tests.app import add_connection
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world

# What was written, without ids and times that differ from load to load.
_TABLES = {
    "stream": "kind, source_id, epoch, version, digest, deleted, version_sent_at, lease_until, unfinished, "
    "solo_claims, ready_at",
    "account": "source_id, name, number, email, kind, parent_source_id, parent_id is null, epoch, version, source, "
    "passed, effective_at, revision, chain_version, ended_reason",
    "subscription": "source_id, account_source_id, account_id is null, parent_source_id, parent_id is null, product, "
    "status, source_status, trial, start_date, end_date, activation_date, cancellation_date, auto_renew, "
    "billing_cycle, term, quantity, characteristics, epoch, version, order_kind, source, passed, effective_at, "
    "revision, chain_version",
    "history": "kind, epoch, version, effective_at, state, deleted, ended_reason, late, chain_version, chain_linked",
    "staging": "action, kind, version, sent_at, effective_at, body, passed, reason, product",
    "message": "origin, kind, source_id, action, order_kind, version, sent_at, effective_at, body, passed, state, "
    "verdict, reason, held_field, held_value, wait_reason, attempts > 0",
    "delivery": "kind, desired_revision, confirmed_revision, state, due_at is null",
    "audit": "action, kind, detail",
}


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, connection={"page_size": 4}) as one:
        yield one


def _loader(one: World, *, chunked: bool = True) -> Loader:
    loader = make_loader(one.app, one.work.wake)
    return loader if chunked else replace(loader, chunks=NoChunks())


def _fill(one: World) -> None:
    """Everything that may stand in a listing."""
    bss = one.simulator.reseller
    bss.put(ACCOUNT, "z-lite", {"kind": "reseller", "name": "Lite"})
    bss.put(ACCOUNT, "a-customer", {"parent_id": "z-lite", "email": "a@example.com"})
    bss.put(ACCOUNT, "b-unused", {})
    bss.put(ACCOUNT, "c-strange", {"kind": "galactic"})
    for number in range(9):
        body = {"account_id": "a-customer", "product": PRODUCT, "quantity": number + 0.5}
        bss.put(SUBSCRIPTION, f"sub-{number}", body | {"characteristics": {"share": 1.5, "text": "Mü"}})
    bss.patch(SUBSCRIPTION, "sub-3", {"quantity": 7})
    bss.put(SUBSCRIPTION, "add-on", {"account_id": "a-customer", "product": PRODUCT, "parent_id": "sub-1"})
    bss.put(SUBSCRIPTION, "add-on-of-none", {"account_id": "a-customer", "product": PRODUCT, "parent_id": "nobody"})
    bss.put(SUBSCRIPTION, "add-on-of-trial", {"account_id": "a-customer", "product": PRODUCT, "parent_id": "trial"})
    bss.put(SUBSCRIPTION, "foreign", {"account_id": "b-unused", "product": "other"})
    bss.put(SUBSCRIPTION, "homeless", {"account_id": "nobody", "product": PRODUCT})
    bss.put(SUBSCRIPTION, "mapped", {"account_id": None, "product": "theirs", "status": "on"})
    bss.put(SUBSCRIPTION, "own", {"account_id": None, "product": PRODUCT, "effective_at": "2026-01-05T00:00:00Z"})
    bss.put(SUBSCRIPTION, "strange", {"account_id": "a-customer", "product": PRODUCT, "status": "weird"})
    bss.put(SUBSCRIPTION, "trial", {"account_id": "b-unused", "product": PRODUCT, "trial": True})
    one.execute("insert into product_map select tenant_id, id, 'theirs', :code from connection", code=PRODUCT)
    one.execute("insert into value_map select tenant_id, id, 'status', 'on', 'active' from connection")


def _written(one: World) -> dict[str, list[str]]:
    found = {}
    for table, columns in _TABLES.items():
        # Who looks at a page alone notes an account as out of scope first; in the end it says the same.
        acts = " and action = 'message.applied'" if table == "audit" else ""
        statement = f"select {columns} from {table} where connection_id = :id{acts}"
        found[table] = sorted(map(repr, one.rows(statement, id=one.source.id)))
    return found


@pytest.mark.parametrize("scope", ["first_paid", "all"])
def test_a_listing_that_is_taken_at_once_leaves_what_the_line_would_have_left(mirror: World, scope: str) -> None:
    mirror.execute(
        "update connection set settings = settings || jsonb_build_object('account_scope', cast(:s as text))", s=scope
    )
    _fill(mirror)
    _loader(mirror).backfill(mirror.source.id, requested_by="test")
    at_once = mirror.value("select count(*) from message where state = 'applied'")
    assert at_once >= 11, "what is plain is applied before any worker looks"
    mirror.process()
    found = _written(mirror)
    reach = {"base_url": mirror.simulator.url, "allow_http_private": True, "account_scope": scope, "page_size": 4}
    source, _secret = add_connection(mirror.app, "beside", connector="simulator", settings=reach)
    beside = replace(mirror, source=source)
    beside.execute("update connection set state = 'live' where id = :id", id=source.id)
    beside.execute(
        "insert into product_map select tenant_id, id, 'theirs', :c from connection where id = :i",
        c=PRODUCT,
        i=source.id,
    )
    beside.execute(
        "insert into value_map select tenant_id, id, 'status', 'on', 'active' from connection where id = :i",
        i=source.id,
    )
    _loader(beside, chunked=False).backfill(source.id, requested_by="test")
    beside.process()
    wanted = _written(beside)
    for table in _TABLES:
        assert found[table] == wanted[table], table
    with mirror.app.database.engine() as connection:
        assert set(verify_chains(connection).values()) == {None}


def _subscription(source_id: str, version: int, quantity: str, message_id: str) -> Change:
    now = datetime.now(UTC)
    body: dict[str, Any] = {
        "account_id": None, "parent_id": None, "product": PRODUCT, "status": "active", "trial": False,
        "start_date": None, "end_date": None, "activation_date": None, "cancellation_date": None, "auto_renew": True,
        "billing_cycle": "P1M", "term": None, "quantity": quantity, "characteristics": {},
    }  # fmt: skip
    return Change(
        message_id, Kind.SUBSCRIPTION, source_id, Action.STATE, version, now, now, body, message_id.encode()[:1] * 32
    )


def _arrival(one: World, *changes: Change, origin: Origin = Origin.BACKFILL) -> Arrival:
    return Arrival(one.source.tenant_id, one.source.id, None, origin, changes)


@pytest.mark.parametrize("decided", [False, True])
def test_a_live_message_that_comes_in_between_is_not_overwritten(mirror: World, decided: bool) -> None:
    chunks, inbox = SqlFirstLoad(mirror.app.database, lambda _name: True), SqlInbox(mirror.app.database)

    def meanwhile(batch: NewBatch) -> Entered:
        # Nothing was heard of it when the chunk began.
        inbox.accept([_arrival(mirror, _subscription("sub", 9, "9", "live"), origin=Origin.DOOR)])
        if decided:
            mirror.process()
        return enter(batch)

    listed = [_subscription("sub", 3, "3", "listed"), _subscription("other", 3, "3", "quite-another")]
    taken = chunks.take(_arrival(mirror, *listed), meanwhile, follow)
    if decided:
        assert (taken.accepted, list(taken.left)) == (0, listed), "who came second has undone everything"
        assert mirror.value("select count(*) from subscription") == 1
        inbox.accept([_arrival(mirror, *taken.left)])
    mirror.process()
    sub = mirror.record_id(SUBSCRIPTION, "sub")
    assert mirror.value("select quantity from subscription where id = :id", id=sub) == 9
    (one, other) = mirror.rows("select h.version from history h where h.record_id = :id order by h.version", id=sub)
    assert (one.version, other.version) == (3, 9)
    assert mirror.value("select count(*) from subscription") == 2


def test_what_was_heard_of_is_left_to_the_inbox(mirror: World) -> None:
    chunks, inbox = SqlFirstLoad(mirror.app.database, lambda _name: True), SqlInbox(mirror.app.database)
    inbox.accept([_arrival(mirror, _subscription("pending", 2, "2", "live"), origin=Origin.DOOR)])
    twice = [_subscription("twice", 1, "1", "first"), _subscription("twice", 2, "2", "second")]
    pending, fresh = _subscription("pending", 1, "1", "listed"), _subscription("fresh", 1, "1", "new")
    taken = chunks.take(_arrival(mirror, pending, fresh, *twice), enter, follow)
    assert (taken.accepted, list(taken.left)) == (1, [pending, *twice])


def test_while_a_connection_is_paused_its_listing_is_kept_and_not_decided(mirror: World) -> None:
    _fill(mirror)
    mirror.execute("update connection set state = 'paused'")
    loaded = _loader(mirror).backfill(mirror.source.id, requested_by="test")
    assert loaded.accepted == loaded.read
    assert mirror.value("select count(*) from subscription") == 0
    assert {row.shard for row in mirror.rows("select shard from message")} == {None}


def test_what_waited_for_an_account_of_the_listing_is_released_by_it(mirror: World) -> None:
    inbox = SqlInbox(mirror.app.database)
    early = _subscription("early", 1, "1", "live")
    early = replace(early, body={**early.body, "account_id": "a-customer"})
    inbox.accept([_arrival(mirror, early, origin=Origin.DOOR)])
    mirror.process()
    assert mirror.value("select state from message") == "waiting"
    mirror.simulator.reseller.put(ACCOUNT, "a-customer", {})
    _loader(mirror).backfill(mirror.source.id, requested_by="test")
    mirror.process()
    assert mirror.value("select account_id from subscription") == mirror.record_id(ACCOUNT, "a-customer")


def test_who_goes_on_after_a_kill_lets_workers_decide_what_came_next(mirror: World) -> None:
    """What killed the process may be one of the listed: the line finds out which, and quarantines it."""
    for number in range(40):
        mirror.simulator.reseller.put(SUBSCRIPTION, f"sub-{number:02}", {"product": PRODUCT})
    loader = _loader(mirror)
    run = loader.runs.start(mirror.source.id, "backfill", {}, requested_by="test")
    loader.runs.progress(run.id, {"read": 8, "page": "subscription:sub-07"})
    loader.runs.let_go(run.id)
    loader.backfill(mirror.source.id, requested_by="test")
    undecided = mirror.rows("select source_id from message where state = 'pending' order by source_id")
    assert [row.source_id for row in undecided] == [f"sub-{number:02}" for number in range(8, 24)]
    assert mirror.value("select count(*) from subscription") == 16
    mirror.process()
    assert mirror.value("select count(*) from subscription") == 32


class _SlowWithAccounts:
    """Takes its time where there are accounts."""

    def __init__(self, inner: SqlFirstLoad) -> None:
        self._inner = inner

    def take(self, arrival: Arrival, enter: Callable[[NewBatch], Entered], follow: Callable[[Batch], Settled]) -> Taken:
        """See ChunkStore."""
        if any(change.kind is Kind.ACCOUNT for change in arrival.changes):
            time.sleep(0.3)
        return self._inner.take(arrival, enter, follow)


def test_what_follows_a_chunk_with_accounts_finds_them(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "a-customer", {})
    for number in range(20):
        body = {"product": PRODUCT, "account_id": "a-customer"}
        mirror.simulator.reseller.put(SUBSCRIPTION, f"sub-{number:02}", body)
    slow = _SlowWithAccounts(SqlFirstLoad(mirror.app.database, lambda _name: True))
    replace(_loader(mirror), chunks=slow).backfill(mirror.source.id, requested_by="test")
    assert mirror.value("select count(*) from subscription where account_id is not null") == 20


class _Down:
    """Stands crosswise to somebody, every time."""

    def take(self, arrival: Arrival, enter: Callable[[NewBatch], Entered], follow: Callable[[Batch], Settled]) -> Taken:
        """See ChunkStore."""
        raise DependencyDown(f"{len(arrival.changes)} {enter} {follow}")


def test_a_chunk_that_could_not_be_taken_goes_through_the_inbox(mirror: World) -> None:
    _fill(mirror)
    loaded = replace(_loader(mirror), chunks=_Down()).backfill(mirror.source.id, requested_by=str(uuid4()))
    assert loaded.accepted == loaded.read
    assert mirror.value("select count(*) from message where state = 'pending'") == loaded.accepted
