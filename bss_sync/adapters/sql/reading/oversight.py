"""Long runs, differences that were found, and the audit trail."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.reading.context import find_connection
from bss_sync.adapters.sql.reading.entity import show_moment
from bss_sync.adapters.sql.reading.paging import Page, Paging, Source, read_rows
from bss_sync.adapters.sql.reading.reach import Reach, Where
from bss_sync.adapters.sql.reading.records import check_state
from bss_sync.domain.errors import NotFound
from bss_sync.domain.moment import rfc3339

RUN_STATES = ("running", "stopped", "approved", "rejected", "done", "failed")
DRIFT_STATES = ("open", "settled")

_RUNS = Source(
    "runs",
    """r.id, r.connection_id, c.name as connection_name, r.kind, r.state, r.options, r.progress, r.result,
    r.requested_by, r.created_at, r.updated_at, r.finished_at""",
    "from run r left join connection c on c.id = r.connection_id",
    "r.change_xid",
    (("r.id", "uuid"),),
)
_DRIFT = Source(
    "drift",
    """d.id, d.connection_id, c.name as connection_name, d.record_id, d.kind, d.source_id, d.place, d.problem, d.field,
    d.expected, d.found, d.changed_by, d.changed_at, d.action, d.run_id, d.found_at, d.settled_at""",
    "from drift d join connection c on c.id = d.connection_id",
    "d.change_xid",
    (("d.id", "uuid"),),
)
_AUDIT = Source(
    "audit",
    """a.chain_id, a.seq, a.at, a.connection_id, c.name as connection_name, a.actor, a.action, a.kind, a.record_id,
    a.message, a.detail, a.salt is null as erased, encode(a.hash, 'hex') as hash""",
    "from audit a left join connection c on c.id = a.connection_id",
    "a.change_xid",
    (("a.chain_id", "uuid"), ("a.seq", "bigint")),
)


_LARGE = text(
    """select cast(h.seq as float) * h.seq > :limit * c.reltuples from audit_head h, pg_class c
       where h.chain_id = :chain and c.oid = 'audit'::regclass"""
)


@dataclass(frozen=True, slots=True)
class OversightFilter:
    """Which runs, differences or audit entries; each list knows some of these. ``updated_since`` is inclusive."""

    connection: str | None = None
    state: str | None = None
    kind: str | None = None
    source_id: str | None = None
    record_id: UUID | None = None
    message: UUID | None = None
    action: str | None = None
    actor: str | None = None
    updated_since: datetime | None = None


def list_runs(connection: Connection, reach: Reach, wanted: OversightFilter, paging: Paging) -> Page:
    """Reconciliations, backfills, imports, replays and closings; those that the guard stopped are ``stopped``."""
    check_state(wanted.state, RUN_STATES)
    where = _where(connection, reach, "r", wanted, "r.updated_at")
    for column in ("state", "kind"):
        _equal(where, "r", column, getattr(wanted, column))
    rows = read_rows(connection, _RUNS, where, paging, since=wanted.updated_since)
    return Page([_run(row) for row in rows.rows], rows.next_cursor, rows.has_more, rows.anew)


def get_run(connection: Connection, reach: Reach, run_id: UUID) -> dict[str, Any]:
    """One run; NotFound when it is not within reach."""
    where = Where().within(reach, "r").add("r.id = :run_id", run_id=run_id)
    query = where.under(f"select {_RUNS.columns} {_RUNS.tables}")
    row = connection.execute(query, where.values).one_or_none()
    if row is None:
        raise NotFound(f"There is no run {run_id}.")
    return _run(row)


def list_drift(connection: Connection, reach: Reach, wanted: OversightFilter, paging: Paging) -> Page:
    """Lock violations and what reconciliation named. ``state`` is open or settled."""
    check_state(wanted.state, DRIFT_STATES)
    where = _where(connection, reach, "d", wanted, "coalesce(d.settled_at, d.found_at)")
    for column in ("kind", "source_id", "record_id"):
        _equal(where, "d", column, getattr(wanted, column))
    if wanted.state is not None:
        where.add("d.settled_at is null" if wanted.state == "open" else "d.settled_at is not null")
    rows = read_rows(connection, _DRIFT, where, paging, since=wanted.updated_since)
    return Page([_drift(row) for row in rows.rows], rows.next_cursor, rows.has_more, rows.anew)


def list_audit(connection: Connection, reach: Reach, wanted: OversightFilter, paging: Paging) -> Page:
    """The trail. A reseller sees what became of its own messages, never what others did."""
    # A connection's entries are those of its chain, and are found by that.
    where = _where(connection, reach, "a", wanted, "a.at", of="chain_id")
    for column in ("kind", "record_id", "message", "action", "actor"):
        _equal(where, "a", column, getattr(wanted, column))
    if reach.is_reseller:
        where.add("(a.actor like 'sender:%' or a.action like 'message.%')")
    chain = where.values.get("connection", reach.connection_id)
    narrow = (wanted.record_id, wanted.message, wanted.action, wanted.actor)
    along_index = not any(narrow) and (chain is None or _is_large(connection, chain, paging.limit))
    rows = read_rows(connection, _AUDIT, where, paging, since=wanted.updated_since, along_index=along_index)
    return Page([_entry(row) for row in rows.rows], rows.next_cursor, rows.has_more, rows.anew)


def _is_large(connection: Connection, chain: UUID, limit: int) -> bool:
    """Whether a page of a chain is sooner found among all entries in their order than by sorting the chain's own.

    Where a chain has s of n entries, a page is spread over limit * n / s of all; sorting reads s.
    """
    return bool(connection.execute(_LARGE, {"chain": chain, "limit": limit}).scalar_one_or_none())


def _where(
    connection: Connection, reach: Reach, alias: str, wanted: OversightFilter, updated: str, of: str = "connection_id"
) -> Where:
    where = Where().within(reach, alias, connection_column=of)
    if wanted.connection is not None:
        found = find_connection(connection, reach, wanted.connection)
        where.add(f"{alias}.{of} = :connection", connection=found.id)
    if wanted.updated_since is not None:
        where.add(f"{updated} >= :since", since=wanted.updated_since)
    return where


def _equal(where: Where, alias: str, column: str, value: object) -> None:
    if value is not None:
        where.add(f"{alias}.{column} = :{column}", **{column: value})


def _run(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "connection": row.connection_name,
        "connection_id": _text(row.connection_id),
        "kind": row.kind,
        "state": row.state,
        "options": row.options,
        "progress": row.progress,
        "result": row.result,
        "requested_by": row.requested_by,
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
        "finished_at": show_moment(row.finished_at),
    }


def _drift(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "connection": row.connection_name,
        "connection_id": str(row.connection_id),
        "record_id": _text(row.record_id),
        "kind": row.kind,
        "source_id": row.source_id,
        "place": row.place,
        "problem": row.problem,
        "field": row.field,
        "expected": row.expected,
        "found": row.found,
        "changed_by": row.changed_by,
        "changed_at": show_moment(row.changed_at),
        "action": row.action,
        "run_id": _text(row.run_id),
        "found_at": rfc3339(row.found_at),
        "settled_at": show_moment(row.settled_at),
    }


def _entry(row: Row[Any]) -> dict[str, Any]:
    return {
        "chain_id": str(row.chain_id),
        "seq": row.seq,
        "at": rfc3339(row.at),
        "connection": row.connection_name,
        "actor": row.actor,
        "action": row.action,
        "kind": row.kind,
        "record_id": _text(row.record_id),
        "message": _text(row.message),
        "detail": row.detail,
        "erased": row.erased,
        "hash": row.hash,
    }


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)
