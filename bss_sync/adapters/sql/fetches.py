"""Fetches, polls and probes in PostgreSQL (ports/sources.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.breakers import CALLABLE, reserve
from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.upkeep import default_of
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import Kind
from bss_sync.domain.errors import LeaseLost
from bss_sync.domain.fairness import fair_shares
from bss_sync.ports.breakers import Remote
from bss_sync.ports.sources import FetchTask, PollTask

NOT_FOUND = "not_found_at_source"

_IS_DUE = "f.due_at <= now() and (f.lease_until is null or f.lease_until <= now())"
# A breaker whose time has come lets one wish try.
_PARTIES = text(
    f"""select c.id, c.tenant_id, c.priority, b.open_until is not null as tries
       from connection c left join breaker b on b.owner_id = c.id
       cross join lateral (select f.due_at from fetch_request f where f.connection_id = c.id and {_IS_DUE}
                           order by f.due_at limit 1) f
       where c.state in ('shadow', 'live') and {CALLABLE} order by f.due_at"""  # noqa: S608  constants only
)
# What failed before comes first, as far as the budget goes; who tries prefers what was never asked.
_DUE = text(
    f"""select q.connection_id, f.stream_id, f.again
       from unnest(cast(:ids as uuid[]), cast(:shares as int[]), cast(:tries as boolean[]))
           as q (connection_id, share, tries)
       cross join lateral (
           select * from (
               select f.stream_id, true as again from fetch_request f
               where f.connection_id = q.connection_id and {_IS_DUE} and f.last_error is not null
               order by f.due_at limit q.share for update skip locked) again
           union all
           select * from (
               select f.stream_id, false from fetch_request f
               where f.connection_id = q.connection_id and {_IS_DUE} and f.last_error is null
               order by f.due_at limit q.share for update skip locked) never_tried) f
       order by q.connection_id, f.again = q.tries"""  # noqa: S608  constants only
)
_CLAIM = text(
    """update fetch_request f set token = f.token + 1, attempts = f.attempts + 1,
           lease_until = now() + make_interval(secs => :lease)
       where f.stream_id = any(:ids)
       returning f.*, (select s.version from stream s where s.id = f.stream_id) as version"""
)
_SETTLE = text(
    """with mine as (select stream_id, asked from fetch_request where stream_id = :stream and token = :token
                     for update),
       done as (delete from fetch_request f using mine where f.stream_id = mine.stream_id and mine.asked = :asked)
       select count(*) from mine"""
)
_ASK_AGAIN = text(
    """update fetch_request set lease_until = null, due_at = now(), attempts = 0, last_error = null
       where stream_id = :stream and token = :token"""
)
_FETCHED = text(
    """update message set state = 'applied', verdict = 'fetched', reason = null, wait_reason = null, wait_until = null,
           waits_for = null, decided_at = now(), applied_at = now(), change_xid = pg_current_xact_id()
       where stream_id = :stream and state = 'waiting' and wait_reason = 'fetch'
         and settled_on(state, decided_at) = 'infinity' returning id, kind"""
)
_DEAD = text(
    """update message set state = 'dead', verdict = 'dead', reason = :reason, wait_until = null, decided_at = now(),
           change_xid = pg_current_xact_id()
       where state = 'waiting' and ((stream_id = :stream and wait_reason = 'fetch')
                                    or (waits_for = :stream and fetch_asked))
         and settled_on(state, decided_at) = 'infinity'
       returning id, kind, stream_id"""
)
_FAILED = text(
    """update fetch_request set lease_until = null, due_at = now() + make_interval(secs => :delay), last_error = :error,
           attempts = case when :counted then attempts else greatest(attempts - 1, 0) end
       where stream_id = :stream and token = :token"""
)


class SqlFetches:
    """FetchStore over PostgreSQL."""

    def __init__(self, database: Database, *, lease_seconds: float = 30) -> None:
        self._database = database
        self._lease_seconds = lease_seconds

    def claim(self, limit: int) -> Sequence[FetchTask]:
        """See FetchStore."""
        with self._database.engine() as connection:
            parties = connection.execute(_PARTIES).all()
            shares = fair_shares(limit, {row.id: row.priority for row in parties})
            asked = [row for row in parties if row.id in shares]
            if not asked:
                return []
            chosen = self._chosen(connection, asked, shares)
            rows = connection.execute(_CLAIM, {"ids": list(chosen), "lease": self._lease_seconds}).all()
        return [
            FetchTask(
                stream_id=row.stream_id,
                tenant_id=row.tenant_id,
                connection_id=row.connection_id,
                kind=Kind(row.kind),
                source_id=row.source_id,
                reason=row.reason,
                token=row.token,
                attempts=row.attempts,
                asked=row.asked,
                version=row.version,
                again=row.last_error is not None,
                reserved=chosen[row.stream_id],
            )
            for row in rows
        ]

    def _chosen(self, connection: Connection, asked: Sequence[Row[Any]], shares: Mapping[UUID, int]) -> dict[UUID, int]:
        """Due wishes up to each connection's share → the retries that were taken out of its budget for each."""
        values = {
            "ids": [row.id for row in asked],
            "shares": [1 if row.tries else shares[row.id] for row in asked],
            "tries": [row.tries for row in asked],
        }
        due: dict[UUID, list[Row[Any]]] = {}
        for row in connection.execute(_DUE, values):
            due.setdefault(row.connection_id, []).append(row)
        chosen: dict[UUID, int] = {}
        # Breakers are locked in one order, and after the wishes.
        for party in sorted(asked, key=lambda one: one.id):
            rows = due.get(party.id, [])
            if party.tries:
                chosen |= {row.stream_id: 0 for row in rows[:1]}
                continue
            failed = [row for row in rows if row.again]
            remote = Remote(party.id, party.tenant_id, party.id)
            affordable = reserve(connection, remote, len(failed)) if failed else 0
            usable = failed[:affordable] + [row for row in rows if not row.again]
            chosen |= {row.stream_id: int(row.again) for row in usable[: shares[party.id]]}
        return chosen

    def observed(self, task: FetchTask) -> bool:
        """See FetchStore."""
        with self._database.engine() as connection:
            if not self._settle(connection, task):
                return False
            rows = connection.execute(_FETCHED, {"stream": task.stream_id}).all()
            append_audit(connection, [_entry(task, "message.fetched", row.id, {}) for row in rows])
        return True

    def not_found(self, task: FetchTask) -> bool:
        """See FetchStore."""
        return self._bury(task, NOT_FOUND)

    def given_up(self, task: FetchTask, reason: str) -> None:
        """See FetchStore."""
        self._bury(task, reason[:500])

    def _bury(self, task: FetchTask, reason: str) -> bool:
        with self._database.engine() as connection:
            if not self._settle(connection, task):
                return False
            rows = connection.execute(_DEAD, {"stream": task.stream_id, "reason": reason}).all()
            append_audit(connection, [_entry(task, "message.dead", row.id, {"reason": reason}) for row in rows])
        return True

    def _settle(self, connection: Connection, task: FetchTask) -> bool:
        keys = {"stream": task.stream_id, "token": task.token}
        if not connection.execute(_SETTLE, keys | {"asked": task.asked}).scalar_one():
            return False
        connection.execute(_ASK_AGAIN, keys)
        return True

    def failed(self, task: FetchTask, error: str, delay_seconds: float, *, counted: bool = True) -> None:
        """See FetchStore."""
        values = {"stream": task.stream_id, "token": task.token, "delay": delay_seconds, "error": error[:500]}
        values["counted"] = counted
        with self._database.engine() as connection:
            connection.execute(_FAILED, values)


