"""Drift in PostgreSQL (ports/delivery.py, DriftStore)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Row, text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.breakers import CALLABLE
from bss_sync.adapters.sql.database import Database
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import Json, Kind
from bss_sync.ports.delivery import Binding, DriftPoll, Violation

FEED_LEASE_SECONDS = 60
CHUNK = 500

_CLAIM = text(
    f"""update target set poll_lease_until = now() + make_interval(secs => :lease)
       where poll_seconds > 0 and poll_due_at <= now() and (poll_lease_until is null or poll_lease_until <= now())
         and not exists (select 1 from breaker b where b.connection_id is null and not {CALLABLE})
       returning poll_cursor, poll_lease_until, feed_unjudged"""  # noqa: S608  constants only
)
_FINISH = text(
    """update target set poll_cursor = :cursor, poll_due_at = now() + make_interval(secs => :due),
           poll_lease_until = null, poll_error = :error,
           feed_unjudged = feed_unjudged and cast(:error as text) is not null
       where poll_lease_until = :lease_until"""
)
# Busy too: the mirror is about to change, by its own message or by its account's (names are made of both). After a
# restored backup the target is ahead of the mirror, and must not be set back.
BINDINGS = """
    select d.*, coalesce(a.source_id, s.source_id) as source_id,
           d.lease_until > now() or d.due_at <= now() or d.state in ('sending', 'unknown')
           or exists (select 1 from message m
                      where m.stream_id = any(array[d.record_id, s.account_id])
                        and m.state = 'pending' and m.shard is not null) as busy
    from delivery d left join account a on a.id = d.record_id left join subscription s on s.id = d.record_id"""
_BY_IDS = text(f"{BINDINGS} where d.record_id = any(:ids)")
_OPEN = text(
    """select record_id, field, found from drift
       where record_id = any(:ids) and place = 'target' and settled_at is null for update"""
)
_INSERT = text(
    """insert into drift (id, tenant_id, connection_id, record_id, kind, source_id, place, problem, field, expected,
                          found, changed_by, changed_at, action, run_id)
       select id, tenant_id, connection_id, record_id, kind, source_id, 'target', problem, field, expected, found,
              changed_by, changed_at, action, run_id
       from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, tenant_id uuid, connection_id uuid, record_id uuid,
            kind text, source_id text, problem text, field text, expected jsonb, found jsonb, changed_by text,
            changed_at timestamptz, action text, run_id uuid)"""
)
# What the external BSS holds is known now: it differs from the mirror, so the delivery writes under a new key.
_REPAIR = text(
    """update delivery d set due_at = now(), state = 'pending', intent_key = null, intent = null,
           confirmed = case when r.vanished then null else d.confirmed || r.found end,
           external_id = case when r.vanished then null else d.external_id end, updated_at = now()
       from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, vanished boolean, found jsonb)
       where d.record_id = r.id"""
)
_SETTLE_REPORTED = text(
    """update drift set settled_at = now() where record_id = any(:ids) and place = 'target' and action = 'reported'
       and settled_at is null"""
)


class SqlDrifts:
    """DriftStore over PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim_feed(self) -> DriftPoll | None:
        """See DriftStore."""
        with self._database.engine() as connection:
            row = connection.execute(_CLAIM, {"lease": FEED_LEASE_SECONDS}).one_or_none()
        return None if row is None else DriftPoll(row.poll_cursor, row.poll_lease_until, row.feed_unjudged)

    def finish_feed(self, poll: DriftPoll, cursor: str | None, *, due_seconds: float, error: str | None) -> None:
        """See DriftStore."""
        values = {"cursor": cursor, "due": due_seconds, "error": error, "lease_until": poll.lease_until}
        with self._database.engine() as connection:
            connection.execute(_FINISH, values)

    def bindings(self, record_ids: Sequence[UUID]) -> Mapping[UUID, Binding]:
        """See DriftStore."""
        if not record_ids:
            return {}
        with self._database.engine() as connection:
            return {row.record_id: binding_of(row) for row in connection.execute(_BY_IDS, {"ids": list(record_ids)})}

    def record(self, violations: Sequence[Violation], *, policy: str, run_id: UUID | None = None) -> int:
        """See DriftStore."""
        if not violations:
            return 0
        with self._database.engine() as connection:
            ids = [violation.binding.record_id for violation in violations]
            known = {(row.record_id, row.field): row.found for row in connection.execute(_OPEN, {"ids": ids})}
            rows = [row for violation in violations for row in _rows(violation, policy, run_id)]
            fresh = [row for row in rows if known.get((UUID(row["record_id"]), row["field"]), _NONE) != row["found"]]
            if fresh:
                connection.execute(_INSERT, {"rows": json.dumps(fresh)})
            if policy == "repair":
                connection.execute(_REPAIR, {"rows": json.dumps([_repair(violation) for violation in violations])})
            changed = {UUID(row["record_id"]) for row in fresh}
            append_audit(connection, [_entry(one, policy) for one in violations if one.binding.record_id in changed])
        return len(fresh)

    def settle_reported(self, record_ids: Sequence[UUID]) -> None:
        """See DriftStore."""
        if record_ids:
            with self._database.engine() as connection:
                connection.execute(_SETTLE_REPORTED, {"ids": list(record_ids)})


_NONE = object()


def binding_of(row: Row[Any]) -> Binding:
    """A row of ``BINDINGS``."""
    return Binding(
        record_id=row.record_id,
        tenant_id=row.tenant_id,
        connection_id=row.connection_id,
        kind=Kind(row.kind),
        source_id=row.source_id,
        external_id=row.external_id,
        confirmed=row.confirmed,
        intent=row.intent,
        busy=bool(row.busy),
    )


def _rows(violation: Violation, policy: str, run_id: UUID | None) -> list[dict[str, Any]]:
    binding, record = violation.binding, violation.record
    changed_at = record.changed_at if record is not None else None
    every: dict[str, Any] = {
        "tenant_id": str(binding.tenant_id),
        "connection_id": str(binding.connection_id),
        "record_id": str(binding.record_id),
        "kind": str(binding.kind),
        "source_id": binding.source_id,
        "problem": "target_removed" if record is None else "target_differs",
        "changed_by": record.changed_by if record is not None else None,
        "changed_at": changed_at.isoformat() if changed_at is not None else None,
        "action": "repairing" if policy == "repair" else "reported",
        "run_id": None if run_id is None else str(run_id),
    }
    fields: Mapping[str | None, tuple[Json, Json]] = violation.fields if record is not None else {None: (None, None)}  # type: ignore[assignment]  # the key of a removed record is no field
    return [
        every | {"id": str(uuid4()), "field": field, "expected": expected, "found": found}
        for field, (expected, found) in fields.items()
    ]


def _repair(violation: Violation) -> dict[str, Any]:
    return {
        "id": str(violation.binding.record_id),
        "vanished": violation.record is None,
        "found": {field: found for field, (_expected, found) in violation.fields.items()},
    }


def _entry(violation: Violation, policy: str) -> AuditEntry:
    binding, record = violation.binding, violation.record
    return AuditEntry(
        binding.connection_id,
        binding.tenant_id,
        "system",
        "lock.violated",
        {
            "place": "target",
            "removed": record is None,
            "fields": sorted(violation.fields),
            "changed_by": record.changed_by if record is not None else None,
            "changed_at": record.changed_at.isoformat() if record is not None and record.changed_at else None,
            "action": policy,
        },
        connection_id=binding.connection_id,
        kind=str(binding.kind),
        record_id=binding.record_id,
    )
