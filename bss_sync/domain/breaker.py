"""The breaker and the retry budget of one remote: pure rules over what its calls came to.

A breaker stops calls to a remote that is down or asked to wait, then lets one call at a time try. The budget keeps
repeated calls below a tenth of the calls of each minute, or at a few, so that a remote in trouble is not beaten (goals:
reliability 16 and 17).
Every moment is PostgreSQL's: workers whose clocks differ share one breaker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

FAILURES_IN_A_ROW = 5
WINDOW_SECONDS = 60.0
WINDOW_CALLS_MIN = 20
WINDOW_FAILED_SHARE = 0.5
PAUSE_SECONDS_MAX = 60.0
"""The longest pause that we choose ourselves; what the remote asks for may be longer."""

RETRY_SHARE = 0.1
RETRIES_ALWAYS = 20
"""So many retries may be made within a window however few its calls are, or what failed last on a quiet day would never
be tried again."""


class BreakerState(StrEnum):
    """Whether a remote may be called."""

    CLOSED = "closed"  # calls go through
    OPEN = "open"  # no call is made until its time
    HALF_OPEN = "half_open"  # its time has come: one call at a time tries


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one call came to.

    failed        nothing was answered, or that the remote cannot serve it now; a refusal is an answer
    denied        it does not take our credentials: no other call would fare better, so the first one opens
    wish_seconds  what the remote asked for (Retry-After); never sooner than that
    retry         the call repeated one that had failed
    reason        the failure in words that bear no secret
    """

    failed: bool = False
    wish_seconds: float | None = None
    retry: bool = False
    reason: str | None = None
    denied: bool = False


@dataclass(frozen=True, slots=True)
class Breaker:
    """What is known of one remote.

    failures     in a row
    openings     in a row, without a success between; 0: closed
    opened_at    when the first of these was
    open_until   no call before; None: closed
    probe_until  somebody tries, at most until then
    window_at    since when ``calls``, ``failed`` and ``retried`` are counted, for ``WINDOW_SECONDS``
    credit       retries that are left in that window; below 0 is a debt
    credit_at    when that was noted
    """

    failures: int = 0
    openings: int = 0
    opened_at: datetime | None = None
    open_until: datetime | None = None
    probe_until: datetime | None = None
    reason: str | None = None
    window_at: datetime | None = None
    calls: int = 0
    failed: int = 0
    retried: int = 0
    credit: float = RETRIES_ALWAYS
    credit_at: datetime | None = None


def state_at(breaker: Breaker, now: datetime) -> BreakerState:
    """Where the breaker stands."""
    if breaker.open_until is None:
        return BreakerState.CLOSED
    return BreakerState.OPEN if breaker.open_until > now else BreakerState.HALF_OPEN


def wait_seconds(breaker: Breaker, now: datetime) -> float:
    """How long no call may be begun: until its time, or until who tries has an answer. 0 when one may."""
    until = max((moment for moment in (breaker.open_until, breaker.probe_until) if moment is not None), default=now)
    return max(0.0, (until - now).total_seconds())


def allowance(calls: int) -> float:
    """How many retries may be among so many calls of one window."""
    return max(float(RETRIES_ALWAYS), calls * RETRY_SHARE)


def credit_at(breaker: Breaker, now: datetime) -> float:
    """How many retries are affordable."""
    return float(RETRIES_ALWAYS) if _is_over(breaker, now) else min(breaker.credit, allowance(breaker.calls))


def reserved(breaker: Breaker, wanted: int, now: datetime) -> tuple[Breaker, int]:
    """Take up to ``wanted`` retries out of the budget before they are made, so that no two workers spend the same ones.

    What was taken is given back with ``returned`` once the calls have come to their ends: they pay for themselves.
    """
    breaker = _in_window(breaker, now)
    # What a sum of tenths lacks to a whole retry is no lack.
    taken = max(0, min(wanted, int(breaker.credit + 1e-6)))
    return replace(breaker, credit=breaker.credit - taken, credit_at=now), taken


def returned(breaker: Breaker, taken: int, now: datetime) -> Breaker:
    """Give back what was taken."""
    breaker = _in_window(breaker, now)
    return replace(breaker, credit=min(allowance(breaker.calls), breaker.credit + taken), credit_at=now)


def after(breaker: Breaker, outcomes: Iterable[Outcome], now: datetime) -> Breaker:
    """The breaker once these calls, in this order, have come to their ends."""
    for outcome in outcomes:
        breaker = _failed(breaker, outcome, now) if outcome.failed else _answered(breaker, outcome, now)
    return breaker


def _answered(breaker: Breaker, outcome: Outcome, now: datetime) -> Breaker:
    state = state_at(breaker, now)
    counted = _counted(breaker, outcome, now)
    if state is BreakerState.OPEN:
        # A call that had begun before: the remote's wish to be left alone stands.
        return counted
    if state is BreakerState.HALF_OPEN:
        # What failed before the pause says nothing of the remote that has come back. The calls count for the budget.
        return replace(counted, failures=0, failed=0, openings=0, opened_at=None, open_until=None, probe_until=None)
    return replace(counted, failures=0)


def _failed(breaker: Breaker, outcome: Outcome, now: datetime) -> Breaker:
    state = state_at(breaker, now)
    counted = replace(_counted(breaker, outcome, now), failures=breaker.failures + 1, reason=outcome.reason)
    wish = outcome.wish_seconds or 0.0
    if state is BreakerState.OPEN:
        # Begun before it opened: no further opening, but its wish counts.
        assert breaker.open_until is not None, "an open breaker has its time"
        return replace(counted, open_until=max(breaker.open_until, now + timedelta(seconds=wish)))
    if state is BreakerState.CLOSED and not (wish or outcome.denied or _is_too_much(counted)):
        return counted
    pause = max(wish, min(PAUSE_SECONDS_MAX, 2.0 ** min(breaker.openings, 16)))
    return replace(
        counted,
        openings=breaker.openings + 1,
        opened_at=breaker.opened_at or now,
        open_until=now + timedelta(seconds=pause),
        probe_until=None,
    )


def _is_too_much(breaker: Breaker) -> bool:
    share = breaker.failed / max(breaker.calls, 1)
    return breaker.failures >= FAILURES_IN_A_ROW or (breaker.calls >= WINDOW_CALLS_MIN and share >= WINDOW_FAILED_SHARE)


def _counted(breaker: Breaker, outcome: Outcome, now: datetime) -> Breaker:
    # The call that tries is paced by the breaker's pauses: it takes nothing from the budget.
    spent = 1.0 if outcome.retry and state_at(breaker, now) is not BreakerState.HALF_OPEN else 0.0
    breaker = _in_window(breaker, now)
    calls = breaker.calls + 1
    return replace(
        breaker,
        calls=calls,
        failed=breaker.failed + outcome.failed,
        retried=breaker.retried + outcome.retry,
        credit=breaker.credit + allowance(calls) - allowance(breaker.calls) - spent,
        credit_at=now,
    )


def _in_window(breaker: Breaker, now: datetime) -> Breaker:
    """The breaker with a window that has not ended yet, and what is left of its budget."""
    if _is_over(breaker, now):
        return replace(breaker, window_at=now, calls=0, failed=0, retried=0, credit=float(RETRIES_ALWAYS))
    return replace(breaker, credit=credit_at(breaker, now))


def _is_over(breaker: Breaker, now: datetime) -> bool:
    return breaker.window_at is None or now - breaker.window_at >= timedelta(seconds=WINDOW_SECONDS)
