"""Polls of a source's change feed, and of the target's: nothing is missed or taken twice, edits are put back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bss_sync.domain.errors import LeaseLost
from bss_sync.pipeline.feed import CHUNK
from bss_sync.ports.sources import PollStore, PollTask
from connectors.simulator.faults import Fault
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, connection={"page_size": 2}) as one:
        bss = one.simulator.reseller
        bss.put(ACCOUNT, "x", {"name": "Customer X"})
        bss.put(SUBSCRIPTION, "sub", {"account_id": "x", "product": PRODUCT, "quantity": 5})
        yield one


def _poll_target(one: World) -> None:
    one.execute("update target set poll_due_at = now()")
    one.work.poll()


def _edit(one: World, **changes: Any) -> None:
    (record,) = [found for found in one.simulator.distributor.records() if found["kind"] == "subscription"]
    one.simulator.distributor.edit(record["id"], changes, user="clerk@distributor.example")


def test_a_poll_takes_every_page_and_goes_on_from_there(mirror: World) -> None:
    for number in range(5):
        mirror.simulator.reseller.patch(SUBSCRIPTION, "sub", {"quantity": number + 10})
    mirror.poll()
    assert mirror.value("select quantity from subscription") == 14
    before = mirror.value("select count(*) from message")
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub", {"quantity": 99})
    mirror.poll()
    assert mirror.value("select quantity from subscription") == 99
    assert mirror.value("select count(*) from message") == before + 1


def test_a_repeated_feed_changes_nothing(mirror: World) -> None:
    mirror.poll()
    before = mirror.value("select count(*) from message")
    mirror.execute("update connection set poll_cursor = null")
    mirror.poll()
    assert mirror.value("select count(*) from message") == before


def test_a_failed_poll_keeps_its_cursor_and_comes_again(mirror: World) -> None:
    mirror.poll()
    cursor = mirror.value("select poll_cursor from connection")
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub", {"quantity": 6})
    mirror.simulator.faults.add(Fault(path="/changes", status=500))
    mirror.poll()
    (row,) = mirror.rows("select * from connection")
    assert (row.poll_cursor, row.poll_failures) == (cursor, 1)
    assert row.poll_error.startswith("transient")
    mirror.simulator.faults.clear()
    mirror.poll()
    assert mirror.value("select quantity from subscription") == 6


def test_a_poller_whose_lease_was_taken_over_sets_no_cursor_back(mirror: World) -> None:
    polls = mirror.work.poller.store
    mirror.execute("update connection set poll_due_at = now()")
    zombie = polls.claim()
    assert zombie is not None
    mirror.execute("update connection set poll_lease_until = now() - interval '1 second'")
    present = polls.claim()
    assert present is not None
    present = polls.advanced(present, "7")
    with pytest.raises(LeaseLost):
        polls.advanced(zombie, "3")
    polls.failed(zombie, "it was slow", 3600)
    polls.finished(zombie, 3600)
    (row,) = mirror.rows("select poll_cursor, poll_lease_until, poll_failures from connection")
    assert (row.poll_cursor, row.poll_lease_until, row.poll_failures) == ("7", present.token, 0)
    polls.finished(present, 60)
    assert mirror.value("select poll_lease_until from connection") is None
    with pytest.raises(LeaseLost):
        polls.advanced(present, "8")


def test_a_poll_that_is_overtaken_halfway_leaves_the_rest_to_the_other(mirror: World) -> None:
    mirror.execute("update connection set poll_due_at = now()")
    taken: list[PollTask] = []

    def feed_slowly(task: PollTask, cursor: str | None) -> PollTask:
        if not taken:
            mirror.execute("update connection set poll_lease_until = now() - interval '1 second'")
            other = mirror.work.poller.store.claim()
            assert other is not None
            taken.append(other)
        return mirror.work.poller.store.advanced(task, cursor)

    slow = replace(mirror.work.poller, store=_Slow(mirror.work.poller.store, feed_slowly))
    assert slow.poll()
    (row,) = mirror.rows("select poll_cursor, poll_lease_until, poll_failures, poll_error from connection")
    assert (row.poll_cursor, row.poll_lease_until) == (None, taken[0].token)
    assert (row.poll_failures, row.poll_error) == (0, None)


@dataclass
class _Slow:
    """A PollStore whose steps take their time."""

    inner: PollStore
    step: Callable[[PollTask, str | None], PollTask]

    def claim(self) -> PollTask | None:
        return self.inner.claim()

    def advanced(self, task: PollTask, cursor: str | None) -> PollTask:
        return self.step(task, cursor)

    def finished(self, task: PollTask, due_seconds: float) -> None:
        self.inner.finished(task, due_seconds)

    def failed(self, task: PollTask, error: str, due_seconds: float) -> None:
        self.inner.failed(task, error, due_seconds)


@pytest.mark.parametrize(("lost", "times"), [(False, 1), (True, 5)])
def test_behind_a_kill_a_poll_is_further_after_each_chunk(mirror: World, lost: bool, times: int) -> None:
    """What kills it would be met in the same place for ever."""
    for number in range(8):
        mirror.simulator.reseller.patch(SUBSCRIPTION, "sub", {"quantity": number + 10})
    lease = "now() - interval '1 second'" if lost else "null"
    mirror.execute(f"update connection set poll_due_at = now(), poll_lease_until = {lease}")
    written: list[str | None] = []
    store = mirror.work.poller.store

    def note(task: PollTask, cursor: str | None) -> PollTask:
        written.append(cursor)
        return store.advanced(task, cursor)

    assert replace(mirror.work.poller, store=_Slow(store, note), lease_seconds=math.inf).poll()
    assert len(written) == times
    assert mirror.value("select poll_cursor from connection") == written[-1]


def test_behind_a_kill_whole_pages_are_left_to_workers(mirror: World) -> None:
    """A cursor counts with the last change of its page: what kills in its middle must not be met again and again."""
    bss = mirror.simulator.reseller
    mirror.poll()
    for number in range(6 * CHUNK):
        bss.put(SUBSCRIPTION, f"sub-{number}", {"account_id": "x", "product": PRODUCT, "quantity": 1})
    mirror.execute(
        """update connection set poll_due_at = now(), poll_lease_until = now() - interval '1 second',
                                 settings = settings || '{"page_size": 1000}'"""
    )
    assert mirror.work.poller.poll()
    assert mirror.value("select count(*) from message where state = 'pending'") == 6 * CHUNK, "workers decide all of it"


def test_a_connection_that_is_paused_is_not_polled(mirror: World) -> None:
    mirror.execute("update connection set state = 'paused'")
    mirror.poll()
    assert mirror.simulator.calls["GET /changes"] == 0


def test_the_echo_of_our_own_deliveries_is_dropped(mirror: World) -> None:
    mirror.settle()
    for quantity in (6, 7, 6):
        mirror.simulator.reseller.patch(SUBSCRIPTION, "sub", {"quantity": quantity})
        mirror.settle()
        _poll_target(mirror)
    assert mirror.value("select count(*) from drift") == 0
    assert mirror.effects("edit") == []


def test_an_edit_behind_the_systems_back_is_found_put_back_and_explained(mirror: World) -> None:
    mirror.settle()
    _poll_target(mirror)
    _edit(mirror, quantity="500", status="terminated")
    _poll_target(mirror)
    rows = mirror.rows("select * from drift order by field")
    assert [(row.field, row.expected, row.found, row.action) for row in rows] == [
        ("quantity", "5", "500", "repairing"),
        ("status", "active", "terminated", "repairing"),
    ]
    assert {row.changed_by for row in rows} == {"clerk@distributor.example"}
    (entry,) = mirror.audits("lock.violated")
    assert entry.detail["fields"] == ["quantity", "status"]
    mirror.deliver()
    assert mirror.target_fields(SUBSCRIPTION, "sub")["quantity"] == "5"
    assert mirror.value("select count(*) from drift where settled_at is not null and action = 'repaired'") == 2
    _poll_target(mirror)
    assert mirror.value("select count(*) from drift") == 2


def test_the_same_edit_made_again_is_put_back_again(mirror: World) -> None:
    mirror.settle()
    for _ in range(2):
        _edit(mirror, quantity="500")
        _poll_target(mirror)
        mirror.deliver()
        assert mirror.target_fields(SUBSCRIPTION, "sub")["quantity"] == "5"
    assert mirror.value("select count(*) from drift where action = 'repaired'") == 2


def test_by_policy_an_edit_is_only_reported(mirror: World) -> None:
    mirror.execute("update target set drift_policy = 'report'")
    mirror.settle()
    _edit(mirror, quantity="500")
    for _ in range(2):
        mirror.execute("update target set poll_cursor = null")
        _poll_target(mirror)
        mirror.deliver()
    assert mirror.target_fields(SUBSCRIPTION, "sub")["quantity"] == "500"
    (row,) = mirror.rows("select * from drift")
    assert (row.action, row.settled_at) == ("reported", None)
    _edit(mirror, quantity="5")
    _poll_target(mirror)
    assert mirror.value("select settled_at is not null from drift")


def test_a_field_that_the_target_keeps_for_itself_is_no_drift(mirror: World) -> None:
    mirror.settle()
    _edit(mirror, internal_note="call them")
    _poll_target(mirror)
    assert mirror.value("select count(*) from drift") == 0


def test_a_feed_that_fails_keeps_its_cursor(mirror: World) -> None:
    mirror.settle()
    _poll_target(mirror)
    cursor = mirror.value("select poll_cursor from target")
    _edit(mirror, quantity="500")
    mirror.simulator.faults.add(Fault(path="/record-changes", status=500))
    _poll_target(mirror)
    assert mirror.value("select poll_cursor from target") == cursor
    assert mirror.value("select poll_error from target").startswith("transient")
    mirror.simulator.faults.clear()
    _poll_target(mirror)
    assert mirror.value("select count(*) from drift") == 1
