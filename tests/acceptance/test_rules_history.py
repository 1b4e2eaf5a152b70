"""domain.md section 6, "Two times": when a change took effect, and when we recorded it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.scenario import ACCOUNT, START, SUBSCRIPTION, Scenario, subscription_body

DAY = timedelta(days=1)


def test_effective_at_defaults_to_the_envelopes_timestamp(line: Scenario) -> None:
    line.send(line.change(SUBSCRIPTION, "s1", 1, subscription_body(), sent_at=START + DAY))
    assert [row.effective_at for row in line.history(SUBSCRIPTION, "s1")] == [START + DAY]


def test_a_change_counts_from_its_effective_date_not_from_its_arrival(line: Scenario) -> None:
    line.subscription("s1", 1, quantity="1")
    line.send(
        line.change(
            SUBSCRIPTION,
            "s1",
            2,
            subscription_body(quantity="9"),
            sent_at=START + 9 * DAY,
            effective_at=START + 5 * DAY,
        )
    )
    before, after = (line.as_of(SUBSCRIPTION, "s1", START + days * DAY) for days in (4, 6))
    assert before is not None
    assert after is not None
    assert (before.state["quantity"], after.state["quantity"]) == ("1", "9")


def test_a_quantity_held_for_a_week_is_in_history_also_when_its_message_came_late(line: Scenario) -> None:
    def at(version: int, day: int, quantity: str) -> str:
        body = subscription_body(quantity=quantity)
        return line.send(line.change(SUBSCRIPTION, "s1", version, body, sent_at=START + day * DAY))

    at(1, 1, "1")
    at(3, 15, "3")
    late = at(2, 8, "2")
    held = line.as_of(SUBSCRIPTION, "s1", START + 10 * DAY)
    assert held is not None
    assert (held.version, held.state["quantity"], held.late) == (2, "2", True)
    assert line.state(late) == "superseded"
    present = line.as_of(SUBSCRIPTION, "s1", START + 16 * DAY)
    assert present is not None
    assert present.version == 3


def test_a_late_state_whose_version_is_in_history_is_not_inserted_again(line: Scenario) -> None:
    for version in (1, 3, 2, 2):
        line.subscription("s1", version)
    assert sorted(row.version for row in line.history(SUBSCRIPTION, "s1")) == [1, 2, 3]


def test_a_late_deletion_below_a_living_version_is_history(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.subscription("s1", 3)
    line.delete(SUBSCRIPTION, "s1", 2)
    assert not line.shown(SUBSCRIPTION, "s1").deleted
    assert [(row.version, row.deleted) for row in line.history(SUBSCRIPTION, "s1")] == [
        (1, False),
        (3, False),
        (2, True),
    ]


def test_who_was_under_whom_has_an_answer_for_every_day(line: Scenario) -> None:
    line.account("lite-1", 1, kind="reseller")
    line.account("lite-2", 1, kind="reseller")
    line.subscription("r1", 1, "lite-1")
    line.subscription("r2", 1, "lite-2")
    line.account("x", 1, "lite-1")
    line.subscription("s1", 1, "x")
    moved = {"name": "X", "number": None, "email": None, "kind": "customer", "parent_id": "lite-2"}
    line.send(line.change(ACCOUNT, "x", 2, moved, sent_at=START + 40 * DAY))
    on_31_january, today = (line.as_of(ACCOUNT, "x", START + days * DAY) for days in (30, 41))
    assert on_31_january is not None
    assert today is not None
    assert (on_31_january.state["parent_id"], today.state["parent_id"]) == ("lite-1", "lite-2")
    assert line.shown(ACCOUNT, "x").parent == "lite-2"


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1), (3, 1, 2)])
def test_history_holds_every_paid_state_in_whatever_order_they_came(line: Scenario, order: tuple[int, ...]) -> None:
    for version in order:
        body = subscription_body(quantity=str(version))
        line.send(line.change(SUBSCRIPTION, "s1", version, body, sent_at=START + version * DAY))
    told = {(row.version, row.state["quantity"], row.effective_at) for row in line.history(SUBSCRIPTION, "s1")}
    assert told == {(version, str(version), START + version * DAY) for version in (1, 2, 3)}
    assert line.shown(SUBSCRIPTION, "s1").version == 3
