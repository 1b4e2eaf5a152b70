"""Loads what the rules need to decide a batch: a fixed number of statements, however many streams it has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, TextClause, text

from bss_sync.adapters.sql.chain_places import Place
from bss_sync.adapters.sql.epochs import LEAP, leap_since
from bss_sync.adapters.sql.guards import load_guards
from bss_sync.adapters.sql.records import id_array
from bss_sync.adapters.sql.rules import load_rules
from bss_sync.domain.account import FIELDS as ACCOUNT_FIELDS
from bss_sync.domain.change import PASSED_HELD, Action, Content, Kind, MessageState, OrderKind, WaitReason, stream_id
from bss_sync.domain.subscription import FIELDS as SUBSCRIPTION_FIELDS
from bss_sync.ports.inbox import Origin
from bss_sync.ports.streams import (
    Batch,
    Entity,
    InboxMessage,
    Mirrored,
    Position,
    Relative,
    Standing,
)

MESSAGES_PER_STREAM = 200
"""Open messages of one stream in one batch: a hot stream shares a batch with others."""

_STREAMS = text("""
    select id, tenant_id, connection_id, kind, source_id, epoch, epoch_at, version, version_sent_at,
           version_message_id, version_seq, digest, deleted
    from stream where id = any(cast(:ids as uuid[]))""")
_MESSAGE = """stream_id, id, seq, message_id, origin, action, order_kind, version, sent_at, effective_at, received_at,
    body, state, verdict, wait_reason, wait_until, fetch_asked, passed, trace, cleared"""
_OPEN = text(f"""
    select {_MESSAGE}, number from (
        select {_MESSAGE}, row_number() over (partition by stream_id order by state <> 'pending', seq) as place,
            count(*) over (partition by stream_id) as number
        from message where stream_id = any(cast(:ids as uuid[])) and state in ('pending', 'waiting')
            and settled_on(state, decided_at) = 'infinity') open
    where place <= :most order by seq""")  # noqa: S608  constants only
_CHOSEN = text(f"""
    select {_MESSAGE} from message where id = any(cast(:chosen as uuid[]))
        or (stream_id = any(cast(:ids as uuid[])) and state in ('pending', 'waiting'))
    order by seq""")  # noqa: S608  constants only
_STREAMS_OF = text("select distinct stream_id from message where id = any(cast(:chosen as uuid[]))")
_STAGING = text("select * from staging where stream_id = any(cast(:ids as uuid[]))")
# Asked for only where something is staged: it may lie in any part of the inbox, or be gone.
_STAGED = text("""
    select id, seq, received_at, origin, state, wait_reason, wait_until, fetch_asked from message
    where id = any(cast(:ids as uuid[]))""")


def _records(table: str, account: str, shown: Mapping[str, str]) -> TextClause:
    """Rows of the mirror; what their columns show only where that differs from what the source said."""
    pairs = ", ".join(f"'{name}', r.{column}" for name, column in shown.items())
    return text(f"""
        select r.id, r.connection_id, r.source, r.version, r.epoch, r.order_kind, r.effective_at, r.message,
               r.deleted_at, r.ended_at, r.ended_reason, r.passed, r.parent_id, {account} as account_id, r.revision,
               r.chain_version, r.chain_effective_at, {leap_since("r.change_xid")} as leap,
               case when shown <> r.source then shown end as shown
        from {table} r cross join lateral (select jsonb_build_object({pairs}) as shown) as columns
        where r.id = any(cast(:ids as uuid[]))""")  # noqa: S608  constants only


_COLUMNS = {"parent_id": "parent_source_id", "account_id": "account_source_id", "quantity": "quantity::text"}
_ACCOUNTS = _records("account", "null::uuid", {name: _COLUMNS.get(name, name) for name in ACCOUNT_FIELDS})
_SUBSCRIPTIONS = _records(
    "subscription", "r.account_id", {name: _COLUMNS.get(name, name) for name in SUBSCRIPTION_FIELDS}
)
_NOW = text(f"select now() as now, {LEAP} as leap")
_TAKEOVERS = text("""
    select record_id, field, value from takeover
    where record_id = any(cast(:ids as uuid[])) and released_at is null""")
# Asked only of streams whose history may have what is open: nothing above the highest version known is there.
_VERSIONS = text("""
    select h.record_id, h.version from history h
    join stream s on s.id = h.record_id and s.epoch = h.epoch
    join message m on m.stream_id = h.record_id and h.version in (m.version, s.version)
    where h.record_id = any(cast(:ids as uuid[])) and m.state in ('pending', 'waiting')
        and settled_on(m.state, m.decided_at) = 'infinity'""")
_HELD = text("""
    select stream_id, version from message
    where stream_id = any(cast(:ids as uuid[])) and state in ('quarantined', 'dead') and version is not null
        and settled_on(state, decided_at) = 'infinity'""")
_NEEDED = text("""
    select distinct waits_for from message
    where waits_for = any(cast(:ids as uuid[])) and settled_on(state, decided_at) = 'infinity'
      and (state = 'dead' or (state = 'waiting' and wait_reason in ('account_unknown', 'parent_unknown')))""")
_ABOVE_ACCOUNTS = text("""
    with recursive up as (
        select id, parent_id from account where id = any(cast(:ids as uuid[]))
        union select a.id, a.parent_id from account a join up on a.id = up.parent_id)
    select id, parent_id from up""")
_ABOVE_SUBSCRIPTIONS = text("""
    with recursive up as (
        select id, parent_id from subscription where id = any(cast(:ids as uuid[]))
        union select s.id, s.parent_id from subscription s join up on s.id = up.parent_id)
    select id, parent_id from up""")
_KNOWN = text("""
    select stream_id as id, true as has_state from staging
        where stream_id = any(cast(:ids as uuid[])) and action = 'state'
    union all select id, false from stream where id = any(cast(:ids as uuid[])) and deleted""")
_LINKABLE = text("""
    select connection_id from subscription
        where id = any(cast(:ids as uuid[])) and parent_id is null and parent_source_id is not null
    union select connection_id from staging
        where stream_id = any(cast(:ids as uuid[])) and body ->> 'parent_id' is not null""")
_KINDS = {kind.value: kind for kind in Kind}
_ORIGINS = {origin.value: origin for origin in Origin}
_ACTIONS = {action.value: action for action in Action}
_ORDERS = {order.value: order for order in OrderKind}
_STATES = {state.value: state for state in MessageState}
HIERARCHY_LOCK = text("select pg_advisory_xact_lock(hashtextextended(:connection_id, 7))")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A batch, and the entities as they were when it was loaded (``settle`` replaces them in the batch)."""

    batch: Batch
    before: Mapping[UUID, Entity]
    places: Mapping[UUID, Place]
    """Of the records that were there."""
    leap: int
    """Where a record that is new begins to count its places."""
    crowded: frozenset[UUID] = frozenset()
    """Streams with more open messages than were loaded."""


