"""The breaker and the retry budget: when calls stop, who tries, what a remote's wish is worth."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_sync.domain.breaker import (
    FAILURES_IN_A_ROW,
    PAUSE_SECONDS_MAX,
    RETRIES_ALWAYS,
    WINDOW_CALLS_MIN,
    WINDOW_SECONDS,
    Breaker,
    BreakerState,
    Outcome,
    after,
    allowance,
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


def test_of_few_calls_a_few_may_be_retries_and_of_many_a_tenth() -> None:
    assert (allowance(0), allowance(199), allowance(2000)) == (RETRIES_ALWAYS, RETRIES_ALWAYS, 200)
    assert credit_at(after(Breaker(), [OK] * 199, NOW), NOW) == RETRIES_ALWAYS, "the first ones are not earned twice"
    assert credit_at(after(Breaker(), [OK] * 2000, NOW), NOW) == pytest.approx(200)


def test_a_long_quiet_past_is_no_licence_and_a_minute_later_a_few_may_be_tried_again() -> None:
    rich = after(Breaker(), [OK] * 5000, NOW)
    assert credit_at(rich, later(WINDOW_SECONDS)) == RETRIES_ALWAYS
    poor = after(Breaker(), [OK, Outcome(retry=True)] * RETRIES_ALWAYS, NOW)
    assert reserved(poor, 100, later(WINDOW_SECONDS - 1))[1] == 0
    assert reserved(poor, 100, later(WINDOW_SECONDS))[1] == RETRIES_ALWAYS


def test_a_remote_that_comes_and_goes_gets_no_new_budget_each_time() -> None:
    breaker = Breaker()
    for second in range(0, 50, 2):
        breaker = after(breaker, [Outcome(failed=True, wish_seconds=1, retry=True)], later(second))
        breaker = after(breaker, [OK], later(second + 1))
    assert state_at(breaker, later(50)) is BreakerState.CLOSED
    assert reserved(breaker, 100, later(50))[1] == 0


@st.composite
def _courses(draw: st.DrawFn) -> list[tuple[str, int, bool]]:
    """What workers do in turn: reserve retries, make a call of their own, make a reserved retry, give back, wait."""
    acts = st.sampled_from(["reserve", "call", "retry", "retry", "return", "wait"])
    return draw(st.lists(st.tuples(acts, st.integers(0, 3), st.booleans()), min_size=1, max_size=300))


@given(_courses())
def test_whatever_remotes_answer_and_however_many_workers_ask_retries_stay_below_a_tenth_of_each_minute(
    course: list[tuple[str, int, bool]],
) -> None:
    """A retry counts from when it is taken out of the budget: what is made of it comes later, or never."""
    breaker, held, now = Breaker(), [0, 0, 0, 0], NOW
    retries, calls, window = 0, 0, breaker.window_at
    for act, worker, failed in course:
        if act == "wait":
            now += timedelta(seconds=worker * 7)
        elif act == "reserve":
            breaker, more = reserved(breaker, 8, now)
            held[worker] += more
        elif act == "return":
            breaker, held[worker] = returned(breaker, held[worker], now), 0
        elif act == "call" or held[worker]:
            again = act == "retry"
            breaker = returned(breaker, 1, now) if again else breaker
            # As if it never opened: its pauses only make them fewer.
            breaker = replace(after(breaker, [Outcome(failed=failed, retry=again)], now), open_until=None)
            held[worker] -= again
            if breaker.window_at != window:
                retries, calls, window = 0, 0, breaker.window_at
            retries, calls = retries + again, calls + 1
            assert retries <= max(RETRIES_ALWAYS, calls / 10)


def test_what_one_worker_has_reserved_no_other_gets() -> None:
    breaker = after(Breaker(), [OK] * 300, NOW)
    breaker, mine = reserved(breaker, 100, NOW)
    breaker, theirs = reserved(breaker, 100, NOW)
    assert (mine, theirs) == (30, 0)
    assert reserved(returned(breaker, mine, NOW), 100, NOW)[1] == 30
