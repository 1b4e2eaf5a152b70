"""Writes rows of the mirror: the only statements in the product that touch mirrored columns.

One statement per kind writes the present of a batch's records, the history row that says the same, and what is due to
be delivered: the content travels once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from bss_sync.adapters.sql.chain_places import Place, Places, face
from bss_sync.adapters.sql.direct import PLANNED_ONCE, Statements
from bss_sync.adapters.sql.records import record_set
from bss_sync.domain.change import Kind, stream_id
from bss_sync.ports.streams import Entity

_PLAIN = (
    "epoch",
    "version",
    "order_kind",
    "source",
    "passed",
    "effective_at",
    "message",
    "deleted_at",
    "ended_at",
    "ended_reason",
    "chain_version",
    "chain_effective_at",
)
"""Columns that are members of a row as they are."""
_ACCOUNT = {name: f"shown ->> '{name}'" for name in ("name", "number", "email", "kind")} | {
    "parent_source_id": "shown ->> 'parent_id'",
    "parent_id": "r.parent_id",
}
SUBSCRIPTION_COLUMNS = (
    {
        "account_source_id": "shown ->> 'account_id'",
        "account_id": "r.account_id",
        "parent_source_id": "shown ->> 'parent_id'",
        "parent_id": "r.parent_id",
    }
    | {name: f"shown ->> '{name}'" for name in ("product", "status", "source_status", "billing_cycle", "term")}
    | {name: f"(shown ->> '{name}')::boolean" for name in ("trial", "auto_renew")}
    | {
        name: f"(shown ->> '{name}')::date"
        for name in ("start_date", "end_date", "activation_date", "cancellation_date")
    }
    | {"quantity": "(shown ->> 'quantity')::numeric", "characteristics": "shown -> 'characteristics'"}
)


def _statement(kind: Kind, columns: Mapping[str, str]) -> Any:
    sources = {name: f"r.{name}" for name in _PLAIN} | dict(columns)
    sets = ", ".join(f"{name} = excluded.{name}" for name in sources)
    # A row that is new counts from 1; one that is there goes on by 1 only where something that is shown is altered.
    return text(f"""
        with r as materialized (
            select *, case when taken is null then source else source || taken end as shown
            from jsonb_to_recordset(cast(:rows as jsonb)) as given (id uuid, tenant_id uuid, connection_id uuid,
                source_id text, source jsonb, taken jsonb, parent_id uuid, account_id uuid, epoch integer,
                version bigint, order_kind text, passed text[], effective_at timestamptz, message uuid,
                altered boolean, told bigint, linked boolean, deleted_at timestamptz, ended_at timestamptz,
                ended_reason text, chain_version bigint, chain_effective_at timestamptz)
        ), kept as (
            insert into history (tenant_id, connection_id, kind, record_id, epoch, version, effective_at, state,
                                 deleted, ended_reason, message, chain_version, chain_linked)
            select r.tenant_id, r.connection_id, '{kind.value}', r.id, r.epoch, r.version, r.effective_at, r.source,
                   r.deleted_at is not null, r.ended_reason, r.message, r.told, r.linked
            from r where r.told is not null
        ), written as (
            insert into {kind.value} (id, tenant_id, connection_id, source_id, revision, {", ".join(sources)})
            select r.id, r.tenant_id, r.connection_id, r.source_id, case when r.altered then 1 else 0 end,
                   {", ".join(sources.values())}
            from r order by r.id
            on conflict (id) do update set {sets}, updated_at = now(), change_xid = pg_current_xact_id(),
                revision = {kind.value}.revision + excluded.revision
            returning id, tenant_id, connection_id, revision
        ), due as (
            insert into delivery (record_id, tenant_id, connection_id, kind, desired_revision, due_at)
            select w.id, w.tenant_id, w.connection_id, '{kind.value}', w.revision, now()
            from written w join r on r.id = w.id and r.altered
            join connection c on c.id = w.connection_id and c.state = 'live'
            where exists (select from target) order by w.id
            on conflict (record_id) do update set desired_revision = excluded.desired_revision, due_at = now(),
                attempts = 0, updated_at = now(),
                state = case when delivery.state in ('sending', 'unknown') then delivery.state else 'pending' end
            returning record_id
        )
        select w.id, w.revision, exists (select from due) as due
        from written w join r on r.id = w.id and r.altered""").execution_options(**PLANNED_ONCE)  # noqa: S608  constants only


_STATEMENTS = {
    Kind.ACCOUNT: _statement(Kind.ACCOUNT, _ACCOUNT),
    Kind.SUBSCRIPTION: _statement(Kind.SUBSCRIPTION, SUBSCRIPTION_COLUMNS),
}


def write_mirror(
    connection: Statements,
    entities: Sequence[Entity],
    before: Mapping[UUID, Entity],
    places: Places,
    told: Mapping[UUID, int],
) -> tuple[dict[UUID, int], bool]:
    """Write the present of these records, and into history that of the ``told`` ones (``history_rows.presents``).

    Returns the records whose fields, link or end differ from before, with their revision, and whether any of them is
    due to be delivered.
    """
    altered: dict[UUID, int] = {}
    due = False
    answers = []
    for kind, statement in _STATEMENTS.items():
        rows = [
            _row(
                entity,
                places.records[entity.id],
                altered=face(entity) != face(before[entity.id]),
                told=places.rows[told[entity.id]] if entity.id in told else None,
            )
            for entity in entities
            if entity.kind is kind
        ]
        if rows:
            answers.append(connection.execute(statement, {"rows": record_set(rows)}))
    for answer in answers:
        for record, revision, delivered in answer.all():
            altered[record] = revision
            due = due or delivered
    return altered, due


def _row(entity: Entity, place: Place, *, altered: bool, told: int | None) -> dict[str, Any]:
    mirrored = entity.mirrored
    assert mirrored is not None, "only a mirrored record has a row"
    content, taken = mirrored.content, entity.taken
    row: dict[str, Any] = {
        "id": entity.id,
        "tenant_id": entity.tenant_id,
        "connection_id": entity.connection_id,
        "source_id": entity.source_id,
        "source": content,
        "epoch": mirrored.epoch,
        "version": mirrored.version,
        "order_kind": mirrored.order,
        "passed": mirrored.passed,
        "effective_at": mirrored.effective_at,
        "message": mirrored.message,
        "altered": altered,
        "chain_version": place.version,
    }
    if told is not None:
        row["told"], row["linked"] = told, mirrored.parent_linked
    if place.effective_at is not None:
        row["chain_effective_at"] = place.effective_at
    if taken:
        row["taken"] = taken
    if mirrored.deleted_at is not None:
        row["deleted_at"] = mirrored.deleted_at
    if mirrored.ended_at is not None or mirrored.ended_reason is not None:
        row["ended_at"], row["ended_reason"] = mirrored.ended_at, mirrored.ended_reason
    if mirrored.parent_linked:
        row["parent_id"] = _link(entity, entity.kind, taken.get("parent_id", content["parent_id"]))
    if entity.kind is Kind.SUBSCRIPTION:
        row["account_id"] = _link(entity, Kind.ACCOUNT, taken.get("account_id", content["account_id"]))
    return row


def _link(entity: Entity, kind: Kind, source_id: str | None) -> UUID | None:
    return None if source_id is None else stream_id(entity.connection_id, kind, source_id)
