"""Writes rows of history, each with its place in the order that the tier above is told (chain_places.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import text

from bss_sync.adapters.sql.chain_places import Places
from bss_sync.adapters.sql.direct import Statements
from bss_sync.adapters.sql.records import record_set
from bss_sync.ports.streams import Entity, HistoryRow, Settled

# What is late has the place that its version has below the next state above it.
_HISTORY = text("""
    with r as materialized (
        select * from jsonb_to_recordset(cast(:rows as jsonb)) as r (tenant_id uuid, connection_id uuid, kind text,
            record_id uuid, epoch integer, version bigint, effective_at timestamptz, state jsonb, deleted boolean,
            ended_reason text, late boolean, message uuid, chain_version bigint, chain_linked boolean))
    insert into history (tenant_id, connection_id, kind, record_id, epoch, version, effective_at, state, deleted,
                         ended_reason, late, message, chain_linked, chain_version)
    select r.tenant_id, r.connection_id, r.kind, r.record_id, r.epoch, r.version, r.effective_at, r.state, r.deleted,
           r.ended_reason, r.late, r.message, r.chain_linked, coalesce(r.chain_version, r.version + (
               select n.added from (
                   select h.version, h.id, coalesce(h.chain_version, h.version) - h.version as added from history h
                   where h.record_id = r.record_id and h.epoch = r.epoch and h.version > r.version
                   union all select f.version, null, f.chain_version - f.version from r f
                   where f.record_id = r.record_id and f.epoch = r.epoch and f.version > r.version
                     and f.chain_version is not null) n
               order by n.version, n.id nulls last limit 1), r.version)
    from r""")


def presents(settled: Settled, places: Places) -> Mapping[UUID, int]:
    """Record → the number of its only row of history in this batch, where the mirror's row says the same word for word.

    These are written with the mirror's row (``mirror_rows``), so that the content travels once. Several of one record
    are written together, in their order.
    """
    found = {}
    rows = Counter(row.record_id for row in settled.history)
    for record, number in places.last.items():
        row, mirrored = settled.history[number], settled.entities[record].mirrored
        if (
            rows[record] == 1
            and mirrored is not None
            and row.state is mirrored.content
            and not row.late
            and (row.message, row.version, row.epoch) == (mirrored.message, mirrored.version, mirrored.epoch)
            and row.effective_at == mirrored.effective_at
            and row.deleted == (mirrored.deleted_at is not None)
            and row.ended_reason == mirrored.ended_reason
        ):
            found[record] = number
    return found


def write_history(connection: Statements, settled: Settled, places: Places, told: Mapping[UUID, int]) -> None:
    """Write the states that a batch has decided, in their order, but for what the mirror's rows tell."""
    rows = [
        _values(row, settled.entities[row.record_id], places, number)
        for number, row in enumerate(settled.history)
        if told.get(row.record_id) != number
    ]
    if rows:
        connection.execute(_HISTORY, {"rows": record_set(rows)})


def _values(row: HistoryRow, entity: Entity, places: Places, number: int) -> dict[str, Any]:
    tells_present = places.last.get(row.record_id) == number
    return {
        "tenant_id": entity.tenant_id,
        "connection_id": entity.connection_id,
        "kind": entity.kind,
        "record_id": row.record_id,
        "epoch": row.epoch,
        "version": row.version,
        "effective_at": row.effective_at,
        "state": row.state,
        "deleted": row.deleted,
        "ended_reason": row.ended_reason,
        "late": row.late,
        "message": row.message,
        "chain_version": places.rows.get(number),
        "chain_linked": entity.mirrored.parent_linked if tells_present and entity.mirrored is not None else None,
    }
