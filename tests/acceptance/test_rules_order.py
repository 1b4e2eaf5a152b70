"""domain.md section 6, "Order": per entity, by one of three kinds."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bss_sync.domain.change import OrderKind
from bss_sync.ports.inbox import Origin
from tests.acceptance.conftest import Connect
from tests.scenario import ACCOUNT, START, SUBSCRIPTION, Asked, Hole, Scenario, subscription_body

T1, T2, T3 = (START + timedelta(days=day) for day in (1, 2, 3))


def test_a_state_above_the_mirrors_version_is_applied_at_once_whatever_lies_between(line: Scenario) -> None:
    line.subscription("s1", 1)
    jump = line.subscription("s1", 40, quantity="7")
    assert line.state(jump) == "applied"
    assert (line.shown(SUBSCRIPTION, "s1").version, line.shown(SUBSCRIPTION, "s1")["quantity"]) == (40, "7")


def test_a_late_lower_version_is_superseded_and_never_changes_the_present(line: Scenario) -> None:
    line.subscription("s1", 3, quantity="3")
    late = line.subscription("s1", 2, quantity="2")
    assert line.state(late) == "superseded"
    assert (line.shown(SUBSCRIPTION, "s1").version, line.shown(SUBSCRIPTION, "s1")["quantity"]) == (3, "3")


def test_versions_that_were_jumped_over_are_recorded_as_a_gap(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.subscription("s1", 5)
    assert line.gaps(SUBSCRIPTION, "s1") == [Hole(2, 4, 3)]


def test_first_contact_is_no_gap(line: Scenario) -> None:
    line.subscription("s1", 12)
    assert line.gaps(SUBSCRIPTION, "s1") == []


def test_late_versions_close_the_gap_one_by_one(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.subscription("s1", 4)
    line.subscription("s1", 3)
    assert line.gaps(SUBSCRIPTION, "s1") == [Hole(2, 3, 1)]
    line.subscription("s1", 2)
    assert line.gaps(SUBSCRIPTION, "s1") == []


def test_the_same_late_version_twice_does_not_close_a_gap_of_two(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.subscription("s1", 4)
    line.subscription("s1", 3)
    line.subscription("s1", 3)
    assert line.gaps(SUBSCRIPTION, "s1") == [Hole(2, 3, 1)]


def test_a_fetch_is_scheduled_for_a_gap_where_the_connector_can(connect: Connect) -> None:
    line = connect(can_fetch=True)
    line.subscription("s1", 1)
    line.subscription("s1", 5)
    assert line.fetches() == {Asked(SUBSCRIPTION, "s1")}


def test_no_fetch_is_scheduled_where_the_connector_cannot(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.subscription("s1", 5)
    assert line.fetches() == set()


def test_messages_that_came_together_in_any_order_leave_no_gap(line: Scenario) -> None:
    line.send(*(line.change(SUBSCRIPTION, "s1", version, subscription_body()) for version in (3, 1, 2)))
    assert line.gaps(SUBSCRIPTION, "s1") == []
    assert [row.version for row in line.history(SUBSCRIPTION, "s1")] == [1, 2, 3]


def test_equal_version_and_equal_content_is_superseded(line: Scenario) -> None:
    line.subscription("s1", 2, quantity="5")
    again = line.subscription("s1", 2, quantity="5")
    assert line.state(again) == "superseded"
    assert len(line.history(SUBSCRIPTION, "s1")) == 1


def test_equal_sequence_with_other_content_is_held_as_version_conflict(line: Scenario) -> None:
    line.subscription("s1", 2, quantity="5")
    other = line.subscription("s1", 2, quantity="6")
    assert line.verdict(other) == ("quarantined", "held", "version_conflict")
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "5"


def test_a_version_conflict_is_fetched_and_the_sources_answer_decides_it(connect: Connect) -> None:
    line = connect(can_fetch=True)
    line.subscription("s1", 2, quantity="5")
    other = line.subscription("s1", 2, quantity="6")
    assert line.fetches() == {Asked(SUBSCRIPTION, "s1")}
    fetched = line.answer(SUBSCRIPTION, "s1", 2, subscription_body(quantity="6"))
    assert line.state(fetched) == "applied"
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "6"
    assert line.state(other) == "superseded"


def test_an_answer_that_confirms_the_present_settles_the_conflict_too(connect: Connect) -> None:
    line = connect(can_fetch=True)
    line.subscription("s1", 2, quantity="5")
    other = line.subscription("s1", 2, quantity="6")
    line.answer(SUBSCRIPTION, "s1", 2, subscription_body(quantity="5"))
    assert line.state(other) == "superseded"
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "5"


def test_a_deletion_and_a_state_of_equal_version_conflict(line: Scenario) -> None:
    line.subscription("s1", 2)
    gone = line.delete(SUBSCRIPTION, "s1", 2)
    assert line.reason(gone) == "version_conflict"
    assert not line.shown(SUBSCRIPTION, "s1").deleted


def test_a_timestamp_sources_change_time_is_the_order(line: Scenario) -> None:
    line.subscription("s1", T2, quantity="2")
    late = line.subscription("s1", T1, quantity="1")
    assert line.state(late) == "superseded"
    line.subscription("s1", T3, quantity="3")
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "3"
    assert line.gaps(SUBSCRIPTION, "s1") == []


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "reversed"])
def test_at_an_equal_timestamp_the_greater_envelope_timestamp_wins(line: Scenario, order: tuple[int, int]) -> None:
    sent = [
        line.change(SUBSCRIPTION, "s1", T1, subscription_body(quantity=str(n)), sent_at=T2 + timedelta(seconds=n))
        for n in (1, 2)
    ]
    for index in order:
        line.send(sent[index])
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "2"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "reversed"])
def test_at_equal_timestamps_throughout_the_greater_message_id_wins(line: Scenario, order: tuple[int, int]) -> None:
    sent = [
        line.change(SUBSCRIPTION, "s1", T1, subscription_body(quantity=str(n)), sent_at=T2, message_id=f"id-{n}")
        for n in (1, 2)
    ]
    for index in order:
        line.send(sent[index])
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "2"


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 0, 1), (1, 0, 2), (0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_tie_of_three_ends_the_same_in_any_order(line: Scenario, order: tuple[int, ...]) -> None:
    quantities = ("5", "6", "5")
    sent = [
        line.change(SUBSCRIPTION, "s1", T1, subscription_body(quantity=quantity), sent_at=T2, message_id=f"id-{n}")
        for n, quantity in enumerate(quantities)
    ]
    for index in order:
        line.send(sent[index])
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "5"


def test_reconciliation_has_the_last_word_at_an_equal_timestamp(line: Scenario) -> None:
    late = line.change(SUBSCRIPTION, "s1", T1, subscription_body(quantity="1"), sent_at=T3)
    line.send(line.change(SUBSCRIPTION, "s1", T1, subscription_body(quantity="2"), sent_at=T2))
    line.answer(SUBSCRIPTION, "s1", T1, subscription_body(quantity="9"), origin=Origin.RECONCILE, sent_at=T1)
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "9"
    line.send(late)
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "9"


def test_an_observed_version_counts_the_observations_that_differed(connect: Connect) -> None:
    line = connect(can_fetch=True)
    line.order = OrderKind.OBSERVED
    line.answer(SUBSCRIPTION, "s1", None, subscription_body(quantity="1"))
    same = line.answer(SUBSCRIPTION, "s1", None, subscription_body(quantity="1"))
    assert line.state(same) == "superseded"
    line.answer(SUBSCRIPTION, "s1", None, subscription_body(quantity="2"))
    back = line.answer(SUBSCRIPTION, "s1", None, subscription_body(quantity="1"))
    assert line.state(back) == "applied"
    assert line.shown(SUBSCRIPTION, "s1").version == 3


def test_an_observation_that_waited_never_undoes_a_later_one(connect: Connect) -> None:
    line = connect(can_fetch=True)
    line.order = OrderKind.OBSERVED
    waiting = line.answer(SUBSCRIPTION, "s1", None, subscription_body("a1", quantity="1"))
    assert line.state(waiting) == "waiting"
    line.answer(SUBSCRIPTION, "s1", None, subscription_body(quantity="2"))
    line.answer(
        ACCOUNT, "a1", None, {"name": "N", "number": None, "email": None, "kind": "customer", "parent_id": None}
    )
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "2"
    assert line.state(waiting) == "superseded"


def test_a_held_observation_never_undoes_a_later_one(connect: Connect) -> None:
    line = connect(can_fetch=True)
    line.order = OrderKind.OBSERVED
    line.answer(SUBSCRIPTION, "s1", None, subscription_body(quantity="1"))
    held = line.answer(SUBSCRIPTION, "s1", None, subscription_body(quantity="2", status="frozen"))
    line.answer(SUBSCRIPTION, "s1", None, subscription_body(quantity="3"))
    assert line.state(held) == "superseded"
    line.map_value("status", "frozen", "suspended")
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "3"


def test_a_replayed_observation_never_undoes_a_later_one(connect: Connect) -> None:
    line = connect(can_fetch=True)
    line.order = OrderKind.OBSERVED
    first = line.answer(SUBSCRIPTION, "s1", None, subscription_body(quantity="1"))
    line.answer(SUBSCRIPTION, "s1", None, subscription_body(quantity="2"))
    line.replay(first)
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "2"


def test_what_counts_anew_is_accepted_only_after_an_admins_explicit_act(line: Scenario) -> None:
    line.subscription("s1", 50, quantity="5")
    anew = line.subscription("s1", 1, quantity="6")
    assert line.state(anew) == "superseded"
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "5"
    line.accept_source(SUBSCRIPTION, "s1")
    line.subscription("s1", 2, quantity="7")
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown.version, shown["quantity"]) == (2, "7")
    line.replay(anew)
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "7"
    assert [row.epoch for row in line.history(SUBSCRIPTION, "s1")][-1] == 1


def test_a_replay_can_never_move_an_entity_to_a_lower_version(line: Scenario) -> None:
    first = line.subscription("s1", 1, quantity="1")
    late = [line.subscription("s1", 3, quantity="3"), line.subscription("s1", 2, quantity="2")]
    before = line.shown(SUBSCRIPTION, "s1"), line.history(SUBSCRIPTION, "s1")
    line.replay(first, *late)
    assert (line.shown(SUBSCRIPTION, "s1"), line.history(SUBSCRIPTION, "s1")) == before
    assert {line.state(first), *(line.state(one) for one in late)} == {"superseded"}
