"""Protections of lists: none misses what was committed late, or what was under way at the time that it begins at."""

from __future__ import annotations

from tests.protections.protection import Protection

_FLOORS = "bss_sync/adapters/sql/floors.py"
_TEST = "tests/integration/test_list_floors.py::"

LISTS = (
    Protection(
        "lists never skip a lower transaction that commits later",
        "bss_sync/adapters/sql/reading/paging.py",
        "elif xid < floor:",
        "elif True:",
        "tests/integration/test_api_records.py::test_a_lower_transaction_that_commits_later_is_never_skipped",
    ),
    Protection(
        "a list since a time begins at what was under way then",
        _FLOORS,
        "pg_snapshot_xmin(",
        "pg_snapshot_xmax(",
        _TEST + "test_a_list_since_a_time_is_the_whole_list_without_what_is_older",
    ),
    Protection(
        "a list since a time begins at a floor of before that time",
        _FLOORS,
        "where noted_at <= :moment and",
        "where cast(:moment as timestamptz) is not null and",
        _TEST + "test_a_list_since_a_time_is_the_whole_list_without_what_is_older",
    ),
    Protection(
        "floors from before a restored backup are not used",
        _FLOORS,
        "epoch >= (select",
        "epoch >= 0 * (select",
        _TEST + "test_floors_from_before_a_restored_backup_are_not_used",
    ),
    Protection(
        "a clock that was set back notes no floor",
        _FLOORS,
        "coalesce((select max(noted_at) from list_floor), '-infinity')",
        "timestamptz '-infinity'",
        _TEST + "test_a_clock_that_was_set_back_notes_nothing_until_it_is_where_it_was",
    ),
)
