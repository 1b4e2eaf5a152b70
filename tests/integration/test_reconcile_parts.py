"""Reconciliation of a part: a subtree, what changed since the last time, the rest of a run whose process died."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bss_sync.adapters.sql.admin import runs
from bss_sync.domain.errors import GuardStopped
from bss_sync.jobs.reconciling import make_reconciler
from tests.reconciling import found, level, reconcile
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with level(database, server_home) as one:
        yield one


def test_only_a_subtree_is_compared_and_repaired(mirror: World) -> None:
    bss = mirror.simulator.reseller
    bss.put(SUBSCRIPTION, "sub-y", {"account_id": "y", "product": PRODUCT})
    mirror.settle()
    bss.patch(SUBSCRIPTION, "sub-1", {"quantity": 100}, push=False)
    bss.delete(SUBSCRIPTION, "sub-2", push=False)
    bss.put(ACCOUNT, "a-below", {"name": "Below", "parent_id": "new"}, push=False)
    bss.put(ACCOUNT, "new", {"name": "New", "parent_id": "x"}, push=False)
    bss.put(SUBSCRIPTION, "sub-below", {"account_id": "a-below", "product": PRODUCT}, push=False)
    bss.patch(SUBSCRIPTION, "sub-y", {"quantity": 50}, push=False)
    below = [("extra", "sub-2", None), ("missing", "sub-below", None), ("stale", "sub-1", "quantity")]
    assert found(reconcile(mirror, subtree="lite", dry_run=True)) == below
    assert found(reconcile(mirror, subtree="lite")) == below
    assert mirror.value("select count(*) from subscription where source_id = 'sub-below'") == 1
    assert found(reconcile(mirror, subtree="lite")) == []
    assert found(reconcile(mirror)) == [("stale", "sub-y", "quantity")]


def test_since_the_last_time_only_what_changed_there_is_compared(mirror: World) -> None:
    bss = mirror.simulator.reseller
    assert reconcile(mirror, since_last=True).listed == 9, "the first time everything is"
    bss.patch(SUBSCRIPTION, "sub-1", {"quantity": 100})
    bss.delete(SUBSCRIPTION, "sub-2")
    result = reconcile(mirror, since_last=True)
    assert result.listed < 9
    assert found(result) == [("extra", "sub-2", None), ("stale", "sub-1", "quantity")]
    assert mirror.value("select quantity from subscription where source_id = 'sub-1'") == 100
    again = reconcile(mirror, since_last=True)
    assert (found(again), again.listed) == ([], 0)


def test_an_approved_run_whose_process_died_is_carried_on(mirror: World) -> None:
    for number in range(1, 6):
        mirror.simulator.reseller.delete(SUBSCRIPTION, f"sub-{number}")
    with pytest.raises(GuardStopped):
        reconcile(mirror)
    run_id = mirror.value("select id from run")
    with mirror.app.database.engine() as connection:
        runs.approve(connection, run_id, actor="test")
    dying = make_reconciler(mirror.app).runs
    assert dying.claim_approved() is not None
    mirror.work.poll()
    assert mirror.value("select state from run where id = :id", id=run_id) == "running", "another has it"
    dying.let_go(run_id)  # as its process dies
    mirror.work.poll()
    mirror.process()
    assert mirror.value("select state from run where id = :id", id=run_id) == "done"
    assert mirror.value("select count(*) from subscription where deleted_at is null") == 1