def _entry(task: FetchTask, action: str, message: UUID, detail: dict[str, Any]) -> AuditEntry:
    return AuditEntry(
        task.connection_id,
        task.tenant_id,
        "system",
        action,
        {"asked_for": task.reason} | detail,
        connection_id=task.connection_id,
        kind=str(task.kind),
        record_id=task.stream_id,
        message=message,
    )


_CLAIM_POLL = text(
    f"""with due as materialized (
           select c.id, c.poll_lease_until is not null as lost from connection c where c.state in ('shadow', 'live')
                     and not exists (select 1 from breaker b where b.owner_id = c.id and not {CALLABLE})
                     and coalesce((c.settings ->> 'poll_seconds')::float, :poll_seconds) > 0
                     and coalesce(c.poll_due_at, '-infinity') <= now()
                     and (c.poll_lease_until is null or c.poll_lease_until <= now())
           order by c.poll_due_at nulls first limit 1 for update skip locked)
       update connection set poll_lease_until = now() + make_interval(secs => :lease)
       from due where connection.id = due.id
       returning connection.id, tenant_id, poll_cursor, poll_failures, connection.poll_lease_until, due.lost"""  # noqa: S608  constants only
)
# The moment until which a poll is leased is its token: each claim, and each renewal, has its own.
_ADVANCED = text(
    """update connection set poll_cursor = :cursor, poll_lease_until = clock_timestamp() + make_interval(secs => :lease)
       where id = :connection and poll_lease_until = :token returning poll_lease_until"""
)
_POLLED = text(
    """update connection set poll_due_at = now() + make_interval(secs => :due), poll_lease_until = null,
           poll_failures = 0, poll_error = null where id = :connection and poll_lease_until = :token"""
)
_POLL_FAILED = text(
    """update connection set poll_due_at = now() + make_interval(secs => :due), poll_lease_until = null,
           poll_failures = poll_failures + 1, poll_error = :error
       where id = :connection and poll_lease_until = :token"""
)


