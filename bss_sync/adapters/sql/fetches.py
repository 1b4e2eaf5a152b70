"""Fetches, polls and probes in PostgreSQL (ports/sources.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.breakers import CALLABLE
from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.upkeep import default_of
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.breaker import EARNED_PER_SECOND, KEPT_BY_TIME_MAX, LENT
from bss_sync.domain.change import Kind
from bss_sync.domain.fairness import fair_shares
from bss_sync.ports.sources import FetchTask, PollTask

_BUDGET = {"lent": LENT, "kept": KEPT_BY_TIME_MAX, "per_second": EARNED_PER_SECOND}
NOT_FOUND = "not_found_at_source"

_IS_DUE = "f.due_at <= now() and (f.lease_until is null or f.lease_until <= now())"
# A breaker whose time has come lets one wish try. The budget: what failed before only as far as its credit goes.
_PARTIES = text(
    f"""select c.id, c.priority, b.open_until is not null as tries,
              case when b.owner_id is null then :lent when b.open_until is not null then 1 else greatest(0, floor(
                  greatest(b.credit, least(:kept, b.credit + :per_second * extract(epoch from now() - b.credit_at))
                  ))) end as retries
       from connection c left join breaker b on b.owner_id = c.id
       cross join lateral (select f.due_at from fetch_request f where f.connection_id = c.id and {_IS_DUE}
                           order by f.due_at limit 1) f
       where c.state in ('shadow', 'live') and {CALLABLE} order by f.due_at"""  # noqa: S608  constants only
)
_CLAIM = text(
    f"""with due as (
           select f.stream_id
           from unnest(cast(:ids as uuid[]), cast(:shares as int[]), cast(:retries as int[]))
               as q (connection_id, share, retries)
           cross join lateral (
               select * from (
                   select f.stream_id from fetch_request f
                   where f.connection_id = q.connection_id and {_IS_DUE} and f.attempts > 0
                   order by f.due_at limit least(q.share, q.retries) for update skip locked) again
               union all
               select * from (
                   select f.stream_id from fetch_request f
                   where f.connection_id = q.connection_id and {_IS_DUE} and f.attempts = 0
                   order by f.due_at limit q.share for update skip locked) never_tried
               limit q.share) f)
       update fetch_request f set token = f.token + 1, attempts = f.attempts + 1,
           lease_until = now() + make_interval(secs => :lease)
       from due where f.stream_id = due.stream_id
       returning f.*, (select s.version from stream s where s.id = f.stream_id) as version"""  # noqa: S608  constants only
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
            parties = connection.execute(_PARTIES, _BUDGET).all()
            shares = fair_shares(limit, {row.id: row.priority for row in parties})
            asked = [row for row in parties if row.id in shares]
            if not asked:
                return []
            values = {
                "ids": [row.id for row in asked],
                "shares": [1 if row.tries else shares[row.id] for row in asked],
                "retries": [int(row.retries) for row in asked],
            }
            rows = connection.execute(_CLAIM, values | {"lease": self._lease_seconds}).all()
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
            )
            for row in rows
        ]

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
    f"""update connection set poll_lease_until = now() + make_interval(secs => :lease)
       where id = (select c.id from connection c where c.state in ('shadow', 'live')
                     and not exists (select 1 from breaker b where b.owner_id = c.id and not {CALLABLE})
                     and coalesce((c.settings ->> 'poll_seconds')::float, :poll_seconds) > 0
                     and coalesce(c.poll_due_at, '-infinity') <= now()
                     and (c.poll_lease_until is null or c.poll_lease_until <= now())
                   order by c.poll_due_at nulls first limit 1 for update skip locked)
       returning id, tenant_id, poll_cursor, poll_failures"""  # noqa: S608  constants only
)
_ADVANCED = text(
    """update connection set poll_cursor = :cursor, poll_lease_until = now() + make_interval(secs => :lease)
       where id = :connection and poll_lease_until is not null"""
)
_POLLED = text(
    """update connection set poll_due_at = now() + make_interval(secs => :due), poll_lease_until = null,
           poll_failures = 0, poll_error = null where id = :connection"""
)
_POLL_FAILED = text(
    """update connection set poll_due_at = now() + make_interval(secs => :due), poll_lease_until = null,
           poll_failures = poll_failures + 1, poll_error = :error where id = :connection"""
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
        return None if row is None else PollTask(row.id, row.tenant_id, row.poll_cursor, row.poll_failures)

    def advanced(self, task: PollTask, cursor: str | None) -> None:
        """See PollStore."""
        values = {"connection": task.connection_id, "cursor": cursor, "lease": self._lease_seconds}
        with self._database.engine() as connection:
            connection.execute(_ADVANCED, values)

    def finished(self, task: PollTask, due_seconds: float) -> None:
        """See PollStore."""
        with self._database.engine() as connection:
            connection.execute(_POLLED, {"connection": task.connection_id, "due": max(due_seconds, 0.1)})

    def failed(self, task: PollTask, error: str, due_seconds: float) -> None:
        """See PollStore."""
        values = {"connection": task.connection_id, "due": due_seconds, "error": error[:500]}
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
