"""The mirror as it is now: rows of ``account`` and ``subscription`` as records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row

from bss_sync.adapters.sql.reading.entity import Record
from bss_sync.adapters.sql.reading.paging import Source
from bss_sync.domain.change import Json, Kind
from bss_sync.domain.ownership import OWN
from bss_sync.domain.subscription import FIELDS as SUBSCRIPTION_FIELDS
from bss_sync.domain.subscription import canonical_quantity

_SHARED = """r.id, r.tenant_id, t.display_name as bill_to, r.connection_id, c.name as connection_name, r.source_id,
    r.version, r.order_kind, r.parent_source_id, r.parent_id, r.effective_at, r.updated_at, r.deleted_at, r.ended_at,
    r.ended_reason, r.revision"""

ACCOUNTS = Source(
    "accounts",
    _SHARED
    + """, r.name, r.number, r.email, r.kind, r.notes, r.tags, r.responsible_user, null as account_id,
    coalesce(p.deleted_at is not null, false) as orphaned, cast(null as text) as title""",
    """from account r join connection c on c.id = r.connection_id join tenant t on t.id = r.tenant_id
    left join account p on p.id = r.parent_id""",
    "r.change_xid",
    (("r.id", "uuid"),),
)

SUBSCRIPTIONS = Source(
    "subscriptions",
    _SHARED
    + """, r.account_source_id, r.account_id, r.product, r.status, r.source_status, r.trial, r.start_date, r.end_date,
    r.activation_date, r.cancellation_date, r.auto_renew, r.billing_cycle, r.term, r.quantity, r.characteristics,
    r.price, r.bill_to_contact, r.custom_fields, r.notes,
    (p.deleted_at is not null or a.deleted_at is not null) as orphaned,
    coalesce(a.name, t.display_name) || ' - ' || coalesce(d.name, r.product) as title""",
    """from subscription r join connection c on c.id = r.connection_id join tenant t on t.id = r.tenant_id
    left join subscription p on p.id = r.parent_id left join account a on a.id = r.account_id
    left join product d on d.code = r.product""",
    "r.change_xid",
    (("r.id", "uuid"),),
)

SOURCES: Mapping[Kind, Source] = {Kind.ACCOUNT: ACCOUNTS, Kind.SUBSCRIPTION: SUBSCRIPTIONS}

_BELOW_DELETED = """select o.id from {above} g join {table} o on o.{link} = g.id
            where g.deleted_at is not null and o.deleted_at is null"""
STATES: Mapping[Kind, Mapping[str, str]] = {
    Kind.ACCOUNT: {
        "live": "r.deleted_at is null and r.ended_at is null",
        "ended": "r.deleted_at is null and r.ended_at is not null",
        "deleted": "r.deleted_at is not null",
        "orphaned": f"""r.deleted_at is null and r.id = any(array(
            {_BELOW_DELETED.format(table="account", link="parent_id", above="account")}))""",
    },
    Kind.SUBSCRIPTION: {
        "live": "r.deleted_at is null and r.ended_at is null",
        "ended": "r.deleted_at is null and r.ended_at is not null",
        "deleted": "r.deleted_at is not null",
        "orphaned": f"""r.deleted_at is null and r.id = any(array(
            {_BELOW_DELETED.format(table="subscription", link="parent_id", above="subscription")}
            union {_BELOW_DELETED.format(table="subscription", link="account_id", above="account")}))""",
    },
}
"""What ``state`` asks for. Deleted: a tombstone. Ended: it left scope or its connection was closed. Live: neither.
Orphaned: its account or parent is deleted."""


def record_of(kind: Kind, row: Row[Any]) -> Record:
    """A row of ``SOURCES[kind]`` as a record."""
    values = row._asdict()
    return Record(
        kind=kind,
        id=row.id,
        tenant_id=row.tenant_id,
        bill_to=row.bill_to,
        connection_id=row.connection_id,
        connection=row.connection_name,
        source_id=row.source_id,
        version=row.version,
        order=row.order_kind,
        content=_account(row) if kind is Kind.ACCOUNT else _subscription(values),
        own={field: values[field] for field in OWN[kind]},
        account_record=row.account_id,
        parent_record=row.parent_id,
        orphaned=row.orphaned,
        title=row.title,
        effective_at=row.effective_at,
        updated_at=row.updated_at,
        deleted_at=row.deleted_at,
        ended_at=row.ended_at,
        ended_reason=row.ended_reason,
    )


def _account(row: Row[Any]) -> dict[str, Json]:
    return {
        "name": row.name,
        "number": row.number,
        "email": row.email,
        "kind": row.kind,
        "parent_id": row.parent_source_id,
    }


def _subscription(values: Mapping[Any, Any]) -> dict[str, Json]:
    content = {field: values[field] for field in SUBSCRIPTION_FIELDS if not field.endswith("_id")}
    for field in ("start_date", "end_date", "activation_date", "cancellation_date"):
        content[field] = None if content[field] is None else content[field].isoformat()
    content["quantity"] = canonical_quantity(content["quantity"])
    return {
        "account_id": values["account_source_id"],
        "parent_id": values["parent_source_id"],
        **content,
    }
