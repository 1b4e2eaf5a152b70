"""Hints and little work: what a worker looks for, and what it leaves to others."""

from __future__ import annotations

from tests.protections.protection import Protection

_FAIR = "tests/integration/test_fair_shares.py::"
_BROKER = "tests/integration/test_broker.py::"

HINTS = (
    Protection(
        "a second look after little work",
        "bss_sync/pipeline/line.py",
        "return replace(done, more=True), little.behind",
        "return done, little.behind",
        _FAIR + "test_what_comes_while_its_stream_is_at_work_is_decided_by_who_is_at_it",
    ),
    Protection(
        "what is no little work is claimed too",
        "bss_sync/jobs/work.py",
        "self._heavier.add(behind)",
        "str(behind)",
        _FAIR + "test_beside_a_neighbour_a_backlog_is_worked_off_in_short_batches",
    ),
    Protection(
        "what turns out to be much work meanwhile is looked for again",
        "bss_sync/jobs/work.py",
        "while heavier := self._heavier.take():",
        "if heavier := self._heavier.take():",
        _FAIR + "test_much_that_is_hinted_at_while_its_worker_looks_for_little_is_not_forgotten",
    ),
    Protection(
        "a hint names every shard that got something",
        "bss_sync/adapters/waker.py",
        "self._hints.process(*shards)",
        "self._hints.process(shards[0])",
        "tests/unit/adapters/test_waker.py::"
        "test_a_hint_goes_out_at_once_and_the_next_one_after_a_while_with_all_that_came_meanwhile",
    ),
    Protection(
        "one hint is under way at a time",
        "bss_sync/adapters/waker.py",
        "if self._under_way is not None or self._closing or not self._due:",
        "if self._closing or not self._due:",
        "tests/unit/adapters/test_waker.py::"
        "test_while_redis_is_slow_one_hint_is_under_way_and_the_next_one_names_all_that_came_meanwhile",
    ),
    Protection(
        "a hint is left out only while all of it waits",
        "bss_sync/adapters/broker.py",
        "'PX', ARGV[1]) then fresh = true end",
        "'PX', ARGV[1]) then fresh = place == 7 end",
        _BROKER + "test_a_hint_names_several_shards_and_is_not_sent_while_waiting_ones_name_them_all",
    ),
    Protection(
        "a worker that stops puts back what it has not begun",
        "bss_sync/adapters/broker.py",
        "self._client.rpush(self._queue, message.encode())",
        "str(message)",
        _BROKER + "test_what_a_worker_took_and_had_no_thread_for_goes_to_another_when_it_stops",
    ),
)
