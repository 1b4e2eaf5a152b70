"""Breakers in PostgreSQL (ports/breakers.py): one row per remote, written once per batch of calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.database import Database
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.breaker import Breaker, BreakerState, Outcome, after, reserved, returned, state_at
from bss_sync.ports.breakers import Remote

PROBE_SECONDS = 30
"""The call that tries has to be answered within; who tries and dies is succeeded by another after so long."""

CALLABLE = "(b.owner_id is null or greatest(b.open_until, b.probe_until, now()) <= now())"
"""For claims: the breaker ``b``, left-joined, lets calls through, or one to try."""

_COLUMNS = [field.name for field in fields(Breaker)]
_READ = text("select *, now() as now from breaker where owner_id = :owner_id")
_PROBE = text(
    """update breaker set probe_until = now() + make_interval(secs => :seconds)
       where owner_id = :owner_id and open_until <= now() and (probe_until is null or probe_until <= now())
       returning *, now() as now"""
)
_ENSURE = text(
    """insert into breaker (owner_id, tenant_id, connection_id) values (:owner_id, :tenant_id, :connection_id)
       on conflict do nothing"""
)
# clock_timestamp: the row may have been waited for, and time must not run backwards between two reports.
_LOCK = text("select *, clock_timestamp() as now from breaker where owner_id = :owner_id for no key update")
_WRITE = text(
    f"update breaker set {', '.join(f'{name} = :{name}' for name in _COLUMNS)}, "  # noqa: S608 - our own column names
    "updated_at = now() where owner_id = :owner_id"
)
_RETURN = text("update breaker set probe_until = null where owner_id = :owner_id and open_until is not null")


@dataclass(frozen=True, slots=True)
class Entered:
    """A breaker as it is at ``now``. ``probing``: whoever entered is the one that tries."""

    breaker: Breaker
    now: datetime
    probing: bool


def enter(connection: Connection, remote: Remote) -> Entered:
    """Look at a remote's breaker; when its time has come, the first to enter gets the right to try."""
    keys = {"owner_id": remote.owner_id}
    row = connection.execute(_READ, keys).one_or_none()
    if row is None:
        return Entered(Breaker(), connection.execute(text("select now()")).scalar_one(), probing=False)
    if row.open_until is not None and row.open_until <= row.now:
        taken = connection.execute(_PROBE, keys | {"seconds": PROBE_SECONDS}).one_or_none()
        if taken is not None:
            return Entered(breaker_of(taken), taken.now, probing=True)
        row = connection.execute(_READ, keys).one()
    return Entered(breaker_of(row), row.now, probing=False)


def breaker_of(row: Row[Any]) -> Breaker:
    """The breaker of a row."""
    return Breaker(**{name: getattr(row, name) for name in _COLUMNS})


class SqlBreakers:
    """BreakerStore over PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def reserve(self, remote: Remote, wanted: int) -> int:
        """See BreakerStore."""
        with self._database.engine() as connection:
            return reserve(connection, remote, wanted)

    def report(self, remote: Remote, outcomes: Sequence[Outcome], *, probed: bool, taken: int = 0) -> Breaker:
        """See BreakerStore."""
        keys = {"owner_id": remote.owner_id}
        with self._database.engine() as connection:
            row = _locked(connection, remote)
            before = breaker_of(row)
            now = after(returned(before, taken, row.now) if taken else before, outcomes, row.now)
            connection.execute(_WRITE, keys | {name: getattr(now, name) for name in _COLUMNS})
            if probed:
                connection.execute(_RETURN, keys)
            append_audit(connection, _entries(remote, before, now, row.now))
        return now


def reserve(connection: Connection, remote: Remote, wanted: int) -> int:
    """See BreakerStore; within a transaction of the caller's, which may claim what the retries are for."""
    row = _locked(connection, remote)
    breaker, taken = reserved(breaker_of(row), wanted, row.now)
    if taken:
        connection.execute(_WRITE, {"owner_id": remote.owner_id} | {name: getattr(breaker, name) for name in _COLUMNS})
    return taken


def _locked(connection: Connection, remote: Remote) -> Row[Any]:
    """The remote's row, which is there afterwards, locked, and ``now`` with it."""
    keys = {"owner_id": remote.owner_id}
    row = connection.execute(_LOCK, keys).one_or_none()
    if row is None:
        own = {"tenant_id": remote.tenant_id, "connection_id": remote.connection_id}
        connection.execute(_ENSURE, keys | own)
        row = connection.execute(_LOCK, keys).one()
    return row


def _entries(remote: Remote, before: Breaker, now: Breaker, moment: datetime) -> list[AuditEntry]:
    """Its opening and its closing; not each further pause between."""
    was_closed, is_closed = (state_at(one, moment) is BreakerState.CLOSED for one in (before, now))
    if was_closed == is_closed:
        return []
    detail: dict[str, Any] = {"remote": "target" if remote.connection_id is None else "source"}
    if not is_closed and now.open_until is not None:
        detail |= {
            "reason": (now.reason or "")[:500],
            "failures": now.failures,
            "pause_seconds": round((now.open_until - moment).total_seconds()),
        }
    return [
        AuditEntry(
            remote.connection_id or remote.tenant_id,
            remote.tenant_id,
            "system",
            "breaker.closed" if is_closed else "breaker.opened",
            detail,
            connection_id=remote.connection_id,
        )
    ]
