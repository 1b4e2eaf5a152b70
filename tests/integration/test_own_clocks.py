"""The clocks of our own processes may be ten minutes off: order, leases and retries go by PostgreSQL's alone.

A sender's clock and the door's readiness are in test_door.py and test_health.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest

from bss_sync.adapters.sql.deliveries import SqlDeliveries
from bss_sync.jobs.reconciling import make_reconciler, make_streams
from bss_sync.jobs.work import make_work
from bss_sync.pipeline.reconcile import Request
from connectors.simulator.faults import Fault
from tests.app import SettableClock
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, AllWakeUps, World, world

TEN_MINUTES = timedelta(minutes=10)


@pytest.fixture(params=[-1, 1], ids=["ten minutes behind", "ten minutes ahead"])
def mirror(request: pytest.FixtureRequest, database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home) as one:
        cast(SettableClock, one.app.clock).offset = request.param * TEN_MINUTES
        yield one


@contextmanager
def _another_process(one: World) -> Iterator[World]:
    """The same work with a clock that is off the other way."""
    clock = cast(SettableClock, one.app.clock)
    clock.offset = -clock.offset
    try:
        yield World(one.app, make_work(one.app, AllWakeUps()), one.simulator, one.source)
    finally:
        clock.offset = -clock.offset


def _sell(one: World, quantity: int) -> None:
    one.simulator.reseller.put(ACCOUNT, "x", {"name": f"Customer {quantity}"})
    one.simulator.reseller.put(SUBSCRIPTION, "sub", {"account_id": "x", "product": PRODUCT, "quantity": quantity})


def test_order_does_not_depend_on_the_clock_of_whoever_reads_the_source(mirror: World) -> None:
    for quantity in range(1, 7):
        _sell(mirror, quantity)
        if quantity % 2:
            mirror.poll()
        else:
            with _another_process(mirror) as other:
                other.poll()
    assert mirror.value("select quantity from subscription") == 6
    versions = [
        row.version for row in mirror.rows("select version from history where kind = 'subscription' order by id")
    ]
    assert versions == sorted(set(versions))
    with _another_process(mirror):
        result = make_reconciler(mirror.app).reconcile(Request(mirror.source.id, target=False))
    assert (result.source_error, list(result.differences)) == (None, [])


def test_leases_neither_end_early_nor_last_longer(mirror: World) -> None:
    _sell(mirror, 1)
    mirror.poll()
    store = SqlDeliveries(mirror.app.database, lease_seconds=30)
    (claimed,) = store.claim(10)
    with _another_process(mirror) as other:
        other.work.deliver()
        assert not other.effects("create"), "it is under way, and nobody else's"
        assert other.value("select token from delivery where state = 'sending'") == claimed.token
        seconds = other.value("select extract(epoch from lease_until - now()) from delivery where state = 'sending'")
        assert 20 < seconds <= 30
        # Its holder died, and its time is over.
        other.execute("update delivery set lease_until = now(), due_at = now() where state = 'sending'")
        other.deliver()
        other.deliver()
    assert mirror.value("select count(*) from delivery where state = 'confirmed'") == 2
    assert len(mirror.effects("create")) == 2


def test_a_stream_that_is_leased_is_nobody_elses(mirror: World) -> None:
    _sell(mirror, 1)
    mirror.poll()
    mirror.simulator.reseller.put(ACCOUNT, "x", {"name": "Renamed"})
    mirror.execute("update connection set poll_due_at = now()")
    mirror.work.poll()
    store = make_streams(mirror.app)
    shard = mirror.value("select shard from connection")
    claims = store.claim(shard, 10)
    assert len(claims) == 1, "what a poll tells of an account is decided by workers"
    with _another_process(mirror) as other:
        assert make_streams(other.app).claim(shard, 10) == []
        other.execute("update claim set lease_until = now() - interval '1 second'")
        other.process()
    assert mirror.value("select count(*) from message where state = 'applied'") == 3
    assert mirror.value("select count(*) from history") == 3


def test_retries_wait_as_long_as_they_should(mirror: World) -> None:
    _sell(mirror, 1)
    mirror.poll()
    mirror.simulator.faults.add(Fault(path="/records", status=503, retry_after_seconds=20))
    mirror.work.deliver()
    due = "select extract(epoch from max(due_at) - now()) from delivery where last_error is not null"
    assert 10 < mirror.value(due) <= 20
    wait = "select extract(epoch from open_until - now()) from breaker where connection_id is null"
    assert 10 < mirror.value(wait) <= 20
    calls = dict(mirror.simulator.calls)
    with _another_process(mirror) as other:
        other.work.deliver()
    assert dict(mirror.simulator.calls) == calls, "not before its time, whatever the clock of whoever asks"
    mirror.simulator.faults.clear()
    mirror.execute("update breaker set open_until = now() where open_until is not null")
    mirror.execute("update delivery set due_at = now() where due_at is not null")
    for _level in range(3):
        mirror.deliver()
    assert mirror.value("select count(*) from delivery where state = 'confirmed'") == 2