def load_batch(connection: Connection, ids: Sequence[UUID], can_fetch: Callable[[str], bool]) -> Loaded:
    """Load the entities of locked streams and everything that their decisions may ask."""
    messages = connection.execute(_OPEN, {"ids": id_array(ids), "most": MESSAGES_PER_STREAM}).all()
    crowded = frozenset(row.stream_id for row in messages if row.number > MESSAGES_PER_STREAM)
    return replace(_load(connection, list(ids), messages, can_fetch, lock=True), crowded=crowded)


def load_rehearsal(connection: Connection, chosen: Sequence[UUID], can_fetch: Callable[[str], bool]) -> Loaded:
    """Load as if the chosen messages were pending; nothing is locked."""
    listed = id_array(chosen)
    ids = list(connection.execute(_STREAMS_OF, {"chosen": listed}).scalars())
    messages = connection.execute(_CHOSEN, {"ids": id_array(ids), "chosen": listed}).all()
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
    listed = id_array(ids)
    streams = connection.execute(_STREAMS, {"ids": listed}).all()
    opened: dict[UUID, list[InboxMessage]] = defaultdict(list)
    for row in rows:
        opened[row.stream_id].append(_message(row, pending=row.id in as_pending))
    if lock:
        _lock_hierarchies(connection, listed, streams, opened)
    entities, places = _entities(connection, listed, streams, opened)
    connection_ids = list({entity.connection_id for entity in entities.values()})
    rules = load_rules(connection, connection_ids, entities.values(), can_fetch)
    moment = connection.execute(_NOW).one()
    batch = Batch(
        now=moment.now,
        entities=dict(entities),
        relatives=_relatives(connection, entities.values()),
        needed=set(connection.execute(_NEEDED, {"ids": listed}).scalars()),
        rules=rules,
        guards=load_guards(connection, entities, rules, lock=lock),
    )
    return Loaded(batch, entities, places, moment.leap)


