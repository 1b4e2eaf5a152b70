"""domain.md section 4: a taken field records what the source says, does not follow it, and returns on release."""

from __future__ import annotations

from functools import partial

from bss_sync.ports.inbox import Origin
from tests.scenario import ACCOUNT, SUBSCRIPTION, Scenario, subscription_body


def test_a_taken_field_does_not_follow_its_source_while_the_others_do(line: Scenario) -> None:
    line.subscription("s1", 1, quantity="5")
    line.take(SUBSCRIPTION, "s1", "quantity", "7")
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "7"
    line.subscription("s1", 2, quantity="6", status="suspended")
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown["quantity"], shown["status"], shown.version) == ("7", "suspended", 2)


def test_history_records_what_the_source_says_of_a_taken_field(line: Scenario) -> None:
    line.subscription("s1", 1, quantity="5")
    line.take(SUBSCRIPTION, "s1", "quantity", "7")
    line.subscription("s1", 2, quantity="6")
    assert [row.state["quantity"] for row in line.history(SUBSCRIPTION, "s1")] == ["5", "6"]


def test_a_released_field_returns_to_the_latest_source_value(line: Scenario) -> None:
    line.subscription("s1", 1, quantity="5")
    line.take(SUBSCRIPTION, "s1", "quantity", "7")
    line.subscription("s1", 2, quantity="6")
    line.give_back(SUBSCRIPTION, "s1", "quantity")
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "6"
    line.subscription("s1", 3, quantity="8")
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "8"


def test_a_field_that_is_taken_or_given_back_just_now_makes_no_second_state_of_what_a_comparison_tells_again(
    line: Scenario,
) -> None:
    line.subscription("s1", 1, quantity="5")
    take = partial(line.take, SUBSCRIPTION, "s1", "quantity", "7")
    give_back = partial(line.give_back, SUBSCRIPTION, "s1", "quantity")
    for act in (take, give_back):
        again = line.change(SUBSCRIPTION, "s1", 1, subscription_body(quantity="5"))
        line.send(again, origin=Origin.RECONCILE, work=False)
        act()
        assert line.word(again.message_id) == "no_change"
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "5"
    assert len(line.history(SUBSCRIPTION, "s1")) == 1


def test_a_taken_field_outlives_a_deletion_and_a_re_creation(line: Scenario) -> None:
    line.account("a1", 1)
    line.subscription("s1", 1, "a1")
    line.take(ACCOUNT, "a1", "name", "Ours")
    line.delete(ACCOUNT, "a1", 2)
    line.account("a1", 3, name="Theirs")
    assert line.shown(ACCOUNT, "a1")["name"] == "Ours"
    line.give_back(ACCOUNT, "a1", "name")
    assert line.shown(ACCOUNT, "a1")["name"] == "Theirs"
