"""Breakers and budgets over real HTTP and PostgreSQL: shared by workers, honest to Retry-After, frugal, visible."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bss_sync.adapters.guarded_http import SharedGate
from bss_sync.adapters.sql.admin import breakers
from bss_sync.adapters.sql.reading.breakers import show_breakers
from bss_sync.adapters.sql.reading.connections import get_connection
from bss_sync.adapters.sql.reading.reach import EVERYTHING
from bss_sync.domain.breaker import FAILURES_IN_A_ROW, PAUSE_SECONDS_MAX, RETRIES_ALWAYS, WINDOW_SECONDS
from bss_sync.domain.change import Kind
from bss_sync.jobs.work import make_work
from connectors.simulator.faults import Fault
from tests.app import ACTOR
from tests.integration.test_watching import _running as running_program
from tests.servers import Database
from tests.wire_server import WireServer, answer
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, eventually, world

DAY_SECONDS = 86_400
TIMES = {
    "breaker": ("open_until", "opened_at", "probe_until", "window_at", "credit_at"),
    "delivery": ("due_at", "lease_until"),
    "fetch_request": ("due_at", "lease_until"),
    "connection": ("poll_due_at",),
    "target": ("poll_due_at",),
}


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, connection={"account_scope": "all"}) as one:
        one.simulator.distributor.lookup_lag_seconds = 0
        yield one


def _accounts(one: World, number: int, prefix: str = "a") -> None:
    """So many records that are due at once: none waits for another."""
    for index in range(number):
        one.simulator.reseller.put(ACCOUNT, f"{prefix}-{index:04}", {"name": f"Account {index}"})
    one.poll()


def _record_calls(one: World) -> int:
    return sum(number for name, number in one.simulator.calls.items() if name.endswith(" /records"))


def _pass(one: World, seconds: float) -> None:
    """Let time pass for PostgreSQL's clock: everything that has a time has it that much earlier."""
    for table, columns in TIMES.items():
        earlier = ", ".join(f"{column} = {column} - make_interval(secs => :s)" for column in columns)
        one.execute(f"update {table} set {earlier}", s=seconds)


def _target(one: World) -> Any:
    (row,) = one.rows("select *, open_until - now() as wait from breaker where connection_id is null")
    return row


@pytest.mark.parametrize("status", [429, 503])
def test_a_target_that_asks_to_wait_is_left_alone_by_every_worker_until_then(mirror: World, status: int) -> None:
    _accounts(mirror, 20)
    other = make_work(mirror.app, mirror.work.wake)
    mirror.simulator.faults.add(Fault(path="/records", status=status, retry_after_seconds=3600))
    mirror.work.deliver()
    calls = _record_calls(mirror)
    assert calls <= 8, "as many as were under way"
    for _ in range(3):
        other.deliver()
        mirror.work.deliver()
    assert _record_calls(mirror) == calls
    assert 3590 < _target(mirror).wait.total_seconds() <= 3600
    mirror.simulator.faults.clear()
    _pass(mirror, 3500)
    other.deliver()
    assert _record_calls(mirror) == calls, "not a second sooner"
    _pass(mirror, 101)
    other.deliver()
    _pass(mirror, 300)
    mirror.work.deliver()
    assert len(mirror.target_records()) == 20
    assert _target(mirror).open_until is None


def test_when_its_time_has_come_one_worker_makes_one_call(mirror: World) -> None:
    _accounts(mirror, 30)
    mirror.simulator.faults.add(Fault(path="/records", status=503, retry_after_seconds=100))
    mirror.work.deliver()
    _pass(mirror, 100)
    first, second = (mirror.work.deliverer.targets.target() for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.gate.limit(64), second.gate.limit(64)) == (1, 0)
    first.gate.close()
    before = _record_calls(mirror)
    mirror.work.deliver()
    assert _record_calls(mirror) == before + 1
    assert mirror.value("select max(attempts) from delivery") == 1, "the target failed, not the record"


