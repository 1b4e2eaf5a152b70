"""First loads: what is decided at once, beside whoever else is at the same entity."""

from __future__ import annotations

from tests.protections.protection import Protection

_FIRST = "bss_sync/adapters/sql/first_load.py"
_TEST = "tests/integration/test_first_load.py::"

LOADING = (
    Protection(
        "who is second undoes a chunk",
        _FIRST,
        'if getattr(error.orig, "sqlstate", None) != UNIQUE_VIOLATION:',
        "if True:",
        _TEST + "test_a_live_message_that_comes_in_between_is_not_overwritten",
    ),
    Protection(
        "what was heard of goes through the inbox",
        _FIRST,
        "heard = heard_of(connection, list(candidates))",
        "heard: set[UUID] = set()",
        _TEST + "test_what_was_heard_of_is_left_to_the_inbox",
    ),
    Protection(
        "a load decides nothing while its connection is not processed",
        _FIRST,
        "if sender.state not in PROCESSING:",
        "if False:",
        _TEST + "test_while_a_connection_is_paused_its_listing_is_kept_and_not_decided",
    ),
    Protection(
        "workers decide what may have killed a load",
        "bss_sync/pipeline/intake.py",
        "left = list(chunk.rows) if careful else self._decided(chunk)",
        "left = self._decided(chunk)",
        _TEST + "test_who_goes_on_after_a_kill_lets_workers_decide_what_came_next",
    ),
    Protection(
        "a chunk with accounts is alone",
        "bss_sync/pipeline/intake.py",
        "alone = chunk.has_accounts",
        "alone = False",
        _TEST + "test_what_follows_a_chunk_with_accounts_finds_them",
    ),
)
