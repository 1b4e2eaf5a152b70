"""Replays in PostgreSQL (ports/replays.py, ReplayStore)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.database import Database
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import Kind, MessageState
from bss_sync.ports.replays import StoredMessage

_LOAD = text(
    """select id, message_id, connection_id, stream_id, kind, source_id, state from message
       where id = any(:ids) order by seq"""
)
_CHOSEN = text("select id, state from message where id = any(:ids) order by id for update")
_REOPEN = text(
    """update message m set state = 'pending', shard = case when c.state in ('shadow', 'live') then c.shard end,
           verdict = null, reason = null, stack = null, held_field = null, held_value = null, waits_for = null,
           wait_reason = null, wait_until = null, fetch_asked = false, decided_at = null,
           change_xid = pg_current_xact_id()
       from connection c where c.id = m.connection_id and m.id = any(:ids)
         and m.state not in ('applied', 'superseded', 'pending')
       returning m.id, m.tenant_id, m.connection_id, m.stream_id, m.kind, m.shard, m.message_id"""
)
# What had been put aside as a process-killer is claimed like any other again.
_FORGIVE = text("update stream set unfinished = 0, solo_claims = 0 where id = any(:ids)")
_DISCARD = text(
    """update message m set state = 'discarded', shard = null, verdict = 'discarded', reason = :reason,
           waits_for = null, wait_reason = null, wait_until = null, decided_at = now(),
           change_xid = pg_current_xact_id()
       where m.id = any(:ids) and m.state in ('pending', 'waiting', 'quarantined', 'dead', 'out_of_scope')
       returning m.id, m.tenant_id, m.connection_id, m.stream_id, m.kind, m.message_id"""
)
# A discarded state that was kept for later does not enter any more.
_UNSTAGE = text("delete from staging where message = any(:ids)")


class SqlReplays:
    """ReplayStore over PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, ids: Sequence[UUID]) -> Sequence[StoredMessage]:
        """See ReplayStore."""
        with self._database.engine() as connection:
            rows = connection.execute(_LOAD, {"ids": list(ids)}).all()
        return [
            StoredMessage(
                id=row.id,
                message_id=row.message_id,
                connection_id=row.connection_id,
                stream_id=row.stream_id,
                kind=Kind(row.kind),
                source_id=row.source_id,
                state=MessageState(row.state),
            )
            for row in rows
        ]

    def reopen(self, ids: Sequence[UUID], *, actor: str) -> frozenset[int]:
        """See ReplayStore."""
        with self._database.engine() as connection:
            before = {row.id: row.state for row in connection.execute(_CHOSEN, {"ids": list(ids)})}
            rows = connection.execute(_REOPEN, {"ids": list(ids)}).all()
            connection.execute(_FORGIVE, {"ids": list({row.stream_id for row in rows})})
            append_audit(connection, [_entry(row, "message.replayed", actor, {"from": before[row.id]}) for row in rows])
        return frozenset(row.shard for row in rows if row.shard is not None)

    def discard(self, ids: Sequence[UUID], reason: str, *, actor: str) -> int:
        """See ReplayStore."""
        with self._database.engine() as connection:
            before = {row.id: row.state for row in connection.execute(_CHOSEN, {"ids": list(ids)})}
            rows = connection.execute(_DISCARD, {"ids": list(ids), "reason": reason}).all()
            connection.execute(_UNSTAGE, {"ids": [row.id for row in rows]})
            append_audit(
                connection,
                [_entry(row, "message.discarded", actor, {"from": before[row.id], "reason": reason}) for row in rows],
            )
        return len(rows)


def _entry(row: Row[Any], action: str, actor: str, detail: dict[str, str]) -> AuditEntry:
    return AuditEntry(
        row.connection_id,
        row.tenant_id,
        actor,
        action,
        {"message_id": row.message_id, **detail},
        connection_id=row.connection_id,
        kind=row.kind,
        record_id=row.stream_id,
        message=row.id,
    )
