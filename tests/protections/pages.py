"""Protections of pages that are passed over because they are known to be level."""

from __future__ import annotations

from tests.protections.protection import Protection

_READING, _STORE = "bss_sync/pipeline/level_pages.py", "bss_sync/adapters/sql/level_pages.py"
_PAGES = "tests/integration/test_reconcile_level_pages.py::"

PAGES = (
    Protection(
        "a remembered page counts only over the same mirror",
        _STORE,
        "settled and kind = '{kind}' and mirror = {_SUMS}),",
        "settled and kind = '{kind}'),",
        _PAGES + "test_what_is_written_past_the_line_is_found_as_if_nothing_were_remembered",
    ),
    Protection(
        "a remembered page counts only for the same answer",
        _READING,
        "if known is not None and known.page.answer != answer.digest:",
        "if False:",
        _PAGES + "test_a_change_at_the_source_without_a_version_is_found",
    ),
    Protection(
        "a remembered page counts only under the same rules",
        _READING,
        "        sorted(rules.value_maps.items()),\n",
        "",
        _PAGES + "test_other_rules_have_every_page_read",
    ),
    Protection(
        "a page with a difference is not remembered",
        _STORE,
        "not exists (select 1 from held where level is not true)",
        "true",
        _PAGES + "test_a_difference_that_stays_is_named_each_time",
    ),
    Protection(
        "a page with a field taken over is not remembered",
        "bss_sync/pipeline/reconcile_source.py",
        "and not its.changed and not its.taken",
        "and not its.changed",
        _PAGES + "test_a_record_whose_field_was_taken_over_is_looked_at_each_time",
    ),
    Protection(
        "answers that lead in circles are left",
        _READING,
        "            if circle.closes(following):",
        "            if False:",
        "tests/unit/pipeline/test_level_pages.py::test_answers_that_do_not_lead_on_are_left_with_words",
    ),
)
