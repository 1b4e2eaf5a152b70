"""What a run has named, in PostgreSQL (ports/runs.py, Findings)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text

from bss_sync.adapters.sql.database import Database
from bss_sync.domain.change import Kind
from bss_sync.ports.reconciliation import Cause, Difference, Problem

CHUNK = 500
_NUL, _INSTEAD = "\\u0000", "\\ufffd"

_ADD = text(
    """insert into run_difference (run_id, tenant_id, connection_id, record_id, place, problem, field, kind, source_id,
           expected, found, cause, since)
       select :run, c.tenant_id, c.id, d.record_id, d.place, d.problem, coalesce(d.field, ''), d.kind, d.source_id,
              d.expected, d.found, d.cause, d.since
       from jsonb_to_recordset(cast(:rows as jsonb)) as d (record_id uuid, place text, problem text, field text,
           kind text, source_id text, expected jsonb, found jsonb, cause text, since timestamptz)
       join connection c on c.id = :connection
       on conflict do nothing"""
)
_COUNTS = text("select problem, count(*) as number from run_difference where run_id = :run group by problem")
_EACH = text("select * from run_difference where run_id = :run and seq > :after order by seq limit :chunk")
_UNSETTLED = text(
    """select record_id from run_difference
       where run_id = :run and record_id = any(:ids) and cause in ('overwritten', 'not_linked')"""
)
_RENAMED = text(
    """select exists (select 1 from run_difference
                      where run_id = :run and kind = 'account' and cause = 'overwritten')"""
)
_FORGET = (text("delete from run_seen where run_id = :run"), text("delete from run_end where run_id = :run"))
_FORGET_DIFFERENCES = text("delete from run_difference where run_id = :run")


class SqlFindings:
    """Findings over PostgreSQL."""

    def __init__(self, database: Database, run_id: UUID, connection_id: UUID) -> None:
        self._database = database
        self._run = {"run": run_id}
        self._connection_id = connection_id

    def add(self, differences: Sequence[Difference]) -> None:
        """See Findings."""
        for start in range(0, len(differences), CHUNK):
            rows = [one.as_json() for one in differences[start : start + CHUNK]]
            # PostgreSQL holds no U+0000; what the target shows may have one.
            shown = json.dumps(rows, default=str).replace(_NUL, _INSTEAD)
            with self._database.engine() as connection:
                connection.execute(_ADD, self._run | {"connection": self._connection_id, "rows": shown})

    def counts(self) -> Mapping[str, int]:
        """See Findings."""
        with self._database.engine() as connection:
            return {row.problem: row.number for row in connection.execute(_COUNTS, self._run)}

    def each(self, limit: int | None = None) -> Iterator[Difference]:
        """See Findings."""
        after, left = 0, limit
        while left is None or left > 0:
            chunk = CHUNK if left is None else min(left, CHUNK)
            with self._database.engine() as connection:
                rows = connection.execute(_EACH, self._run | {"after": after, "chunk": chunk}).all()
            yield from map(_difference, rows)
            if len(rows) < chunk:
                return
            after, left = rows[-1].seq, None if left is None else left - chunk

    def unsettled(self, record_ids: Sequence[UUID]) -> frozenset[UUID]:
        """See Findings."""
        with self._database.engine() as connection:
            return frozenset(connection.execute(_UNSETTLED, self._run | {"ids": list(record_ids)}).scalars())

    def renamed(self) -> bool:
        """See Findings."""
        with self._database.engine() as connection:
            return bool(connection.execute(_RENAMED, self._run).scalar_one())

    def forget(self, *, everything: bool) -> None:
        """See Findings."""
        with self._database.engine() as connection:
            for statement in (*_FORGET, _FORGET_DIFFERENCES) if everything else _FORGET:
                connection.execute(statement, self._run)


def _difference(row: Row[Any]) -> Difference:
    return Difference(
        problem=Problem(row.problem),
        place=row.place,
        kind=Kind(row.kind),
        source_id=row.source_id,
        record_id=row.record_id,
        field=row.field or None,
        expected=row.expected,
        found=row.found,
        cause=None if row.cause is None else Cause(row.cause),
        since=row.since,
    )
