"""Writes rows of the mirror: the only statements in the product that touch mirrored columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.domain.change import Kind, stream_id
from bss_sync.ports.streams import Entity

_SHARED = """epoch, version, order_kind, source, passed, effective_at, message, revision, deleted_at, ended_at,
    ended_reason"""
_SHARED_TYPES = """id uuid, tenant_id uuid, connection_id uuid, source_id text, epoch integer, version bigint,
    order_kind text, source jsonb, passed text[], effective_at timestamptz, message uuid, altered boolean,
    deleted_at timestamptz, ended_at timestamptz, ended_reason text"""
_ACCOUNT = "name, number, email, kind, parent_source_id, parent_id"
_ACCOUNT_TYPES = "name text, number text, email text, kind text, parent_source_id text, parent_id uuid"
_SUBSCRIPTION = """account_source_id, account_id, parent_source_id, parent_id, product, status, source_status, trial,
    start_date, end_date, activation_date, cancellation_date, auto_renew, billing_cycle, term, quantity,
    characteristics"""
_SUBSCRIPTION_TYPES = """account_source_id text, account_id uuid, parent_source_id text, parent_id uuid, product text,
    status text, source_status text, trial boolean, start_date date, end_date date, activation_date date,
    cancellation_date date, auto_renew boolean, billing_cycle text, term text, quantity numeric,
    characteristics jsonb"""


def _upsert(table: str, columns: str, types: str) -> Any:
    names = [name.strip() for name in f"{columns}, {_SHARED}".replace("\n", " ").split(",")]
    # A row that is new counts from 1; one that is there goes on by 1 only where something that is shown is altered.
    step = "case when r.altered then 1 else 0 end"
    values = ", ".join(step if name == "revision" else f"r.{name}" for name in names)
    sets = ", ".join(f"{name} = excluded.{name}" for name in names if name != "revision")
    return text(f"""
        insert into {table} (id, tenant_id, connection_id, source_id, {", ".join(names)})
        select r.id, r.tenant_id, r.connection_id, r.source_id, {values}
        from jsonb_to_recordset(cast(:rows as jsonb)) as r ({_SHARED_TYPES}, {types}) order by r.id
        on conflict (id) do update set {sets}, updated_at = now(), change_xid = pg_current_xact_id(),
            revision = {table}.revision + excluded.revision
        returning id, revision""")  # noqa: S608  constants only


_UPSERTS = {
    Kind.ACCOUNT: _upsert("account", _ACCOUNT, _ACCOUNT_TYPES),
    Kind.SUBSCRIPTION: _upsert("subscription", _SUBSCRIPTION, _SUBSCRIPTION_TYPES),
}


def write_mirror(connection: Connection, entities: Sequence[Entity], before: Mapping[UUID, Entity]) -> dict[UUID, int]:
    """Write the present of these records. Those whose fields, link or end differ from before (deliver) → revision."""
    altered: dict[UUID, int] = {}
    for kind, statement in _UPSERTS.items():
        rows = [
            _row(entity, altered=_face(entity) != _face(before[entity.id]))
            for entity in entities
            if entity.kind is kind
        ]
        if rows:
            differing = {row["id"] for row in rows if row["altered"]}
            written = connection.execute(statement, {"rows": json.dumps(rows)})
            altered |= {row.id: row.revision for row in written if str(row.id) in differing}
    return altered


def _face(entity: Entity) -> tuple[Any, ...] | None:
    mirrored = entity.mirrored
    if mirrored is None:
        return None
    shown = {**mirrored.content, **entity.laid}
    return shown, mirrored.parent_linked, mirrored.deleted_at, mirrored.ended_at, mirrored.ended_reason


def _row(entity: Entity, *, altered: bool) -> dict[str, Any]:
    mirrored = entity.mirrored
    assert mirrored is not None, "only a mirrored record has a row"
    shown = {**mirrored.content, **entity.taken}
    parent, account = shown.pop("parent_id"), shown.pop("account_id", None)
    row = {
        **shown,
        "id": str(entity.id),
        "tenant_id": str(entity.tenant_id),
        "connection_id": str(entity.connection_id),
        "source_id": entity.source_id,
        "parent_source_id": parent,
        "parent_id": _link(entity, entity.kind, parent) if mirrored.parent_linked else None,
        "epoch": mirrored.epoch,
        "version": mirrored.version,
        "order_kind": mirrored.order.value,
        "source": dict(mirrored.content),
        "passed": mirrored.passed,
        "effective_at": mirrored.effective_at.isoformat(),
        "message": str(mirrored.message),
        "altered": altered,
        "deleted_at": None if mirrored.deleted_at is None else mirrored.deleted_at.isoformat(),
        "ended_at": None if mirrored.ended_at is None else mirrored.ended_at.isoformat(),
        "ended_reason": mirrored.ended_reason,
    }
    if entity.kind is Kind.SUBSCRIPTION:
        row["account_source_id"] = account
        row["account_id"] = _link(entity, Kind.ACCOUNT, account)
    return row


def _link(entity: Entity, kind: Kind, source_id: str | None) -> str | None:
    return None if source_id is None else str(stream_id(entity.connection_id, kind, source_id))