def test_whoever_dies_while_trying_is_succeeded_and_who_lives_is_done_by_then(mirror: World) -> None:
    _accounts(mirror, 1)
    mirror.simulator.faults.add(Fault(path="/records", status=503, retry_after_seconds=100))
    mirror.work.deliver()
    mirror.simulator.faults.clear()
    _pass(mirror, 100)
    dying = mirror.work.deliverer.targets.target()
    assert dying is not None
    assert isinstance(dying.gate, SharedGate)
    assert dying.gate.end_by is not None
    assert dying.gate.limit(64) == 1
    until = mirror.value(
        "select extract(epoch from probe_until - clock_timestamp()) from breaker where probe_until > now()"
    )
    assert 0 < dying.gate.end_by - time.monotonic() <= until
    mirror.work.deliver()
    assert not mirror.target_records(), "one tries already"
    _pass(mirror, 30)
    mirror.work.deliver()
    assert len(mirror.target_records()) == 1


def test_plain_failures_in_a_row_open_it_and_the_audit_says_so_once(mirror: World) -> None:
    _accounts(mirror, 40)
    mirror.simulator.faults.add(Fault(path="/records", status=500))
    mirror.work.deliver()
    assert _record_calls(mirror) <= FAILURES_IN_A_ROW + 8
    for _ in range(4):
        _pass(mirror, PAUSE_SECONDS_MAX)
        mirror.work.deliver()
    assert len(mirror.audits("breaker.opened")) == 1
    mirror.simulator.faults.clear()
    _pass(mirror, PAUSE_SECONDS_MAX)
    mirror.work.deliver()
    (closed,) = mirror.audits("breaker.closed")
    assert closed.detail["remote"] == "target"


def _afford(one: World, retries: int) -> None:
    """So many retries are left of this minute's budgets."""
    one.execute(
        """insert into breaker (owner_id, tenant_id, connection_id)
           select id, tenant_id, id from connection union all
           select id, id, null from tenant where kind = 'distributor' on conflict do nothing"""
    )
    one.execute("update breaker set credit = :retries, window_at = now(), calls = 0", retries=retries)


def _repeated(one: World, records: int) -> tuple[int, int]:
    """Calls about so many new records, each looked up at least once, and how many of them were repeated."""
    gets, posts = one.simulator.calls["GET /records"], one.simulator.calls["POST /records"]
    return gets + posts, gets - records + max(0, posts - records)


@pytest.mark.parametrize(("method", "share"), [("POST", 0.25), ("GET", 0.1)])
def test_retries_stay_below_a_tenth_of_the_calls_of_a_target_that_fails_now_and_then(
    mirror: World, method: str, share: float
) -> None:
    _accounts(mirror, 300)
    mirror.simulator.faults.add(Fault(path="/records", method=method, status=500, share=share, seed=7))
    for _ in range(8):
        mirror.work.deliver()
        # Their pauses are over; the budget alone holds them back.
        mirror.execute("update delivery set due_at = now() where due_at is not null and lease_until is null")
        mirror.execute("update breaker set open_until = null, failures = 0")
    calls, repeated = _repeated(mirror, 300)
    assert calls >= 500
    assert 0 < repeated <= calls / 10
    assert mirror.value("select sum(retried) from breaker") <= calls / 10


@pytest.mark.parametrize("status", [429, 503])
def test_a_target_that_asks_to_wait_again_and_again_is_repeated_less_than_a_tenth_and_gets_everything(
    mirror: World, status: int
) -> None:
    _accounts(mirror, 400)
    fault = Fault(path="/records", status=status, retry_after_seconds=2, share=0.02, seed=11)
    mirror.simulator.faults.add(fault)
    for _ in range(120):
        mirror.work.deliver()
        if mirror.value("select count(*) from delivery where state <> 'confirmed'") == 0:
            break
        # The pauses pass, the minute of the budget does not.
        mirror.execute("update breaker set open_until = now(), probe_until = null where open_until is not null")
        mirror.execute("update delivery set due_at = now() where due_at is not null and lease_until is null")
    calls, repeated = _repeated(mirror, 400)
    assert mirror.value("select count(*) from delivery where state <> 'confirmed'") == 0
    assert 0 < repeated <= calls / 10
    assert len(mirror.target_records()) == 400


def test_on_a_quiet_day_what_failed_is_tried_again_a_few_at_a_time(mirror: World) -> None:
    _accounts(mirror, 3)
    fault = Fault(path="/records", status=500)
    mirror.simulator.faults.add(fault)
    _afford(mirror, 0)
    mirror.work.deliver()
    mirror.simulator.faults.clear()
    mirror.execute("update delivery set due_at = now() where state <> 'confirmed'")
    mirror.work.deliver()
    assert not mirror.target_records(), "the budget of this minute is spent"
    _pass(mirror, WINDOW_SECONDS)
    mirror.work.deliver()
    assert len(mirror.target_records()) == 3


