"""What the next tier's instance mirrors of this one: tenant resellers as accounts, and every record of the mirror.

    heads    which entities changed, in the order of their changes (paging.py has the rule of the cursor)
    listing  every entity of a kind by its id, all of them or some ranges
    load     the entities themselves, as they are now
    ranges   what each range of ids comes to, to be compared before anything is listed

An entity's id up there is its record's id here, of a tenant the tenant's: unique here and the same for ever. Its
version is ``revision``, which grows with each write that alters what is shown: fields taken over, links and ends
included. What a version shows is never anything else: it depends on the record's own row alone. A connection's records
appear once it has been live: what is still compared in shadow is nobody else's to bill. Nothing of the distributor's
own fields (price, notes, …) is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.ranges import hash_by_range, of_uuid, range_name, range_number, sums
from bss_sync.adapters.sql.reading.paging import (
    Page,
    Paging,
    Source,
    decode_cursor,
    encode_cursor,
    is_uuid,
    read_rows,
    wrong_cursor,
)
from bss_sync.adapters.sql.reading.reach import Where
from bss_sync.domain.change import Json, Kind
from bss_sync.domain.moment import rfc3339
from bss_sync.domain.subscription import FIELDS as SUBSCRIPTION_FIELDS
from bss_sync.domain.subscription import Status, canonical_quantity

RANGES_MAX = 200
"""Ranges that one listing may ask for."""

_SHOWN = "exists (select 1 from connection c where c.id = {alias}.connection_id and c.live_since is not null)"
_RESELLERS = "{alias}.kind = 'reseller'"
_HEADS = Source(
    "chain",
    "r.id",
    f"""from (
        select t.id, t.change_xid from tenant t where {_RESELLERS.format(alias="t")}
        union all select a.id, a.change_xid from account a where {_SHOWN.format(alias="a")}
        union all select s.id, s.change_xid from subscription s where {_SHOWN.format(alias="s")}) r""",  # noqa: S608  constants only
    "r.change_xid",
    (("r.id", "uuid"),),
)
_SHARED = """r.id, r.tenant_id, r.revision, r.parent_id, r.passed, r.effective_at, r.updated_at, r.deleted_at,
    r.ended_at"""
_LOAD_TENANTS = text(
    f"""select r.id, r.revision, r.display_name, r.created_at from tenant r
        where r.id = any(cast(:ids as uuid[])) and {_RESELLERS.format(alias="r")} order by r.id"""  # noqa: S608  constants only
)
_LOAD_ACCOUNTS = text(
    f"""select {_SHARED}, r.name, r.number, r.email, r.kind from account r
        where r.id = any(cast(:ids as uuid[])) and {_SHOWN.format(alias="r")} order by r.id"""  # noqa: S608  constants only
)
_LOAD_SUBSCRIPTIONS = text(
    f"""select {_SHARED}, r.account_id, r.product, r.status, r.source_status, r.trial, r.start_date, r.end_date,
               r.activation_date, r.cancellation_date, r.auto_renew, r.billing_cycle, r.term, r.quantity,
               r.characteristics
        from subscription r where r.id = any(cast(:ids as uuid[])) and {_SHOWN.format(alias="r")} order by r.id"""  # noqa: S608  constants only
)
_PARTS: Mapping[Kind, tuple[tuple[str, str], ...]] = {
    Kind.ACCOUNT: (("tenant", _RESELLERS.format(alias="r")), ("account", _SHOWN.format(alias="r"))),
    Kind.SUBSCRIPTION: (("subscription", _SHOWN.format(alias="r")),),
}
_LOWEST = UUID(int=0)
_VERSIONS = " union all ".join(
    f"""select r.id, r.revision, r.deleted_at is not null as deleted from {table} r
        where {_SHOWN.format(alias="r")} and (r.passed = '{{}}' or not r.passed @> cast(:receiver as text[]))"""  # noqa: S608  constants only
    for table in ("account", "subscription")
)
_RANGES = text(
    f"""select {range_number("h.id", of_uuid)} as range, count(*) as number,
               {sums("h.id", of_uuid, "h.revision", "h.deleted")} as sums
        from (select r.id, r.revision, false as deleted from tenant r where {_RESELLERS.format(alias="r")}
              union all {_VERSIONS}) h
        group by 1"""  # noqa: S608  constants only
)


def list_changes(connection: Connection, instance_id: UUID, paging: Paging) -> Page:
    """One page of entities in the order of their changes, each as it is now."""
    heads = read_rows(connection, _HEADS, Where(), paging)
    items = {UUID(one["id"]): one for one in load(connection, instance_id, [row.id for row in heads.rows])}
    return Page([items[row.id] for row in heads.rows if row.id in items], heads.next_cursor, heads.has_more)


def list_by_id(
    connection: Connection, instance_id: UUID, kind: Kind, ranges: Sequence[str], paging: Paging
) -> dict[str, Any]:
    """One page of a kind by id, ``ranges`` only where some are named. The listing ends with ``next_cursor`` null."""
    part, after = _position(paging.cursor)
    found: list[UUID] = []
    parts = _PARTS[kind]
    while part < len(parts) and len(found) < paging.limit:
        table, condition = parts[part]
        wanted = paging.limit - len(found)
        found += _ids(connection, table, condition, ranges, after, wanted)
        if len(found) == paging.limit:
            break
        part, after = part + 1, _LOWEST
    ended = part == len(parts)
    cursor = None if ended else encode_cursor(["chain-list", part, str(found[-1])])
    return {"items": load(connection, instance_id, found, kind), "next_cursor": cursor}


def _position(cursor: str | None) -> tuple[int, UUID]:
    if cursor is None:
        return 0, _LOWEST
    match decode_cursor(cursor):
        case ["chain-list", int(part), str(after)] if 0 <= part < len(_PARTS[Kind.ACCOUNT]) and is_uuid(after):
            return part, UUID(after)
        case _:
            raise wrong_cursor()


def _ids(
    connection: Connection, table: str, condition: str, ranges: Sequence[str], after: UUID, limit: int
) -> list[UUID]:
    where = Where().add(condition).add("r.id > :after", after=after)
    bounds = []
    for number, name in enumerate(ranges):
        first, last = UUID(name.ljust(32, "0")), UUID(name.ljust(32, "f"))
        bounds.append(f"r.id between :first_{number} and :last_{number}")
        where.values |= {f"first_{number}": first, f"last_{number}": last}
    if bounds:
        where.add(f"({' or '.join(bounds)})")
    query = where.under(f"select r.id from {table} r", "order by r.id limit :row_count")  # noqa: S608  constants only
    return list(connection.execute(query, {**where.values, "row_count": limit}).scalars())


def load(
    connection: Connection, instance_id: UUID, ids: Sequence[UUID], kind: Kind | None = None
) -> list[dict[str, Any]]:
    """These entities as they are now, accounts first; what does not exist is left out."""
    values = {"ids": list(ids)}
    items: list[dict[str, Any]] = []
    if kind is not Kind.SUBSCRIPTION:
        items += [_tenant(row, instance_id) for row in connection.execute(_LOAD_TENANTS, values)]
        items += [_record(Kind.ACCOUNT, row, instance_id) for row in connection.execute(_LOAD_ACCOUNTS, values)]
    if kind is not Kind.ACCOUNT:
        rows = connection.execute(_LOAD_SUBSCRIPTIONS, values)
        items += [_record(Kind.SUBSCRIPTION, row, instance_id) for row in rows]
    return items


def _tenant(row: Row[Any], instance_id: UUID) -> dict[str, Any]:
    body = {"name": row.display_name, "number": None, "email": None, "kind": "reseller", "parent_id": None}
    return {
        "kind": str(Kind.ACCOUNT),
        "id": str(row.id),
        "version": row.revision,
        "deleted": False,
        "body": body,
        # When it was renamed is not kept.
        "effective_at": rfc3339(row.created_at) if row.revision == 1 else None,
        "changed_at": rfc3339(row.created_at) if row.revision == 1 else None,
        "passed": [str(instance_id)],
    }


def _record(kind: Kind, row: Row[Any], instance_id: UUID) -> dict[str, Any]:
    deleted = row.deleted_at is not None
    return {
        "kind": str(kind),
        "id": str(row.id),
        "version": row.revision,
        "deleted": deleted,
        "body": _account(row) if kind is Kind.ACCOUNT else _subscription(row),
        "effective_at": rfc3339(row.deleted_at or row.ended_at or row.effective_at),
        "changed_at": rfc3339(row.updated_at),
        "passed": [*row.passed, str(instance_id)],
    }


def _account(row: Row[Any]) -> dict[str, Json]:
    # What stands at the top here stands below its tenant reseller up there: the tree keeps its shape.
    return {
        "name": row.name,
        "number": row.number,
        "email": row.email,
        "kind": row.kind,
        "parent_id": str(row.parent_id or row.tenant_id),
    }


def _subscription(row: Row[Any]) -> dict[str, Json]:
    values = row._asdict()
    body = {field: values[field] for field in SUBSCRIPTION_FIELDS if not field.endswith("_id")}
    for field in ("start_date", "end_date", "activation_date", "cancellation_date"):
        body[field] = None if body[field] is None else body[field].isoformat()
    body["quantity"] = canonical_quantity(body["quantity"])
    if row.ended_at is not None:
        # It left this catalogue or its connection was closed: nothing is held any more.
        body["status"] = Status.TERMINATED.value
    return {
        "account_id": str(row.account_id or row.tenant_id),
        "parent_id": None if row.parent_id is None else str(row.parent_id),
        **body,
    }


def read_ranges(connection: Connection, receiver: str | None) -> dict[str, list[Any]]:
    """Range → [count, sums], without what has passed ``receiver``."""
    hash_by_range(connection)
    rows = connection.execute(_RANGES, {"receiver": [receiver or "nobody"]})
    return {range_name(row.range): [row.number, row.sums] for row in rows}
