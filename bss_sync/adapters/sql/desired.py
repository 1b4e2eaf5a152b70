"""What the distributor's external BSS ought to hold of a record: the mirror's row in the target's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from bss_sync.domain import account, subscription
from bss_sync.domain.change import Json
from bss_sync.domain.subscription import canonical_quantity
from bss_sync.ports.delivery import Desired

_ACCOUNTS = """
    select a.*, t.display_name as bill_to, a.parent_id as depends_parent, null::uuid as depends_account,
           p.external_id as parent_external, null::text as account_external, m.trace
    from account a join tenant t on t.id = a.tenant_id left join delivery p on p.record_id = a.parent_id
    left join message m on m.id = a.message
    where a.id = any(:ids)"""
_SUBSCRIPTIONS = """
    select s.*, t.display_name as bill_to, s.parent_id as depends_parent, s.account_id as depends_account,
           p.external_id as parent_external, h.external_id as account_external,
           coalesce(a.name, t.display_name) as holder_name, m.trace
    from subscription s join tenant t on t.id = s.tenant_id left join account a on a.id = s.account_id
    left join delivery h on h.record_id = s.account_id left join delivery p on p.record_id = s.parent_id
    left join message m on m.id = s.message
    where s.id = any(:ids)"""


def read_desired(connection: Connection, record_ids: Sequence[UUID]) -> dict[UUID, tuple[Desired, tuple[UUID, ...]]]:
    """Record id → what it ought to be, and the relatives without a binding yet; records that are gone are missing."""
    desired: dict[UUID, tuple[Desired, tuple[UUID, ...]]] = {}
    if not record_ids:
        return desired
    for statement, fields in ((_ACCOUNTS, _account_fields), (_SUBSCRIPTIONS, _subscription_fields)):
        for row in connection.execute(text(statement), {"ids": list(record_ids)}):
            pairs = ((row.depends_account, row.account_external), (row.depends_parent, row.parent_external))
            unbound = tuple(relative for relative, external in pairs if relative is not None and external is None)
            desired[row.id] = (Desired(row.revision, fields(row), row.message, row.trace), unbound)
    return desired


def _account_fields(row: Row[Any]) -> Mapping[str, Json]:
    fields = {name: plain(getattr(row, name)) for name in account.FIELDS if name != "parent_id"}
    return fields | {"parent_id": row.parent_external} | _every_record(row)


def _subscription_fields(row: Row[Any]) -> Mapping[str, Json]:
    linked = {"account_id": row.account_external, "parent_id": row.parent_external}
    fields = {name: plain(getattr(row, name)) for name in subscription.FIELDS if name not in linked}
    fields["quantity"] = canonical_quantity(row.quantity)
    return fields | linked | {"name": f"{row.holder_name} - {row.product}"} | _every_record(row)


def _every_record(row: Row[Any]) -> dict[str, Json]:
    return {"bill_to": row.bill_to, "ended": row.deleted_at is not None or row.ended_at is not None}


def plain(value: Any) -> Json:
    """A column's value in canonical form."""
    return value.isoformat() if isinstance(value, date) else value
