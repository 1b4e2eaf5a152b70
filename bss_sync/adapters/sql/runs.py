"""Long runs in PostgreSQL (ports/runs.py, RunStore)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Row, TextClause, text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.findings import SqlFindings
from bss_sync.adapters.sql.run_locks import RunLocks
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.errors import NotFound
from bss_sync.ports.runs import CARRIED_MAX, Run

SILENT_SECONDS = 60
"""A running run of the release before, which takes no lock, has lost its process when it was silent for so long."""

_START = text(
    """insert into run (id, tenant_id, connection_id, kind, options, progress, requested_by)
       select :id, c.tenant_id, c.id, :kind,
              cast(:options as jsonb) || case when :kind = 'reconcile' then jsonb_build_object('cursor', c.poll_cursor)
                                              else '{}' end,
              jsonb_build_object('locked', true, 'pass', 1), :requested_by
       from connection c where c.id = :connection returning *"""
)
_RUNNING = "state = 'running' and (progress ? 'locked' or updated_at < now() - make_interval(secs => :silent))"
_FROM_A_FILE = "(kind = 'import' or (options ->> 'snapshot')::boolean is true)"
_FAIL = text(
    """update run set state = 'failed', updated_at = now(), finished_at = now(),
           result = result || jsonb_build_object('error', cast(:error as text))
       where id = :id and state = 'running' returning *"""
)
_FROM_FILES = text(
    f"""select * from run where connection_id = :connection and kind = :kind and {_RUNNING} and {_FROM_A_FILE}"""  # noqa: S608  constants only
)
_ALIKE = text(
    f"""select * from run where connection_id = :connection and kind = :kind and {_RUNNING} and not {_FROM_A_FILE}
          and options - array['cursor', 'resumes'] = cast(:options as jsonb) order by created_at"""  # noqa: S608  constants only
)
_ALL_RUNNING = text(
    f"""select * from run where kind in ('reconcile', 'backfill') and {_RUNNING} and not {_FROM_A_FILE}
        order by created_at"""  # noqa: S608  constants only
)
_CARRY = text(
    """update run set updated_at = now(),
           progress = progress || jsonb_build_object('locked', true, 'pass', coalesce(progress -> 'pass', '1'),
               'carried', coalesce((progress ->> 'carried')::integer, 0) + 1)
       where id = :id and state = 'running' returning *"""
)
# What each has named as gone, whatever was asked for and could not be found.
_WAITING = text(
    """with gone as (
           select run_id, record_id from run_difference
           where place = 'mirror' and problem = 'extra' and cause is distinct from 'unverified')
       select r.* from run r
       where r.connection_id = :connection and r.kind = 'reconcile' and r.state = 'stopped' and r.id <> :findings
         and r.options - array['cursor', 'resumes', 'accept', 'since_last']
             = cast(:options as jsonb) - array['accept', 'since_last']
         and not exists (select record_id from gone where run_id = r.id
                         except select record_id from gone where run_id = :findings)
         and not exists (select record_id from gone where run_id = :findings
                         except select record_id from gone where run_id = r.id)
       order by r.created_at limit 1"""
)
# What a crash of PostgreSQL takes back of this is done again; waiting for the disk on every page is not worth that.
_LAZILY = text("set local synchronous_commit = off")
_PROGRESS = text(
    """update run set progress = progress || jsonb_build_object('carried', 0) || cast(:progress as jsonb),
           updated_at = now() where id = :id and state = 'running'"""
)
_CHECKPOINT = text(
    """select coalesce(result ->> 'cursor', options ->> 'cursor') from run
       where connection_id = :connection and kind = 'reconcile' and state = 'done'
         and (result ->> 'source_error') is null and (options ->> 'subtree') is null
         and (options ->> 'dry_run')::boolean is not true and (options ->> 'snapshot')::boolean is not true
       order by created_at desc limit 1"""
)
_FINISH = text(
    """update run set state = :state, result = cast(:result as jsonb), updated_at = now(),
           finished_at = case when :state = 'stopped' then null else now() end
       where id = :id returning *"""
)
_LAST = text(
    """select * from run where connection_id = :connection and kind = :kind and state in ('running', 'failed')
         and created_at = (select max(created_at) from run where connection_id = :connection and kind = :kind)"""
)
# What an admin has approved is done anew, against the source as it is now; what it has named and done stays.
_CLAIM = text(
    """update run set state = 'running', updated_at = now(),
           progress = jsonb_build_object('approved', true, 'locked', true,
               'pass', coalesce((progress ->> 'pass')::integer, 1) + 1,
               'repaired', coalesce(progress -> 'repaired', '0'), 'accepted', coalesce(progress -> 'accepted', '0'))
       where id = (
           select id from run where kind = 'reconcile' and state = 'approved'
             and case when cast(:connection as uuid) is null then (options ->> 'snapshot')::boolean is not true
                      else connection_id = :connection and (options ->> 'snapshot')::boolean end
           order by created_at limit 1 for update skip locked) returning *"""
)
_KEPT_IN_AUDIT = ("total", "ends", "repaired", "accepted", "listed", "refused", "duplicates", "dry_run", "source_error")


LOST = "its process ended before it did"


class SqlRuns:
    """RunStore over PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._locks = RunLocks(database)

    def start(
        self,
        connection_id: UUID,
        kind: str,
        options: Mapping[str, Any],
        *,
        requested_by: str,
        run_id: UUID | None = None,
    ) -> Run:
        """See RunStore."""
        identity = run_id or uuid4()
        values = {"id": identity, "kind": kind, "connection": connection_id, "requested_by": requested_by}
        self._fail_lost(connection_id, kind)
        self._locks.take(identity)
        try:
            with self._database.engine() as connection:
                row = connection.execute(_START, values | {"options": json.dumps(dict(options))}).one_or_none()
                if row is None:
                    raise NotFound(f"There is no connection {connection_id}.")
                _record(connection, row, "run.started", {"options": dict(options)})
        except BaseException:
            self._locks.give(identity)
            raise
        return _run(row)

    def _fail_lost(self, connection_id: UUID, kind: str) -> None:
        scope = {"connection": connection_id, "kind": kind, "silent": SILENT_SECONDS}
        with self._database.engine() as connection:
            rows = connection.execute(_FROM_FILES, scope).all()
        for row in rows:
            if self._locks.take(row.id):
                self._fail(row.id, LOST)

    def _fail(self, run_id: UUID, error: str) -> None:
        """Fail a run that is ours, and let go of it."""
        try:
            with self._database.engine() as connection:
                failed = connection.execute(_FAIL, {"id": run_id, "error": error}).one_or_none()
                if failed is not None:
                    _record(connection, failed, "run.failed", {"error": error})
        finally:
            self._locks.give(run_id)

    def carry_on(self, connection_id: UUID, kind: str, options: Mapping[str, Any]) -> Run | None:
        """See RunStore."""
        scope = {"connection": connection_id, "kind": kind, "options": json.dumps(dict(options))}
        return self._carry(_ALIKE, scope)

    def claim_lost(self) -> Run | None:
        """See RunStore."""
        return self._carry(_ALL_RUNNING, {})

    def _carry(self, statement: TextClause, scope: Mapping[str, Any]) -> Run | None:
        with self._database.engine() as connection:
            rows = connection.execute(statement, {**scope, "silent": SILENT_SECONDS}).all()
        for row in rows:
            if not self._locks.take(row.id):
                continue  # somebody is at it
            if row.progress.get("carried", 0) >= CARRIED_MAX:
                self._fail(row.id, f"{LOST}, {CARRIED_MAX} times without a step forward")
                continue
            with self._locks.writing(row.id) as session:
                ours = session.execute(_CARRY, {"id": row.id}).one_or_none()
            if ours is not None:
                return _run(ours)
            self._locks.give(row.id)  # it was finished between the look and the lock
        return None

    def claim_approved(self, connection_id: UUID | None = None) -> Run | None:
        """See RunStore."""
        with self._database.engine() as connection:
            row = connection.execute(_CLAIM, {"connection": connection_id}).one_or_none()
        if row is None:
            return None
        if not self._locks.take(row.id):
            return None  # whoever was quicker carries it on
        SqlFindings(self._database, row.id, row.connection_id).forget(everything=False)
        return _run(row)

    def waiting(self, connection_id: UUID, options: Mapping[str, Any], findings: UUID) -> Run | None:
        """See RunStore."""
        values = {"connection": connection_id, "options": json.dumps(dict(options)), "findings": findings}
        with self._database.engine() as connection:
            row = connection.execute(_WAITING, values).one_or_none()
        return None if row is None else _run(row)

    def progress(self, run_id: UUID, progress: Mapping[str, Any]) -> None:
        """See RunStore."""
        with self._locks.writing(run_id) as session:
            session.execute(_LAZILY)
            session.execute(_PROGRESS, {"id": run_id, "progress": json.dumps(dict(progress))})

    def checkpoint(self, connection_id: UUID) -> str | None:
        """See RunStore."""
        with self._database.engine() as connection:
            found = connection.execute(_CHECKPOINT, {"connection": connection_id}).scalar()
        return None if found is None else str(found)

    def finish(self, run_id: UUID, state: str, result: Mapping[str, Any]) -> None:
        """See RunStore."""
        values = {"id": run_id, "state": state, "result": json.dumps(dict(result))}
        with self._locks.writing(run_id) as session:
            row = session.execute(_FINISH, values).one()
            kept = {name: result[name] for name in _KEPT_IN_AUDIT if name in result}
            _record(session, row, f"run.{state}", kept)
        self._locks.give(run_id)

    def let_go(self, run_id: UUID) -> None:
        """See RunStore."""
        self._locks.give(run_id)

    def interrupted(self, connection_id: UUID, kind: str) -> Run | None:
        """See RunStore."""
        with self._database.engine() as connection:
            row = connection.execute(_LAST, {"connection": connection_id, "kind": kind}).one_or_none()
        if row is None:
            return None
        if row.state == "running":
            if not self._locks.take(row.id):
                return None
            self._locks.give(row.id)
        return _run(row)

    def findings(self, run_id: UUID, connection_id: UUID) -> SqlFindings:
        """See RunStore."""
        return SqlFindings(self._database, run_id, connection_id)


def _record(connection: Connection, row: Row[Any], action: str, detail: Mapping[str, Any]) -> None:
    append_audit(connection, [run_entry(row, action, detail)])


def run_entry(row: Row[Any], action: str, detail: Mapping[str, Any]) -> AuditEntry:
    """What the audit keeps of a run; one over several connections belongs to the distributor's chain."""
    return AuditEntry(
        row.connection_id or row.tenant_id,
        row.tenant_id,
        row.requested_by,
        action,
        {"run_id": str(row.id), "kind": row.kind, **detail},
        connection_id=row.connection_id,
    )


def _run(row: Row[Any]) -> Run:
    return Run(
        id=row.id,
        tenant_id=row.tenant_id,
        connection_id=row.connection_id,
        kind=row.kind,
        state=row.state,
        options=row.options,
        progress=row.progress,
        requested_by=row.requested_by,
        created_at=row.created_at,
    )
