"""Loads and polls: what is decided at once, beside whoever else is at the same entity."""

from __future__ import annotations

from tests.protections.protection import Protection

_FIRST = "bss_sync/adapters/sql/first_load.py"
_TEST = "tests/integration/test_first_load.py::"
_FOLLOWING = "bss_sync/adapters/sql/following.py"
_POLLED = "tests/integration/test_following.py::"

LOADING = (
    Protection(
        "who is second undoes a chunk",
        _FIRST,
        "except psycopg.Error:",
        "except KeyError:",
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
    Protection(
        "what is open of a stream is decided before a poll's state",
        _FOLLOWING,
        "and m.state in ('pending', 'waiting', 'quarantined', 'dead')",
        "and m.state = 'nothing'",
        _POLLED + "test_where_somebody_is_at_it_or_something_is_open_it_is_left",
    ),
    Protection(
        "a stream that is claimed is its worker's",
        _FOLLOWING,
        "and id not in (select unnest(k.streams) from claim k where k.shard = :shard)",
        "and :shard is not null",
        _POLLED + "test_where_somebody_is_at_it_or_something_is_open_it_is_left",
    ),
    Protection(
        "a stream that is leased or woken is its worker's",
        _FOLLOWING,
        "and lease_until is null and ready_at is null and unfinished = 0 and solo_claims = 0",
        "",
        _POLLED + "test_where_somebody_is_at_it_or_something_is_open_it_is_left",
    ),
    Protection(
        "what a worker has locked is passed over",
        _FOLLOWING,
        "order by id for no key update of stream skip locked",
        "order by id",
        _POLLED + "test_what_is_being_written_is_passed_over_and_nobody_waits",
    ),
    Protection(
        "ends that a poll brings are counted by the guard",
        "bss_sync/pipeline/entrance.py",
        "and is_live(mirrored)",
        "",
        _POLLED + "test_what_is_not_newer_or_concerns_others_or_ends_it_is_left",
    ),
    Protection(
        "of one entity the page that was told first is decided first",
        "bss_sync/pipeline/intake.py",
        "waits = alone or any(not names.isdisjoint(others) for others, _future in self._under_way)",
        "waits = alone",
        _POLLED + "test_what_follows_for_an_entity_of_the_page_before_is_decided_after_it",
    ),
    Protection(
        "workers decide what may have killed a poller",
        "bss_sync/pipeline/gather.py",
        "careful_at = 0 if task.lost else None",
        "careful_at = None",
        _POLLED + "test_who_polls_after_one_that_was_lost_lets_workers_decide_what_came_next",
    ),
    Protection(
        "behind a kill a poll writes down each step",
        "bss_sync/pipeline/gather.py",
        "rests = at_once > 1 and not task.lost",
        "rests = at_once > 1",
        "tests/integration/test_poll.py::test_behind_a_kill_a_poll_is_further_after_each_chunk",
    ),
    Protection(
        "behind a kill a poll takes whole pages",
        "bss_sync/pipeline/gather.py",
        "whole=not rests",
        "whole=False",
        "tests/integration/test_poll.py::test_behind_a_kill_whole_pages_are_left_to_workers",
    ),
    Protection(
        "a poll is a sign of life",
        _FIRST,
        "if taken.accepted and sender.untouched:",
        "if False:",
        _POLLED + "test_a_poll_is_a_sign_of_life",
    ),
)
