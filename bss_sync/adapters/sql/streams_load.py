"""Loads what the rules need to decide a batch: a fixed number of statements, however many streams it has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.guards import load_guards
from bss_sync.domain.account import FIELDS as ACCOUNT_FIELDS
from bss_sync.domain.change import Action, Content, Kind, MessageState, OrderKind, WaitReason, stream_id
from bss_sync.domain.product import Catalogue
from bss_sync.domain.subscription import FIELDS as SUBSCRIPTION_FIELDS
from bss_sync.ports.inbox import Origin
from bss_sync.ports.streams import (
    Batch,
    ConnectionRules,
    Entity,
    InboxMessage,
    Mirrored,
    Position,
    Relative,
    Standing,
)

MESSAGES_PER_STREAM = 200
"""Open messages of one stream in one batch: a hot stream shares a batch with others."""

_STREAMS = text("select * from stream where id = any(:ids)")
_OPEN = text("""
    select * from (
        select m.*, row_number() over (partition by m.stream_id order by m.state <> 'pending', m.seq) as place,
            count(*) over (partition by m.stream_id) as number
        from message m where m.stream_id = any(:ids) and m.state in ('pending', 'waiting')) open
    where place <= :most order by seq""")
_CHOSEN = text("""
    select m.* from message m where m.id = any(:chosen)
        or (m.stream_id = any(:ids) and m.state in ('pending', 'waiting'))
    order by m.seq""")
_STAGING = text("""
    select g.*, m.seq, m.received_at, m.origin, m.state, m.wait_reason, m.wait_until, m.fetch_asked
    from staging g left join message m on m.id = g.message where g.stream_id = any(:ids)""")
_ACCOUNTS = text("select * from account where id = any(:ids)")
_SUBSCRIPTIONS = text("select * from subscription where id = any(:ids)")
_TAKEOVERS = text("select record_id, field, value from takeover where record_id = any(:ids) and released_at is null")
_VERSIONS = text("""
    select h.record_id, h.version, false as held from history h
    join stream s on s.id = h.record_id and s.epoch = h.epoch
    join message m on m.stream_id = h.record_id and h.version in (m.version, s.version)
    where h.record_id = any(:ids) and m.state in ('pending', 'waiting')
    union all select stream_id, version, true from message
    where stream_id = any(:ids) and state in ('quarantined', 'dead') and version is not null""")
_NEEDED = text("""
    select distinct waits_for from message
    where waits_for = any(:ids)
      and (state = 'dead' or (state = 'waiting' and wait_reason in ('account_unknown', 'parent_unknown')))""")
_ABOVE_ACCOUNTS = text("""
    with recursive up as (
        select id, parent_id from account where id = any(:ids)
        union select a.id, a.parent_id from account a join up on a.id = up.parent_id)
    select id, parent_id from up""")
_ABOVE_SUBSCRIPTIONS = text("""
    with recursive up as (
        select id, parent_id from subscription where id = any(:ids)
        union select s.id, s.parent_id from subscription s join up on s.id = up.parent_id)
    select id, parent_id from up""")
_KNOWN = text("""
    select stream_id as id, true as has_state from staging where stream_id = any(:ids) and action = 'state'
    union all select id, false from stream where id = any(:ids) and deleted""")
_CONNECTIONS = text("""
    select c.id, c.name, c.connector, c.settings, i.id as instance_id from connection c cross join instance i
    where c.id = any(:ids)""")
_PRODUCT_MAPS = text("""
    select connection_id, source_code, code from product_map
    where connection_id = any(:ids) and source_code = any(:codes)""")
_PRODUCTS = text("select code, retired_at is not null as retired from product where code = any(:codes)")
_VALUE_MAPS = text(
    "select connection_id, field, source_value, canonical from value_map where connection_id = any(:ids)"
)
_LINKABLE = text("""
    select connection_id from subscription where id = any(:ids) and parent_id is null and parent_source_id is not null
    union select connection_id from staging where stream_id = any(:ids) and body ->> 'parent_id' is not null""")
_HIERARCHY_LOCK = text("select pg_advisory_xact_lock(hashtextextended(:connection_id, 7))")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A batch, and the entities as they were when it was loaded (``settle`` replaces them in the batch)."""

    batch: Batch
    before: Mapping[UUID, Entity]
    crowded: frozenset[UUID] = frozenset()
    """Streams with more open messages than were loaded."""


