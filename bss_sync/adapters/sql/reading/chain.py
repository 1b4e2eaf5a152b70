"""What the next tier's instance mirrors of this one: tenant resellers as accounts, and every record of the mirror.

    past     every state of history, and what shows otherwise than history tells, in the order of their changes
             (paging.py has the rule of the cursor)
    listing  every entity of a kind by its id, all of them or some ranges
    load     the entities themselves, as they are now
    ranges   what each range of ids comes to, to be compared before anything is listed

An entity's id up there is its record's id here, of a tenant the tenant's: unique here and the same for ever. Its
version is its place (chain_places.py), of a tenant its revision. A connection's records appear once it has been live:
what is still compared in shadow is nobody else's to bill. Nothing of the distributor's own fields (price, notes, …) is
read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.epochs import LEAP
from bss_sync.adapters.sql.ranges import hash_by_range, name_of_text, sums
from bss_sync.adapters.sql.reading.paging import (
    Page,
    Paging,
    Source,
    decode_cursor,
    encode_cursor,
    is_uuid,
    read_merged,
    wrong_cursor,
)
from bss_sync.adapters.sql.reading.reach import Where
from bss_sync.domain.change import Json, Kind, stream_id
from bss_sync.domain.moment import rfc3339
from bss_sync.domain.subscription import FIELDS as SUBSCRIPTION_FIELDS
from bss_sync.domain.subscription import Status, canonical_quantity
from bss_sync.ports.connector import RangeForm

RANGES_MAX = 200
"""Ranges that one listing may ask for."""

_SHOWN = "exists (select 1 from connection c where c.id = {alias}.connection_id and c.live_since is not null)"
_RESELLERS = "{alias}.kind = 'reseller'"
_CHANGES = "chain-changes"
_PLACE = "greatest({alias}.version, coalesce({alias}.chain_version, {alias}.revision))"
_PLACE_THEN = "coalesce(h.chain_version, h.version)"
# Where history tells the present, it is not told twice.
_UNTOLD = f"""not exists (select 1 from history h where h.record_id = r.id and h.epoch = r.epoch
    and h.version = r.version and {_PLACE_THEN} = {_PLACE.format(alias="r")})"""  # noqa: S608  constants only
_AFTER_ITS_PAST = (("r.id", "uuid"), (f"cast({2**63 - 1} as bigint)", "bigint"))
_HEADS = (
    Source(_CHANGES, "r.id", "from tenant r", "r.change_xid", _AFTER_ITS_PAST),
    Source(_CHANGES, "r.id", "from account r", "r.change_xid", _AFTER_ITS_PAST),
    Source(_CHANGES, "r.id", "from subscription r", "r.change_xid", _AFTER_ITS_PAST),
)
_HEADS_SHOWN = (
    _RESELLERS.format(alias="r"),
    f"{_SHOWN.format(alias='r')} and {_UNTOLD}",
    f"{_SHOWN.format(alias='r')} and {_UNTOLD}",
)
_READ_TO_ITS_END = [str(UUID(int=1))]
"""The key of a cursor behind a whole transaction, in the form that version 0.1 takes as well. No row is below it."""
_PAST = Source(
    _CHANGES,
    f"""h.kind, h.tenant_id, h.connection_id, h.record_id as id, {_PLACE_THEN} as place, h.effective_at, h.recorded_at,
        h.state, h.deleted, h.ended_reason, coalesce(a.passed, s.passed) as passed,
        coalesce(h.chain_linked, exists (select 1 from subscription p where p.connection_id = h.connection_id
            and p.source_id = h.state ->> 'parent_id' and p.created_at <= h.recorded_at)) as linked""",  # noqa: S608  constants only
    """from history h left join account a on a.id = h.record_id and h.kind = 'account'
       left join subscription s on s.id = h.record_id and h.kind = 'subscription'""",
    "h.change_xid",
    (("h.record_id", "uuid"), ("h.id", "bigint")),
)
_SHARED = f"""r.id, r.tenant_id, {_PLACE.format(alias="r")} as place, r.parent_id, r.passed, r.updated_at, r.deleted_at,
    r.ended_at, coalesce(r.chain_effective_at, r.deleted_at, r.ended_at, r.effective_at) as effective_at"""
_LOAD_TENANTS = text(
    f"""select r.id, r.revision + {LEAP} as revision, r.display_name, r.created_at,
               r.revision = 1 as never_renamed from tenant r
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
    f"""select r.id, {_PLACE.format(alias="r")} as place, r.deleted_at is not null as deleted from {table} r
        where {_SHOWN.format(alias="r")} and (cardinality(r.passed) = 0 or not r.passed @> cast(:receiver as text[]))"""  # noqa: S608  constants only
    for table in ("account", "subscription")
)
_RANGES = {
    form: text(
        f"""select {name_of_text("h.name")} as range, count(*) as number,
                   {sums("h.name", "h.place", "h.deleted", form)} as sums
            from (select r.id::text as name, r.place, r.deleted from (
                      select r.id, r.revision + {LEAP} as place, false as deleted from tenant r
                      where {_RESELLERS.format(alias="r")}
                      union all {_VERSIONS}) r offset 0) h
            group by 1"""  # noqa: S608  constants only
    )
    for form in RangeForm
}


