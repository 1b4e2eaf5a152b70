"""Replays: stored messages are decided anew by today's rules, exactly as the dry run said; or are given up."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest

from bss_sync.domain.errors import InvalidRequest
from bss_sync.jobs.reconciling import make_replayer
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, target=False) as one:
        bss = one.simulator.reseller
        bss.put(ACCOUNT, "x", {"name": "Customer X"})
        bss.put(SUBSCRIPTION, "good", {"account_id": "x", "product": PRODUCT, "quantity": 1})
        bss.put(SUBSCRIPTION, "odd", {"account_id": "x", "product": PRODUCT, "status": "hibernating"})
        bss.put(SUBSCRIPTION, "trial", {"account_id": "x", "product": PRODUCT, "trial": True})
        one.poll()
        yield one


def _ids(one: World) -> list[UUID]:
    return [row.id for row in one.rows("select id from message order by seq")]


def _states(one: World) -> dict[str, str]:
    return {row.source_id: row.state for row in one.rows("select source_id, state from message order by seq")}


def _map_value(one: World) -> None:
    one.execute(
        """insert into value_map (tenant_id, connection_id, field, source_value, canonical)
           select tenant_id, id, 'status', 'hibernating', 'suspended' from connection"""
    )


def test_without_new_rules_a_replay_changes_nothing(mirror: World) -> None:
    before = _states(mirror)
    assert before == {"x": "applied", "good": "applied", "odd": "quarantined", "trial": "out_of_scope"}
    planned = make_replayer(mirror.app).plan(_ids(mirror))
    assert {one.message.source_id: str(one.becomes) for one in planned} == before
    assert {one.message.source_id: one.verdict for one in planned}["good"] == "no_change"
    assert _states(mirror) == before, "a dry run writes nothing"
    make_replayer(mirror.app).replay(_ids(mirror), actor="test")
    mirror.process()
    assert _states(mirror) == before


def test_a_replay_does_what_its_dry_run_said(mirror: World) -> None:
    _map_value(mirror)
    mirror.execute("update product set retired_at = null")
    planned = {one.message.source_id: str(one.becomes) for one in make_replayer(mirror.app).plan(_ids(mirror))}
    assert planned["odd"] == "applied"
    make_replayer(mirror.app).replay(_ids(mirror), actor="test")
    mirror.process()
    assert _states(mirror) == planned
    assert mirror.value("select status from subscription where source_id = 'odd'") == "suspended"
    assert {row.actor for row in mirror.audits("message.replayed")} == {"test"}


@pytest.mark.parametrize("rate", [None, 1.0], ids=["in one step", "step by step"])
def test_what_waited_for_each_other_ends_as_the_dry_run_said_however_it_is_opened(
    mirror: World, rate: float | None
) -> None:
    """Each dead account was in scope because the other one's message waited for it, and nothing else does."""
    pairs = {"a": "b", "b": "a"}
    for name, parent in pairs.items():
        mirror.simulator.reseller.put(ACCOUNT, name, {"name": name, "parent_id": parent})
    mirror.poll()
    for name, parent in pairs.items():
        mirror.execute(
            "update message set state = 'dead', verdict = 'dead', waits_for = :parent where source_id = :name",
            parent=mirror.record_id(ACCOUNT, parent),
            name=name,
        )
    ids = [row.id for row in mirror.rows("select id from message where source_id in ('a', 'b') order by seq")]
    replayer = make_replayer(mirror.app)
    planned = {one.message.source_id: str(one.becomes) for one in replayer.plan(ids)}
    assert replayer.begin(ids, actor="test", rate=rate) is not None
    for _step in ids:
        mirror.execute("update run set progress = progress || jsonb_build_object('due_at', now())")
        mirror.work.replayer.carry_due()
        mirror.process()
    assert {name: _states(mirror)[name] for name in pairs} == planned


def test_a_replay_never_moves_an_entity_back(mirror: World) -> None:
    held = mirror.value("select id from message where source_id = 'odd'")
    mirror.simulator.reseller.patch(SUBSCRIPTION, "odd", {"status": "active", "quantity": 7})
    mirror.poll()
    _map_value(mirror)
    make_replayer(mirror.app).replay([held], actor="test")
    mirror.process()
    (row,) = mirror.rows("select status, quantity, version from subscription where source_id = 'odd'")
    assert (row.status, row.quantity, row.version) == ("active", 7, 2)


def test_a_paused_connections_replay_waits_parked(mirror: World) -> None:
    mirror.execute("update connection set state = 'paused'")
    _map_value(mirror)
    make_replayer(mirror.app).replay(_ids(mirror), actor="test")
    mirror.process()
    assert mirror.value("select count(*) from message where state = 'pending' and shard is null") == 2
    assert mirror.value("select count(*) from subscription where source_id = 'odd'") == 0


