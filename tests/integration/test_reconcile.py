"""Reconciliation: every difference between source, mirror and target is named, and repaired through the inbox."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bss_sync.adapters.sql.admin import runs
from bss_sync.domain.errors import GuardStopped, Transient
from bss_sync.jobs.reconciling import listing_request, make_reconciler, poll_by_listing
from bss_sync.ports.connector import Observation
from connectors.simulator.faults import Fault
from tests.reconciling import found, level, reconcile
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with level(database, server_home) as one:
        yield one


def test_when_all_is_level_there_is_no_difference(mirror: World) -> None:
    before = mirror.value("select count(*) from message")
    result = reconcile(mirror)
    assert (found(result), result.source_error, result.target_error) == ([], None, None)
    assert result.listed == 9
    assert mirror.value("select count(*) from message") == before
    assert mirror.value("select state from run") == "done"


def test_missed_messages_are_stale_missing_and_extra_and_then_level(mirror: World) -> None:
    bss = mirror.simulator.reseller
    bss.patch(SUBSCRIPTION, "sub-1", {"quantity": 100})
    bss.put(SUBSCRIPTION, "sub-new", {"account_id": "y", "product": PRODUCT})
    bss.delete(SUBSCRIPTION, "sub-2")
    bss.patch(ACCOUNT, "x", {"parent_id": None})
    dry = reconcile(mirror, dry_run=True)
    assert found(dry) == [
        ("extra", "sub-2", None),
        ("mis_parented", "x", "parent_id"),
        ("missing", "sub-new", None),
        ("stale", "sub-1", "quantity"),
    ]
    assert mirror.value("select quantity from subscription where source_id = 'sub-1'") == 1, "a dry run writes nothing"
    assert found(reconcile(mirror)) == found(dry)
    assert mirror.value("select quantity from subscription where source_id = 'sub-1'") == 100
    assert mirror.value("select deleted_at is not null from subscription where source_id = 'sub-2'")
    assert mirror.value("select parent_id is null from account where source_id = 'x'")
    assert mirror.target_fields(SUBSCRIPTION, "sub-new")["name"] == f"Customer Y - {PRODUCT}"
    assert mirror.target_fields(SUBSCRIPTION, "sub-2")["ended"] is True
    assert found(reconcile(mirror)) == []


def test_an_entity_that_was_ended_by_absence_lives_again_with_its_next_version(mirror: World) -> None:
    mirror.simulator.reseller.delete(SUBSCRIPTION, "sub-2", push=False)
    reconcile(mirror)
    mirror.simulator.reseller.put(SUBSCRIPTION, "sub-2", {"account_id": "x", "product": PRODUCT, "quantity": 9})
    mirror.poll()
    assert mirror.value("select (deleted_at is null) and quantity = 9 from subscription where source_id = 'sub-2'")


def test_what_is_out_of_scope_is_no_difference(mirror: World) -> None:
    bss = mirror.simulator.reseller
    bss.put(ACCOUNT, "nobody", {"name": "Without a subscription"})
    bss.put(SUBSCRIPTION, "trial", {"account_id": "nobody", "product": PRODUCT, "trial": True})
    bss.put(SUBSCRIPTION, "foreign", {"account_id": "nobody", "product": "SOMETHING-ELSE"})
    assert found(reconcile(mirror)) == []
    assert mirror.value("select count(*) from account where source_id = 'nobody'") == 0


def test_a_listing_that_breaks_off_ends_nothing(mirror: World) -> None:
    for number in range(1, 7):
        mirror.simulator.reseller.delete(SUBSCRIPTION, f"sub-{number}", push=False)
    mirror.simulator.faults.add(Fault(path="/subscriptions", status=500))
    result = reconcile(mirror)
    assert result.source_error is not None
    assert result.source_error.startswith("transient")
    assert mirror.value("select count(*) from subscription where deleted_at is null") == 6


def test_mass_ends_stop_at_the_guard_and_go_on_with_an_admins_yes(mirror: World) -> None:
    for number in range(1, 6):
        mirror.simulator.reseller.delete(SUBSCRIPTION, f"sub-{number}")
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub-6", {"quantity": 60})
    with pytest.raises(GuardStopped, match="5 records would end"):
        reconcile(mirror)
    mirror.process()
    assert mirror.value("select count(*) from subscription where deleted_at is null") == 6
    assert mirror.value("select quantity from subscription where source_id = 'sub-6'") == 60, "the rest was repaired"
    run_id = mirror.value("select id from run where state = 'stopped'")
    with mirror.app.database.engine() as connection:
        runs.approve(connection, run_id, actor="test")
    mirror.work.poll()
    mirror.process()
    assert mirror.value("select count(*) from subscription where deleted_at is null") == 1
    assert mirror.value("select state from run where id = :id", id=run_id) == "done"


def test_a_routine_poll_by_listing_stops_at_the_guard_too(mirror: World) -> None:
    source = mirror.work.poller.sources.source(mirror.source.id)
    make_reconciler(mirror.app).reconcile(listing_request(source))
    assert mirror.value("select count(*) from run") == 0, "a routine leaves no run behind"
    for number in range(1, 6):
        mirror.simulator.reseller.delete(SUBSCRIPTION, f"sub-{number}")
    with pytest.raises(GuardStopped):
        make_reconciler(mirror.app).reconcile(listing_request(source))
    assert mirror.value("select state from run") == "stopped"


def test_a_routine_poll_whose_listing_breaks_off_has_failed(mirror: World) -> None:
    source = mirror.work.poller.sources.source(mirror.source.id)
    mirror.simulator.faults.add(Fault(path="/subscriptions", status=500))
    with pytest.raises(Transient):
        poll_by_listing(make_reconciler(mirror.app), source, lambda _listed: None)
    assert mirror.value("select count(*) from subscription where deleted_at is null") == 6


def test_a_source_that_counts_anew_is_reported_and_taken_only_by_name(mirror: World) -> None:
    bss = mirror.simulator.reseller
    for quantity in (7, 8, 9):
        bss.patch(SUBSCRIPTION, "sub-1", {"quantity": quantity})
        mirror.poll()
    # A restored backup: the same entity at a lower version.
    bss.put(SUBSCRIPTION, "sub-1", {"account_id": "x", "product": PRODUCT, "quantity": 2, "version": 2}, push=False)
    result = reconcile(mirror)
    assert found(result) == [("version_regressed", "sub-1", "version")]
    assert mirror.value("select quantity from subscription where source_id = 'sub-1'") == 9
    accepted = reconcile(mirror, accept=frozenset({"sub-1"}))
    assert accepted.accepted == 1
    assert mirror.value("select quantity from subscription where source_id = 'sub-1'") == 2
    assert len(mirror.audits("stream.epoch_begun")) == 1
    assert found(reconcile(mirror)) == []


def test_what_is_counted_anew_and_waits_is_not_to_be_accepted_again(mirror: World) -> None:
    bss = mirror.simulator.reseller
    for quantity in (7, 8, 9):
        bss.patch(SUBSCRIPTION, "sub-1", {"quantity": quantity})
        mirror.poll()
    unknown = {"account_id": "nobody-has-told-of-it", "product": PRODUCT, "quantity": 2, "version": 2}
    bss.put(SUBSCRIPTION, "sub-1", unknown, push=False)
    assert reconcile(mirror, accept=frozenset({"sub-1"})).accepted == 1
    again = reconcile(mirror, accept=frozenset({"sub-1"}))
    assert again.accepted == 0, "its new count is known, and waits for its account"
    assert {problem for problem, _, _ in found(again)} == {"stale", "mis_parented"}
    assert mirror.value("select state from message where message_id like 'reconcile:%'") == "waiting"


def test_what_was_counted_anew_and_is_gone_is_reported_and_ends_only_by_name(mirror: World) -> None:
    bss = mirror.simulator.reseller
    for quantity in (7, 8, 9):
        bss.patch(SUBSCRIPTION, "sub-1", {"quantity": quantity})
        mirror.poll()
    bss.put(SUBSCRIPTION, "sub-1", {"account_id": "x", "product": PRODUCT, "quantity": 2, "version": 1}, push=False)
    bss.delete(SUBSCRIPTION, "sub-1")
    assert found(reconcile(mirror)) == [("version_regressed", "sub-1", "version")]
    assert mirror.value("select deleted_at from subscription where source_id = 'sub-1'") is None
    assert reconcile(mirror, accept=frozenset({"sub-1"})).accepted == 1
    assert mirror.value("select deleted_at is not null from subscription where source_id = 'sub-1'")
    assert found(reconcile(mirror)) == []


def test_what_waits_or_is_held_is_named_each_time_and_told_once(mirror: World) -> None:
    bss = mirror.simulator.reseller
    bss.put(SUBSCRIPTION, "odd", {"account_id": "x", "product": PRODUCT, "status": "hibernating"}, push=False)
    bss.put(SUBSCRIPTION, "add-on", {"account_id": "x", "product": PRODUCT, "parent_id": "nobody"}, push=False)
    bss.patch(SUBSCRIPTION, "sub-1", {"parent_id": "nobody"})
    for _routine in range(3):
        assert {source_id for _problem, source_id, _field in found(reconcile(mirror))} == {"odd", "add-on", "sub-1"}
    told = "select count(*) from message where source_id = :id and state in ('waiting', 'quarantined')"
    assert [mirror.value(told, id=one) for one in ("odd", "add-on", "sub-1")] == [1, 1, 1]


def test_a_routine_leaves_dead_letters_alone_and_whoever_asks_has_them_tried_again(mirror: World) -> None:
    bss, source = mirror.simulator.reseller, mirror.work.poller.sources.source(mirror.source.id)
    bss.put(SUBSCRIPTION, "add-on", {"account_id": "x", "product": PRODUCT, "parent_id": "nobody"}, push=False)
    reconcile(mirror)
    number = "select count(*) from message where source_id = 'add-on'"
    mirror.execute("update message set state = 'dead', decided_at = now() where source_id = 'add-on'")
    make_reconciler(mirror.app).reconcile(listing_request(source))
    assert mirror.value(number) == 1
    reconcile(mirror)
    assert mirror.value(number) == 2


def test_a_snapshot_stands_for_a_source_that_cannot_be_listed(mirror: World) -> None:
    source = mirror.work.poller.sources.source(mirror.source.id)
    snapshot = [one for one in source.client.list_all() if one.source_id != "sub-3"]
    changed = [
        replace(one, version=9, body={**(one.body or {}), "quantity": "44"}) if one.source_id == "sub-4" else one
        for one in snapshot
    ]
    result = reconcile(mirror, snapshot=changed)
    assert found(result) == [("extra", "sub-3", None), ("stale", "sub-4", "quantity")]
    assert mirror.value("select quantity from subscription where source_id = 'sub-4'") == 44


def test_a_taken_field_is_left_out(mirror: World) -> None:
    mirror.execute(
        """insert into takeover (id, tenant_id, connection_id, record_id, kind, field, value, reason, taken_by)
           select gen_random_uuid(), tenant_id, connection_id, id, 'subscription', 'quantity', '"77"', 'r', 'test'
           from subscription where source_id = 'sub-1'"""
    )
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub-1", {"quantity": 50})
    mirror.poll()
    assert mirror.value("select quantity from subscription where source_id = 'sub-1'") == 77
    assert found(reconcile(mirror)) == []


def test_an_unknown_value_at_the_source_is_named(mirror: World) -> None:
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub-1", {"status": "hibernating"})
    assert found(reconcile(mirror)) == [("unknown_value", "sub-1", "status")]
    assert mirror.value("select count(*) from message where state = 'quarantined'") == 1
    reconcile(mirror)
    assert mirror.value("select count(*) from message where state = 'quarantined'") == 1, "it is held once"


def test_a_message_that_overtakes_the_listing_is_no_difference(mirror: World) -> None:
    source = mirror.work.poller.sources.source(mirror.source.id)
    listed = list(source.client.list_all())
    mirror.simulator.reseller.put(SUBSCRIPTION, "sub-late", {"account_id": "x", "product": PRODUCT})
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub-1", {"quantity": 70})

    def slow_listing() -> Iterator[Observation]:
        mirror.poll()  # the messages arrive while the listing is being read
        yield from listed

    assert found(reconcile(mirror, snapshot=slow_listing())) == []
    assert mirror.value("select quantity from subscription where source_id = 'sub-1'") == 70
    assert mirror.value("select deleted_at is null from subscription where source_id = 'sub-late'")


@pytest.mark.parametrize(
    ("tampering", "named"),
    [
        ("update subscription set quantity = 77 where source_id = 'sub-1'", ("differing", "sub-1", "quantity")),
        (
            "update subscription set source = source || '{\"quantity\": \"77\"}' where source_id = 'sub-1'",
            ("differing", "sub-1", "quantity"),
        ),
        (
            """update subscription set quantity = 77, source = source || '{"quantity": "77"}'
               where source_id = 'sub-1'""",
            ("differing", "sub-1", "quantity"),
        ),
        ("update account set name = 'Somebody' where source_id = 'x'", ("differing", "x", "name")),
        ("update subscription set version = 9 where source_id = 'sub-1'", ("differing", "sub-1", "version")),
        ("update subscription set deleted_at = now() where source_id = 'sub-1'", ("differing", "sub-1", "deleted")),
        (
            "update subscription set ended_at = now(), ended_reason = 'closed' where source_id = 'sub-1'",
            ("differing", "sub-1", "ended_reason"),
        ),
        (
            """update subscription set account_id = (select id from account where source_id = 'y')
               where source_id = 'sub-1'""",
            ("mis_parented", "sub-1", "account_id"),
        ),
        (
            "update account set parent_id = (select id from account where source_id = 'y') where source_id = 'x'",
            ("mis_parented", "x", "parent_id"),
        ),
        ("delete from subscription where source_id = 'sub-1'", ("missing", "sub-1", None)),
    ],
    ids=lambda given: "-".join(map(str, given)) if isinstance(given, tuple) else "",
)
def test_what_was_written_past_the_line_is_named_and_put_right(
    mirror: World, tampering: str, named: tuple[str, str, str | None]
) -> None:
    mirror.simulator.reseller.put(SUBSCRIPTION, "sub-y", {"account_id": "y", "product": PRODUCT})
    mirror.settle()
    before = _mirror_as_it_is(mirror)
    mirror.execute(tampering)
    assert _mirror_as_it_is(mirror) != before
    assert found(reconcile(mirror, dry_run=True)) == [named]
    result = reconcile(mirror)
    assert found(result) == [named]
    assert [str(one.cause) for one in result.differences] == ["overwritten"]
    assert _mirror_as_it_is(mirror) == before
    assert found(reconcile(mirror)) == []


def test_an_account_whose_row_was_taken_away_is_bound_again_with_what_it_held(mirror: World) -> None:
    mirror.simulator.reseller.put(SUBSCRIPTION, "sub-y", {"account_id": "y", "product": PRODUCT})
    mirror.settle()
    before = _mirror_as_it_is(mirror)
    mirror.execute("delete from subscription where source_id = 'sub-y'")
    mirror.execute("delete from account where source_id = 'y'")
    assert found(reconcile(mirror)) == [("missing", "sub-y", None), ("missing", "y", None)]
    assert _mirror_as_it_is(mirror) == before
    assert found(reconcile(mirror)) == []


def test_a_deletion_that_was_taken_back_by_hand_is_done_again(mirror: World) -> None:
    mirror.simulator.reseller.delete(SUBSCRIPTION, "sub-1")
    mirror.settle()
    mirror.execute("update subscription set deleted_at = null where source_id = 'sub-1'")
    assert found(reconcile(mirror)) == [("extra", "sub-1", None)]
    assert mirror.value("select deleted_at is not null from subscription where source_id = 'sub-1'")
    assert found(reconcile(mirror)) == []


def _mirror_as_it_is(one: World) -> list[Any]:
    """Every mirrored column, without the marks that each write leaves."""
    marks = ("revision", "created_at", "updated_at", "change_xid", "message", "effective_at")
    left_out = f"array{[*marks, 'chain_version', 'chain_effective_at']}"
    return [
        row[0]
        for table in ("account", "subscription")
        for row in one.rows(f"select to_jsonb(r) - {left_out} from {table} r order by source_id")
    ]


def test_where_nobody_can_be_asked_the_mirror_is_compared_with_what_it_keeps(mirror: World) -> None:
    before = _mirror_as_it_is(mirror)
    mirror.execute("update connection set connector = 'webhook', settings = '{}'")
    mirror.execute("update subscription set quantity = 77 where source_id = 'sub-1'")
    result = reconcile(mirror)
    assert result.source_error is not None
    assert found(result) == [("differing", "sub-1", "quantity")]
    assert _mirror_as_it_is(mirror) == before