def list_changes(connection: Connection, instance_id: UUID, paging: Paging) -> Page:
    """One page in the order of changes: states of history as they were, what history does not tell as it is now.

    States of one entity in one transaction are in the order in which history has them.
    """
    paging = Paging(paging.limit, _as_ours(paging.cursor))
    sources = [(_PAST, Where().add(_SHOWN.format(alias="h")))]
    sources += [(source, Where().add(shown)) for source, shown in zip(_HEADS, _HEADS_SHOWN, strict=True)]
    found = read_merged(connection, sources, paging)
    heads = [row.id for row in found.rows if not _is_past(row)]
    now = {UUID(one["id"]): one for one in load(connection, instance_id, heads)} if heads else {}
    items = [_state(row, instance_id) if _is_past(row) else now.get(row.id) for row in found.rows]
    return Page([one for one in items if one is not None], _as_theirs(found.next_cursor), found.has_more, found.anew)


def _as_theirs(cursor: str) -> str:
    """A cursor that the previous release goes on from as well, where it can be told so: whoever goes back may be it."""
    match decode_cursor(cursor):
        case [_, xid, [record, _], None]:
            # Nothing more of a transaction before the floor will come: behind its last row is before the next one.
            behind = xid if record == str(_LOWEST) else xid + 1
            return encode_cursor(["chain", behind, _READ_TO_ITS_END, None])
        case _:
            return cursor


def _as_ours(cursor: str | None) -> str | None:
    """None for a cursor of the previous release, which told the present only: it is told the past too."""
    if cursor is None:
        return None
    match decode_cursor(cursor):
        case ["chain", int(xid), key, None] if key == _READ_TO_ITS_END:
            return encode_cursor([_CHANGES, xid, [str(_LOWEST), 0], None])
        case ["chain", *_]:
            return None
        case _:
            return cursor


def _is_past(row: Row[Any]) -> bool:
    return "state" in row._fields


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
    values: dict[str, Any] = {"after": after, "row_count": limit}
    if not ranges:
        query = f"select r.id from {table} r where {condition} and r.id > :after order by r.id limit :row_count"  # noqa: S608  constants only
    else:
        # Each range along the index: the planner would rather read the whole table in the order of its ids.
        query = f"""select id from unnest(cast(:firsts as uuid[]), cast(:lasts as uuid[])) as b (first, last)
            cross join lateral (select r.id from {table} r where r.id between b.first and b.last and {condition}
                                  and r.id > :after order by r.id limit :row_count) found
            order by id limit :row_count"""  # noqa: S608  constants only
        values["firsts"] = [UUID(name.ljust(32, "0")) for name in ranges]
        values["lasts"] = [UUID(name.ljust(32, "f")) for name in ranges]
    return list(connection.execute(text(query), values).scalars())


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
        "effective_at": rfc3339(row.created_at) if row.never_renamed else None,
        "changed_at": rfc3339(row.created_at) if row.never_renamed else None,
        "passed": [str(instance_id)],
    }


def _state(row: Row[Any], instance_id: UUID) -> dict[str, Any]:
    """A state of history, its relatives named as the tier above knows them."""
    kind, body = Kind(row.kind), dict(row.state)
    parent = body["parent_id"]
    if kind is Kind.ACCOUNT:
        body["parent_id"] = _named(row, Kind.ACCOUNT, parent) or str(row.tenant_id)
    else:
        body["parent_id"] = _named(row, Kind.SUBSCRIPTION, parent) if row.linked else None
        body["account_id"] = _named(row, Kind.ACCOUNT, body["account_id"]) or str(row.tenant_id)
        if row.ended_reason is not None:
            body["status"] = Status.TERMINATED.value
    return {
        "kind": str(kind),
        "id": str(row.id),
        "version": row.place,
        "deleted": row.deleted,
        "body": body,
        "effective_at": rfc3339(row.effective_at),
        "changed_at": rfc3339(row.recorded_at),
        "passed": [*(row.passed or ()), str(instance_id)],
        "past": True,
    }


def _named(row: Row[Any], kind: Kind, source_id: str | None) -> str | None:
    return None if source_id is None else str(stream_id(row.connection_id, kind, source_id))


def _record(kind: Kind, row: Row[Any], instance_id: UUID) -> dict[str, Any]:
    deleted = row.deleted_at is not None
    return {
        "kind": str(kind),
        "id": str(row.id),
        "version": row.place,
        "deleted": deleted,
        "body": _account(row) if kind is Kind.ACCOUNT else _subscription(row),
        "effective_at": rfc3339(row.effective_at),
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


def read_ranges(connection: Connection, receiver: str | None, form: RangeForm) -> dict[str, list[Any]]:
    """Range → [count, sums], without what has passed ``receiver``."""
    hash_by_range(connection)
    rows = connection.execute(_RANGES[form], {"receiver": [receiver or "nobody"]})
    return {row.range: [row.number, row.sums] for row in rows}