def _many(one: World, number: int) -> None:
    """Held messages, two for each entity, the newer one first in the inbox."""
    for index in range(number):
        fields = {"account_id": "x", "product": PRODUCT, "status": "hibernating"}
        one.simulator.reseller.put(SUBSCRIPTION, f"held-{index}", fields | {"quantity": 2, "version": 2})
        one.poll()
        one.simulator.reseller.put(SUBSCRIPTION, f"held-{index}", fields | {"quantity": 1, "version": 1})
        one.poll()


def test_a_replay_that_is_killed_at_half_goes_on_in_a_worker_as_the_dry_run_said(mirror: World) -> None:
    _many(mirror, 4)
    _map_value(mirror)
    ids = _ids(mirror)
    replayer = make_replayer(mirror.app)
    planned = {one.message.id: str(one.becomes) for one in replayer.plan(ids)}
    run_id = replayer.begin(ids, actor="cli:mara")
    assert run_id is not None
    step = replayer.store.step(run_id, 5, lease_seconds=10)
    assert step is not None
    assert 5 <= step.done < step.total, "it died here"
    mirror.process()
    mirror.work.poll()
    assert mirror.value("select state from run") == "running", "its lease still runs"
    mirror.execute("""update run set progress = progress || '{"due_at": "2026-01-01T00:00:00Z"}'""")
    mirror.work.poll()
    mirror.process()
    assert {row.id: row.state for row in mirror.rows("select id, state from message")} == planned
    assert mirror.value("select state from run") == "done"
    assert mirror.value("select count(*) from replay_item") == 0
    assert mirror.value("select count(*) from audit where action = 'message.replayed'") == step.total
    assert {row.actor for row in mirror.audits("message.replayed")} == {"cli:mara"}


def test_a_step_opens_whole_entities(mirror: World) -> None:
    _many(mirror, 3)
    replayer = make_replayer(mirror.app)
    run_id = replayer.begin(_ids(mirror), actor="test")
    assert run_id is not None
    while (step := replayer.store.step(run_id, 1, lease_seconds=10)) is not None:
        split = """select stream_id from message where state in ('pending', 'quarantined') and source_id like 'held%'
                   group by stream_id having count(distinct state) > 1"""
        assert mirror.rows(split) == []
        assert step.done <= step.total


def test_a_rate_paces_a_replay(mirror: World) -> None:
    """However its messages fall into entities, which are opened whole."""
    _many(mirror, 2)
    replayer = make_replayer(mirror.app)
    pauses: list[float] = []
    replayer.pause = pauses.append
    run_id = replayer.begin(_ids(mirror), actor="test", rate=2)
    assert run_id is not None
    opened: list[int] = []
    assert replayer.carry(run_id, rate=2, progress=opened.append) == 6
    assert len(opened) >= 2
    assert pauses == [(now - before) / 2 for before, now in pairwise([0, *opened[:-1]])]
    with pytest.raises(InvalidRequest, match="above zero"):
        replayer.begin(_ids(mirror), actor="test", rate=0)


def test_a_slow_replay_is_its_carriers_while_it_rests(mirror: World) -> None:
    _many(mirror, 2)
    replayer = make_replayer(mirror.app)
    replayer.pause = lambda _seconds: left.append(replayer.carry_due())
    left: list[bool] = []
    run_id = replayer.begin(_ids(mirror), actor="test", rate=0.01)
    assert run_id is not None
    replayer.carry(run_id, rate=0.01)
    rests = "select extract(epoch from (progress ->> 'due_at')::timestamptz - updated_at) from run"
    assert mirror.value(rests) > 100
    assert left
    assert not any(left)


def test_nothing_left_to_decide_begins_no_run(mirror: World) -> None:
    applied = [row.id for row in mirror.rows("select id from message where state = 'applied'")]
    assert make_replayer(mirror.app).replay(applied, actor="test").run_id is None
    assert mirror.rows("select id from run") == []


def test_what_stays_held_is_no_change(mirror: World) -> None:
    planned = make_replayer(mirror.app).plan(_ids(mirror))
    assert not any(one.changes for one in planned)
    _map_value(mirror)
    assert [one.message.source_id for one in make_replayer(mirror.app).plan(_ids(mirror)) if one.changes] == ["odd"]


def test_a_held_message_is_discarded_with_a_reason(mirror: World) -> None:
    replayer = make_replayer(mirror.app)
    with pytest.raises(InvalidRequest, match="reason"):
        replayer.discard(_ids(mirror), " ", actor="test")
    assert replayer.discard(_ids(mirror), "a test order", actor="test") == 2
    assert _states(mirror) == {"x": "applied", "good": "applied", "odd": "discarded", "trial": "discarded"}
    assert {row.detail["reason"] for row in mirror.audits("message.discarded")} == {"a test order"}
    assert mirror.value("select count(*) from staging where kind = 'subscription'") == 0
