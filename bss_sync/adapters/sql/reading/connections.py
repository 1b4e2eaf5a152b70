"""Connections and their health: what has come in, what is stuck, how long it has been silent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.reading.breakers import show_breakers
from bss_sync.adapters.sql.reading.context import find_connection
from bss_sync.adapters.sql.reading.entity import show_moment
from bss_sync.adapters.sql.reading.paging import Page, Paging, Source, read_rows
from bss_sync.adapters.sql.reading.reach import Reach, Where
from bss_sync.adapters.sql.reading.records import check_state
from bss_sync.domain.moment import rfc3339
from bss_sync.domain.tenancy import ConnectionState

_CONNECTIONS = Source(
    "connections",
    """c.id, c.name, c.tenant_id, t.name as tenant, t.display_name, c.connector, c.state, c.settings, c.order_kind,
    c.revision, c.poll_due_at, c.poll_failures, c.poll_error, c.last_received_at, c.silent_since, c.closed_on,
    c.created_at, c.updated_at, c.priority""",
    "from connection c join tenant t on t.id = c.tenant_id",
    "c.change_xid",
    (("c.id", "uuid"),),
)
_COUNTS = text(
    """with w as (select unnest(cast(:ids as uuid[])) as id)
       select w.id as connection_id, m.*, g.*, f.*, d.* from w
       left join lateral (select count(*) filter (where state = 'pending') as pending,
           count(*) filter (where state = 'waiting') as waiting,
           count(*) filter (where state = 'quarantined') as quarantined,
           count(*) filter (where state = 'dead') as dead,
           min(received_at) filter (where state = 'pending') as oldest_pending
           from message where connection_id = w.id and state in ('pending', 'waiting', 'quarantined', 'dead')
               and settled_on(state, decided_at) = 'infinity') m on true
       left join lateral (select count(*) as open_gaps from gap
           where connection_id = w.id and closed_at is null) g on true
       left join lateral (select count(*) as open_drift from drift
           where connection_id = w.id and settled_at is null) f on true
       left join lateral (select count(*) filter (where due_at is not null) as deliveries_due,
           count(*) filter (where state in ('blocked', 'dead')) as deliveries_stuck
           from delivery where connection_id = w.id) d on true"""
)


def list_connections(connection: Connection, reach: Reach, state: str | None, paging: Paging) -> Page:
    """One page of connections with their health. A later change does not move a connection to the list's end."""
    check_state(state, tuple(ConnectionState))
    where = Where().within(reach, "c", connection_column="id")
    if state is not None:
        where.add("c.state = :state", state=state)
    rows = read_rows(connection, _CONNECTIONS, where, paging)
    return Page(_show_all(connection, reach, rows.rows), rows.next_cursor, rows.has_more, rows.anew)


def get_connection(connection: Connection, reach: Reach, wanted: str) -> dict[str, Any]:
    """One connection by id or name; NotFound when it is not within reach."""
    found = find_connection(connection, reach, wanted)
    where = Where().add("c.id = :id", id=found.id)
    query = where.under(f"select {_CONNECTIONS.columns} {_CONNECTIONS.tables}")
    return _show_all(connection, reach, connection.execute(query, where.values).all())[0]


def _show_all(connection: Connection, reach: Reach, rows: Sequence[Row[Any]]) -> list[dict[str, Any]]:
    ids: list[UUID] = [row.id for row in rows]
    counts = {row.connection_id: row for row in connection.execute(_COUNTS, {"ids": ids})}
    breakers = show_breakers(connection, ids)
    return [_show(reach, row, counts[row.id], breakers[row.id]) for row in rows]


def _show(reach: Reach, row: Row[Any], counts: Row[Any], breaker: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": str(row.id),
        "name": row.name,
        "tenant": row.tenant,
        "display_name": row.display_name,
        "connector": row.connector,
        "state": row.state,
        "order": row.order_kind,
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
        "closed_on": None if row.closed_on is None else row.closed_on.isoformat(),
        "health": {
            "last_received_at": show_moment(row.last_received_at),
            "silent_since": show_moment(row.silent_since),
            "pending": counts.pending,
            "waiting": counts.waiting,
            "quarantined": counts.quarantined,
            "dead": counts.dead,
            "oldest_pending_at": show_moment(counts.oldest_pending),
            "open_gaps": counts.open_gaps,
            "poll_due_at": show_moment(row.poll_due_at),
            "poll_failures": row.poll_failures,
        },
    }
    if reach.is_reseller:
        return shown
    # Errors of a poll may speak of the distributor's network; deliveries and drift are of its own BSS.
    shown["settings"] = row.settings
    shown["revision"] = row.revision
    shown["priority"] = row.priority
    shown["health"] |= {
        "poll_error": row.poll_error,
        "open_drift": counts.open_drift,
        "deliveries_due": counts.deliveries_due,
        "deliveries_stuck": counts.deliveries_stuck,
        "breaker": breaker,
    }
    return shown
