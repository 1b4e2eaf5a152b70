"""Comparing one observation with what we hold: the in-scope rule and the names of differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from bss_sync.domain.change import Action, Kind, OrderKind
from bss_sync.domain.product import Catalogue
from bss_sync.pipeline.compare import SAME, compare
from bss_sync.pipeline.translate import content_digest
from bss_sync.ports.connector import Observation
from bss_sync.ports.reconciliation import Held, Undecided
from bss_sync.ports.streams import ConnectionRules

CONNECTION = UUID(int=1)
RULES = ConnectionRules(CONNECTION, "c", Catalogue({"OURS": False, "OLD": True}, {}), {}, False, 0, False)
BODY: Mapping[str, Any] = {
    "account_id": "x",
    "parent_id": None,
    "product": "OURS",
    "status": "active",
    "trial": False,
    "start_date": None,
    "end_date": None,
    "activation_date": None,
    "cancellation_date": None,
    "auto_renew": True,
    "billing_cycle": "P1M",
    "term": None,
    "quantity": "5",
    "characteristics": {},
}
NOTHING = Held(UUID(int=2), Kind.SUBSCRIPTION, "sub", False, None, None, False, None)
MIRRORED = Held(
    stream_id=UUID(int=2),
    kind=Kind.SUBSCRIPTION,
    source_id="sub",
    mirrored=True,
    version=5,
    digest=content_digest(Action.STATE, BODY),
    deleted=False,
    content={**BODY, "source_status": "active"},
)
GONE = replace(MIRRORED, deleted=True, known_deleted=True, digest=content_digest(Action.DELETED, {}))
SEQUENCE = OrderKind.SEQUENCE


def _seen(version: int | None = 5, **changes: Any) -> Observation:
    return Observation(Kind.SUBSCRIPTION, "sub", version, {**BODY, **changes})


def _problems(seen: Observation, held: Held, order: OrderKind = SEQUENCE) -> list[tuple[str, str | None]]:
    return [(str(one.problem), one.field) for one in compare(seen, held, RULES, order).differences]


def test_equal_version_and_content_is_level() -> None:
    assert compare(_seen(), MIRRORED, RULES, SEQUENCE) == SAME


def test_each_differing_field_is_named() -> None:
    assert _problems(_seen(quantity="6", status="suspended"), MIRRORED) == [
        ("differing", "status"),
        ("differing", "source_status"),
        ("differing", "quantity"),
    ]
    assert _problems(_seen(6, quantity="6"), MIRRORED) == [("stale", "quantity")]
    assert _problems(_seen(6), MIRRORED) == [("stale", "version")]
    assert _problems(_seen(6, account_id="y"), MIRRORED) == [("mis_parented", "account_id")]


def test_an_observed_source_has_no_version_to_compare() -> None:
    assert compare(_seen(None), MIRRORED, RULES, OrderKind.OBSERVED) == SAME
    assert _problems(_seen(None, quantity="6"), MIRRORED, OrderKind.OBSERVED) == [("differing", "quantity")]


@pytest.mark.parametrize(
    ("changes", "missing"),
    [({}, True), ({"trial": True}, False), ({"product": "FOREIGN"}, False), ({"product": "OLD"}, False)],
    ids=["in scope", "trial", "foreign product", "retired product"],
)
def test_only_what_is_in_scope_is_missing_but_all_is_made_known(changes: dict[str, Any], missing: bool) -> None:
    comparison = compare(_seen(**changes), NOTHING, RULES, SEQUENCE)
    assert bool(comparison.differences) is missing
    assert comparison.feed, "what is out of scope is staged"


def test_what_is_staged_already_is_not_fed_again() -> None:
    staged = replace(MIRRORED, mirrored=False, content=None)
    assert compare(_seen(trial=True), staged, RULES, SEQUENCE) == SAME
    comparison = compare(_seen(), staged, RULES, SEQUENCE)
    assert [str(one.problem) for one in comparison.differences] == ["missing"]
    assert comparison.wake


def test_an_account_that_nothing_needs_is_no_difference_unless_all_are_wanted() -> None:
    seen = Observation(Kind.ACCOUNT, "x", 1, {"name": "X", "number": None, "email": None, "kind": "customer"})
    held = replace(NOTHING, kind=Kind.ACCOUNT, source_id="x")
    assert compare(seen, held, RULES, SEQUENCE).differences == ()
    assert compare(seen, held, replace(RULES, accounts_at_once=True), SEQUENCE).differences != ()


@pytest.mark.parametrize("held", [NOTHING, MIRRORED])
def test_what_waits_or_is_held_in_the_inbox_is_named_and_not_fed_again(held: Held) -> None:
    waits = replace(held, waiting=True, undecided=Undecided(6, {**BODY, "quantity": "6"}, dead=False))
    told = compare(_seen(6, quantity="6"), waits, RULES, SEQUENCE)
    assert told.differences
    assert not told.feed
    assert compare(_seen(6, quantity="7"), waits, RULES, SEQUENCE).feed, "another content at that version"
    assert compare(_seen(7, quantity="6"), waits, RULES, SEQUENCE).feed, "a newer version"
    dead = replace(waits, undecided=Undecided(6, {**BODY, "quantity": "6"}, dead=True))
    told = compare(_seen(6, quantity="6"), dead, RULES, SEQUENCE)
    assert told.feed
    assert told.dead, "a routine leaves it alone"


def test_what_is_held_at_the_version_that_we_hold_is_fed_and_has_the_last_word() -> None:
    held = replace(MIRRORED, stopped=True, undecided=Undecided(5, {**BODY, "quantity": "6"}, dead=False))
    assert compare(_seen(5, quantity="6"), held, RULES, SEQUENCE).feed


def test_an_observed_state_that_is_new_is_fed_although_something_older_is_dead() -> None:
    staged = replace(NOTHING, version=1, digest=content_digest(Action.STATE, {**BODY, "product": "FOREIGN"}))
    assert compare(_seen(None), replace(staged, stopped=True), RULES, OrderKind.OBSERVED).feed
    assert not compare(_seen(None, product="FOREIGN"), staged, RULES, OrderKind.OBSERVED).feed


def test_an_observed_state_that_waits_is_not_fed_again() -> None:
    waits = replace(NOTHING, waiting=True, undecided=Undecided(None, BODY, dead=False))
    assert not compare(_seen(None), waits, RULES, OrderKind.OBSERVED).feed
    assert compare(_seen(None, quantity="6"), waits, RULES, OrderKind.OBSERVED).feed


def test_a_lower_version_is_reported_and_never_fed() -> None:
    comparison = compare(_seen(4, quantity="1"), MIRRORED, RULES, SEQUENCE)
    assert [(str(one.problem), one.expected, one.found) for one in comparison.differences] == [
        ("version_regressed", 4, 5)
    ]
    assert not comparison.feed


def test_a_tombstone_gives_way_only_to_a_higher_version() -> None:
    assert _problems(_seen(5), GONE) == [("version_regressed", "version")]
    assert _problems(_seen(6), GONE) == [("missing", None)]


def test_a_deletion_at_the_source_is_extra_here_once() -> None:
    gone = Observation(Kind.SUBSCRIPTION, "sub", 6, None)
    assert _problems(gone, MIRRORED) == [("extra", None)]
    assert compare(gone, GONE, RULES, SEQUENCE) == SAME
    assert compare(gone, NOTHING, RULES, SEQUENCE) == SAME


def test_what_never_entered_and_is_counted_below_what_we_know_is_reported_where_it_is_wanted() -> None:
    staged = replace(NOTHING, version=5, digest=b"staged")
    assert _problems(_seen(4), staged) == [("version_regressed", "version")]
    assert not compare(_seen(4), staged, RULES, SEQUENCE).feed
    assert compare(_seen(4, trial=True), staged, RULES, SEQUENCE).differences == (), "nobody wants it"
    waits = replace(staged, waiting=True, undecided=Undecided(5, BODY, dead=False))
    assert _problems(_seen(4, trial=True), waits) == [("version_regressed", "version")]


def test_a_deletion_below_what_we_hold_is_reported_and_never_fed() -> None:
    gone = Observation(Kind.SUBSCRIPTION, "sub", 4, None)
    comparison = compare(gone, MIRRORED, RULES, SEQUENCE)
    assert [str(one.problem) for one in comparison.differences] == ["version_regressed"]
    assert not comparison.feed
    assert compare(gone, GONE, RULES, SEQUENCE) == SAME


def test_what_is_counted_anew_is_measured_by_the_new_count_alone() -> None:
    anew = replace(MIRRORED, version=None, shown_version=5, digest=None)
    (told,) = (comparison := compare(_seen(2, quantity="2"), anew, RULES, SEQUENCE)).differences
    assert (str(told.problem), told.field, comparison.feed) == ("stale", "quantity", True)
    waits = replace(anew, waiting=True, undecided=Undecided(2, {**BODY, "quantity": "2"}, dead=False))
    (told,) = (comparison := compare(_seen(2, quantity="2"), waits, RULES, SEQUENCE)).differences
    assert (str(told.problem), str(told.cause), comparison.feed) == ("stale", "undecided", False)
    gone = replace(anew, deleted=True, known_deleted=False)
    (told,) = (comparison := compare(_seen(2), gone, RULES, SEQUENCE)).differences
    assert (str(told.problem), comparison.feed) == ("missing", True)
    assert anew.last_version == 5, "an end that nobody counts"


def test_what_was_written_past_the_line_is_named_by_field_and_fed() -> None:
    shown = {**BODY, "source_status": "active"}
    bent = replace(MIRRORED, content={**shown, "quantity": "50"}, recorded=shown)
    comparison = compare(_seen(), bent, RULES, SEQUENCE)
    assert [
        (str(one.problem), one.field, one.expected, one.found, str(one.cause)) for one in comparison.differences
    ] == [("differing", "quantity", "5", "50", "overwritten")]
    assert comparison.feed
    assert _problems(_seen(), replace(MIRRORED, recorded={**shown, "term": "P1Y"})) == [("differing", "term")]
    assert _problems(_seen(), replace(MIRRORED, ended_reason="closed")) == [("differing", "ended_reason")]
    assert _problems(_seen(), replace(MIRRORED, shown_version=4)) == [("differing", "version")]
    assert _problems(_seen(), replace(MIRRORED, deleted=True)) == [("differing", "deleted")]
    assert _problems(_seen(), replace(MIRRORED, mirrored=False, content=None, once_mirrored=True)) == [
        ("missing", None)
    ]


def test_each_difference_has_its_cause_and_age() -> None:
    changed_at = datetime(2026, 3, 1, tzinfo=UTC)

    def cause(held: Held, version: int = 6, **changes: Any) -> str:
        (one,) = compare(replace(_seen(version, **changes), changed_at=changed_at), held, RULES, SEQUENCE).differences
        assert one.since == changed_at
        return str(one.cause)

    assert cause(NOTHING) == "never_received"
    assert cause(MIRRORED, quantity="6") == "message_lost"
    assert cause(replace(MIRRORED, stopped=True), quantity="6") == "held"
    assert cause(replace(MIRRORED, waiting=True), quantity="6") == "undecided"
    assert cause(MIRRORED, 5, quantity="6") == "uncounted"
    assert cause(MIRRORED, 4) == "counted_anew"


def test_a_taken_field_is_left_out() -> None:
    taken = replace(MIRRORED, taken=frozenset({"quantity"}))
    assert compare(_seen(quantity="9"), taken, RULES, SEQUENCE) == SAME


def test_an_unknown_word_is_named_and_fed_once() -> None:
    comparison = compare(_seen(6, status="hibernating"), MIRRORED, RULES, SEQUENCE)
    assert [(str(one.problem), one.field, one.expected) for one in comparison.differences] == [
        ("unknown_value", "status", "hibernating")
    ]
    assert comparison.feed
    assert not compare(_seen(6, status="hibernating"), replace(MIRRORED, stopped=True), RULES, SEQUENCE).feed


def test_a_change_back_resumes_also_with_a_retired_product() -> None:
    left = replace(MIRRORED, ended_reason="left_scope")
    assert compare(_seen(product="FOREIGN"), left, RULES, SEQUENCE) == SAME
    assert _problems(_seen(), left) == [("missing", None)]
    assert _problems(_seen(product="OLD"), left) == [("missing", None)]


def test_what_changed_while_the_listing_ran_is_left_alone() -> None:
    changed = replace(MIRRORED, changed=True)
    assert compare(_seen(4), changed, RULES, SEQUENCE) == SAME
    assert _problems(_seen(6, quantity="6"), changed) == [("stale", "quantity")]