def load_batch(connection: Connection, ids: Sequence[UUID], can_fetch: Callable[[str], bool]) -> Loaded:
    """Load the entities of locked streams and everything that their decisions may ask."""
    messages = connection.execute(_OPEN, {"ids": list(ids), "most": MESSAGES_PER_STREAM}).all()
    crowded = frozenset(row.stream_id for row in messages if row.number > MESSAGES_PER_STREAM)
    return replace(_load(connection, list(ids), messages, can_fetch, lock=True), crowded=crowded)


def load_rehearsal(connection: Connection, chosen: Sequence[UUID], can_fetch: Callable[[str], bool]) -> Loaded:
    """Load as if the chosen messages were pending; nothing is locked."""
    found = connection.execute(text("select * from message where id = any(:ids)"), {"ids": list(chosen)}).all()
    ids = list({row.stream_id for row in found})
    messages = connection.execute(_CHOSEN, {"ids": ids, "chosen": list(chosen)}).all()
    return _load(connection, ids, messages, can_fetch, lock=False, as_pending=frozenset(chosen))


def _load(
    connection: Connection,
    ids: list[UUID],
    rows: Sequence[Row[Any]],
    can_fetch: Callable[[str], bool],
    *,
    lock: bool,
    as_pending: frozenset[UUID] = frozenset(),
) -> Loaded:
    streams = connection.execute(_STREAMS, {"ids": ids}).all()
    opened: dict[UUID, list[InboxMessage]] = defaultdict(list)
    for row in rows:
        opened[row.stream_id].append(_message(row, pending=row.id in as_pending))
    if lock:
        _lock_hierarchies(connection, streams, opened)
    entities = _entities(connection, ids, streams, opened)
    connection_ids = list({entity.connection_id for entity in entities.values()})
    rules = _rules(connection, connection_ids, entities.values(), can_fetch)
    batch = Batch(
        now=connection.execute(text("select now()")).scalar_one(),
        entities=dict(entities),
        relatives=_relatives(connection, entities.values()),
        needed=set(connection.execute(_NEEDED, {"ids": ids}).scalars()),
        rules=rules,
        guards=load_guards(connection, entities, rules, lock=lock),
    )
    return Loaded(batch, entities)


def _lock_hierarchies(
    connection: Connection, streams: Sequence[Row[Any]], opened: Mapping[UUID, Sequence[InboxMessage]]
) -> None:
    """One writer of links per connection at a time, so that two batches cannot close a cycle between them."""
    linking = {
        row.connection_id
        for row in streams
        if row.kind == Kind.ACCOUNT or any(m.body.get("parent_id") for m in opened.get(row.id, ()))
    }
    linking |= set(connection.execute(_LINKABLE, {"ids": [row.id for row in streams]}).scalars())
    for connection_id in sorted(linking):
        connection.execute(_HIERARCHY_LOCK, {"connection_id": str(connection_id)})


