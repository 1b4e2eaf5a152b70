"""Workers and schedulers: hints become work, stranded work is found, an end drains, and a kill loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import make_url

from bss_sync.adapters.embedded import SUPERUSER
from bss_sync.adapters.sql.upkeep import scheduler_lock
from bss_sync.runner import Parts, running_scheduler, running_worker
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, eventually, world


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, connection={"poll_seconds": 0.2}) as one:
        yield one


def _sell(one: World, number: int) -> None:
    one.simulator.reseller.put(ACCOUNT, f"cust-{number}", {"name": f"Customer {number}"})
    one.simulator.reseller.put(
        SUBSCRIPTION, f"sub-{number}", {"account_id": f"cust-{number}", "product": PRODUCT, "quantity": number}
    )


@pytest.mark.parametrize("through_redis", [False, True], ids=["in process", "redis"])
def test_a_change_in_the_resellers_bss_reaches_the_distributors_bss(
    mirror: World, redis_server: str, through_redis: bool
) -> None:
    parts = Parts(redis_server if through_redis else None)
    with running_worker(mirror.app, parts), running_scheduler(mirror.app, parts.wake):
        for number in range(1, 6):
            _sell(mirror, number)
        eventually(lambda: len(mirror.target_records()) == 10)
    fields = mirror.target_fields(SUBSCRIPTION, "sub-3")
    assert fields["quantity"] == "3"
    assert fields["name"] == f"Customer 3 - {PRODUCT}"
    assert fields["bill_to"] == mirror.source.tenant_name


def test_only_one_scheduler_acts_and_the_next_takes_over(mirror: World) -> None:
    with scheduler_lock(mirror.app.database) as second:
        with scheduler_lock(mirror.app.database) as first:
            assert first.held()
            assert first.held(), "holding on is not losing"
            assert not second.held()
        eventually(second.held, seconds=3)


def test_work_that_nobody_was_woken_for_is_found_by_the_scheduler(mirror: World) -> None:
    _sell(mirror, 1)
    mirror.hear()
    assert mirror.value("select count(*) from message where state = 'pending'") == 2
    parts = Parts(None)
    with running_worker(mirror.app, parts), running_scheduler(mirror.app, parts.wake):
        eventually(lambda: mirror.value("select count(*) from subscription") == 1, seconds=5)


def test_a_drained_worker_takes_nothing_new(mirror: World) -> None:
    parts = Parts(None)
    with running_worker(mirror.app, parts) as worker:
        worker.drain()
        _sell(mirror, 1)
        parts.wake.poll()
        time.sleep(0.5)
    assert mirror.value("select count(*) from message") == 0


@contextmanager
def _process(one: World, redis_url: str, command: str) -> Iterator[subprocess.Popen[str]]:
    """A process of our own over the same database."""
    settings = one.app.settings
    assert settings.database_url is not None
    assert settings.master_key is not None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BSS_SYNC_")} | {
        "BSS_SYNC_HOME": str(settings.home),
        "BSS_SYNC_DATABASE_URL": settings.database_url.get_secret_value(),
        "BSS_SYNC_MASTER_KEY": settings.master_key.get_secret_value(),
        "BSS_SYNC_REDIS_URL": redis_url,
        "BSS_SYNC_LEASE_SECONDS": "2",
    }
    program = [sys.executable, "-c", "from bss_sync.cli.main import main; main()", command]
    with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), f"{command} did not start"
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_killed_workers_lose_nothing_and_double_nothing_and_sigterm_drains(mirror: World, redis_server: str) -> None:
    redis.Redis.from_url(redis_server).flushdb()
    mirror.simulator.distributor.lookup_lag_seconds = 0
    for number in range(60):
        _sell(mirror, number)
    with ExitStack() as stack:
        stack.enter_context(_process(mirror, redis_server, "scheduler"))
        for _ in range(2):
            victim = stack.enter_context(_process(mirror, redis_server, "worker"))
            eventually(lambda: len(mirror.target_records()) > 0, seconds=20)
            time.sleep(0.2)
            victim.kill()
            for number in range(60):
                mirror.simulator.reseller.patch(SUBSCRIPTION, f"sub-{number}", {"quantity": 1000 + number})
        worker = stack.enter_context(_process(mirror, redis_server, "worker"))
        eventually(
            lambda: (
                mirror.value("select count(*) from subscription where quantity >= 1000") == 60
                and mirror.value("select count(*) from delivery where state = 'confirmed'") == 120
            ),
            seconds=45,
        )
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    assert len(mirror.effects("create")) == 120
    assert mirror.target_fields(SUBSCRIPTION, "sub-7")["quantity"] == "1007"


def test_when_every_session_of_the_database_is_cut_off_work_and_scheduling_go_on(mirror: World) -> None:
    parts = Parts(None)
    with running_worker(mirror.app, parts), running_scheduler(mirror.app, parts.wake):
        for number in range(3):
            _sell(mirror, number)
            with psycopg.connect(_superuser(mirror), autocommit=True) as connection:
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where datname = current_database() and pid <> pg_backend_pid()"
                )
            eventually(partial(_holds, mirror, 2 * (number + 1)))
    assert len(mirror.effects("create")) == 6


def _holds(one: World, records: int) -> bool:
    return len(one.target_records()) == records


def _superuser(one: World) -> str:
    """Libpq's address of the test's database, as superuser."""
    assert one.app.settings.database_url is not None
    url = make_url(one.app.settings.database_url.get_secret_value())
    return url.set(drivername="postgresql", username=SUPERUSER).render_as_string(hide_password=False)
