"""Moving a connection between its states (domain.md section 6: connecting a reseller is a process, not a switch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.admin import connections, deliveries
from bss_sync.adapters.sql.admin.acts import record_act
from bss_sync.domain.errors import StateConflict
from bss_sync.domain.tenancy import PROCESSING, ConnectionState, check_move
from bss_sync.domain.tenancy import Connection as SourceConnection


@dataclass(frozen=True, slots=True)
class Moved:
    """Where a connection stands now, and what to wake after the commit: ``shard`` is None when it does not process."""

    state: ConnectionState
    shard: int | None = None
    released: int = 0
    deliveries: int = 0


_MOVE = text(
    """update connection set state = :state, paused_from = :paused_from, revision = revision + 1, updated_at = now(),
              poll_due_at = case when :state in ('shadow', 'live') then coalesce(poll_due_at, now()) end
       where id = :id returning shard"""
)
_PARK = text(
    """update message set shard = null, change_xid = pg_current_xact_id()
       where connection_id = :id and state = 'pending' and shard is not null
         and settled_on(state, decided_at) = 'infinity'"""
)
_RELEASE = text(
    """update message set shard = :shard, change_xid = pg_current_xact_id()
       where connection_id = :id and state = 'pending' and shard is null
         and settled_on(state, decided_at) = 'infinity'"""
)

_FIRST_LIVE = text("update connection set live_since = now() where id = :id and live_since is null")
_APPEAR = tuple(
    text(f"update {table} set change_xid = pg_current_xact_id() where connection_id = :id")  # noqa: S608  constants
    for table in ("account", "subscription", "history")
)


def shadow(connection: Connection, source: SourceConnection, *, actor: str) -> Moved:
    """Write the mirror and compare; deliver, order and invoice nothing. ``source`` is locked."""
    return _move(connection, source, ConnectionState.SHADOW, actor, "connection.shadowed")


def pause(connection: Connection, source: SourceConnection, *, actor: str) -> Moved:
    """Process, poll and deliver nothing; messages are still accepted. ``source`` is locked."""
    return _move(connection, source, ConnectionState.PAUSED, actor, "connection.paused", paused_from=source.state)


def resume(connection: Connection, source: SourceConnection, *, actor: str) -> Moved:
    """Back to the state that it was paused from. StateConflict unless it is paused. ``source`` is locked."""
    if source.state is not ConnectionState.PAUSED:
        raise StateConflict(f"{source.name} is {source.state}, not paused.")
    before = connection.execute(text("select paused_from from connection where id = :id"), {"id": source.id}).scalar()
    wanted = ConnectionState(before) if before else ConnectionState.SHADOW
    return _move(connection, source, wanted, actor, "connection.resumed")


def begin_checks(connection: Connection, source: SourceConnection) -> ConnectionState:
    """Checks begin: returns the state to go back to. One that was cut off begins anew. ``source`` is locked."""
    if source.state is ConnectionState.CHECKING:
        before = connection.execute(text("select paused_from from connection where id = :id"), {"id": source.id})
        return ConnectionState(before.scalar() or ConnectionState.DRAFT)
    if source.state is ConnectionState.PAUSED:
        raise StateConflict(f"{source.name} is paused.", next_step=f"Run: bss-sync connection resume {source.name}")
    check_move(source.state, ConnectionState.CHECKING)
    _write(connection, source, ConnectionState.CHECKING, paused_from=source.state)
    return source.state


def give_up_checks(
    connection: Connection, source: SourceConnection, before: ConnectionState, *, missing: list[str], actor: str
) -> Moved:
    """Something is missing: as it was. Where another hand has moved it meanwhile, that stands."""
    if source.state is not ConnectionState.CHECKING:
        return Moved(source.state)
    shard, released = _write(connection, source, before)
    _record(connection, source, actor, "connection.activation_refused", {"missing": missing})
    return Moved(before, shard, released)


def go_live(connection: Connection, source: SourceConnection, *, actor: str) -> Moved:
    """The checks are passed. ``source`` is locked and still in the state checking, else StateConflict."""
    if source.state is not ConnectionState.CHECKING:
        raise StateConflict(f"{source.name} became {source.state} while it was checked.")
    return _move(connection, source, ConnectionState.LIVE, actor, "connection.activated")


def _move(
    connection: Connection,
    source: SourceConnection,
    wanted: ConnectionState,
    actor: str,
    action: str,
    paused_from: ConnectionState | None = None,
) -> Moved:
    check_move(source.state, wanted)
    shard, released = _write(connection, source, wanted, paused_from=paused_from)
    if wanted is ConnectionState.LIVE:
        _show_above(connection, source)
    due = deliveries.desire(connection, source.id) if wanted is ConnectionState.LIVE else 0
    _record(connection, source, actor, action, {"from": str(source.state), "to": str(wanted), "released": released})
    return Moved(wanted, shard, released, due)


def _write(
    connection: Connection,
    source: SourceConnection,
    wanted: ConnectionState,
    paused_from: ConnectionState | None = None,
) -> tuple[int | None, int]:
    """The state's row, and the inbox parked or released with it: (shard to wake, messages released)."""
    row = connection.execute(_MOVE, {"id": source.id, "state": wanted, "paused_from": paused_from}).one()
    if wanted not in PROCESSING:
        connection.execute(_PARK, {"id": source.id})
        return None, 0
    released = connection.execute(_RELEASE, {"id": source.id, "shard": row.shard}).rowcount
    return row.shard, released


def _show_above(connection: Connection, source: SourceConnection) -> None:
    """Live for the first time: from now on the tier above sees its records, which are new in their lists."""
    if connection.execute(_FIRST_LIVE, {"id": source.id}).rowcount:
        for statement in _APPEAR:
            connection.execute(statement, {"id": source.id})


def _record(
    connection: Connection, source: SourceConnection, actor: str, action: str, detail: Mapping[str, Any]
) -> None:
    record_act(connection, actor, action, detail, tenant_id=source.tenant_id, connection_id=source.id)


def refreshed(connection: Connection, source: SourceConnection) -> SourceConnection:
    """The connection as it is now, locked until the commit."""
    return connections.find(connection, str(source.id), lock=True)