def test_what_a_killed_worker_left_behind_is_no_retry(mirror: World) -> None:
    _accounts(mirror, 64)
    mirror.work.deliverer.store.claim(64)
    _pass(mirror, 60)
    _afford(mirror, 0)
    mirror.work.deliver()
    assert len(mirror.target_records()) == 64


def test_two_workers_never_spend_the_same_retries(mirror: World) -> None:
    _accounts(mirror, 3)
    mirror.work.deliver()
    _afford(mirror, 6)
    first, second = (mirror.work.deliverer.targets.target() for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.gate.retries(4), second.gate.retries(100), second.gate.retries(100)) == (4, 2, 0)
    first.gate.close()
    assert second.gate.retries(100) == 4, "what was not made is there again"


def test_what_was_never_sent_tries_whether_the_remote_is_back_before_what_has_failed(mirror: World) -> None:
    _accounts(mirror, 30)
    mirror.simulator.faults.add(Fault(path="/records", status=503, retry_after_seconds=100))
    mirror.work.deliver()
    sent = _record_calls(mirror)
    for _ in range(6):
        _pass(mirror, 100)
        mirror.work.deliver()
    assert _record_calls(mirror) == sent + 6
    assert mirror.value("select count(*) from delivery where last_error is not null") >= sent + 6, "each another one"


@pytest.mark.slow
def test_two_processes_at_a_remote_that_always_fails_repeat_less_than_a_tenth_and_the_reserve(
    mirror: World, redis_server: str, tmp_path: Path
) -> None:
    _accounts(mirror, 120)
    mirror.execute("delete from breaker")
    with WireServer(answer(500)) as remote:
        mirror.execute(
            """update target set poll_seconds = 0,
                      settings = jsonb_set(settings, '{base_url}', to_jsonb(cast(:url as text)))""",
            url=remote.url,
        )
        with ExitStack() as stack:
            for number, command in enumerate(("worker", "worker", "scheduler")):
                folder = tmp_path / str(number)
                folder.mkdir()
                stack.enter_context(running_program(mirror, command, folder, REDIS_URL=redis_server))
            eventually(lambda: len(remote.requests) >= FAILURES_IN_A_ROW, seconds=60)
            time.sleep(8)
        asked = [request.split(b"\r\n")[0] for request in remote.requests]
    repeated = len(asked) - len(set(asked))
    # Each process has eight calls under way when it opens; then one tries after 1, 2, 4, 8 … seconds.
    assert len(asked) <= 2 * 8 + FAILURES_IN_A_ROW + 6
    assert repeated <= max(RETRIES_ALWAYS, len(asked) / 10)
    assert mirror.value("select count(*) from breaker where connection_id is null and openings > 0") == 1


def test_a_remote_that_was_down_for_a_day_is_asked_seldom_and_drains_in_order(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "lite", {"kind": "reseller"})
    for number in range(20):
        mirror.simulator.reseller.put(ACCOUNT, f"c-{number}", {"parent_id": "lite"})
        mirror.simulator.reseller.put(SUBSCRIPTION, f"s-{number}", {"account_id": f"c-{number}", "product": PRODUCT})
    mirror.poll()
    fault = Fault(path="/records", status=503)
    mirror.simulator.faults.add(fault)
    hours = 24
    for _hour in range(hours):
        for _ in range(3):
            mirror.work.deliver()
        _pass(mirror, DAY_SECONDS / hours)
    # Within each hour one call tries; the others of these rounds were not made.
    assert _record_calls(mirror) <= FAILURES_IN_A_ROW * 3 + hours
    for number in range(20):
        mirror.simulator.reseller.patch(SUBSCRIPTION, f"s-{number}", {"quantity": 100 + number})
    mirror.poll()
    mirror.simulator.faults.clear()
    _pass(mirror, 600)
    for _ in range(5):
        mirror.work.deliver()
        _pass(mirror, 10)
    effects = [one for one in mirror.simulator.distributor.effects() if one["action"] == "create"]
    assert len(effects) == 41
    place = {one["reference"]: index for index, one in enumerate(effects)}
    lite = place[str(mirror.record_id(ACCOUNT, "lite"))]
    for number in range(20):
        account, sub = (
            place[str(mirror.record_id(kind, name))]
            for kind, name in ((ACCOUNT, f"c-{number}"), (SUBSCRIPTION, f"s-{number}"))
        )
        assert lite < account < sub
        assert mirror.target_fields(SUBSCRIPTION, f"s-{number}")["quantity"] == str(100 + number)
    assert mirror.value("select count(*) from delivery where state <> 'confirmed'") == 0


