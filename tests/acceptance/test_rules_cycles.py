"""domain.md sections 2 and 6: cycles never exist in the mirror, and depth is not limited."""

from __future__ import annotations

import pytest

from tests.acceptance.conftest import Connect
from tests.scenario import ACCOUNT, SUBSCRIPTION, WAIT_SECONDS, Asked, Scenario, account_body, subscription_body


def _above(line: Scenario) -> Scenario:
    """A above b; both hold a subscription."""
    line.account("a", 1)
    line.account("b", 1, "a")
    line.subscription("sa", 1, "a")
    line.subscription("sb", 1, "b")
    assert line.shown(ACCOUNT, "b").parent == "a"
    return line


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")], ids=["a first", "b first"])
def test_two_accounts_may_swap_places_in_two_messages_in_either_order(line: Scenario, order: tuple[str, str]) -> None:
    _above(line)
    parents = {"a": "b", "b": None}
    for name in order:
        line.account(name, 2, parents[name])
        assert not (line.shown(ACCOUNT, "a").parent == "b" and line.shown(ACCOUNT, "b").parent == "a")
    assert line.shown(ACCOUNT, "a").parent == "b"
    assert line.shown(ACCOUNT, "b").parent is None
    assert line.settled()


def test_a_swap_in_one_request_is_applied(line: Scenario) -> None:
    _above(line)
    line.send(line.change(ACCOUNT, "a", 2, account_body("b")), line.change(ACCOUNT, "b", 2, account_body()))
    assert (line.shown(ACCOUNT, "a").parent, line.shown(ACCOUNT, "b").parent) == ("b", None)


def test_a_parent_that_would_close_a_cycle_waits_and_nothing_is_linked_meanwhile(line: Scenario) -> None:
    _above(line)
    waiting = line.account("a", 2, "b", name="New")
    assert line.state(waiting) == "waiting"
    shown = line.shown(ACCOUNT, "a")
    assert (shown.parent, shown.version, shown["name"]) == (None, 1, "Cloud Customer X")


def test_an_account_that_names_itself_as_parent_is_never_linked(line: Scenario) -> None:
    _above(line)
    waiting = line.account("a", 2, "a")
    assert line.state(waiting) == "waiting"
    line.pass_time(WAIT_SECONDS + 1)
    assert line.verdict(waiting)[0::2] == ("dead", "cycle_confirmed")
    assert line.shown(ACCOUNT, "a").parent is None


def test_a_new_account_that_names_itself_as_parent_never_enters(line: Scenario) -> None:
    line.account("self", 1, "self")
    line.subscription("s1", 1, "self")
    assert line.mirrored(ACCOUNT) == set()


def test_a_cycle_that_the_source_confirms_is_a_dead_letter(connect: Connect) -> None:
    line = _above(connect(can_fetch=True))
    waiting = line.account("a", 2, "b")
    line.pass_time(WAIT_SECONDS + 1)
    assert Asked(ACCOUNT, "b") in line.fetches()
    line.answer(ACCOUNT, "b", 1, account_body("a"))
    line.pass_time(WAIT_SECONDS + 1)
    assert line.verdict(waiting)[0::2] == ("dead", "cycle_confirmed")
    assert line.shown(ACCOUNT, "a").parent is None
    assert line.shown(ACCOUNT, "b").parent == "a"


def test_any_change_on_the_cycle_releases_what_waits(line: Scenario) -> None:
    for name, parent in (("a", None), ("b", "a"), ("c", "b"), ("d", "c")):
        line.account(name, 1, parent)
    line.subscription("s", 1, "d")
    waiting = line.account("a", 2, "d")
    assert line.state(waiting) == "waiting"
    line.account("c", 2)
    assert line.state(waiting) == "applied"
    assert [line.shown(ACCOUNT, name).parent for name in "abcd"] == ["d", "a", None, "c"]


def test_a_dead_cycle_is_superseded_by_a_higher_version(line: Scenario) -> None:
    _above(line)
    dead = line.account("a", 2, "b")
    line.pass_time(WAIT_SECONDS + 1)
    line.account("a", 3, name="Whole")
    assert line.state(dead) == "superseded"
    assert line.shown(ACCOUNT, "a")["name"] == "Whole"


def test_a_main_and_its_add_on_may_swap(line: Scenario) -> None:
    line.subscription("m", 1)
    line.subscription("n", 1, parent="m")
    line.subscription("m", 2, parent="n")
    line.subscription("n", 2)
    assert (line.shown(SUBSCRIPTION, "m").parent, line.shown(SUBSCRIPTION, "n").parent) == ("n", None)


def test_add_ons_that_name_each_other_never_close_a_cycle_when_one_enters_late(line: Scenario) -> None:
    line.subscription("m", 1, trial=True)
    line.subscription("n", 1, parent="m")
    line.subscription("m", 2, parent="n")
    assert not (line.shown(SUBSCRIPTION, "m").parent == "n" and line.shown(SUBSCRIPTION, "n").parent == "m")


def test_an_add_on_kept_apart_by_a_cycle_is_linked_when_the_cycle_opens(line: Scenario) -> None:
    line.subscription("m", 1, trial=True)
    line.subscription("n", 1, parent="m")
    line.subscription("o", 1, parent="n")
    line.subscription("m", 2, parent="o")
    line.subscription("o", 2)
    assert [line.shown(SUBSCRIPTION, name).parent for name in "mno"] == ["o", "m", None]


def test_depth_is_not_limited(line: Scenario) -> None:
    levels = 300
    for start in range(levels, 0, -100):
        line.send(
            *(
                line.change(ACCOUNT, f"a{level}", 1, account_body(f"a{level - 1}" if level > 1 else None))
                for level in range(start, start - 100, -1)
            ),
            work=False,
        )
    line.send(line.change(SUBSCRIPTION, "s1", 1, subscription_body(f"a{levels}")))
    assert len(line.mirrored(ACCOUNT)) == levels
    assert line.shown(ACCOUNT, f"a{levels}").parent == f"a{levels - 1}"
    top = line.account("a1", 2, f"a{levels}")
    assert line.state(top) == "waiting"
