"""domain.md section 3: what is mirrored, and when."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.conftest import Connect
from tests.scenario import ACCOUNT, SUBSCRIPTION, Scenario, subscription_body


def test_a_subscription_for_a_foreign_product_is_recorded_as_out_of_scope_with_the_reason(line: Scenario) -> None:
    foreign = line.subscription("s1", 1, product="FOREIGN")
    assert line.verdict(foreign)[0::2] == ("out_of_scope", "product_not_in_catalogue")
    assert line.mirror(SUBSCRIPTION, "s1") is None


def test_a_trial_is_not_copied(line: Scenario) -> None:
    trial = line.subscription("s1", 1, trial=True)
    assert line.verdict(trial)[0::2] == ("out_of_scope", "trial")
    assert line.mirror(SUBSCRIPTION, "s1") is None


def test_the_moment_a_trial_converts_to_paid_it_is_copied(line: Scenario) -> None:
    line.subscription("s1", 1, trial=True)
    converted = line.subscription("s1", 2)
    assert line.state(converted) == "applied"
    assert line.shown(SUBSCRIPTION, "s1").version == 2


def test_what_becomes_a_trial_again_stays_bound_and_follows_its_source(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.subscription("s1", 2, trial=True, quantity="4")
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown["trial"], shown["quantity"], shown.ended) == (True, "4", None)


@pytest.mark.parametrize("status", ["created", "suspended", "terminated", "cancelled", "aborted"])
def test_scope_is_never_decided_by_status(line: Scenario, status: str) -> None:
    line.subscription("s1", 1, status=status)
    assert line.shown(SUBSCRIPTION, "s1")["status"] == status


def test_a_change_to_a_foreign_product_ends_the_mirror_with_left_scope(line: Scenario) -> None:
    line.subscription("s1", 1, quantity="5")
    left = line.subscription("s1", 2, product="FOREIGN", quantity="8")
    assert line.verdict(left) == ("applied", "ended", "left_scope")
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown.ended, shown["status"], shown["product"], shown["quantity"]) == (
        "left_scope",
        "terminated",
        "OURS-1",
        "5",
    )


def test_a_change_back_into_scope_resumes_the_same_binding(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.subscription("s1", 2, product="FOREIGN")
    line.subscription("s1", 3, product="OURS-2", quantity="6")
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown.ended, shown["status"], shown["product"], shown["quantity"]) == (None, "active", "OURS-2", "6")
    assert [row.ended for row in line.history(SUBSCRIPTION, "s1")] == [None, "left_scope", None]


def test_what_left_scope_stays_ended_while_its_source_moves_on_outside(line: Scenario) -> None:
    line.subscription("s1", 1)
    for version in (2, 3):
        line.subscription("s1", version, product="FOREIGN", quantity=str(version))
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown.version, shown.ended, shown["quantity"]) == (3, "left_scope", "1")


def test_what_left_scope_resumes_when_its_product_comes_into_the_catalogue(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.subscription("s1", 2, product="NEW", quantity="3")
    line.offer("NEW")
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown.ended, shown["product"], shown["quantity"], shown.version) == (None, "NEW", "3", 2)


def test_a_retired_product_lets_nothing_new_in(line: Scenario) -> None:
    line.retire("OURS-1")
    refused = line.subscription("s1", 1)
    assert line.verdict(refused)[0::2] == ("out_of_scope", "product_retired")


def test_what_has_entered_with_a_product_that_is_retired_later_keeps_following(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.retire("OURS-1")
    line.subscription("s1", 2, quantity="12")
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "12"
    assert line.shown(SUBSCRIPTION, "s1").ended is None


def test_a_change_back_to_a_retired_product_resumes_the_binding(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.subscription("s1", 2, product="FOREIGN")
    line.retire("OURS-1")
    line.subscription("s1", 3)
    assert line.shown(SUBSCRIPTION, "s1").ended is None


def test_a_product_that_is_added_later_lets_in_what_was_staged_in_its_latest_state(line: Scenario) -> None:
    line.account("a1", 3)
    line.subscription("s1", 1, "a1", product="NEW", quantity="1")
    latest = line.subscription("s1", 2, "a1", product="NEW", quantity="2")
    line.offer("NEW")
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "2"
    assert line.shown(SUBSCRIPTION, "s1").account == "a1"
    assert line.state(latest) == "applied"
    assert line.shown(ACCOUNT, "a1").version == 3


def test_a_staged_trial_of_a_product_that_is_added_stays_out(line: Scenario) -> None:
    line.subscription("s1", 1, product="NEW", trial=True)
    line.offer("NEW")
    assert line.mirror(SUBSCRIPTION, "s1") is None


def test_a_subscription_that_was_paid_before_it_became_a_trial_enters_in_whatever_order(line: Scenario) -> None:
    line.subscription("s1", 2, trial=True, quantity="2")
    line.subscription("s1", 1, quantity="1")
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown.version, shown["trial"], shown["quantity"]) == (2, True, "2")
    assert {row.version for row in line.history(SUBSCRIPTION, "s1")} == {1, 2}


def test_a_staged_subscription_that_was_deleted_enters_as_a_tombstone_when_it_had_been_paid(line: Scenario) -> None:
    line.delete(SUBSCRIPTION, "s1", 2)
    line.subscription("s1", 1)
    assert line.shown(SUBSCRIPTION, "s1").deleted
    assert [(row.version, row.deleted) for row in line.history(SUBSCRIPTION, "s1")] == [(1, False), (2, True)]


def test_an_account_without_a_paid_subscription_is_not_copied(line: Scenario) -> None:
    alone = line.account("a1")
    assert line.verdict(alone)[0::2] == ("out_of_scope", "no_paid_subscription")
    line.subscription("s1", 1, "a1", trial=True)
    assert line.mirror(ACCOUNT, "a1") is None


def test_accounts_follow_their_first_paid_subscription_ancestors_first_in_their_latest_state(line: Scenario) -> None:
    line.account("lite", 1, kind="reseller", name="Old")
    line.account("lite", 2, kind="reseller", name="Cloud Lite")
    line.account("x", 1, "lite")
    line.subscription("s1", 1, "x")
    assert line.shown(ACCOUNT, "lite")["name"] == "Cloud Lite"
    assert line.shown(ACCOUNT, "x").parent == "lite"
    assert line.shown(SUBSCRIPTION, "s1").account == "x"


def test_a_lite_reseller_may_buy_for_itself(line: Scenario) -> None:
    line.account("lite", 1, kind="reseller")
    line.subscription("s1", 1, "lite")
    assert line.shown(SUBSCRIPTION, "s1").account == "lite"


def test_siblings_without_a_paid_subscription_stay_out(line: Scenario) -> None:
    line.account("lite", 1, kind="reseller")
    line.account("x", 1, "lite")
    line.account("y", 1, "lite")
    line.subscription("s1", 1, "x")
    assert line.mirrored(ACCOUNT) == {"lite", "x"}


def test_an_account_keeps_following_after_its_last_subscription_has_ended(line: Scenario) -> None:
    line.account("x", 1)
    line.subscription("s1", 1, "x")
    line.delete(SUBSCRIPTION, "s1", 2)
    line.account("x", 2, name="Renamed")
    assert line.shown(ACCOUNT, "x")["name"] == "Renamed"


def test_account_scope_all_copies_every_account_at_once(connect: Connect) -> None:
    line = connect(accounts_at_once=True)
    line.account("a1")
    assert line.mirror(ACCOUNT, "a1") is not None


def test_a_subscription_without_an_account_is_the_tenants_own_use(line: Scenario) -> None:
    line.subscription("s1", 1)
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown["account_id"], shown.account) == (None, None)


def test_a_transfer_to_another_account_brings_that_account_into_the_mirror(line: Scenario) -> None:
    line.account("x", 1)
    line.account("y", 1)
    line.subscription("s1", 1, "x")
    line.subscription("s1", 2, "y")
    assert line.shown(SUBSCRIPTION, "s1").account == "y"
    assert line.mirrored(ACCOUNT) == {"x", "y"}


def test_the_sources_word_is_kept_beside_the_canonical_status(line: Scenario) -> None:
    line.subscription("s1", 1, status="suspended", source_status="On Hold")
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown["status"], shown["source_status"]) == ("suspended", "On Hold")


def test_every_change_of_a_mirrored_field_is_applied(line: Scenario) -> None:
    changes: list[tuple[str, Any]] = [
        ("status", "suspended"),
        ("end_date", "2026-12-31"),
        ("start_date", "2026-01-02"),
        ("activation_date", "2026-01-03"),
        ("cancellation_date", "2026-05-05"),
        ("auto_renew", False),
        ("billing_cycle", "P1Y"),
        ("term", "P3Y"),
        ("quantity", "25.5"),
        ("characteristics", {"domain": "customer-x.example", "seats": 3}),
        ("product", "OURS-2"),
        ("trial", True),
    ]
    line.subscription("s1", 1)
    for version, (name, value) in enumerate(changes, start=2):
        line.subscription("s1", version, **{name: value})
        assert line.shown(SUBSCRIPTION, "s1")[name] == value, name


def test_the_same_source_id_of_both_kinds_is_two_records(line: Scenario) -> None:
    line.account("same", 1)
    line.subscription("same", 1, "same")
    assert line.shown(SUBSCRIPTION, "same").account == "same"
    assert line.shown(ACCOUNT, "same").version == 1


def test_a_message_that_was_sent_twice_has_its_effect_once(line: Scenario) -> None:
    change = line.change(SUBSCRIPTION, "s1", 1, subscription_body())
    line.send(change)
    line.send(change, change)
    assert len(line.states()) == 1
    assert len(line.history(SUBSCRIPTION, "s1")) == 1