def _entities(
    connection: Connection,
    ids: list[UUID],
    streams: Sequence[Row[Any]],
    opened: Mapping[UUID, Sequence[InboxMessage]],
) -> dict[UUID, Entity]:
    staged: dict[tuple[UUID, str], InboxMessage] = {}
    for row in connection.execute(_STAGING, {"ids": ids}).all():
        staged[row.stream_id, row.action] = _staged_message(row)
    records = {row.id: row for row in connection.execute(_ACCOUNTS, {"ids": ids})}
    records |= {row.id: row for row in connection.execute(_SUBSCRIPTIONS, {"ids": ids})}
    taken: dict[UUID, dict[str, Any]] = defaultdict(dict)
    for row in connection.execute(_TAKEOVERS, {"ids": ids}):
        taken[row.record_id][row.field] = row.value
    versions: dict[UUID, set[int]] = defaultdict(set)
    held: dict[UUID, set[int]] = defaultdict(set)
    for row in connection.execute(_VERSIONS, {"ids": ids}):
        (held if row.held else versions)[row.record_id].add(row.version)
    entities = {}
    for row in streams:
        record = records.get(row.id)
        entities[row.id] = Entity(
            id=row.id,
            tenant_id=row.tenant_id,
            connection_id=row.connection_id,
            kind=Kind(row.kind),
            source_id=row.source_id,
            position=_position(row),
            mirrored=None if record is None else _mirrored(Kind(row.kind), record),
            staged=staged.get((row.id, "state")),
            staged_end=staged.get((row.id, "deleted")),
            open=tuple(opened.get(row.id, ())),
            versions=frozenset(versions.get(row.id, ())),
            held=frozenset(held.get(row.id, ())),
            taken=taken.get(row.id, {}),
            laid={} if record is None else _laid(Kind(row.kind), record),
        )
    return entities


def _message(row: Row[Any], *, pending: bool = False) -> InboxMessage:
    return InboxMessage(
        id=row.id,
        seq=row.seq,
        message_id=row.message_id,
        origin=Origin(row.origin),
        action=Action(row.action),
        order=OrderKind(row.order_kind),
        version=row.version,
        sent_at=row.sent_at,
        effective_at=row.effective_at,
        received_at=row.received_at,
        body=row.body,
        state=MessageState.PENDING if pending else MessageState(row.state),
        wait_reason=None if row.wait_reason is None or pending else WaitReason(row.wait_reason),
        wait_until=row.wait_until,
        fetch_asked=row.fetch_asked,
        passed=tuple(row.passed),
        trace=row.trace,
        cleared=row.cleared,
    )


def _staged_message(row: Row[Any]) -> InboxMessage:
    known = row.seq is not None
    return InboxMessage(
        id=row.message,
        seq=row.seq if known else 0,
        message_id=row.message_id,
        origin=Origin(row.origin) if known else Origin.DOOR,
        action=Action(row.action),
        order=OrderKind(row.order_kind),
        version=row.version,
        sent_at=row.sent_at,
        effective_at=row.effective_at,
        received_at=row.received_at if known else row.staged_at,
        body=row.body,
        state=MessageState(row.state) if known else MessageState.OUT_OF_SCOPE,
        wait_reason=WaitReason(row.wait_reason) if known and row.wait_reason else None,
        wait_until=row.wait_until if known else None,
        fetch_asked=bool(row.fetch_asked) if known else False,
        passed=tuple(row.passed),
    )


def _position(row: Row[Any]) -> Position:
    return Position(
        epoch=row.epoch,
        epoch_at=row.epoch_at,
        version=row.version,
        sent_at=row.version_sent_at,
        message_id=row.version_message_id,
        seq=row.version_seq,
        digest=None if row.digest is None else bytes(row.digest),
        deleted=row.deleted,
    )


def _linked(row: Row[Any], kind: Kind, source_id: str | None) -> UUID | None:
    return None if source_id is None else stream_id(row.connection_id, kind, source_id)


def _mirrored(kind: Kind, row: Row[Any]) -> Mirrored:
    return Mirrored(
        content=row.source,
        version=row.version,
        epoch=row.epoch,
        order=OrderKind(row.order_kind),
        effective_at=row.effective_at,
        message=row.message,
        deleted_at=row.deleted_at,
        ended_at=row.ended_at,
        ended_reason=row.ended_reason,
        parent_linked=row.parent_id is not None and row.parent_id == _linked(row, kind, row.source.get("parent_id")),
        passed=tuple(row.passed),
    )


