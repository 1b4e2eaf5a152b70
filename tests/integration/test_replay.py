"""Replays: stored messages are decided anew by today's rules, exactly as the dry run said; or are given up."""

from __future__ import annotations

from collections.abc import Iterator
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


def test_a_held_message_is_discarded_with_a_reason(mirror: World) -> None:
    replayer = make_replayer(mirror.app)
    with pytest.raises(InvalidRequest, match="reason"):
        replayer.discard(_ids(mirror), " ", actor="test")
    assert replayer.discard(_ids(mirror), "a test order", actor="test") == 2
    assert _states(mirror) == {"x": "applied", "good": "applied", "odd": "discarded", "trial": "discarded"}
    assert {row.detail["reason"] for row in mirror.audits("message.discarded")} == {"a test order"}
    assert mirror.value("select count(*) from staging where kind = 'subscription'") == 0
