"""domain.md section 6: a child that arrives before its parent waits; past a deadline it is fetched, then dead."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.conftest import Connect
from tests.scenario import ACCOUNT, SUBSCRIPTION, WAIT_SECONDS, Asked, Scenario, account_body, subscription_body


def test_a_subscription_waits_for_its_account_and_is_released_by_its_arrival(line: Scenario) -> None:
    waiting = line.subscription("s1", 1, "a1")
    assert line.state(waiting) == "waiting"
    assert line.mirror(SUBSCRIPTION, "s1") is None
    line.account("a1")
    assert line.state(waiting) == "applied"
    assert line.shown(SUBSCRIPTION, "s1").account == "a1"


def test_an_account_waits_for_its_parent_and_is_released_by_its_arrival(line: Scenario) -> None:
    line.subscription("s1", 1, "x")
    line.account("x", 1, "lite")
    assert line.mirrored(ACCOUNT) == set()
    line.account("lite", 1, kind="reseller")
    assert line.mirrored(ACCOUNT) == {"lite", "x"}
    assert line.shown(SUBSCRIPTION, "s1").account == "x"


def test_nothing_but_the_own_entity_waits(line: Scenario) -> None:
    line.subscription("s1", 1, "unknown")
    line.subscription("s2", 1)
    assert line.shown(SUBSCRIPTION, "s2").version == 1


def test_an_entity_that_is_mirrored_keeps_its_last_state_while_a_newer_one_waits(line: Scenario) -> None:
    line.subscription("s1", 1, quantity="1")
    line.subscription("s1", 2, "unknown", quantity="2")
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "1"


def test_a_newer_state_that_needs_nothing_overtakes_the_waiting_one(line: Scenario) -> None:
    waiting = line.subscription("s1", 1, "unknown", quantity="1")
    line.subscription("s1", 2, quantity="2")
    assert line.state(waiting) in {"waiting", "superseded"}
    line.account("unknown")
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "2"
    assert line.state(waiting) == "superseded"


def test_past_the_deadline_the_parent_is_fetched_and_only_then_it_is_a_dead_letter(connect: Connect) -> None:
    line = connect(can_fetch=True)
    waiting = line.subscription("s1", 1, "a1")
    line.pass_time(WAIT_SECONDS + 1)
    assert line.state(waiting) == "waiting"
    assert line.fetches() == {Asked(ACCOUNT, "a1")}
    line.pass_time(WAIT_SECONDS + 1)
    assert line.verdict(waiting)[0::2] == ("dead", "account_unknown_past_deadline")


def test_before_the_deadline_nothing_is_fetched(connect: Connect) -> None:
    line = connect(can_fetch=True)
    line.subscription("s1", 1, "a1")
    line.pass_time(WAIT_SECONDS / 2)
    assert line.fetches() == set()


def test_without_a_way_to_fetch_the_deadline_makes_a_dead_letter(line: Scenario) -> None:
    waiting = line.subscription("s1", 1, "a1")
    line.pass_time(WAIT_SECONDS + 1)
    assert line.state(waiting) == "dead"


def test_a_dead_letter_is_revived_by_the_arrival_of_its_account(line: Scenario) -> None:
    waiting = line.subscription("s1", 1, "a1")
    line.pass_time(WAIT_SECONDS + 1)
    line.account("a1")
    assert line.state(waiting) == "applied"
    assert line.shown(SUBSCRIPTION, "s1").account == "a1"


def test_a_dead_letter_is_revived_by_the_arrival_of_its_parent(line: Scenario) -> None:
    waiting = line.subscription("addon", 1, parent="main")
    line.pass_time(WAIT_SECONDS + 1)
    assert line.state(waiting) == "dead"
    line.subscription("main", 1)
    assert line.state(waiting) == "applied"
    assert line.shown(SUBSCRIPTION, "addon").parent == "main"


def test_a_dead_letter_is_revived_by_a_parent_that_arrives_out_of_scope(line: Scenario) -> None:
    waiting = line.subscription("addon", 1, parent="main")
    line.pass_time(WAIT_SECONDS + 1)
    line.subscription("main", 1, trial=True)
    assert line.state(waiting) == "applied"
    assert line.shown(SUBSCRIPTION, "addon").parent is None


def test_a_chain_of_dead_letters_is_revived_by_the_ancestor_that_was_missing(line: Scenario) -> None:
    line.subscription("s1", 1, "x")
    line.account("x", 1, "lite")
    line.pass_time(WAIT_SECONDS + 1)
    line.pass_time(WAIT_SECONDS + 1)
    line.account("lite", 1, kind="reseller")
    assert line.mirrored(ACCOUNT) == {"lite", "x"}
    assert line.shown(SUBSCRIPTION, "s1").account == "x"
    assert line.settled()


def test_a_dead_letter_that_was_overtaken_is_not_revived(line: Scenario) -> None:
    waiting = line.subscription("s1", 1, "a1", quantity="1")
    line.pass_time(WAIT_SECONDS + 1)
    line.subscription("s1", 2, quantity="2")
    assert line.state(waiting) == "superseded"
    line.account("a1")
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "2"


def test_an_add_on_whose_parent_is_unknown_waits(line: Scenario) -> None:
    waiting = line.subscription("addon", 1, parent="main")
    assert line.state(waiting) == "waiting"
    line.subscription("main", 1)
    assert line.shown(SUBSCRIPTION, "addon").parent == "main"


@pytest.mark.parametrize("why", [{"trial": True}, {"product": "FOREIGN"}], ids=["trial", "foreign"])
def test_an_add_on_whose_parent_is_known_but_out_of_scope_is_mirrored_without_the_link(
    line: Scenario, why: dict[str, Any]
) -> None:
    line.subscription("main", 1, **why)
    line.subscription("addon", 1, parent="main")
    shown = line.shown(SUBSCRIPTION, "addon")
    assert (shown["parent_id"], shown.parent) == ("main", None)


def test_an_add_on_is_linked_when_its_parent_enters_later(line: Scenario) -> None:
    line.subscription("main", 1, trial=True)
    line.subscription("addon", 1, parent="main")
    line.subscription("main", 2)
    assert line.shown(SUBSCRIPTION, "addon").parent == "main"
    assert line.shown(SUBSCRIPTION, "addon").version == 1


def test_a_waiting_add_on_is_released_by_a_parent_that_arrives_out_of_scope(line: Scenario) -> None:
    line.subscription("addon", 1, parent="main")
    line.subscription("main", 1, trial=True)
    assert line.shown(SUBSCRIPTION, "addon").parent is None


def test_an_add_on_of_a_parent_that_was_deleted_unseen_is_mirrored_without_the_link(line: Scenario) -> None:
    line.delete(SUBSCRIPTION, "main", 4)
    line.subscription("addon", 1, parent="main")
    assert line.shown(SUBSCRIPTION, "addon").parent is None


def test_an_add_on_may_leave_its_parent(line: Scenario) -> None:
    line.subscription("main", 1)
    line.subscription("addon", 1, parent="main")
    line.subscription("addon", 2)
    assert line.shown(SUBSCRIPTION, "addon").parent is None


def test_a_notification_waits_for_the_fetch_where_the_connector_can(connect: Connect) -> None:
    line = connect(can_fetch=True)
    told = line.notify(SUBSCRIPTION, "s1")
    assert line.state(told) == "waiting"
    assert line.fetches() == {Asked(SUBSCRIPTION, "s1")}
    line.answer(SUBSCRIPTION, "s1", 3, subscription_body())
    assert line.shown(SUBSCRIPTION, "s1").version == 3


def test_a_notification_is_a_dead_letter_where_the_connector_cannot_fetch(line: Scenario) -> None:
    told = line.notify(SUBSCRIPTION, "s1")
    assert line.verdict(told)[0::2] == ("dead", "cannot_fetch")


def test_a_notification_never_stops_the_states_of_its_entity(connect: Connect) -> None:
    line = connect(can_fetch=True)
    line.notify(SUBSCRIPTION, "s1")
    line.subscription("s1", 1, quantity="3")
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "3"


def test_children_and_parents_that_come_in_one_request_upside_down_are_all_applied(line: Scenario) -> None:
    line.send(
        line.change(SUBSCRIPTION, "addon", 1, subscription_body("x", "main")),
        line.change(SUBSCRIPTION, "main", 1, subscription_body("x")),
        line.change(ACCOUNT, "x", 1, account_body("lite")),
        line.change(ACCOUNT, "lite", 1, account_body("top")),
        line.change(ACCOUNT, "top", 1, account_body()),
    )
    assert line.states() == ["applied"] * 5
    assert line.shown(SUBSCRIPTION, "addon").parent == "main"
    assert line.shown(ACCOUNT, "x").parent == "lite"
