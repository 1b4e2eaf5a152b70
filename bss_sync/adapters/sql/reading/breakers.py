"""Breakers as they are shown: to the admin, in a connection's health, to Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.breakers import breaker_of
from bss_sync.adapters.sql.reading.entity import show_moment
from bss_sync.domain.breaker import WINDOW_SECONDS, Breaker, BreakerState, credit_at, state_at

_READ = text("select *, now() as now from breaker where owner_id = any(:ids)")
_CLOSED: dict[str, Any] = {
    "state": str(BreakerState.CLOSED),
    "opened_at": None,
    "open_until": None,
    "failures": 0,
    "reason": None,
    "calls": 0,
    "failed": 0,
    "retried": 0,
    "retries_left": None,
}


def show_breakers(connection: Connection, owner_ids: Sequence[UUID]) -> dict[UUID, dict[str, Any]]:
    """The breaker of each remote: a connection's id, or the distributor's tenant for the target.

    ``calls``, ``failed`` and ``retried`` are those of the last minute; ``reason`` is the last failure's.
    """
    shown = {owner_id: dict(_CLOSED) for owner_id in owner_ids}
    for row in connection.execute(_READ, {"ids": list(owner_ids)}):
        breaker: Breaker = breaker_of(row)
        state = state_at(breaker, row.now)
        recent = breaker.window_at is not None and (row.now - breaker.window_at).total_seconds() < WINDOW_SECONDS
        shown[row.owner_id] = {
            "state": str(state),
            "opened_at": show_moment(breaker.opened_at),
            "open_until": show_moment(breaker.open_until),
            "failures": breaker.failures,
            "reason": breaker.reason,
            "calls": breaker.calls if recent else 0,
            "failed": breaker.failed if recent else 0,
            "retried": breaker.retried if recent else 0,
            "retries_left": max(0, int(credit_at(breaker, row.now))),
        }
    return shown
