"""The breaker and the retry budget: when calls stop, who tries, what a remote's wish is worth."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_sync.domain.breaker import (
    EARNED_PER_CALL,
    EARNED_PER_SECOND,
    FAILURES_IN_A_ROW,
    KEPT_BY_TIME_MAX,
    KEPT_MAX,
    LENT,
    PAUSE_SECONDS_MAX,
    WINDOW_CALLS_MIN,
    Breaker,
    BreakerState,
    Outcome,
    after,
    credit_at,
    reserved,
    returned,
    state_at,
    wait_seconds,
)

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
OK, FAILED = Outcome(), Outcome(failed=True, reason="no answer")


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def opened(wish: float | None = None) -> Breaker:
    return after(Breaker(), [Outcome(failed=True, wish_seconds=wish)] if wish else [FAILED] * FAILURES_IN_A_ROW, NOW)


def test_it_opens_after_so_many_failures_in_a_row_and_not_before() -> None:
    almost = after(Breaker(), [FAILED] * (FAILURES_IN_A_ROW - 1), NOW)
    assert state_at(almost, NOW) is BreakerState.CLOSED
    assert state_at(after(almost, [OK, FAILED], NOW), NOW) is BreakerState.CLOSED
    assert state_at(after(almost, [FAILED], NOW), NOW) is BreakerState.OPEN


def test_it_opens_when_half_of_many_calls_fail_though_never_in_a_row() -> None:
    breaker = after(Breaker(), [OK, FAILED] * (WINDOW_CALLS_MIN // 2), NOW)
    assert state_at(breaker, NOW) is BreakerState.OPEN


def test_failures_of_a_minute_ago_do_not_count() -> None:
    breaker = after(Breaker(), [OK, FAILED] * (WINDOW_CALLS_MIN // 2 - 1), NOW)
    assert state_at(after(breaker, [OK, FAILED], later(61)), later(61)) is BreakerState.CLOSED


def test_a_wish_opens_it_at_once_and_for_that_long() -> None:
    breaker = opened(wish=3600)
    assert wait_seconds(breaker, NOW) == 3600
    assert state_at(breaker, later(3599)) is BreakerState.OPEN
    assert state_at(breaker, later(3600)) is BreakerState.HALF_OPEN


def test_a_wish_counts_also_when_it_comes_while_the_breaker_is_open_and_never_shortens_it() -> None:
    breaker = after(opened(wish=100), [Outcome(failed=True, wish_seconds=500)], NOW)
    assert wait_seconds(breaker, NOW) == 500
    assert wait_seconds(after(breaker, [Outcome(failed=True, wish_seconds=5)], NOW), NOW) == 500


def test_an_answer_to_a_call_begun_before_does_not_close_it() -> None:
    breaker = after(opened(wish=100), [OK], later(1))
    assert state_at(breaker, later(1)) is BreakerState.OPEN


def test_a_success_closes_it_when_its_time_has_come_and_the_past_is_forgotten() -> None:
    breaker = after(opened(wish=100), [OK], later(100))
    assert state_at(breaker, later(100)) is BreakerState.CLOSED
    assert (breaker.failures, breaker.openings, breaker.opened_at) == (0, 0, None)
    assert state_at(after(breaker, [FAILED], later(101)), later(101)) is BreakerState.CLOSED


def test_each_vain_try_makes_the_pause_longer_up_to_a_minute() -> None:
    breaker, now, pauses = opened(), NOW, []
    for _ in range(10):
        pauses.append(wait_seconds(breaker, now))
        now += timedelta(seconds=pauses[-1])
        breaker = after(breaker, [FAILED], now)
    assert pauses[:4] == [1, 2, 4, 8]
    assert max(pauses) == PAUSE_SECONDS_MAX
    assert breaker.opened_at == NOW, "since when it is down, not since the last try"


def test_while_somebody_tries_nobody_else_calls() -> None:
    breaker = Breaker(openings=1, open_until=NOW, probe_until=later(90))
    assert state_at(breaker, NOW) is BreakerState.HALF_OPEN
    assert wait_seconds(breaker, NOW) == 90


def test_the_call_that_tries_takes_nothing_from_the_budget() -> None:
    breaker = opened(wish=10)
    before = credit_at(breaker, later(10))
    assert credit_at(after(breaker, [Outcome(failed=True, retry=True)], later(10)), later(10)) >= before


@pytest.mark.parametrize("seconds", [0, 5, 3600])
def test_time_earns_a_few_retries_and_no_more(seconds: float) -> None:
    assert credit_at(Breaker(credit_at=NOW), later(seconds)) == min(KEPT_BY_TIME_MAX, LENT + seconds * 0.2)


def test_many_calls_earn_more_than_time_and_not_without_end() -> None:
    breaker = after(Breaker(), [OK] * 5000, NOW)
    assert credit_at(breaker, NOW) == KEPT_MAX
    assert credit_at(breaker, later(86_400)) == KEPT_MAX


@st.composite
def _courses(draw: st.DrawFn) -> list[tuple[str, int, bool]]:
    """What workers do in turn: reserve retries, make a call of their own, make a reserved retry, give back, wait."""
    acts = st.sampled_from(["reserve", "call", "retry", "retry", "return", "wait"])
    return draw(st.lists(st.tuples(acts, st.integers(0, 3), st.booleans()), min_size=1, max_size=300))


@given(_courses())
def test_whatever_remotes_answer_and_however_many_workers_ask_retries_stay_below_a_tenth_and_the_reserve(
    course: list[tuple[str, int, bool]],
) -> None:
    """Over every stretch, not only over all of it; a retry counts from when it is taken out of the budget."""
    breaker, taken, now = Breaker(), [0, 0, 0, 0], NOW
    stretch: list[tuple[int, int, datetime]] = []
    for act, worker, failed in course:
        if act == "wait":
            now += timedelta(seconds=worker)
        elif act == "reserve":
            breaker, more = reserved(breaker, 8, now)
            taken[worker] += more
            stretch.append((more, 0, now))
        elif act == "return":
            stretch.append((-taken[worker], 0, now))
            breaker, taken[worker] = returned(breaker, taken[worker], now), 0
        elif act == "call" or taken[worker]:
            again = act == "retry"
            # As if it never opened: its pauses only make them fewer.
            breaker = returned(breaker, 1, now) if again else breaker
            breaker = replace(after(breaker, [Outcome(failed=failed, retry=again)], now), open_until=None)
            taken[worker] -= again
            stretch.append((0, 1, now))
    for first in range(len(stretch)):
        retries = calls = 0
        for more, call, moment in stretch[first:]:
            retries, calls = retries + more, calls + call
            seconds = (moment - stretch[first][2]).total_seconds()
            assert retries <= KEPT_MAX + calls * EARNED_PER_CALL + seconds * EARNED_PER_SECOND + 1e-6


def test_what_one_worker_has_reserved_no_other_gets() -> None:
    breaker = after(Breaker(), [OK] * 100, NOW)
    breaker, mine = reserved(breaker, 100, NOW)
    breaker, theirs = reserved(breaker, 100, NOW)
    assert (mine, theirs) == (11, 0)
    assert reserved(returned(breaker, mine, NOW), 100, NOW)[1] == 11
