"""Deliveries to a real HTTP target: in order of their relatives, once in effect, whatever becomes of the answers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from bss_sync.adapters.sql.deliveries import SqlDeliveries
from bss_sync.adapters.sql.reading.reach import EVERYTHING
from bss_sync.adapters.sql.reading.story import tell_story
from bss_sync.domain.errors import RemoteBusy
from bss_sync.pipeline.deliver import intent_of, later, write
from bss_sync.ports.delivery import Delivered
from connectors.simulator.faults import Fault
from tests.reconciling import reconcile
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home) as one:
        yield one


def _sell(one: World, **given: object) -> None:
    bss = one.simulator.reseller
    bss.put(ACCOUNT, "lite", {"kind": "reseller", "name": "Cloud Lite"})
    bss.put(ACCOUNT, "x", {"name": "Customer X", "parent_id": "lite"})
    bss.put(SUBSCRIPTION, "sub", {"account_id": "x", "product": PRODUCT, "quantity": 5, **given})


def _make_due(one: World) -> None:
    """As if the pause after a failure were over."""
    one.execute("update delivery set due_at = now(), lease_until = null where due_at is not null")


def test_a_subscription_arrives_below_its_account_and_that_below_its_parent(mirror: World) -> None:
    _sell(mirror)
    mirror.settle()
    external = {str(one["reference"]): one["id"] for one in mirror.simulator.distributor.records()}
    lite, customer, sub = (
        mirror.record_id(kind, name) for kind, name in ((ACCOUNT, "lite"), (ACCOUNT, "x"), (SUBSCRIPTION, "sub"))
    )
    assert mirror.target_fields(ACCOUNT, "x")["parent_id"] == external[str(lite)]
    fields = mirror.target_fields(SUBSCRIPTION, "sub")
    assert fields["account_id"] == external[str(customer)]
    assert fields["name"] == f"Customer X - {PRODUCT}"
    assert fields["ended"] is False
    assert len(mirror.effects("create")) == 3
    assert mirror.value("select count(*) from delivery where state = 'confirmed' and due_at is null") == 3
    created = mirror.audits("delivery.created")
    assert {row.record_id for row in created} == {lite, customer, sub}


def test_a_create_whose_answer_was_lost_is_found_and_not_repeated(mirror: World) -> None:
    _sell(mirror)
    mirror.poll()
    mirror.simulator.faults.add(Fault(method="POST", path="/records", apply_then_drop=True, times=4))
    for _ in range(6):
        _make_due(mirror)
        mirror.deliver()
    assert len(mirror.effects("create")) == 3
    assert mirror.value("select count(*) from delivery where state = 'confirmed'") == 3


def test_a_create_that_was_killed_before_its_commit_is_found_and_not_repeated(mirror: World) -> None:
    _sell(mirror)
    mirror.poll()
    store = SqlDeliveries(mirror.app.database, lease_seconds=30)
    (claimed,) = store.claim(10)
    intent = intent_of(claimed)
    store.write_intents([(claimed, intent)])
    target = mirror.work.deliverer.targets.target()
    assert target is not None
    write(target, claimed, intent)  # and then the process dies
    _make_due(mirror)
    mirror.deliver()
    assert len(mirror.effects("create")) == 3
    assert len(mirror.audits("delivery.found")) == 1


def test_a_binding_that_was_lost_with_a_backup_is_found_again(mirror: World) -> None:
    _sell(mirror)
    mirror.settle()
    mirror.execute(
        """update delivery set state = 'pending', external_id = null, confirmed = null, confirmed_revision = 0,
           intent = null, intent_key = null, due_at = now()"""
    )
    mirror.deliver()
    assert len(mirror.effects("create")) == 3
    assert mirror.value("select count(*) from delivery where state = 'confirmed'") == 3


def test_a_holder_whose_lease_was_taken_over_cannot_confirm(mirror: World) -> None:
    _sell(mirror)
    mirror.poll()
    store = SqlDeliveries(mirror.app.database, lease_seconds=30)
    (first,) = store.claim(10)
    _make_due(mirror)
    (second,) = store.claim(10)
    assert second.token == first.token + 1
    assert store.write_intents([(first, intent_of(first))]) == frozenset()
    assert store.settle([Delivered(first, "d-stolen", intent_of(first), "created")]) == frozenset()
    assert mirror.value("select count(*) from delivery where external_id is not null") == 0


def test_a_change_during_a_delivery_is_delivered_afterwards(mirror: World) -> None:
    _sell(mirror)
    mirror.settle()
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub", {"quantity": 6})
    mirror.poll()
    store = SqlDeliveries(mirror.app.database, lease_seconds=30)
    (claimed,) = store.claim(10)
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub", {"quantity": 7})
    mirror.poll()
    store.settle([Delivered(claimed, str(claimed.external_id), intent_of(claimed), "updated")])
    mirror.deliver()
    assert mirror.target_fields(SUBSCRIPTION, "sub")["quantity"] == "7"


def test_a_refusal_is_a_dead_letter_and_the_next_change_tries_again(mirror: World) -> None:
    _sell(mirror)
    mirror.settle()
    mirror.simulator.faults.add(Fault(method="PUT", path="/records", status=422, times=1))
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub", {"quantity": 6})
    mirror.settle()
    assert mirror.value("select state from delivery where kind = 'subscription'") == "dead"
    (dead,) = mirror.audits("delivery.dead")
    assert "422" in dead.detail["error"] or "remote-refused" in dead.detail["error"]
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub", {"quantity": 7})
    mirror.settle()
    assert mirror.target_fields(SUBSCRIPTION, "sub")["quantity"] == "7"


@pytest.mark.parametrize("status", [408, 421, 423, 425, 429, 500, 502, 504])
def test_what_passes_by_itself_is_tried_again_and_blocks_nobody_for_good(mirror: World, status: int) -> None:
    _sell(mirror)
    mirror.poll()
    mirror.simulator.faults.add(Fault(method="POST", path="/records", status=status, times=1))
    mirror.deliver()
    assert mirror.value("select count(*) from delivery where state = 'dead'") == 0
    mirror.simulator.faults.clear()
    for _level in range(3):
        mirror.execute("delete from breaker")
        _make_due(mirror)
        mirror.deliver()
    assert mirror.value("select count(*) from delivery where state = 'confirmed'") == 3


@pytest.mark.parametrize("again", ["change", "reconcile"])
def test_what_is_below_a_refused_record_says_why_it_waits_and_follows_when_that_is_delivered(
    mirror: World, again: str
) -> None:
    _sell(mirror)
    mirror.poll()
    mirror.simulator.faults.add(Fault(method="POST", path="/records", status=422, times=1))
    mirror.deliver()
    states = "select kind || ' ' || state from delivery where state <> 'confirmed' order by 1"
    assert [row[0] for row in mirror.rows(states)] == ["account blocked", "account dead", "subscription blocked"]
    message = mirror.value("select id from message where source_id = 'x'")
    with mirror.app.database.engine() as connection:
        told = tell_story(connection, EVERYTHING, str(message))["steps"][-1]["words"]
    assert "account lite, which it needs, was refused there for good" in told
    assert "422" in told
    if again == "change":
        mirror.simulator.reseller.patch(ACCOUNT, "lite", {"name": "Cloud Lite Ltd"})
        mirror.settle()
    else:
        reconcile(mirror)
    assert mirror.value("select count(*) from delivery where state = 'confirmed' and due_at is null") == 3


def test_a_record_that_was_removed_there_is_created_again(mirror: World) -> None:
    _sell(mirror)
    mirror.settle()
    (record,) = [one for one in mirror.simulator.distributor.records() if one["kind"] == "subscription"]
    mirror.simulator.distributor.remove(record["id"], user="somebody")
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub", {"quantity": 6})
    mirror.settle()
    mirror.deliver()
    assert mirror.target_fields(SUBSCRIPTION, "sub")["quantity"] == "6"
    assert len(mirror.audits("delivery.vanished")) == 1


def test_a_target_that_asks_to_wait_is_not_called_until_then(mirror: World) -> None:
    _sell(mirror)
    mirror.poll()
    mirror.simulator.faults.add(Fault(path="/records", status=503, retry_after_seconds=40))
    mirror.work.deliver()
    calls = sum(mirror.simulator.calls[f"{method} /records"] for method in ("GET", "POST"))
    for _ in range(20):
        mirror.work.deliver()
    assert sum(mirror.simulator.calls[f"{method} /records"] for method in ("GET", "POST")) == calls
    assert mirror.value("select open_until > now() + interval '30 seconds' from breaker where connection_id is null")
    assert mirror.value("select min(due_at) > now() + interval '30 seconds' from delivery where attempts > 0")


def test_a_renamed_customer_renames_its_subscriptions_there(mirror: World) -> None:
    _sell(mirror)
    mirror.settle()
    mirror.simulator.reseller.patch(ACCOUNT, "x", {"name": "Customer Xaver"})
    mirror.settle()
    mirror.deliver()
    assert mirror.target_fields(SUBSCRIPTION, "sub")["name"] == f"Customer Xaver - {PRODUCT}"


def test_a_deletion_ends_the_record_there_and_never_removes_it(mirror: World) -> None:
    _sell(mirror)
    mirror.settle()
    mirror.simulator.reseller.delete(SUBSCRIPTION, "sub")
    mirror.settle()
    assert mirror.target_fields(SUBSCRIPTION, "sub")["ended"] is True
    assert mirror.effects("remove") == []


def test_nothing_is_delivered_for_a_connection_in_shadow(mirror: World) -> None:
    mirror.execute("update connection set state = 'shadow'")
    _sell(mirror)
    mirror.settle()
    assert mirror.value("select count(*) from account") == 2
    assert mirror.value("select count(*) from delivery") == 0
    assert mirror.simulator.distributor.records() == []


def test_no_call_is_begun_when_half_of_its_lease_has_gone(mirror: World) -> None:
    _sell(mirror)
    mirror.poll()
    late = replace(mirror.work.deliverer, lease_seconds=0.0)
    assert late.deliver().delivered == 0
    assert mirror.simulator.distributor.records() == []
    assert mirror.value("select count(*) from delivery where due_at <= now() and lease_until is null") > 0
    mirror.deliver()
    assert len(mirror.simulator.distributor.records()) == mirror.value("select count(*) from delivery")


def test_an_unchanged_record_costs_no_call(mirror: World) -> None:
    _sell(mirror)
    mirror.settle()
    before = mirror.simulator.calls.total()
    mirror.execute("update delivery set due_at = now()")
    mirror.deliver()
    assert mirror.simulator.calls.total() == before
    assert mirror.value("select count(*) from delivery where due_at is not null") == 0


def test_the_wish_of_retry_after_is_kept_to_the_second(mirror: World) -> None:
    _sell(mirror)
    mirror.poll()
    (claimed,) = SqlDeliveries(mirror.app.database).claim(1)
    assert later(claimed, RemoteBusy("wait", retry_after_seconds=17)).delay_seconds == 17


@pytest.mark.parametrize("first", ["the account's row", "the block"])
def test_an_account_that_is_confirmed_while_its_subscription_is_being_blocked_holds_nothing_up(
    mirror: World, first: str
) -> None:
    """Two workers: one finds the account unbound and blocks the subscription, the other is just confirming it."""
    mirror.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
    mirror.simulator.reseller.put(SUBSCRIPTION, "sub", {"account_id": "x", "product": PRODUCT, "quantity": 5})
    mirror.poll()
    store = SqlDeliveries(mirror.app.database)
    (account,) = store.claim(64)
    assert account.kind is ACCOUNT
    mirror.execute("update delivery set due_at = now(), state = 'pending' where kind = 'subscription'")
    confirmed = Delivered(account, "d-1", intent_of(account), "created")
    if first == "the block":
        assert store.claim(64) == []
        store.settle([confirmed])
    else:
        # The other worker's transaction is open: its wake-up has gone by, its binding is not to be seen yet.
        with mirror.app.database.engine() as other:
            other.execute(
                text("update delivery set external_id = 'd-1' where record_id = :id"), {"id": account.record_id}
            )
            assert store.claim(64) == []
    seconds = mirror.value("select extract(epoch from due_at - now()) from delivery where kind = 'subscription'")
    assert seconds <= 1


def test_two_settlements_that_rename_each_others_accounts_do_not_wait_for_each_other(mirror: World) -> None:
    """Each settles an account and the other one's subscription; a rename touches the subscriptions of the account."""
    names = ("x", "y")
    for name in names:
        mirror.simulator.reseller.put(ACCOUNT, name, {"name": name})
        mirror.simulator.reseller.put(SUBSCRIPTION, name, {"account_id": name, "product": PRODUCT, "quantity": 1})
    mirror.settle()
    store = SqlDeliveries(mirror.app.database)
    for turn in range(20):
        for name in names:
            mirror.simulator.reseller.patch(ACCOUNT, name, {"name": f"{name} {turn}"})
            mirror.simulator.reseller.patch(SUBSCRIPTION, name, {"quantity": turn + 2})
        mirror.poll()
        claimed = {(one.kind, one.record_id): one for one in store.claim(64)}
        outcomes = {
            key: Delivered(one, str(one.external_id), intent_of(one), "updated") for key, one in claimed.items()
        }
        pairs = [
            [
                outcomes[ACCOUNT, mirror.record_id(ACCOUNT, one)],
                outcomes[SUBSCRIPTION, mirror.record_id(SUBSCRIPTION, other)],
            ]
            for one, other in (names, reversed(names))
        ]
        with ThreadPoolExecutor(2) as threads:
            assert [len(settled) for settled in threads.map(store.settle, pairs)] == [2, 2]