def shown_content(kind: Kind, row: Row[Any]) -> Content:
    """The mirrored columns of a row in canonical form (keys are the domain's FIELDS)."""
    if kind is Kind.ACCOUNT:
        return {name: getattr(row, "parent_source_id" if name == "parent_id" else name) for name in ACCOUNT_FIELDS}
    shown: dict[str, Any] = {}
    for name in SUBSCRIPTION_FIELDS:
        value = getattr(row, name.replace("_id", "_source_id") if name in ("account_id", "parent_id") else name)
        if name.endswith("_date") and value is not None:
            value = value.isoformat()
        shown[name] = f"{value:f}" if name == "quantity" else value
    return shown


def _laid(kind: Kind, row: Row[Any]) -> dict[str, Any]:
    laid = {name: value for name, value in shown_content(kind, row).items() if value != row.source.get(name)}
    # A link that was bent by hand is put right like a column.
    if kind is Kind.SUBSCRIPTION and row.account_id != _linked(row, Kind.ACCOUNT, row.source.get("account_id")):
        laid["account_id"] = None if row.account_id is None else str(row.account_id)
    return laid


def _relatives(connection: Connection, entities: Iterable[Entity]) -> dict[UUID, Relative]:
    accounts: set[UUID] = set()
    subscriptions: set[UUID] = set()
    for entity in entities:
        own = accounts if entity.kind is Kind.ACCOUNT else subscriptions
        own.add(entity.id)
        bodies: list[Content] = [message.body for message in entity.open]
        bodies += [entity.staged.body] if entity.staged else []
        bodies += [entity.mirrored.content] if entity.mirrored else []
        for body in bodies:
            if body.get("parent_id") is not None:
                own.add(stream_id(entity.connection_id, entity.kind, body["parent_id"]))
            if body.get("account_id") is not None:
                accounts.add(stream_id(entity.connection_id, Kind.ACCOUNT, body["account_id"]))
    relatives: dict[UUID, Relative] = {}
    for row in connection.execute(_KNOWN, {"ids": list(accounts | subscriptions)}):
        if row.has_state or row.id not in relatives:
            relatives[row.id] = Relative(Standing.STAGED if row.has_state else Standing.GONE)
    for statement, ids in ((_ABOVE_ACCOUNTS, accounts), (_ABOVE_SUBSCRIPTIONS, subscriptions)):
        if ids:
            for row in connection.execute(statement, {"ids": list(ids)}):
                relatives[row.id] = Relative(Standing.MIRRORED, row.parent_id)
    return relatives


def _rules(
    connection: Connection,
    connection_ids: list[UUID],
    entities: Iterable[Entity],
    can_fetch: Callable[[str], bool],
) -> dict[UUID, ConnectionRules]:
    codes = {
        message.body["product"]
        for entity in entities
        for message in (*entity.open, *([entity.staged] if entity.staged else []))
        if message.body.get("product") is not None
    }
    mapped: dict[UUID, dict[str, str]] = defaultdict(dict)
    for row in connection.execute(_PRODUCT_MAPS, {"ids": connection_ids, "codes": list(codes)}):
        mapped[row.connection_id][row.source_code] = row.code
    wanted = codes | {code for names in mapped.values() for code in names.values()}
    catalogue = {row.code: row.retired for row in connection.execute(_PRODUCTS, {"codes": list(wanted)})}
    values: dict[UUID, dict[tuple[str, str], str]] = defaultdict(dict)
    for row in connection.execute(_VALUE_MAPS, {"ids": connection_ids}):
        values[row.connection_id][row.field, row.source_value] = row.canonical
    return {
        row.id: ConnectionRules(
            connection_id=row.id,
            name=row.name,
            catalogue=Catalogue(catalogue, mapped.get(row.id, {})),
            value_maps=values.get(row.id, {}),
            accounts_at_once=row.settings.get("account_scope") == "all",
            wait_seconds=float(row.settings.get("wait_seconds", 900)),
            can_fetch=can_fetch(row.connector),
            instance_id=str(row.instance_id),
        )
        for row in connection.execute(_CONNECTIONS, {"ids": connection_ids})
    }
