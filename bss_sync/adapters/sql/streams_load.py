"""Loads what the rules need to decide a batch: a fixed number of statements, however many streams it has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import Row, TextClause, text

from bss_sync.adapters.sql.chain_places import Place
from bss_sync.adapters.sql.direct import Answer, Statements
from bss_sync.adapters.sql.epochs import LEAP, leap_since
from bss_sync.adapters.sql.guards import load_guards
from bss_sync.adapters.sql.records import id_array
from bss_sync.adapters.sql.relatives import NEEDED, ask_relatives, read_relatives
from bss_sync.adapters.sql.rules import ask_rules, read_rules
from bss_sync.adapters.sql.stream_rows import (
    KINDS,
    laid_of,
    message_of,
    mirrored_of,
    place_of,
    position_of,
    staged_message_of,
)
from bss_sync.adapters.sql.stream_rows import shown_content as shown_content  # noqa: PLC0414  known by this name
from bss_sync.domain.account import FIELDS as ACCOUNT_FIELDS
from bss_sync.domain.change import Content, Kind, stream_id
from bss_sync.domain.subscription import FIELDS as SUBSCRIPTION_FIELDS
from bss_sync.ports.streams import (
    Batch,
    Entity,
    InboxMessage,
)

NEW_STREAM = -1
"""The token of a stream that has no row yet: whoever finds one there came second."""
MESSAGES_PER_STREAM = 200
"""Open messages of one stream in one batch: a hot stream shares a batch with others."""

STREAM = """
    select id, tenant_id, connection_id, kind, source_id, epoch, epoch_at, version, version_sent_at,
           version_message_id, version_seq, digest, deleted, token,
           ready_at is not null or lease_until is not null or unfinished > 0 or solo_claims > 0 as marked
    from stream where id = any(cast(:ids as uuid[]))"""
_STREAMS = text(STREAM)
# Its key never changes: whoever writes a row that refers to a stream need not wait, and is never met in a circle.
_LOCK = text(STREAM + " order by id for no key update")
# A new stream has no row that a closing could have fenced.
_PROCESSING = text("""
    select id from connection where id = any(:ids) and state in ('shadow', 'live') order by id for key share""")
_MESSAGE = """stream_id, id, seq, message_id, origin, action, order_kind, version, sent_at, effective_at, received_at,
    body, state, verdict, wait_reason, wait_until, fetch_asked, passed, trace, cleared"""
_OPEN = text(f"""
    select {_MESSAGE}, tenant_id, connection_id, kind, source_id, number from (
        select {_MESSAGE}, tenant_id, connection_id, kind, source_id,
            row_number() over (partition by stream_id order by state <> 'pending', seq) as place,
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
SUBSCRIPTIONS = _records(
    "subscription", "r.account_id", {name: _COLUMNS.get(name, name) for name in SUBSCRIPTION_FIELDS}
)
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
# What few entities have: looked at closely only where there is any.
_SEEN = text(f"""
    select array({NEEDED}) as needed,
        exists (select from staging where stream_id = any(cast(:known as uuid[]))) as staged,
        exists (select from takeover where record_id = any(cast(:known as uuid[])) and released_at is null) as taken,
        array(select distinct stream_id from message where stream_id = any(cast(:known as uuid[]))
                and state in ('quarantined', 'dead') and settled_on(state, decided_at) = 'infinity') as held,
        now() as now, {LEAP} as leap""")  # noqa: S608  constants only
_LINKABLE = text("""
    select connection_id from subscription
        where id = any(cast(:ids as uuid[])) and parent_id is null and parent_source_id is not null
    union select connection_id from staging
        where stream_id = any(cast(:ids as uuid[])) and body ->> 'parent_id' is not null""")
HIERARCHY_LOCK = text("select pg_advisory_xact_lock(hashtextextended(:connection_id, 7))")
# In the order in which they are given: two batches that want the same ones never wait for each other crosswise.
_HIERARCHY_LOCKS = text("""
    select pg_advisory_xact_lock(hashtextextended(cast(c.id as text), 7)) from (
        select id from unnest(cast(:ids as uuid[])) with ordinality as given (id, place) order by place) c""")


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
    fresh: frozenset[UUID] = frozenset()
    """Streams that have no row yet."""
    marked: frozenset[UUID] = frozenset()
    """Streams whose row says that somebody was to look at them, or has leased them."""
    held: frozenset[UUID] = frozenset()
    """Streams with held messages."""


def load_batch(connection: Statements, tokens: Mapping[UUID, int], can_fetch: Callable[[str], bool]) -> Loaded:
    """Lock the streams that have these tokens, load them, those that are new, and all that their decisions may ask.

    Nobody else writes them until the commit. Those whose token has moved on are left out.
    """
    values = {"ids": id_array(tokens)}
    locked = connection.execute(_LOCK, values)
    opened = connection.execute(_OPEN, values | {"most": MESSAGES_PER_STREAM})
    linkable = connection.execute(_LINKABLE, values)
    there = locked.all()
    streams = [row for row in there if row.token == tokens[row.id]]
    ours = {row.id for row in streams}
    fresh = {stream for stream, token in tokens.items() if token == NEW_STREAM} - {row.id for row in there}
    messages = [row for row in opened.all() if row.stream_id in ours or row.stream_id in fresh]
    crowded = frozenset(row.stream_id for row in messages if row.number > MESSAGES_PER_STREAM)
    new: dict[UUID, Row[Any]] = {}
    if fresh:
        new = {row.stream_id: row for row in messages if row.stream_id in fresh}
        asked = list({row.connection_id for row in new.values()})
        processing = set(connection.execute(_PROCESSING, {"ids": asked}).scalars())
        new = {key: row for key, row in new.items() if row.connection_id in processing}
        messages = [row for row in messages if row.stream_id in ours or row.stream_id in new]
    _lock_hierarchies(connection, set(linkable.scalars()), streams, messages, new)
    loaded = _load(connection, streams, _opened(messages), can_fetch, lock=True, new=new)
    return replace(loaded, crowded=crowded & loaded.before.keys())


def load_known(connection: Statements, ids: Sequence[UUID], can_fetch: Callable[[str], bool]) -> Loaded:
    """Load locked streams that have no open message; who writes links takes the hierarchy's lock by itself."""
    streams = connection.execute(_STREAMS, {"ids": id_array(ids)}).all()
    return _load(connection, streams, {}, can_fetch, lock=False)


def load_rehearsal(connection: Statements, chosen: Sequence[UUID], can_fetch: Callable[[str], bool]) -> Loaded:
    """Load as if the chosen messages were pending; nothing is locked."""
    listed = id_array(chosen)
    ids = list(connection.execute(_STREAMS_OF, {"chosen": listed}).scalars())
    messages = connection.execute(_CHOSEN, {"ids": id_array(ids), "chosen": listed}).all()
    streams = connection.execute(_STREAMS, {"ids": id_array(ids)}).all()
    return _load(connection, streams, _opened(messages, frozenset(chosen)), can_fetch, lock=False)


def _opened(rows: Sequence[Row[Any]], as_pending: frozenset[UUID] = frozenset()) -> dict[UUID, list[InboxMessage]]:
    opened: dict[UUID, list[InboxMessage]] = defaultdict(list)
    for row in rows:
        opened[row.stream_id].append(message_of(row, pending=row.id in as_pending))
    return opened


def _load(
    connection: Statements,
    streams: Sequence[Row[Any]],
    opened: Mapping[UUID, Sequence[InboxMessage]],
    can_fetch: Callable[[str], bool],
    *,
    lock: bool,
    new: Mapping[UUID, Row[Any]] = MappingProxyType({}),
) -> Loaded:
    known = {"known": id_array(row.id for row in streams)}
    answer = connection.execute(_SEEN, known | {"ids": id_array([*(row.id for row in streams), *new])})
    records = _ask_records(connection, streams)
    seen = answer.one()
    entities, places = _entities(connection, seen, streams, opened, _read_records(records))
    entities |= {key: _new_entity(key, row, opened[key]) for key, row in new.items()}
    connection_ids = list({entity.connection_id for entity in entities.values()})
    asked_rules = ask_rules(connection, connection_ids, entities.values())
    relatives = read_relatives(_ask_relatives(connection, entities.values()))
    rules = read_rules(asked_rules, can_fetch)
    batch = Batch(
        now=seen.now,
        entities=dict(entities),
        relatives=relatives,
        needed=set(seen.needed),
        rules=rules,
        guards=load_guards(connection, entities, rules, lock=lock),
    )
    return Loaded(
        batch,
        entities,
        places,
        seen.leap,
        fresh=frozenset(new),
        marked=frozenset(row.id for row in streams if row.marked),
        held=frozenset(seen.held),
    )


def _lock_hierarchies(
    connection: Statements,
    linkable: Collection[UUID],
    streams: Iterable[Row[Any]],
    messages: Iterable[Row[Any]],
    new: Mapping[UUID, Row[Any]],
) -> None:
    """One writer of links per connection at a time, so that two batches cannot close a cycle between them.

    That is: where a batch has an account, or something that names a parent.
    """
    linking = {row.connection_id for row in (*streams, *new.values()) if row.kind == Kind.ACCOUNT}
    linking |= {row.connection_id for row in messages if row.body.get("parent_id")}
    linking.update(linkable)
    if linking:
        connection.execute(_HIERARCHY_LOCKS, {"ids": id_array(sorted(linking))})


def _new_entity(key: UUID, row: Row[Any], opened: Sequence[InboxMessage]) -> Entity:
    return Entity(
        id=key,
        tenant_id=row.tenant_id,
        connection_id=row.connection_id,
        kind=KINDS[row.kind],
        source_id=row.source_id,
        open=tuple(opened),
    )


def _ask_records(connection: Statements, streams: Iterable[Row[Any]]) -> list[Answer]:
    """What the mirror has of them."""
    own: dict[str, list[UUID]] = defaultdict(list)
    for row in streams:
        own[row.kind].append(row.id)
    statements = {Kind.ACCOUNT: _ACCOUNTS, Kind.SUBSCRIPTION: SUBSCRIPTIONS}
    return [connection.execute(statements[KINDS[kind]], {"ids": id_array(ids)}) for kind, ids in own.items()]


def _read_records(answers: Iterable[Answer]) -> dict[UUID, Row[Any]]:
    return {row.id: row for answer in answers for row in answer.all()}


def _entities(
    connection: Statements,
    seen: Row[Any],
    streams: Sequence[Row[Any]],
    opened: Mapping[UUID, Sequence[InboxMessage]],
    records: Mapping[UUID, Row[Any]],
) -> tuple[dict[UUID, Entity], dict[UUID, Place]]:
    if not streams:
        return {}, {}
    ids = id_array(row.id for row in streams)
    staged = _staged(connection, ids) if seen.staged else {}
    taken: dict[UUID, dict[str, Any]] = defaultdict(dict)
    if seen.taken:
        for row in connection.execute(_TAKEOVERS, {"ids": ids}).all():
            taken[row.record_id][row.field] = row.value
    held: dict[UUID, set[int]] = defaultdict(set)
    if seen.held:
        for stream, version in connection.execute(_HELD, {"ids": id_array(seen.held)}).all():
            held[stream].add(version)
    versions = _versions(connection, [row.id for row in streams if _may_repeat(row, records, opened)])
    entities = {}
    for row in streams:
        own_id, kind = row.id, KINDS[row.kind]
        record = records.get(own_id)
        entities[own_id] = Entity(
            id=own_id,
            tenant_id=row.tenant_id,
            connection_id=row.connection_id,
            kind=kind,
            source_id=row.source_id,
            position=position_of(row),
            mirrored=None if record is None else mirrored_of(kind, record),
            staged=staged.get((own_id, "state")),
            staged_end=staged.get((own_id, "deleted")),
            open=tuple(opened.get(own_id, ())),
            versions=frozenset(versions.get(own_id, ())),
            held=frozenset(held.get(own_id, ())),
            taken=taken.get(own_id, {}),
            laid={} if record is None else laid_of(kind, record),
        )
    return entities, {key: place_of(record) for key, record in records.items()}


def _staged(connection: Statements, ids: str) -> dict[tuple[UUID, str], InboxMessage]:
    kept = connection.execute(_STAGING, {"ids": ids}).all()
    if not kept:
        return {}
    stored = connection.execute(_STAGED, {"ids": id_array(row.message for row in kept)}).all()
    known = {row.id: row for row in stored}
    return {(row.stream_id, row.action): staged_message_of(row, known.get(row.message)) for row in kept}


def _may_repeat(row: Row[Any], records: Mapping[UUID, Row[Any]], opened: Mapping[UUID, Sequence[InboxMessage]]) -> bool:
    """Whether history may have what is open, or the record has been lost from the mirror."""
    if row.version is None:
        return False
    if row.id not in records:
        return True
    return any(message.version is not None and message.version <= row.version for message in opened.get(row.id, ()))


def _versions(connection: Statements, streams: Sequence[UUID]) -> Mapping[UUID, set[int]]:
    found: dict[UUID, set[int]] = defaultdict(set)
    if streams:
        for record, version in connection.execute(_VERSIONS, {"ids": id_array(streams)}).all():
            found[record].add(version)
    return found


def _ask_relatives(connection: Statements, entities: Iterable[Entity]) -> Answer:
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
    return ask_relatives(connection, accounts, subscriptions)
