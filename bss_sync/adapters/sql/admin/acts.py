"""Building blocks of admin acts: who did what on which chain, and waking what an act has set free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import Kind


def record_act(
    connection: Connection,
    actor: str,
    action: str,
    detail: Mapping[str, Any],
    *,
    tenant_id: UUID,
    connection_id: UUID | None = None,
    kind: Kind | None = None,
    record_id: UUID | None = None,
) -> None:
    """Append one act to the connection's chain, or to the tenant's for acts on none: the last statement."""
    append_audit(
        connection,
        [
            AuditEntry(
                chain_id=connection_id or tenant_id,
                tenant_id=tenant_id,
                actor=actor,
                action=action,
                detail=detail,
                connection_id=connection_id,
                kind=kind,
                record_id=record_id,
            )
        ],
    )


def record_distributor_act(connection: Connection, actor: str, action: str, detail: Mapping[str, Any]) -> None:
    """Append one act that belongs to no connection to the distributor's chain."""
    distributor = connection.execute(text("select distributor_id from instance")).scalar_one()
    record_act(connection, actor, action, detail, tenant_id=distributor)


def as_uuid(reference: str) -> UUID | None:
    """The id that a reference is, or None when it is a name."""
    try:
        return UUID(reference)
    except ValueError:
        return None


_GROW = text("update connection set revision = revision + 1, updated_at = now() where id = :id")


def grow_revision(connection: Connection, connection_id: UUID) -> None:
    """Whoever verified a request with the old row or its secrets verifies again."""
    connection.execute(_GROW, {"id": connection_id})


_WAKE_STREAM = text("update stream set ready_at = least(ready_at, now()) where id = :id returning shard")


def wake_stream(connection: Connection, record_id: UUID) -> int:
    """Have a record laid out anew, by today's takeovers. Returns the shard to wake after the commit."""
    shard: int = connection.execute(_WAKE_STREAM, {"id": record_id}).scalar_one()
    return shard
