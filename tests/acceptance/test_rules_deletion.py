"""domain.md section 6: a deletion leaves a tombstone with its version; version decides, the verb does not."""

from __future__ import annotations

from tests.scenario import ACCOUNT, SUBSCRIPTION, Scenario, subscription_body


def test_a_deletion_leaves_a_tombstone_with_its_version(line: Scenario) -> None:
    line.subscription("s1", 1, quantity="5")
    line.delete(SUBSCRIPTION, "s1", 4)
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown.deleted, shown.version, shown["quantity"]) == (True, 4, "5")


def test_a_late_update_cannot_resurrect_a_deleted_entity(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.delete(SUBSCRIPTION, "s1", 3)
    late = line.subscription("s1", 2, quantity="2")
    assert line.state(late) == "superseded"
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown.deleted, shown.version) == (True, 3)


def test_a_late_update_cannot_resurrect_a_deleted_account(line: Scenario) -> None:
    line.account("a1", 1)
    line.subscription("s1", 1, "a1")
    line.delete(ACCOUNT, "a1", 3)
    line.account("a1", 2, name="Late")
    assert line.shown(ACCOUNT, "a1").deleted


def test_a_deletion_that_came_first_holds_against_every_lower_version(line: Scenario) -> None:
    gone = line.delete(SUBSCRIPTION, "s1", 5)
    assert line.verdict(gone)[0::2] == ("out_of_scope", "never_mirrored")
    line.subscription("s1", 4, trial=True)
    assert line.mirror(SUBSCRIPTION, "s1") is None


def test_a_higher_live_version_re_creates_with_the_same_binding(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.delete(SUBSCRIPTION, "s1", 2)
    line.subscription("s1", 3, quantity="9")
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown.deleted, shown.version, shown["quantity"]) == (False, 3, "9")
    assert [row.deleted for row in line.history(SUBSCRIPTION, "s1")] == [False, True, False]


def test_what_is_re_created_as_a_trial_stays_bound(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.delete(SUBSCRIPTION, "s1", 2)
    line.subscription("s1", 3, trial=True)
    assert not line.shown(SUBSCRIPTION, "s1").deleted


def test_a_deletion_never_cascades_to_accounts_and_subscriptions_below(line: Scenario) -> None:
    line.account("lite", 1, kind="reseller")
    line.account("x", 1, "lite")
    line.subscription("s1", 1, "x")
    line.delete(ACCOUNT, "lite", 2)
    child = line.shown(ACCOUNT, "x")
    assert (child.deleted, child.parent) == (False, "lite")
    line.delete(ACCOUNT, "x", 2)
    subscription = line.shown(SUBSCRIPTION, "s1")
    assert (subscription.deleted, subscription.account) == (False, "x")


def test_orphans_keep_following_their_own_messages(line: Scenario) -> None:
    line.account("x", 1)
    line.subscription("s1", 1, "x")
    line.delete(ACCOUNT, "x", 2)
    line.subscription("s1", 2, "x", quantity="3")
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "3"
    line.subscription("s1", 3, quantity="4")
    assert line.shown(SUBSCRIPTION, "s1").account is None


def test_a_deletion_never_cascades_to_add_ons(line: Scenario) -> None:
    line.subscription("main", 1)
    line.subscription("addon", 1, parent="main")
    line.delete(SUBSCRIPTION, "main", 2)
    assert not line.shown(SUBSCRIPTION, "addon").deleted
    assert line.shown(SUBSCRIPTION, "addon").parent == "main"


def test_a_deletion_twice_is_once(line: Scenario) -> None:
    line.subscription("s1", 1)
    line.delete(SUBSCRIPTION, "s1", 2)
    again = line.delete(SUBSCRIPTION, "s1", 2)
    assert line.state(again) == "superseded"
    assert len(line.history(SUBSCRIPTION, "s1")) == 2


def test_a_deletion_that_was_jumped_over_is_found_in_history(line: Scenario) -> None:
    line.send(
        line.change(SUBSCRIPTION, "s1", 3, subscription_body(quantity="3")),
        line.change(SUBSCRIPTION, "s1", 1, subscription_body()),
    )
    line.delete(SUBSCRIPTION, "s1", 2)
    assert sorted((row.version, row.deleted) for row in line.history(SUBSCRIPTION, "s1")) == [
        (1, False),
        (2, True),
        (3, False),
    ]
    assert not line.shown(SUBSCRIPTION, "s1").deleted