class SqlPolls:
    """PollStore over PostgreSQL."""

    def __init__(self, database: Database, *, lease_seconds: float = 30) -> None:
        self._database = database
        self._lease_seconds = lease_seconds

    def claim(self) -> PollTask | None:
        """See PollStore."""
        values = {"lease": self._lease_seconds, "poll_seconds": default_of("poll_seconds")}
        with self._database.engine() as connection:
            row = connection.execute(_CLAIM_POLL, values).one_or_none()
        if row is None:
            return None
        return PollTask(row.id, row.tenant_id, row.poll_cursor, row.poll_failures, row.poll_lease_until, row.lost)

    def advanced(self, task: PollTask, cursor: str | None) -> PollTask:
        """See PollStore."""
        values = {"connection": task.connection_id, "token": task.token, "cursor": cursor, "lease": self._lease_seconds}
        with self._database.engine() as connection:
            token = connection.execute(_ADVANCED, values).scalar_one_or_none()
        if token is None:
            raise LeaseLost(f"Another worker polls connection {task.connection_id} by now.")
        return replace(task, cursor=cursor, token=token)

    def finished(self, task: PollTask, due_seconds: float) -> None:
        """See PollStore."""
        values = {"connection": task.connection_id, "token": task.token, "due": max(due_seconds, 0.1)}
        with self._database.engine() as connection:
            connection.execute(_POLLED, values)

    def failed(self, task: PollTask, error: str, due_seconds: float) -> None:
        """See PollStore."""
        values = {"connection": task.connection_id, "token": task.token, "due": due_seconds, "error": error[:500]}
        with self._database.engine() as connection:
            connection.execute(_POLL_FAILED, values)


class SqlProbes:
    """ProbeStore over PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def probed(self, connection_id: UUID, *, alive: bool, detail: str) -> None:
        """See ProbeStore."""
        with self._database.engine() as connection:
            tenant_id = connection.execute(
                text("select tenant_id from connection where id = :connection"), {"connection": connection_id}
            ).scalar_one()
            append_audit(
                connection,
                [
                    AuditEntry(
                        connection_id,
                        tenant_id,
                        "system",
                        "connection.probed",
                        {"alive": alive, "detail": detail[:500]},
                        connection_id=connection_id,
                    )
                ],
            )
