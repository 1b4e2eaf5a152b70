"""The guard over live messages: what would end in bulk is held, and an admin is asked once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from bss_sync.adapters.sql.admin import runs
from bss_sync.jobs.reconciling import make_replayer
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world

SUBSCRIPTIONS = range(1, 11)


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, target=False, connection={"guard_count": 3, "guard_share": 0.3}) as one:
        one.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
        for number in SUBSCRIPTIONS:
            one.simulator.reseller.put(SUBSCRIPTION, f"sub-{number:02}", {"account_id": "x", "product": PRODUCT})
        one.poll()
        yield one


def _delete(one: World, *numbers: int) -> None:
    for number in numbers:
        one.simulator.reseller.delete(SUBSCRIPTION, f"sub-{number:02}")
    one.poll()


def _live(one: World) -> int:
    statement = """select count(*) from subscription where deleted_at is null and ended_at is null
                   and status not in ('terminated', 'cancelled', 'aborted')"""
    return int(one.value(statement))


def _stopped(one: World) -> UUID:
    run_id = one.value("select id from run where kind = 'guard' and state = 'stopped'")
    assert isinstance(run_id, UUID)
    return run_id


def _held(one: World) -> int:
    return int(one.value("select count(*) from message where state = 'quarantined' and reason = 'guard'"))


def test_few_ends_pass_unasked(mirror: World) -> None:
    _delete(mirror, 1, 2, 3)
    assert (_live(mirror), _held(mirror)) == (7, 0)
    assert mirror.rows("select id from run") == []


def test_more_ends_than_the_count_pass_while_they_are_a_small_share(mirror: World) -> None:
    mirror.execute("""update connection set settings = settings || '{"guard_share": 0.5}'""")
    _delete(mirror, 1, 2, 3, 4, 5)
    assert (_live(mirror), _held(mirror)) == (5, 0)
    _delete(mirror, 6)
    assert (_live(mirror), _held(mirror)) == (5, 1)


@pytest.mark.parametrize("way", ["deleted", "terminated", "cancelled", "left scope"])
def test_what_would_end_in_bulk_is_held_and_everything_else_goes_on(mirror: World, way: str) -> None:
    bss = mirror.simulator.reseller
    for number in range(1, 8):
        if way == "deleted":
            bss.delete(SUBSCRIPTION, f"sub-{number:02}")
        else:
            changes = {"product": "SOMEBODY-ELSES"} if way == "left scope" else {"status": way}
            bss.patch(SUBSCRIPTION, f"sub-{number:02}", changes)
    bss.patch(SUBSCRIPTION, "sub-08", {"quantity": 80})
    mirror.poll()
    assert (_live(mirror), _held(mirror)) == (7, 4), "three pass, four are held"
    assert mirror.value("select quantity from subscription where source_id = 'sub-08'") == 80
    (run,) = mirror.rows("select * from run")
    assert (run.kind, run.state, run.progress["held"]) == ("guard", "stopped", 4)
    assert len(mirror.audits("run.stopped")) == 1


def test_ends_add_up_over_batches_and_one_run_asks_for_all(mirror: World) -> None:
    for number in range(1, 7):
        _delete(mirror, number)
    assert (_live(mirror), _held(mirror)) == (7, 3)
    assert mirror.value("select progress ->> 'held' from run") == "3"


def test_an_admins_yes_releases_them_and_counts_anew(mirror: World) -> None:
    _delete(mirror, *range(1, 8))
    with mirror.app.database.engine() as connection:
        decided = runs.approve(connection, _stopped(mirror), actor="cli:mara")
    assert decided.state == "done"
    mirror.process()
    assert (_live(mirror), _held(mirror)) == (3, 0)
    assert {row.actor for row in mirror.audits("message.released")} == {"cli:mara"}
    _delete(mirror, 8)
    assert (_live(mirror), _held(mirror)) == (2, 0)


def test_an_admins_no_discards_them_with_the_reason(mirror: World) -> None:
    _delete(mirror, *range(1, 8))
    run_id = _stopped(mirror)
    with mirror.app.database.engine() as connection:
        runs.reject(connection, run_id, actor="cli:mara")
    mirror.process()
    assert (_live(mirror), _held(mirror)) == (7, 0)
    discarded = mirror.rows("select reason from message where state = 'discarded'")
    assert [row.reason for row in discarded] == [f"the guard's run {run_id} was rejected"] * 4


def test_a_newer_state_of_a_held_entity_is_applied_and_outlives_the_admins_yes(mirror: World) -> None:
    _delete(mirror, *range(1, 8))
    held = mirror.value("select min(source_id) from message where reason = 'guard'")
    mirror.simulator.reseller.put(SUBSCRIPTION, held, {"account_id": "x", "product": PRODUCT, "quantity": 99})
    mirror.poll()
    with mirror.app.database.engine() as connection:
        runs.approve(connection, _stopped(mirror), actor="cli:mara")
    mirror.process()
    assert mirror.value("select quantity from subscription where source_id = :id and deleted_at is null", id=held) == 99
    assert _live(mirror) == 4


def test_while_it_has_stopped_no_end_passes_not_even_by_a_replay(mirror: World) -> None:
    _delete(mirror, *range(1, 8))
    mirror.execute("update ending set at = now() - interval '2 hours'")
    ids = [row.id for row in mirror.rows("select id from message where reason = 'guard'")]
    make_replayer(mirror.app).replay(ids, actor="test")
    mirror.process()
    _delete(mirror, 8)
    assert (_live(mirror), _held(mirror)) == (7, 5)


def test_what_ended_more_than_an_hour_ago_does_not_count(mirror: World) -> None:
    _delete(mirror, 1, 2, 3)
    mirror.execute("update ending set at = now() - interval '61 minutes'")
    _delete(mirror, 4, 5, 6)
    assert (_live(mirror), _held(mirror)) == (4, 0)
    assert mirror.value("select count(*) from ending where at < now() - interval '1 hour'") == 0, "it keeps one hour"
