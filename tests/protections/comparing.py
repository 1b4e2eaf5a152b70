"""Comparing a source with the mirror: what is named, and what enters the inbox for it."""

from __future__ import annotations

from tests.protections.protection import Protection

_COMPARE, _SOURCE = "bss_sync/pipeline/compare.py", "bss_sync/pipeline/reconcile_source.py"
_ODD_SOURCES = "tests/integration/test_odd_sources.py::"
_RECONCILE = "tests/integration/test_reconcile.py::"
_UNIT = "tests/unit/pipeline/test_compare.py::"

COMPARING = (
    Protection(
        "an end by absence gives way to the same version",
        _COMPARE,
        "stands = held.deleted and held.digest != FOUND_ABSENT",
        "stands = held.deleted",
        _ODD_SOURCES + "test_what_was_ended_by_absence_lives_again_at_the_same_version_when_it_is_shown",
    ),
    Protection(
        "the newer value stays during a comparison",
        _COMPARE,
        "if held.changed and not _newer(seen, held, order):",
        "if False:",
        _RECONCILE + "test_a_message_that_overtakes_the_listing_is_no_difference",
    ),
    Protection(
        "versions regress only by an admin's word",
        _COMPARE,
        "if _regressed(seen, held, order):",
        "if False:",
        _RECONCILE + "test_a_source_that_counts_anew_is_reported_and_taken_only_by_name",
    ),
    Protection(
        "what is counted anew is measured by the new count",
        "bss_sync/adapters/sql/listing.py",
        "version=row.known_version,",
        "version=row.version if row.known_version is None else row.known_version,",
        _RECONCILE + "test_what_is_counted_anew_and_waits_is_not_to_be_accepted_again",
    ),
    Protection(
        "a change back is found, also with a retired product",
        _COMPARE,
        'if why_left_scope(rules.catalogue.resolve(body["product"])) is not None:',
        'if why_out_of_scope(rules.catalogue.resolve(body["product"]), trial=False) is not None:',
        _UNIT + "test_a_change_back_resumes_also_with_a_retired_product",
    ),
    Protection(
        "what waits or is held is told once",
        _COMPARE,
        "return known if same and _digest(known.body) == _digest(seen.body) else None",
        "return None",
        _RECONCILE + "test_what_waits_or_is_held_is_named_each_time_and_told_once",
    ),
    Protection(
        "a routine leaves dead letters alone",
        _SOURCE,
        "return comparison.feed and not (comparison.dead and self._request.quiet)",
        "return comparison.feed",
        _RECONCILE + "test_a_routine_leaves_dead_letters_alone_and_whoever_asks_has_them_tried_again",
    ),
    Protection(
        "what never entered and is counted anew is reported",
        _COMPARE,
        "or (wanted and is_below(seen, held, order)):",
        "or False:",
        _UNIT + "test_what_never_entered_and_is_counted_below_what_we_know_is_reported_where_it_is_wanted",
    ),
    Protection(
        "what is held at our own version has the last word",
        _COMPARE,
        "(counted and not _newer(seen, held, order)):\n        return None",
        "False:\n        return None",
        _UNIT + "test_what_is_held_at_the_version_that_we_hold_is_fed_and_has_the_last_word",
    ),
    Protection(
        "an end below our version is ended only by an admin's word",
        _SOURCE,
        "elif seen.body is None and not is_below(seen, held, self._order):",
        "elif seen.body is None:",
        _RECONCILE + "test_what_was_counted_anew_and_is_gone_is_reported_and_ends_only_by_name",
    ),
)
