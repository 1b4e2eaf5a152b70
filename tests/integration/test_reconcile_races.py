"""What happens at the source while it is being listed never ends anything wrongly, and nothing newer is undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bss_sync.adapters.sql.admin import runs
from bss_sync.domain.errors import GuardStopped
from bss_sync.jobs.reconciling import make_reconciler
from bss_sync.pipeline.reconcile import Request, Result
from connectors.simulator.faults import Fault
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world

SUBSCRIPTIONS, PAGE = 40, 5


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, target=False, connection={"page_size": PAGE, "guard_count": 10}) as one:
        one.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
        one.simulator.reseller.put(ACCOUNT, "y", {"name": "Customer Y"})
        for number in range(SUBSCRIPTIONS):
            one.simulator.reseller.put(SUBSCRIPTION, name(number), {"account_id": "x", "product": PRODUCT})
        one.poll()
        yield one


def name(number: int) -> str:
    return f"sub-{number:03}"


def reconcile_while(one: World, act: Callable[[], object], *, listed: int = 12) -> Result:
    """Reconcile, and let something happen once so many were compared."""
    done: list[int] = []

    def look(so_far: int) -> None:
        if so_far >= listed and not done:
            done.append(so_far)
            act()

    result = make_reconciler(one.app).reconcile(Request(one.source.id), look)
    one.process()
    return result


def live(one: World) -> set[str]:
    return {row.source_id for row in one.rows("select source_id from subscription where deleted_at is null")}


ALL = {name(number) for number in range(SUBSCRIPTIONS)}
SEEN, UNSEEN = name(3), name(SUBSCRIPTIONS - 1)


@pytest.mark.parametrize("push", [True, False], ids=["told", "untold"])
@pytest.mark.parametrize("which", [SEEN, UNSEEN], ids=["after its page", "before its page"])
def test_what_is_deleted_or_changed_meanwhile_is_as_the_source_says_in_the_end(
    mirror: World, which: str, push: bool
) -> None:
    bss = mirror.simulator.reseller
    other = name(4) if which == SEEN else name(SUBSCRIPTIONS - 2)

    def act() -> None:
        bss.delete(SUBSCRIPTION, which, push=False)
        bss.patch(SUBSCRIPTION, other, {"quantity": 7, "account_id": "y"}, push=False)
        bss.put(SUBSCRIPTION, "sub-000-new", {"account_id": "x", "product": PRODUCT}, push=False)
        bss.put(SUBSCRIPTION, "sub-new", {"account_id": "x", "product": PRODUCT}, push=False)
        if push:
            mirror.poll()

    reconcile_while(mirror, act)
    assert live(mirror) >= ALL - {which}, "nothing else ended"
    reconcile_while(mirror, lambda: None)
    assert live(mirror) == (ALL - {which}) | {"sub-000-new", "sub-new"}
    assert mirror.value("select quantity from subscription where source_id = :id", id=other) == 7
    again = reconcile_while(mirror, lambda: None)
    assert again.total == 0


def test_what_moved_between_pages_and_was_missed_lives_on_because_it_was_asked_for(mirror: World) -> None:
    source = mirror.work.poller.sources.source(mirror.source.id)

    class Moving:
        """A source that is paged by place, not by id: a removal before the place shifts one record out of sight."""

        answer_page = None

        def __init__(self) -> None:
            self.asked: list[str] = []

        def __getattr__(self, what: str) -> object:
            return getattr(source.client, what)

        def list_page(self, cursor: str | None) -> object:
            page = source.client.list_page(cursor)  # type: ignore[attr-defined]  # the simulator has it
            kept = [one for one in page.observations if one.source_id not in (name(20), name(21))]
            return replace(page, observations=kept)

    mirror.simulator.reseller.patch(SUBSCRIPTION, name(21), {"quantity": 5}, push=False)
    reconciler = make_reconciler(mirror.app)
    opened = replace(source, client=Moving())  # type: ignore[arg-type]  # the rest is the client's

    class Sources:
        """The one source."""

        def source(self, *_connection: object, **_how: bool) -> object:
            return opened

    reconciler.sources = Sources()  # type: ignore[assignment]  # it is all that is asked of it
    result = reconciler.reconcile(Request(mirror.source.id))
    mirror.process()
    assert live(mirror) == ALL
    assert [(str(one.problem), one.source_id) for one in result.differences] == [("stale", name(21))], (
        "what was missed was compared all the same"
    )
    assert mirror.value("select quantity from subscription where source_id = :id", id=name(21)) == 5


def test_who_cannot_be_asked_for_is_not_ended_on_a_guess(mirror: World) -> None:
    mirror.simulator.reseller.delete(SUBSCRIPTION, name(1), push=False)
    mirror.simulator.reseller.delete(SUBSCRIPTION, name(2), push=False)
    mirror.simulator.faults.add(Fault(path=f"/subscriptions/{name(1)}", status=500))
    result = reconcile_while(mirror, lambda: None)
    assert result.source_error is not None
    assert live(mirror) == ALL - {name(2)}
    mirror.simulator.faults.clear()
    mirror.calm()
    assert reconcile_while(mirror, lambda: None).source_error is None
    assert live(mirror) == ALL - {name(1), name(2)}


def test_the_end_of_the_source_is_at_its_own_version(mirror: World) -> None:
    mirror.simulator.reseller.patch(SUBSCRIPTION, name(1), {"quantity": 3}, push=False)
    mirror.simulator.reseller.delete(SUBSCRIPTION, name(1), push=False)
    reconcile_while(mirror, lambda: None)
    assert mirror.value("select version from stream where source_id = :id", id=name(1)) == 3
    # The message of the change before comes late: the tombstone holds.
    mirror.poll()
    assert live(mirror) == ALL - {name(1)}


def _delete(one: World, number: int) -> None:
    for place in range(number):
        one.simulator.reseller.delete(SUBSCRIPTION, name(place), push=False)


def _stopped(one: World) -> object:
    with pytest.raises(GuardStopped):
        make_reconciler(one.app).reconcile(Request(one.source.id))
    return one.value("select id from run where state = 'stopped'")


def test_a_rejected_run_leaves_everything_as_it_is(mirror: World) -> None:
    _delete(mirror, 15)
    run_id = _stopped(mirror)
    with mirror.app.database.engine() as connection:
        runs.reject(connection, run_id, actor="test")  # type: ignore[arg-type]  # a column's value
    mirror.work.poll()
    mirror.process()
    assert live(mirror) == ALL
    assert mirror.value("select state from run where id = :id", id=run_id) == "rejected"


def test_an_approved_run_asks_for_each_before_it_ends_it(mirror: World) -> None:
    _delete(mirror, 15)
    run_id = _stopped(mirror)
    # Between the stop and the yes three came back.
    for place in range(3):
        mirror.simulator.reseller.put(SUBSCRIPTION, name(place), {"account_id": "x", "product": PRODUCT}, push=False)
    with mirror.app.database.engine() as connection:
        runs.approve(connection, run_id, actor="test")  # type: ignore[arg-type]  # a column's value
    mirror.work.poll()
    mirror.process()
    assert live(mirror) == ALL - {name(place) for place in range(3, 15)}
    assert mirror.value("select state from run where id = :id", id=run_id) == "done"