def _lock_hierarchies(
    connection: Connection, ids: str, streams: Sequence[Row[Any]], opened: Mapping[UUID, Sequence[InboxMessage]]
) -> None:
    """One writer of links per connection at a time, so that two batches cannot close a cycle between them."""
    linking = {
        row.connection_id
        for row in streams
        if row.kind == Kind.ACCOUNT or any(m.body.get("parent_id") for m in opened.get(row.id, ()))
    }
    linking |= set(connection.execute(_LINKABLE, {"ids": ids}).scalars())
    for connection_id in sorted(linking):
        connection.execute(HIERARCHY_LOCK, {"connection_id": str(connection_id)})


def _entities(
    connection: Connection,
    ids: str,
    streams: Sequence[Row[Any]],
    opened: Mapping[UUID, Sequence[InboxMessage]],
) -> tuple[dict[UUID, Entity], dict[UUID, Place]]:
    staged = _staged(connection, ids)
    records: dict[UUID, Row[Any]] = {}
    for kind, statement in ((Kind.ACCOUNT, _ACCOUNTS), (Kind.SUBSCRIPTION, _SUBSCRIPTIONS)):
        own = [row.id for row in streams if row.kind == kind]
        if own:
            records |= {row.id: row for row in connection.execute(statement, {"ids": id_array(own)}).all()}
    taken: dict[UUID, dict[str, Any]] = defaultdict(dict)
    for row in connection.execute(_TAKEOVERS, {"ids": ids}).all():
        taken[row.record_id][row.field] = row.value
    held: dict[UUID, set[int]] = defaultdict(set)
    for stream, version in connection.execute(_HELD, {"ids": ids}).all():
        held[stream].add(version)
    versions = _versions(connection, [row.id for row in streams if _may_repeat(row, records, opened)])
    entities = {}
    for row in streams:
        own_id, kind = row.id, _KINDS[row.kind]
        record = records.get(own_id)
        entities[own_id] = Entity(
            id=own_id,
            tenant_id=row.tenant_id,
            connection_id=row.connection_id,
            kind=kind,
            source_id=row.source_id,
            position=_position(row),
            mirrored=None if record is None else _mirrored(kind, record),
            staged=staged.get((own_id, "state")),
            staged_end=staged.get((own_id, "deleted")),
            open=tuple(opened.get(own_id, ())),
            versions=frozenset(versions.get(own_id, ())),
            held=frozenset(held.get(own_id, ())),
            taken=taken.get(own_id, {}),
            laid={} if record is None else _laid(kind, record),
        )
    return entities, {key: _place(record) for key, record in records.items()}


