"""domain.md section 6: unknown values are quarantined and never guessed; held messages stop only their own entity."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.scenario import ACCOUNT, START, SUBSCRIPTION, Scenario, account_body, subscription_body

UNKNOWN = [("status", "frozen", "suspended"), ("billing_cycle", "monthly", "P1M"), ("term", "yearly", "P1Y")]


@pytest.mark.parametrize(("name", "value", "canonical"), UNKNOWN)
def test_an_unknown_value_is_quarantined_and_released_by_its_mapping(
    line: Scenario, name: str, value: str, canonical: str
) -> None:
    held = line.subscription("s1", 1, **{name: value})
    assert line.verdict(held)[0::2] == ("quarantined", f"unknown_{name}")
    assert line.mirror(SUBSCRIPTION, "s1") is None
    line.map_value(name, value, canonical)
    assert line.state(held) == "applied"
    assert line.shown(SUBSCRIPTION, "s1")[name] == canonical


def test_an_unknown_kind_is_quarantined_and_released_by_its_mapping(line: Scenario) -> None:
    line.subscription("s1", 1, "a1")
    held = line.account("a1", 1, kind="partner")
    assert line.reason(held) == "unknown_kind"
    line.map_value("kind", "partner", "reseller")
    assert line.shown(ACCOUNT, "a1")["kind"] == "reseller"
    assert line.shown(SUBSCRIPTION, "s1").account == "a1"


def test_the_sources_word_is_kept_when_a_status_is_mapped(line: Scenario) -> None:
    line.map_value("status", "frozen", "suspended")
    line.subscription("s1", 1, status="frozen")
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown["status"], shown["source_status"]) == ("suspended", "frozen")


def _held_for_a_week(line: Scenario, *versions: int) -> str:
    """Version 2 came with a word that nobody knew, in whichever place among the others."""
    held = ""
    for version in versions:
        odd = {"status": "frozen"} if version == 2 else {}
        body = subscription_body(quantity=str(version), **odd)
        at = START + timedelta(days=7 * version)
        sent = line.send(line.change(SUBSCRIPTION, "s1", version, body, sent_at=at, effective_at=at))
        held = sent if version == 2 else held
    return held


@pytest.mark.parametrize("versions", [(1, 2, 3), (1, 3, 2), (1, 2, 5, 4)])
def test_mapping_a_value_releases_also_what_a_later_state_has_passed_and_a_week_is_billed_for_a_week(
    line: Scenario, versions: tuple[int, ...]
) -> None:
    held = _held_for_a_week(line, *versions)
    assert line.state(held) == "superseded"
    assert 2 not in {row.version for row in line.history(SUBSCRIPTION, "s1")}
    line.map_value("status", "frozen", "suspended")
    assert line.verdict(held)[:2] == ("superseded", "late")
    then = line.as_of(SUBSCRIPTION, "s1", START + timedelta(days=20))
    assert then is not None
    assert (then.version, then.state["quantity"], then.state["status"]) == (2, "2", "suspended")
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown.version, shown["status"]) == (max(versions), "active")


def test_what_a_mapping_releases_late_fills_no_gap_of_another_version(line: Scenario) -> None:
    for version in (1, 3, 5):
        line.subscription("s1", version, status="frozen" if version == 3 else "active")
    (before,) = line.gaps(SUBSCRIPTION, "s1")
    assert before.missing == 2
    line.map_value("status", "frozen", "suspended")
    assert line.gaps(SUBSCRIPTION, "s1") == [before]
    line.subscription("s1", 2)
    line.subscription("s1", 4)
    assert line.gaps(SUBSCRIPTION, "s1") == []


def test_a_mapping_of_another_value_leaves_what_was_passed_as_it_is(line: Scenario) -> None:
    held = _held_for_a_week(line, 1, 2, 3)
    line.map_value("status", "paused", "suspended")
    assert line.word(held) != "late"
    assert len(line.history(SUBSCRIPTION, "s1")) == 2


def test_a_mapping_of_one_value_releases_no_other(line: Scenario) -> None:
    held = line.subscription("s1", 1, status="frozen")
    line.map_value("status", "paused", "suspended")
    assert line.state(held) == "quarantined"


def test_the_entity_keeps_its_last_good_state_while_a_newer_one_is_held(line: Scenario) -> None:
    line.subscription("s1", 1, quantity="1")
    line.subscription("s1", 2, quantity="2", status="frozen")
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown.version, shown["quantity"], shown["status"]) == (1, "1", "active")


def test_the_next_valid_state_of_a_higher_version_supersedes_the_held_one(line: Scenario) -> None:
    line.subscription("s1", 1)
    held = line.subscription("s1", 2, status="frozen")
    line.subscription("s1", 3, quantity="3")
    assert line.state(held) == "superseded"
    assert line.shown(SUBSCRIPTION, "s1").version == 3
    line.map_value("status", "frozen", "suspended")
    assert line.shown(SUBSCRIPTION, "s1")["status"] == "active"


def test_a_held_message_and_the_valid_one_after_it_may_come_in_one_request(line: Scenario) -> None:
    line.send(
        line.change(SUBSCRIPTION, "s1", 2, subscription_body(status="frozen"), message_id="held"),
        line.change(SUBSCRIPTION, "s1", 3, subscription_body(quantity="3")),
    )
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "3"
    assert line.state("held") == "superseded"


def test_a_held_message_stops_no_other_entity(line: Scenario) -> None:
    line.send(
        line.change(SUBSCRIPTION, "s1", 1, subscription_body(status="frozen")),
        line.change(SUBSCRIPTION, "s2", 1, subscription_body()),
    )
    assert line.mirrored(SUBSCRIPTION) == {"s2"}


def test_a_late_unknown_value_never_changes_the_present(line: Scenario) -> None:
    line.subscription("s1", 3)
    late = line.subscription("s1", 2, status="frozen")
    assert line.state(late) == "superseded"


def test_a_held_version_is_not_missing(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.subscription("s1", 2, status="frozen")
    line.subscription("s1", 3)
    assert line.gaps(SUBSCRIPTION, "s1") == []


def _poisoned(**other: str) -> dict[str, object]:
    body = subscription_body(**other)
    del body["billing_cycle"]
    return body


def test_a_poisoned_message_becomes_a_dead_letter_and_stops_only_its_own_entity(line: Scenario) -> None:
    line.send(
        line.change(SUBSCRIPTION, "s1", 1, _poisoned(), message_id="poison"),
        line.change(SUBSCRIPTION, "s2", 1, subscription_body()),
        line.change(ACCOUNT, "a1", 1, account_body()),
        line.change(SUBSCRIPTION, "s3", 1, subscription_body("a1")),
    )
    assert line.verdict("poison")[0::2] == ("dead", "KeyError")
    assert line.mirrored(SUBSCRIPTION) == {"s2", "s3"}


def test_a_poisoned_message_is_never_partly_applied(line: Scenario) -> None:
    line.subscription("s1", 1, quantity="1")
    line.send(line.change(SUBSCRIPTION, "s1", 2, _poisoned(quantity="2")))
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown.version, shown["quantity"]) == (1, "1")
    assert len(line.history(SUBSCRIPTION, "s1")) == 1


def test_the_valid_state_after_a_poisoned_one_is_applied_also_when_they_came_together(line: Scenario) -> None:
    line.send(
        line.change(SUBSCRIPTION, "s1", 1, subscription_body(quantity="1")),
        line.change(SUBSCRIPTION, "s1", 2, _poisoned(), message_id="poison"),
        line.change(SUBSCRIPTION, "s1", 3, subscription_body(quantity="3")),
    )
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "3"
    assert line.state("poison") == "superseded"


def test_a_poisoned_message_leaves_its_waiting_neighbours_waiting(line: Scenario) -> None:
    waiting = line.subscription("s1", 1, "a1")
    line.send(line.change(SUBSCRIPTION, "s1", 2, _poisoned()))
    assert line.state(waiting) == "waiting"
    line.account("a1")
    assert line.shown(SUBSCRIPTION, "s1").version == 1
