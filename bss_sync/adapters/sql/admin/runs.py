"""An admin's yes or no to what the blast-radius guard has stopped (domain.md section 7, guarantee 4)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql import guards
from bss_sync.adapters.sql.admin import closing
from bss_sync.adapters.sql.admin.acts import record_act
from bss_sync.adapters.sql.audit import append_audit
from bss_sync.domain.errors import NotFound, StateConflict


@dataclass(frozen=True, slots=True)
class Decided:
    """A run after an admin's word. ``kind`` says who carries it on once it is approved."""

    run_id: UUID
    connection_id: UUID | None
    kind: str
    state: str


def approve(connection: Connection, run_id: UUID, *, actor: str) -> Decided:
    """Let a stopped run go on. Held ends are released at once; a closing whose day has begun is carried out at once."""
    decided = _decide(connection, run_id, "approved", actor)
    if decided.kind == guards.KIND and decided.connection_id is not None:
        released = guards.release(connection, decided.connection_id, actor=actor)
        append_audit(connection, released)
        return _done(connection, decided, {"released": len(released)})
    if decided.kind != "close":
        return decided
    on = connection.execute(text("select options ->> 'on' from run where id = :id"), {"id": run_id}).scalar_one()
    if closing.is_due(connection, date.fromisoformat(on)):
        done = closing.execute(connection, run_id, actor=actor)
        return Decided(run_id, decided.connection_id, decided.kind, done.state)
    connection.execute(
        text("update connection set closed_on = :on where id = :id"), {"on": on, "id": decided.connection_id}
    )
    return decided


def reject(connection: Connection, run_id: UUID, *, actor: str) -> Decided:
    """Nothing of it happens. A closing that was approved for a later day can still be rejected."""
    decided = _decide(connection, run_id, "rejected", actor)
    if decided.kind == guards.KIND and decided.connection_id is not None:
        append_audit(connection, guards.discard(connection, decided.connection_id, run_id, actor=actor))
    if decided.kind == "close":
        connection.execute(
            text("update connection set closed_on = null where id = :id and state <> 'closed'"),
            {"id": decided.connection_id},
        )
    return decided


def _done(connection: Connection, decided: Decided, result: dict[str, int]) -> Decided:
    connection.execute(
        text("update run set state = 'done', result = cast(:result as jsonb), finished_at = now() where id = :id"),
        {"id": decided.run_id, "result": json.dumps(result)},
    )
    return Decided(decided.run_id, decided.connection_id, decided.kind, "done")


def _decide(connection: Connection, run_id: UUID, state: str, actor: str) -> Decided:
    row = connection.execute(
        text("select id, tenant_id, connection_id, kind, state from run where id = :id for update"), {"id": run_id}
    ).one_or_none()
    if row is None:
        raise NotFound(f"There is no run {run_id}.", next_step="See: bss-sync run list")
    can_be_recalled = row.kind == "close" and row.state == "approved" and state == "rejected"
    if row.state != "stopped" and not can_be_recalled:
        raise StateConflict(f"The run is {row.state}: only a stopped one waits for a word.")
    connection.execute(
        text(
            """update run set state = :state, updated_at = now(),
                      finished_at = case when :state = 'rejected' then now() end where id = :id"""
        ),
        {"id": run_id, "state": state},
    )
    record_act(
        connection,
        actor,
        f"run.{state}",
        {"run_id": str(run_id), "kind": row.kind},
        tenant_id=row.tenant_id,
        connection_id=row.connection_id,
    )
    return Decided(run_id, row.connection_id, row.kind, state)
