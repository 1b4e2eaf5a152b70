"""Known recovery bugs of engines for durable execution, as cases: on both cores, each by one name."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from bss_sync.adapters.sql.database import Database
from bss_sync.domain.change import Json, Kind, OrderKind
from bss_sync.domain.errors import DependencyDown, LeaseLost, RemoteUnknown
from bss_sync.pipeline.deliver import intent_of, later
from bss_sync.pipeline.line import process
from bss_sync.pipeline.settle import settle
from bss_sync.ports.delivery import Delivered
from bss_sync.ports.inbox import Arrival, Origin
from bss_sync.ports.streams import Batch, Claim, LittleWork, Settled, Written
from bss_sync.testing.simulation.reseller import Version
from tests.servers import PostgresServer
from tests.simulation.core import Core
from tests.simulation.memory_core import MemoryCore
from tests.simulation.postgres_core import PostgresCore, install_clock
from tests.simulation.profile import draw_profile

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=31)


@pytest.fixture(params=["memory", "postgresql"])
def core(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[Core]:
    """A live connection with one offered product."""
    profile = draw_profile(random.Random(1), random.Random(1))
    if request.param == "memory":
        made: Core = MemoryCore(["OURS"])
        made.set_time(NOW)
        yield made
        return
    with postgres_server.database() as server:
        install_clock(server)
        database = Database(server.login_url, pool_size=2)
        try:
            made = PostgresCore(database, ["OURS"], profile)
            made.set_time(NOW)
            yield made
        finally:
            database.dispose()


def _send(core: Core, *source_ids: str, version: int = 1, product: str = "OURS") -> None:
    body: dict[str, Json] = {
        "account_id": None,
        "parent_id": None,
        "product": product,
        "status": "active",
        "trial": False,
        "start_date": None,
        "end_date": None,
        "activation_date": None,
        "cancellation_date": None,
        "auto_renew": True,
        "billing_cycle": "P1M",
        "term": None,
        "quantity": str(version),
        "characteristics": {},
    }
    versions = [
        Version(100 * version + int(source_id[1:]), Kind.SUBSCRIPTION, source_id, version, body, NOW, NOW)
        for source_id in source_ids
    ]
    changes = [one.change(OrderKind.SEQUENCE, notify=False) for one in versions]
    core.inbox.accept([Arrival(core.tenant_id, core.connection_id, None, Origin.DOOR, changes)])


def _effects(core: Core) -> Counter[str]:
    """How often each subscription was written into the history."""
    return Counter(row.name[1] for row in core.history())


class Restarting:
    """A database that restarts ``times`` times under whoever writes."""

    def __init__(self, core: Core, times: int) -> None:
        self._core, self.times = core, times

    def claim(self, shard: int, limit: int) -> list[Claim]:
        return self._core.streams.claim(shard, limit)

    def claim_little(self, shards: Sequence[int], limit: int) -> LittleWork:
        return self._core.streams.claim_little(shards, limit)

    def work(self, claims: Sequence[Claim], settle: Callable[[Batch], Settled]) -> tuple[Settled, Written]:
        if self.times:
            self.times -= 1
            raise DependencyDown("PostgreSQL restarts.")
        return self._core.streams.work(claims, settle)

    def rehearse(self, message_ids: Sequence[UUID], settle: Callable[[Batch], Settled]) -> Settled:
        return self._core.streams.rehearse(message_ids, settle)

    def release(self, claims: Sequence[Claim]) -> None:
        self._core.streams.release(claims)


def test_a_database_restart_during_recovery_loses_nothing_and_doubles_nothing(core: Core) -> None:
    _send(core, "s1", "s2", "s3")
    core.streams.claim(core.shard, 10)  # its process dies here
    database, now = Restarting(core, times=2), NOW
    for _recovery in range(2):
        now += LEASE
        core.set_time(now)
        with pytest.raises(DependencyDown):
            process(database, core.shard)
    for _claim in range(6):
        now += LEASE
        core.set_time(now)
        process(database, core.shard)
    assert _effects(core) == {"s1": 1, "s2": 1, "s3": 1}
    assert {one.state for one in core.messages()} == {"applied"}


def test_of_two_recoverers_with_one_stale_list_one_writes_and_the_other_is_fenced(core: Core) -> None:
    _send(core, "s1")
    core.streams.claim(core.shard, 10)  # its process dies here
    core.set_time(NOW + LEASE)
    first = core.streams.claim(core.shard, 10)
    assert core.streams.claim(core.shard, 10) == []
    core.set_time(NOW + 2 * LEASE)
    second = core.streams.claim(core.shard, 10)
    assert [claim.stream_id for claim in first] == [claim.stream_id for claim in second]
    with pytest.raises(LeaseLost):
        core.streams.work(first, settle)
    assert _effects(core) == {}
    core.streams.work(second, settle)
    with pytest.raises(LeaseLost):
        core.streams.work(first, settle)
    assert _effects(core) == {"s1": 1}


def test_an_old_process_that_drains_beside_a_new_one_changes_nothing_of_what_the_new_one_did(core: Core) -> None:
    _send(core, "s1", "s2")
    old = core.streams.claim(core.shard, 10)
    core.set_time(NOW + LEASE)
    _send(core, "s1", version=2)
    for _claim in range(4):
        process(core.streams, core.shard)
    with pytest.raises(LeaseLost):
        core.streams.work(old, settle)
    records = core.records()
    assert records[Kind.SUBSCRIPTION, "s1"].version == 2
    assert _effects(core) == {"s1": 2, "s2": 1}


def test_an_old_process_cannot_unsettle_what_a_new_one_has_delivered(core: Core) -> None:
    _send(core, "s1")
    process(core.streams, core.shard)
    (old,) = core.deliveries.claim(10)
    core.set_time(NOW + LEASE)
    (new,) = core.deliveries.claim(10)
    assert core.deliveries.write_intents([(old, intent_of(old))]) == frozenset()
    intent = intent_of(new)
    assert core.deliveries.write_intents([(new, intent)]) == {new.record_id}
    assert core.deliveries.settle([Delivered(new, "d-1", intent, "created")]) == {new.record_id}
    assert core.deliveries.settle([later(old, RemoteUnknown("The answer was lost."))]) == frozenset()
    assert core.records()[Kind.SUBSCRIPTION, "s1"].delivery == "confirmed"


def test_work_of_a_process_that_dies_again_and_again_is_counted_set_aside_and_stops_nobody_else(core: Core) -> None:
    _send(core, "s1")
    for claims in range(1 + 3):  # the process dies each time: nobody gives the lease back
        (claim,) = core.streams.claim(core.shard, 10)
        assert not claim.killer
        core.set_time(NOW + (claims + 1) * LEASE)
    (claim,) = core.streams.claim(core.shard, 10)
    assert claim.killer
    _send(core, "s2")
    core.set_time(NOW + 6 * LEASE)
    while process(core.streams, core.shard).more:
        pass
    assert {one.name[1]: one.state for one in core.messages()} == {"s1": "quarantined", "s2": "applied"}


def test_a_wake_up_that_a_dead_process_took_along_is_not_lost(core: Core) -> None:
    _send(core, "s1", product="LATER")
    process(core.streams, core.shard)
    assert core.records() == {}
    core.offer("LATER", retired=False)
    for claims in range(2):  # in company, then alone
        assert len(core.streams.claim(core.shard, 10)) == 1  # its process dies here
        assert not core.sweep()
        core.set_time(NOW + (claims + 1) * LEASE)
        assert core.sweep()
    process(core.streams, core.shard)
    assert (Kind.SUBSCRIPTION, "s1") in core.records()
    assert not core.sweep()


def _history(core: Core) -> dict[int, str]:
    for _claim in range(4):
        process(core.streams, core.shard)
    return {row.version: row.quantity for row in core.history()}


def test_what_was_out_of_scope_between_two_paid_states_is_history_when_the_first_of_them_comes_last(core: Core) -> None:
    _send(core, "s1", version=2, product="FOREIGN")
    assert _history(core) == {}
    _send(core, "s1", version=3)
    assert _history(core) == {3: "3"}
    _send(core, "s1", version=1)
    assert _history(core) == {1: "1", 2: "0", 3: "3"}


@pytest.mark.parametrize("order", [(3, 2, 1), (2, 3, 1)])
def test_every_state_above_the_first_paid_one_is_history_although_staging_keeps_only_the_last(
    core: Core, order: tuple[int, ...]
) -> None:
    for version in order:
        _send(core, "s1", version=version, product="OURS" if version == 1 else "FOREIGN")
        process(core.streams, core.shard)
    assert _history(core) == {1: "1", 2: "0", 3: "0"}
    assert core.records()[Kind.SUBSCRIPTION, "s1"].ended == "left_scope"
