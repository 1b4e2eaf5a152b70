"""Who waits for whom: two workers at the same records never meet in a circle, and no call outlives its lease."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from bss_sync.adapters.sql.database import Database as SqlDatabase
from bss_sync.adapters.sql.database import driver
from bss_sync.adapters.sql.deliveries import SqlDeliveries
from bss_sync.domain.change import shard_of
from bss_sync.pipeline.deliver import intent_of
from bss_sync.pipeline.settle import settle
from bss_sync.ports.delivery import Claimed, Delivered
from bss_sync.ports.streams import Batch, Settled
from connectors.simulator.faults import Fault
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world

WAITS = """select count(*) from pg_locks l join pg_stat_activity a using (pid)
           where not l.granted and a.datname = current_database()"""


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home) as one:
        yield one


def _renamed_and_changed(mirror: World, held: str) -> Mapping[UUID, Claimed]:
    """An account and a subscription of its own, both delivered, changed since and claimed."""
    bss = mirror.simulator.reseller
    bss.put(ACCOUNT, "x", {"name": "Customer X"})
    bss.put(SUBSCRIPTION, held, {"account_id": "x", "product": PRODUCT, "quantity": 1})
    mirror.settle()
    bss.patch(ACCOUNT, "x", {"name": "Customer X and Sons"})
    bss.patch(SUBSCRIPTION, held, {"quantity": 2})
    mirror.poll()
    claimed = {one.record_id: one for one in SqlDeliveries(mirror.app.database).claim(64)}
    assert len(claimed) == 2
    return claimed


def test_a_settlement_does_not_wait_for_whoever_decides_its_streams(mirror: World) -> None:
    claimed = _renamed_and_changed(mirror, "sub")
    outcomes = [Delivered(one, str(one.external_id), intent_of(one), "updated") for one in claimed.values()]
    mirror.execute("update stream set ready_at = now()")
    streams = mirror.work.streams
    claims = streams.claim(shard_of(mirror.source.id), 64)
    assert {claim.stream_id for claim in claims} == set(claimed)
    with ThreadPoolExecutor(1) as threads:

        def delivered_meanwhile(batch: Batch) -> Settled:
            settled = threads.submit(SqlDeliveries(mirror.app.database).settle, outcomes)
            assert settled.result(timeout=10) == set(claimed)
            return settle(batch)

        streams.work(claims, delivered_meanwhile)


def test_an_intent_waits_for_the_account_before_it_locks_the_subscription(mirror: World) -> None:
    """In the order in which a batch of decisions writes them, whatever their ids are."""
    account = mirror.record_id(ACCOUNT, "x")
    held = next(name for name in map(str, range(1000)) if mirror.record_id(SUBSCRIPTION, name) < account)
    claimed = _renamed_and_changed(mirror, held)
    pairs = [(one, intent_of(one)) for one in claimed.values()]
    lock = text("select 1 from delivery where record_id = :id for update nowait")
    with ThreadPoolExecutor(1) as threads:
        with mirror.app.database.engine() as deciding:
            deciding.execute(lock, {"id": account})
            written = threads.submit(SqlDeliveries(mirror.app.database).write_intents, pairs)
            deadline = time.monotonic() + 10
            while not mirror.value(WAITS):
                assert time.monotonic() < deadline, "the intent waits for the account's row"
                time.sleep(0.02)
            deciding.execute(lock, {"id": mirror.record_id(SUBSCRIPTION, held)})
        assert written.result(timeout=10) == set(claimed)


def test_a_call_to_the_target_is_over_before_its_lease(mirror: World) -> None:
    mirror.simulator.reseller.put(SUBSCRIPTION, "sub", {"account_id": None, "product": PRODUCT, "quantity": 1})
    mirror.poll()
    mirror.simulator.faults.add(Fault(method="POST", path="/records", delay_seconds=5))
    started = time.monotonic()
    result = replace(mirror.work.deliverer, lease_seconds=2.0).deliver()
    assert time.monotonic() - started < 3
    assert (result.delivered, result.failed) == (0, 1)
    assert mirror.value("select state from delivery") == "unknown"


def test_a_connection_that_is_given_back_after_the_end_is_closed(database: Database) -> None:
    pools = SqlDatabase(database.login_url)
    with pools.engine() as late:
        raw = driver(late)
        pools.dispose()
    assert raw.closed
    with pools.line() as direct:
        pools.dispose()
    assert direct.driver.closed