def _wish(one: World, kind: Kind, source_id: str) -> None:
    one.execute(
        """insert into stream (id, tenant_id, connection_id, shard, kind, source_id)
           select :id, tenant_id, id, shard, :kind, :source_id from connection on conflict do nothing""",
        id=one.record_id(kind, source_id),
        kind=kind,
        source_id=source_id,
    )
    one.execute(
        """insert into fetch_request (stream_id, tenant_id, connection_id, kind, source_id, reason)
           select :id, tenant_id, id, :kind, :source_id, 'test' from connection""",
        id=one.record_id(kind, source_id),
        kind=kind,
        source_id=source_id,
    )


def test_a_source_that_asks_to_wait_is_neither_fetched_nor_polled_until_then(mirror: World) -> None:
    for number in range(12):
        _wish(mirror, ACCOUNT, f"x-{number}")
    mirror.execute("update connection set poll_due_at = now() + interval '1 hour'")
    mirror.simulator.faults.add(Fault(status=429, retry_after_seconds=1800))
    mirror.work.fetch()
    calls = mirror.simulator.calls.total()
    assert 0 < calls <= 8
    mirror.execute("update connection set poll_due_at = now()")
    mirror.execute("update fetch_request set due_at = now()")
    mirror.execute("update target set poll_seconds = 0")
    for _ in range(3):
        mirror.work.fetch()
        mirror.work.poll()
    assert mirror.simulator.calls.total() == calls
    (row,) = mirror.rows("select * from breaker where connection_id is not null")
    assert row.reason.endswith("was answered with 429.")
    mirror.simulator.faults.clear()
    _pass(mirror, 1800)
    mirror.work.fetch()
    assert mirror.value("select count(*) from fetch_request") < 12
    assert mirror.value("select open_until from breaker where connection_id is not null") is None


def test_two_workers_never_fetch_on_the_same_retries(mirror: World) -> None:
    for number in range(30):
        _wish(mirror, ACCOUNT, f"x-{number}")
    mirror.execute("update fetch_request set attempts = 1, last_error = 'as before'")
    mirror.execute("update connection set poll_due_at = now() + interval '1 hour'")
    _afford(mirror, 7)
    first, second = (mirror.work.fetcher.store.claim(5) for _ in range(2))
    assert (len(first), len(second)) == (5, 2)
    assert all(task.again and task.reserved == 1 for task in [*first, *second])
    assert mirror.work.fetcher.store.claim(5) == []
    mirror.execute("update fetch_request set lease_until = null")
    _afford(mirror, 6)
    mirror.work.fetch()
    assert mirror.simulator.calls.total() == 6
    assert mirror.value("select credit from breaker where connection_id is not null") == pytest.approx(0)


def test_the_state_is_shown_with_the_connection_and_an_admin_can_close_it(mirror: World) -> None:
    _accounts(mirror, 10)
    mirror.simulator.faults.add(Fault(path="/records", status=503, retry_after_seconds=3600))
    mirror.work.deliver()
    mirror.simulator.faults.clear()
    with mirror.app.database.engine() as sql:
        owner = breakers.target_owner(sql)
        shown = show_breakers(sql, [owner])[owner]
        assert shown["state"] == "open"
        assert shown["reason"].endswith("was answered with 503.")
        assert get_connection(sql, EVERYTHING, str(mirror.source.id))["health"]["breaker"]["state"] == "closed"
        done = breakers.reset_target(sql, actor=ACTOR)
    assert done.before == "open"
    assert done.due > 0
    mirror.work.deliver()
    assert len(mirror.target_records()) == 10
    (entry,) = mirror.audits("breaker.reset")
    assert entry.actor == ACTOR
    assert entry.detail["remote"] == "target"


def test_a_breaker_is_seen_by_its_tenant_and_by_nobody_else(mirror: World) -> None:
    mirror.poll()
    reseller = mirror.source.tenant_id
    for tenant, number in ((reseller, 1), (mirror.app.instance_id, 0)):
        with mirror.app.database.api(tenant) as connection:
            assert connection.exec_driver_sql("select count(*) from breaker").scalar_one() == number
