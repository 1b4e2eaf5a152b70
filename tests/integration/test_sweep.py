"""The sweeper: what is stranded is woken, what is silent is named, what is too old goes; rest costs next to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event

from bss_sync.adapters.sql import epochs
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.adapters.sql.upkeep import SqlUpkeep, scheduler_lock
from bss_sync.domain.change import Action, Change
from bss_sync.domain.errors import DependencyDown
from bss_sync.jobs.reconciling import make_loader
from bss_sync.pipeline.sweep import Sweeper
from bss_sync.ports.inbox import Arrival, Origin
from connectors.simulator.faults import Fault
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world


@dataclass
class Hinted:
    """Every hint of the sweeper, by name."""

    hints: list[tuple[str, int | UUID | None]] = field(default_factory=list)

    def process(self, *shards: int) -> None:
        self.hints += [("process", shard) for shard in shards]

    def deliver(self) -> None:
        self.hints.append(("deliver", None))

    def fetch(self) -> None:
        self.hints.append(("fetch", None))

    def poll(self) -> None:
        self.hints.append(("poll", None))

    def probe(self, connection_id: UUID) -> None:
        self.hints.append(("probe", connection_id))

    def names(self) -> list[str]:
        return [name for name, _argument in self.hints]


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, connection={"poll_seconds": 0}) as one:
        one.execute("update target set poll_seconds = 0")
        yield one


def _swept(one: World) -> Hinted:
    """One first sweep: everything in it is due."""
    hinted = Hinted()
    Sweeper(SqlUpkeep(one.app.database), hinted).tick()
    return hinted


def _take_in(one: World) -> None:
    """Everything of the source: what is new is decided at once, where it can be; the rest is left undecided."""
    make_loader(one.app).backfill(one.source.id, requested_by="test")


def test_at_rest_nothing_is_hinted(mirror: World) -> None:
    assert _swept(mirror).hints == []


def test_a_shard_with_open_messages_is_hinted_until_they_are_decided(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "x", {})
    _take_in(mirror)
    mirror.simulator.reseller.patch(ACCOUNT, "x", {"name": "Another"})
    _take_in(mirror)
    shard = mirror.value("select shard from connection")
    assert _swept(mirror).hints == [("process", shard)]
    mirror.process()
    assert _swept(mirror).hints == []


def test_deliveries_and_fetches_that_are_due_are_hinted(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "x", {})
    mirror.simulator.reseller.put(SUBSCRIPTION, "sub", {"account_id": "x", "product": PRODUCT})
    _take_in(mirror)
    mirror.process()
    assert _swept(mirror).names() == ["deliver"]
    mirror.execute("update delivery set lease_until = now() + interval '1 minute'")
    assert _swept(mirror).names() == [], "somebody is at it"
    mirror.execute("update delivery set lease_until = now() - interval '1 second'")
    assert _swept(mirror).names() == ["deliver"], "whoever was at it is dead"
    mirror.execute("update delivery set due_at = null")
    mirror.execute(
        """insert into fetch_request (stream_id, tenant_id, connection_id, kind, source_id, reason)
           select gen_random_uuid(), tenant_id, id, 'account', 'y', 'test' from connection"""
    )
    assert _swept(mirror).names() == ["fetch"]


def test_polls_that_are_due_are_hinted(mirror: World) -> None:
    mirror.execute("""update connection set settings = settings || '{"poll_seconds": 60}'""")
    assert _swept(mirror).names() == ["poll"]
    mirror.work.poll()
    assert _swept(mirror).names() == []
    mirror.execute("update target set poll_seconds = 60")
    assert _swept(mirror).names() == ["poll"]


def test_a_message_past_its_deadline_wakes_its_stream(mirror: World) -> None:
    mirror.simulator.reseller.put(SUBSCRIPTION, "sub", {"account_id": "x", "product": PRODUCT})
    _take_in(mirror)
    mirror.process()
    assert mirror.value("select state from message") == "waiting"
    assert _swept(mirror).hints == []
    mirror.execute("update message set wait_until = now() - interval '1 second'")
    assert _swept(mirror).names() == ["process"]
    mirror.process()
    assert mirror.value("select count(*) from fetch_request where source_id = 'x'") == 1


def test_a_child_whose_parent_is_mirrored_by_now_is_woken(mirror: World) -> None:
    mirror.simulator.reseller.put(SUBSCRIPTION, "sub", {"account_id": "x", "product": PRODUCT})
    _take_in(mirror)
    mirror.process()
    mirror.simulator.reseller.put(ACCOUNT, "x", {})
    _take_in(mirror)
    mirror.process()
    # As if the arrival had not released it, by whatever accident.
    mirror.execute(
        """update message set state = 'waiting', wait_reason = 'account_unknown', waits_for = :account,
           wait_until = now() + interval '1 hour' where kind = 'subscription'""",
        account=mirror.record_id(ACCOUNT, "x"),
    )
    assert "process" in _swept(mirror).names()


def test_messages_are_parked_and_released_with_their_connection(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "x", {})
    mirror.execute("update connection set state = 'paused'")
    _take_in(mirror)
    mirror.execute("update message set shard = 3")
    assert _swept(mirror).hints == []
    assert mirror.value("select shard is null from message")
    mirror.execute("update connection set state = 'shadow'")
    assert _swept(mirror).names() == ["process"]
    assert mirror.value("select m.shard = c.shard from message m, connection c")


def test_a_silent_connection_is_named_once_and_probed(mirror: World) -> None:
    mirror.execute("update connection set last_received_at = now() - interval '2 days'")
    assert _swept(mirror).hints == [("probe", mirror.source.id)]
    assert _swept(mirror).hints == []
    assert len(mirror.audits("connection.silent")) == 1
    mirror.work.probe(mirror.source.id)
    mirror.simulator.faults.add(Fault(path="/health", status=500))
    mirror.work.probe(mirror.source.id)
    assert [row.detail["alive"] for row in mirror.audits("connection.probed")] == [True, False]
    now = datetime.now(UTC)
    heard = Change(str(uuid4()), ACCOUNT, "x", Action.NOTIFIED, None, now, now, {}, uuid4().bytes)
    arrival = Arrival(mirror.source.tenant_id, mirror.source.id, None, Origin.DOOR, [heard])
    SqlInbox(mirror.app.database).accept([arrival])
    assert mirror.value("select silent_since is null from connection"), "it speaks again"


def test_what_is_too_old_goes_and_what_is_waited_for_stays(mirror: World) -> None:
    bss = mirror.simulator.reseller
    for name in ("old", "needed", "young"):
        bss.put(ACCOUNT, name, {})
    _take_in(mirror)
    mirror.process()
    assert mirror.value("select count(*) from staging") == 3
    mirror.execute(
        "update staging set staged_at = now() - interval '401 days' where stream_id = any(:ids)",
        ids=[mirror.record_id(ACCOUNT, name) for name in ("old", "needed")],
    )
    mirror.execute(
        "update message set state = 'waiting', waits_for = :needed where source_id = 'young'",
        needed=mirror.record_id(ACCOUNT, "needed"),
    )
    mirror.execute("update message_key set received_at = now() - interval '91 days' where message_id like '%:old:%'")
    _swept(mirror)
    left = {row.stream_id for row in mirror.rows("select stream_id from staging")}
    assert left == {mirror.record_id(ACCOUNT, name) for name in ("needed", "young")}
    assert mirror.value("select count(*) from message_key") == 2


def test_a_restored_backup_is_put_in_order_by_processes_that_stayed_up(mirror: World) -> None:
    with mirror.app.database.engine() as connection:
        epochs.declare(connection)
    with pytest.raises(DependencyDown), mirror.app.database.engine() as connection:
        epochs.current_epoch(connection)
    _swept(mirror)
    with mirror.app.database.engine() as connection:
        assert epochs.current_epoch(connection) is not None
    assert len(mirror.audits("database.restored")) == 1


def test_a_sweep_at_rest_costs_a_handful_of_statements(mirror: World) -> None:
    sweeper, statements = Sweeper(SqlUpkeep(mirror.app.database), Hinted()), []
    sweeper.tick()
    engine = mirror.app.database.pool("engine")
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    with scheduler_lock(mirror.app.database) as lock:
        for _ in range(5):
            assert lock.held()
            sweeper.tick()
    assert len(statements) <= 5 * 5, statements
