"""The sweeper's statements, and the lock that lets one scheduler act at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, text

from bss_sync.adapters.sql import epochs
from bss_sync.adapters.sql.admin import closing
from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.breakers import CALLABLE
from bss_sync.adapters.sql.database import Database, answering
from bss_sync.adapters.sql.floors import note_floor
from bss_sync.adapters.sql.retention import SqlRetention
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import SHARDS
from bss_sync.domain.retention import Retention
from bss_sync.ports.connector import ConnectionSettings
from bss_sync.ports.retention import Turn
from bss_sync.ports.upkeep import Hints, Pruned, Silent

IDEMPOTENCY_HOURS = 24
PRUNE_ROWS_MAX = 10_000
_SCHEDULER_LOCK = 7_205_259_404

_WAKE_DEADLINES = text(
    """update stream s set ready_at = now()
       where s.ready_at is null and s.id in (
           select m.stream_id from message m join connection c on c.id = m.connection_id
           where m.state = 'waiting' and m.wait_until <= now() and c.state in ('shadow', 'live')
             and settled_on(m.state, m.decided_at) = 'infinity'
           order by m.wait_until limit 1000)"""
)

_TARGET_CALLABLE = f"not exists (select 1 from breaker b where b.connection_id is null and not {CALLABLE})"  # noqa: S608  constants only
_SOURCE_CALLABLE = f"not exists (select 1 from breaker b where b.owner_id = c.id and not {CALLABLE})"  # noqa: S608  constants only
_HINTS = text(
    f"""select
         (select coalesce(array_agg(distinct w.n order by w.n), '{{}}') from (
              select c.shard::int as n from connection c cross join lateral (
                  select 1 from message m
                  where m.state = 'pending' and m.shard = c.shard and m.connection_id = c.id
                    and settled_on(m.state, m.decided_at) = 'infinity'
                  order by m.seq limit 1) m
              where c.state in ('shadow', 'live')
              union all
              select s.n from generate_series(0, :shards - 1) as s (n)
              where exists (select 1 from stream t join connection c on c.id = t.connection_id
                            where t.shard = s.n and t.ready_at <= now() and c.state in ('shadow', 'live')
                              and not exists (select from claim k where k.shard = s.n and k.lease_until >= now()
                                              and t.id = any(k.streams)))) w
         ) as shards,
         exists (select 1 from target) and {_TARGET_CALLABLE} and exists (
             select 1 from connection c where c.state in ('live', 'closed') and exists (
                 select 1 from delivery d where d.connection_id = c.id and d.due_at <= now()
                   and (d.lease_until is null or d.lease_until <= now()))
         ) as deliveries,
         exists (select 1 from connection c where c.state in ('shadow', 'live') and {_SOURCE_CALLABLE} and exists (
                 select 1 from fetch_request f where f.connection_id = c.id and f.due_at <= now()
                   and (f.lease_until is null or f.lease_until <= now()))) as fetches,
         exists (select 1 from connection c where c.state in ('shadow', 'live') and {_SOURCE_CALLABLE}
                   and coalesce((c.settings ->> 'poll_seconds')::float, :poll_seconds) > 0
                   and coalesce(c.poll_due_at, '-infinity') <= now()
                   and (c.poll_lease_until is null or c.poll_lease_until <= now()))
         or exists (select 1 from target where poll_seconds > 0 and poll_due_at <= now() and {_TARGET_CALLABLE}
                   and (poll_lease_until is null or poll_lease_until <= now()))
         or exists (select 1 from run where kind in ('reconcile', 'backfill')
                   and (options ->> 'snapshot')::boolean is not true
                   and (state = 'approved' or (state = 'running' and updated_at < now() - interval '5 seconds')))
         or exists (select 1 from run where kind = 'replay' and state = 'running'
                   and (progress ->> 'due_at')::timestamptz <= now()) as polls"""  # noqa: S608  constants only
)

_WAKE_RELEASED = text(
    """update stream s set ready_at = now()
       where s.ready_at is null and s.id in (
           select m.stream_id from message m
           where m.state = 'waiting' and m.wait_reason in ('parent_unknown', 'account_unknown')
             and settled_on(m.state, m.decided_at) = 'infinity'
             and (exists (select 1 from account a where a.id = m.waits_for)
                  or exists (select 1 from subscription b where b.id = m.waits_for)
                  or (m.kind = 'subscription' and m.wait_reason = 'parent_unknown' and exists (
                      select 1 from stream p where p.id = m.waits_for and p.version is not null)))
           union
           select g.stream_id from message m join staging g on g.stream_id = m.waits_for
           where m.state = 'waiting' and settled_on(m.state, m.decided_at) = 'infinity' and g.action = 'state'
             and not exists (select 1 from message own where own.id = g.message and own.state in ('pending', 'waiting')
                             and settled_on(own.state, own.decided_at) = 'infinity'))
         and exists (select 1 from connection c where c.id = s.connection_id and c.state in ('shadow', 'live'))"""
)

_SETTLE_PARKING = text(
    """with unparked as (
           update message m set shard = c.shard, change_xid = pg_current_xact_id() from connection c
           where c.id = m.connection_id and c.state in ('shadow', 'live') and m.state = 'pending' and m.shard is null
             and settled_on(m.state, m.decided_at) = 'infinity'
           returning 1),
       parked as (
           update message m set shard = null, change_xid = pg_current_xact_id() from connection c
           where c.id = m.connection_id and c.state not in ('shadow', 'live') and m.state = 'pending'
             and m.shard is not null and settled_on(m.state, m.decided_at) = 'infinity'
           returning 1)
       select (select count(*) from unparked) + (select count(*) from parked)"""
)

_MARK_SILENT = text(
    """update connection c set silent_since = now()
       where c.state in ('shadow', 'live') and c.silent_since is null
         and coalesce((c.settings ->> 'silence_seconds')::float, :silence_seconds) > 0
         and coalesce(c.last_received_at, c.created_at)
             < now() - make_interval(secs => coalesce((c.settings ->> 'silence_seconds')::float, :silence_seconds))
       returning c.id, c.tenant_id, c.name, c.last_received_at,
                 coalesce((c.settings ->> 'silence_seconds')::float, :silence_seconds) as silence_seconds"""
)

_PRUNE_STAGING = text(
    """delete from staging where (stream_id, action) in (
           select g.stream_id, g.action from staging g join connection c on c.id = g.connection_id
           where g.staged_at < now() - make_interval(
               days => coalesce((c.settings ->> 'staging_days')::int, :staging_days))
             and not exists (select 1 from message m where m.waits_for = g.stream_id and m.state = 'waiting'
                             and settled_on(m.state, m.decided_at) = 'infinity')
           limit :rows)"""
)
_PRUNE_KEYS = text(
    """delete from message_key where (connection_id, message_id) in (
           select connection_id, message_id from message_key
           where received_at < now() - make_interval(days => :days) order by received_at limit :rows)"""
)
_PRUNE_IDEMPOTENCY = text("delete from idempotency where created_at < now() - make_interval(hours => :hours)")


def default_of(setting: str) -> float:
    """The default of a setting that every connection has, for rows that do not name it."""
    return float(ConnectionSettings.model_fields[setting].default)


class SqlUpkeep:
    """UpkeepStore over PostgreSQL."""

    def __init__(self, database: Database, policy: Retention | None = None) -> None:
        self._database = database
        self._policy = policy or Retention()
        self._pass: Iterator[Turn] | None = None

    def hints(self) -> Hints:
        """See UpkeepStore."""
        with self._database.engine_at_once() as connection:
            connection.execute(_WAKE_DEADLINES)
            row = connection.execute(_HINTS, {"shards": SHARDS, "poll_seconds": default_of("poll_seconds")}).one()
        return Hints(tuple(row.shards), row.deliveries, row.fetches, row.polls)

    def settle_epoch(self) -> bool:
        """See UpkeepStore."""
        return epochs.settle(self._database) is not None

    def note_floor(self) -> None:
        """See UpkeepStore."""
        with self._database.engine() as connection:
            note_floor(connection)

    def wake_released(self) -> int:
        """See UpkeepStore."""
        with self._database.engine_at_once() as connection:
            return connection.execute(_WAKE_RELEASED).rowcount

    def settle_parking(self) -> int:
        """See UpkeepStore."""
        with self._database.engine_at_once() as connection:
            return int(connection.execute(_SETTLE_PARKING).scalar_one())

    def close_due(self) -> int:
        """See UpkeepStore."""
        number = 0
        while True:
            with self._database.engine() as connection:
                if closing.execute_next_due(connection) is None:
                    return number
            number += 1

    def mark_silent(self) -> Sequence[Silent]:
        """See UpkeepStore."""
        with self._database.engine() as connection:
            rows = connection.execute(_MARK_SILENT, {"silence_seconds": default_of("silence_seconds")}).all()
            append_audit(
                connection,
                [
                    AuditEntry(
                        row.id,
                        row.tenant_id,
                        "system",
                        "connection.silent",
                        {
                            "silence_seconds": int(row.silence_seconds),
                            "last_received_at": row.last_received_at and row.last_received_at.isoformat(),
                        },
                        connection_id=row.id,
                    )
                    for row in rows
                ],
            )
        return [Silent(row.id, row.tenant_id, row.name, row.last_received_at, row.silence_seconds) for row in rows]

    def prune(self) -> Pruned:
        """See UpkeepStore."""
        with self._database.engine() as connection:
            days = {"staging_days": int(default_of("staging_days")), "rows": PRUNE_ROWS_MAX}
            staging = connection.execute(_PRUNE_STAGING, days).rowcount
            keys = connection.execute(
                _PRUNE_KEYS, {"days": self._policy.deduplication_days, "rows": PRUNE_ROWS_MAX}
            ).rowcount
            idempotency = connection.execute(_PRUNE_IDEMPOTENCY, {"hours": IDEMPOTENCY_HOURS}).rowcount
        return Pruned(staging, keys, idempotency)

    def retain(self) -> Turn | None:
        """See UpkeepStore."""
        turns = self._pass or SqlRetention(self._database, self._policy).turns()
        # A pass that is broken off is begun anew.
        self._pass = None
        turn = next(turns, None)
        if turn is not None:
            self._pass = turns
        return turn


class SchedulerLock:
    """The right to schedule: an advisory lock, held by one PostgreSQL session for as long as that lives."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def held(self) -> bool:
        """Take the lock, or prove that it is held still. DependencyDown when the session is gone and so is it."""
        with answering():
            query = text(
                """select exists (select 1 from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
                                    and ((classid::bigint << 32) | objid::bigint) = :key and granted)
                          or pg_try_advisory_lock(:key)"""
            )
            return bool(self._connection.execute(query, {"key": _SCHEDULER_LOCK}).scalar_one())


@contextmanager
def scheduler_lock(database: Database) -> Iterator[SchedulerLock]:
    """A session of its own for the lock; closing it gives the lock to the next scheduler."""
    with answering():
        # Each look is a statement of its own: an advisory lock of a session outlives every transaction.
        connection = database.pool("engine").connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        yield SchedulerLock(connection)
    finally:
        # The session ends, not only its use: a pooled one would hold the lock on.
        connection.invalidate()
        connection.close()
