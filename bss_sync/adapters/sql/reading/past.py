"""The mirror as it was: bitemporal answers out of history (domain.md section 6).

The state at T as known at R is the row of the highest (epoch, version, id) with effective_at <= T and
recorded_at <= R. Links, orphans and names are those of the same moment. Fields that the distributor had taken over
then show its value. Fields that the distributor owns have no history, so answers about the past leave them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.reading.entity import Record
from bss_sync.adapters.sql.reading.reach import Where
from bss_sync.domain.change import Kind
from bss_sync.domain.moment import AsOf

_THEN = """h.effective_at <= :effective and h.recorded_at <= :recorded"""
_NEWEST = "order by h.epoch desc, h.version desc, h.id desc limit 1"

# The ids of relatives leave the inner query as plain columns: an operator on jsonb is not leakproof, so it would keep
# row-level security from using the relatives' index.
_STATE = f"""(select n.*, n.state ->> 'parent_id' as parent_source_id, n.state ->> 'account_id' as account_source_id
    from (select distinct on (h.record_id) h.record_id as id, h.tenant_id, h.connection_id, h.version,
        h.effective_at, h.recorded_at, h.deleted, h.ended_reason,
        h.state || coalesce((select jsonb_object_agg(k.field, k.value) from takeover k where k.record_id = h.record_id
            and k.taken_at <= least(:effective, :recorded)
            and (k.released_at is null or k.released_at > least(:effective, :recorded))), '{{}}') as state
    from history h where h.kind = :kind and {_THEN} and """  # noqa: S608  our own text only
_STATE_END = "order by h.record_id, h.epoch desc, h.version desc, h.id desc) n limit :row_count) r"

_SHARED = """r.id, r.tenant_id, t.display_name as bill_to, r.connection_id, c.name as connection_name, m.source_id,
    r.version, m.order_kind, r.state, r.effective_at, r.recorded_at, r.deleted, r.ended_reason"""

_COLUMNS: Mapping[Kind, str] = {
    Kind.ACCOUNT: _SHARED
    + """, cast(null as uuid) as account_id, case when ps.deleted is not null then p.id end as parent_id,
    coalesce(ps.deleted, false) as orphaned, cast(null as text) as title""",
    Kind.SUBSCRIPTION: _SHARED
    + """, case when hs.deleted is not null then a.id end as account_id,
    case when ps.deleted is not null then p.id end as parent_id,
    coalesce(ps.deleted, false) or coalesce(hs.deleted, false) as orphaned,
    coalesce(hs.state ->> 'name', t.display_name) || ' - ' || coalesce(d.name, r.state ->> 'product') as title""",
}


def _relative(table: str, alias: str, state_alias: str, field: str) -> str:
    return f"""left join {table} {alias} on {alias}.connection_id = r.connection_id
        and {alias}.source_id = r.{field} collate "C"
    left join lateral (select h.deleted, h.state from history h
        where h.record_id = {alias}.id and {_THEN} {_NEWEST}) {state_alias} on true"""  # noqa: S608  our own text only


_NAMES = "join connection c on c.id = r.connection_id join tenant t on t.id = r.tenant_id"
_TABLES: Mapping[Kind, str] = {
    Kind.ACCOUNT: f"{_NAMES} join account m on m.id = r.id {_relative('account', 'p', 'ps', 'parent_source_id')}",
    Kind.SUBSCRIPTION: f"""{_NAMES} join subscription m on m.id = r.id
        {_relative("subscription", "p", "ps", "parent_source_id")}
        {_relative("account", "a", "hs", "account_source_id")}
        left join product d on d.code = r.state ->> 'product'""",
}

STATES = {
    "live": "not r.deleted and r.ended_reason is null",
    "ended": "not r.deleted and r.ended_reason is not null",
    "deleted": "r.deleted",
}
ORPHANED: Mapping[Kind, str] = {
    Kind.ACCOUNT: "not r.deleted and coalesce(ps.deleted, false)",
    Kind.SUBSCRIPTION: "not r.deleted and (coalesce(ps.deleted, false) or coalesce(hs.deleted, false))",
}


def read_states(
    connection: Connection, kind: Kind, at: AsOf, within: Where, shown: Where, row_count: int | None = None
) -> Sequence[Row[Any]]:
    """The first ``row_count`` states at ``at`` in the order of their ids; every one says whether it is ``wanted``.

    ``within`` has conditions on ``h`` (history), ``shown`` on ``r`` (the state found), ``m`` (the record's own row)
    and, for orphans, on its relatives. What is not wanted is answered too, so that a caller can go on behind it.
    """
    statement = "\n".join(
        [
            f"select ({shown.sql()}) as wanted,",
            _COLUMNS[kind],
            "from",
            _STATE,
            within.sql(),
            _STATE_END,
            _TABLES[kind],
            "order by r.id",
        ]
    )
    values = {
        **within.values,
        **shown.values,
        "kind": str(kind),
        "effective": at.effective,
        "recorded": at.recorded,
        "row_count": row_count,
    }
    return connection.execute(text(statement), values).all()


def record_of(kind: Kind, row: Row[Any]) -> Record:
    """A row of ``read_states`` as a record."""
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
        content=row.state,
        own=None,
        account_record=row.account_id,
        parent_record=row.parent_id,
        orphaned=row.orphaned,
        title=row.title,
        effective_at=row.effective_at,
        updated_at=row.recorded_at,
        deleted_at=row.effective_at if row.deleted else None,
        ended_at=row.effective_at if row.ended_reason is not None and not row.deleted else None,
        ended_reason=row.ended_reason,
    )