def _staged(connection: Connection, ids: str) -> dict[tuple[UUID, str], InboxMessage]:
    kept = connection.execute(_STAGING, {"ids": ids}).all()
    if not kept:
        return {}
    stored = connection.execute(_STAGED, {"ids": id_array(row.message for row in kept)}).all()
    known = {row.id: row for row in stored}
    return {(row.stream_id, row.action): _staged_message(row, known.get(row.message)) for row in kept}


def _may_repeat(row: Row[Any], records: Mapping[UUID, Row[Any]], opened: Mapping[UUID, Sequence[InboxMessage]]) -> bool:
    """Whether history may have what is open, or the record has been lost from the mirror."""
    if row.version is None:
        return False
    if row.id not in records:
        return True
    return any(message.version is not None and message.version <= row.version for message in opened.get(row.id, ()))


def _versions(connection: Connection, streams: Sequence[UUID]) -> Mapping[UUID, set[int]]:
    found: dict[UUID, set[int]] = defaultdict(set)
    if streams:
        for record, version in connection.execute(_VERSIONS, {"ids": id_array(streams)}).all():
            found[record].add(version)
    return found


def _place(row: Row[Any]) -> Place:
    # Rows of the previous release have none: the tier above was told their revisions then.
    told = max(row.version, row.revision) if row.chain_version is None else row.chain_version
    return Place(max(told, row.version) + row.leap, row.chain_effective_at)


def _message(row: Row[Any], *, pending: bool = False) -> InboxMessage:
    return InboxMessage(
        id=row.id,
        seq=row.seq,
        message_id=row.message_id,
        origin=_ORIGINS[row.origin],
        action=_ACTIONS[row.action],
        order=_ORDERS[row.order_kind],
        version=row.version,
        sent_at=row.sent_at,
        effective_at=row.effective_at,
        received_at=row.received_at,
        body=row.body,
        state=MessageState.PENDING if pending else _STATES[row.state],
        wait_reason=None if row.wait_reason is None or pending else WaitReason(row.wait_reason),
        wait_until=row.wait_until,
        fetch_asked=row.fetch_asked,
        passed=tuple(row.passed),
        trace=row.trace,
        cleared=row.cleared,
        counted=row.verdict in PASSED_HELD,
    )


def _staged_message(row: Row[Any], stored: Row[Any] | None) -> InboxMessage:
    return InboxMessage(
        id=row.message,
        seq=0 if stored is None else stored.seq,
        message_id=row.message_id,
        origin=Origin.DOOR if stored is None else Origin(stored.origin),
        action=Action(row.action),
        order=OrderKind(row.order_kind),
        version=row.version,
        sent_at=row.sent_at,
        effective_at=row.effective_at,
        received_at=row.staged_at if stored is None else stored.received_at,
        body=row.body,
        state=MessageState.OUT_OF_SCOPE if stored is None else MessageState(stored.state),
        wait_reason=None if stored is None or stored.wait_reason is None else WaitReason(stored.wait_reason),
        wait_until=None if stored is None else stored.wait_until,
        fetch_asked=stored is not None and stored.fetch_asked,
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
        order=_ORDERS[row.order_kind],
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
    shown, source = row.shown, row.source
    laid = {} if shown is None else {name: value for name, value in shown.items() if value != source.get(name)}
    # A link that was bent by hand is put right like a column.
    if kind is Kind.SUBSCRIPTION and row.account_id != _linked(row, Kind.ACCOUNT, source.get("account_id")):
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
    for row in connection.execute(_KNOWN, {"ids": id_array(accounts | subscriptions)}).all():
        if row.has_state or row.id not in relatives:
            relatives[row.id] = Relative(Standing.STAGED if row.has_state else Standing.GONE)
    for statement, ids in ((_ABOVE_ACCOUNTS, accounts), (_ABOVE_SUBSCRIPTIONS, subscriptions)):
        if ids:
            for row in connection.execute(statement, {"ids": id_array(ids)}).all():
                relatives[row.id] = Relative(Standing.MIRRORED, row.parent_id)
    return relatives
