"""Long runs in PostgreSQL (ports/reconciliation.py, RunStore)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.database import Database
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.errors import NotFound
from bss_sync.ports.reconciliation import Run

INTERRUPTED_SECONDS = 60
"""A running run that has not told its progress for so long has lost its process."""

_START = text(
    """insert into run (id, tenant_id, connection_id, kind, options, requested_by)
       select :id, c.tenant_id, c.id, :kind,
              cast(:options as jsonb) || case when :kind = 'reconcile' then jsonb_build_object('cursor', c.poll_cursor)
                                              else '{}' end, :requested_by
       from connection c where c.id = :connection returning *"""
)
# A replay and what an admin has approved are carried on; the others begin anew, and what they did is done.
_LOST = text(
    """update run set state = 'failed', updated_at = now(), finished_at = now(),
           result = result || '{"error": "its process ended before it did"}'
       where connection_id = :connection and kind = :kind and kind <> 'replay' and state = 'running'
         and (progress ->> 'approved') is null and updated_at < now() - make_interval(secs => :seconds) returning *"""
)
_PROGRESS = text("update run set progress = progress || cast(:progress as jsonb), updated_at = now() where id = :id")
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
_INTERRUPTED = text(
    """select * from run where connection_id = :connection and kind = :kind and state in ('running', 'failed')
         and (state = 'failed' or updated_at < now() - make_interval(secs => :seconds))
         and created_at = (select max(created_at) from run where connection_id = :connection and kind = :kind)"""
)
_CLAIM = text(
    """update run set state = 'running', progress = progress || '{"approved": true}', updated_at = now() where id = (
           select id from run where kind = 'reconcile'
             and (state = 'approved' or (state = 'running' and (progress ->> 'approved')::boolean
                                         and updated_at < now() - make_interval(secs => :seconds)))
             and case when cast(:connection as uuid) is null then (options ->> 'snapshot')::boolean is not true
                      else connection_id = :connection and (options ->> 'snapshot')::boolean end
           order by created_at limit 1 for update skip locked) returning *"""
)
_KEPT_IN_AUDIT = ("total", "ends", "repaired", "accepted", "listed", "refused", "duplicates", "dry_run", "source_error")


class SqlRuns:
    """RunStore over PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(self, connection_id: UUID, kind: str, options: Mapping[str, Any], *, requested_by: str) -> Run:
        """See RunStore."""
        values = {"id": uuid4(), "kind": kind, "connection": connection_id, "requested_by": requested_by}
        with self._database.engine() as connection:
            lost = {"connection": connection_id, "kind": kind, "seconds": INTERRUPTED_SECONDS}
            for other in connection.execute(_LOST, lost).all():
                _record(connection, other, "run.failed", {"error": "its process ended before it did"})
            row = connection.execute(_START, values | {"options": json.dumps(dict(options))}).one_or_none()
            if row is None:
                raise NotFound(f"There is no connection {connection_id}.")
            _record(connection, row, "run.started", {"options": dict(options)})
        return _run(row)

    def progress(self, run_id: UUID, progress: Mapping[str, Any]) -> None:
        """See RunStore."""
        with self._database.engine() as connection:
            connection.execute(_PROGRESS, {"id": run_id, "progress": json.dumps(dict(progress))})

    def checkpoint(self, connection_id: UUID) -> str | None:
        """See RunStore."""
        with self._database.engine() as connection:
            found = connection.execute(_CHECKPOINT, {"connection": connection_id}).scalar()
        return None if found is None else str(found)

    def finish(self, run_id: UUID, state: str, result: Mapping[str, Any]) -> None:
        """See RunStore."""
        values = {"id": run_id, "state": state, "result": json.dumps(dict(result))}
        with self._database.engine() as connection:
            row = connection.execute(_FINISH, values).one()
            kept = {name: result[name] for name in _KEPT_IN_AUDIT if name in result}
            _record(connection, row, f"run.{state}", kept)

    def interrupted(self, connection_id: UUID, kind: str) -> Run | None:
        """See RunStore."""
        values = {"connection": connection_id, "kind": kind, "seconds": INTERRUPTED_SECONDS}
        with self._database.engine() as connection:
            row = connection.execute(_INTERRUPTED, values).one_or_none()
        return None if row is None else _run(row)

    def claim_approved(self, connection_id: UUID | None = None) -> Run | None:
        """See RunStore."""
        with self._database.engine() as connection:
            values = {"connection": connection_id, "seconds": INTERRUPTED_SECONDS}
            row = connection.execute(_CLAIM, values).one_or_none()
        return None if row is None else _run(row)


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
