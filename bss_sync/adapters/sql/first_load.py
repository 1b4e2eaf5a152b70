"""First loads in PostgreSQL (ports/loading.py): a chunk's messages, streams, mirror and history in one transaction.

How it stays out of the line's way:
- Only entities without a stream are taken, and a worker makes a stream before it decides: whoever is second finds that
  a key exists already and undoes its whole transaction. A live message of such an entity is decided afterwards.
- The connection's row is share-locked, as the inbox does it: none is paused or closed meanwhile.
- Accounts that were out of scope and are needed now are locked as the line locks them, and none that has a lease.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.chain_places import place
from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.direct import Statements
from bss_sync.adapters.sql.first_rows import (
    anybody_waits,
    heard_of,
    plain_entries,
    store_settled,
    write_plain,
)
from bss_sync.adapters.sql.following import follow_known
from bss_sync.adapters.sql.history_rows import presents, write_history
from bss_sync.adapters.sql.inbox import touch
from bss_sync.adapters.sql.inbox_rows import UNTOUCHED, message_ids
from bss_sync.adapters.sql.mirror_rows import write_mirror
from bss_sync.adapters.sql.records import id_array
from bss_sync.adapters.sql.relatives import ask_relatives, needed_accounts, read_relatives
from bss_sync.adapters.sql.rules import ask_rules, read_rules
from bss_sync.adapters.sql.streams import planned_once
from bss_sync.adapters.sql.streams_load import HIERARCHY_LOCK, Loaded, load_known
from bss_sync.adapters.sql.streams_write import audit_entries, wake_set_free, write_settled, write_staging
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import Action, Change, Kind, MessageState, OrderKind, stream_id
from bss_sync.domain.errors import DependencyDown
from bss_sync.domain.tenancy import PROCESSING
from bss_sync.ports.inbox import Arrival
from bss_sync.ports.loading import Entered, New, NewBatch, Taken
from bss_sync.ports.streams import Batch, Entity, Settled

_SENDER = text(f"""
    select id, tenant_id, state, shard, order_kind, now() as now, {UNTOUCHED} from connection where id = :id
    for share""")  # noqa: S608  constants only
_PIN = text("update connection set order_kind = :order where id = :id and order_kind is null")
_FOR_GOOD = frozenset({MessageState.APPLIED, MessageState.OUT_OF_SCOPE})
# The accounts that these subscriptions call for, and theirs in turn, as far as nobody is at them.
_STAGED = text("""
    with recursive above as (
        select stream_id, body ->> 'parent_id' as parent, 1 as level from staging
        where stream_id = any(cast(:ids as uuid[])) and action = 'state' and kind = 'account'
        union select g.stream_id, g.body ->> 'parent_id', a.level + 1 from above a
        join stream t on t.connection_id = :connection and t.kind = 'account' and t.source_id = a.parent
        join staging g on g.stream_id = t.id and g.action = 'state' where a.level < 200)
    select s.id from stream s where s.id in (select stream_id from above)
        and s.unfinished = 0 and (s.lease_until is null or s.lease_until < now())
        and not exists (select from message m where m.stream_id = s.id
                        and settled_on(m.state, m.decided_at) = 'infinity')
    order by s.id for no key update of s""")
_PARENTED = text("""
    select exists (select from staging where stream_id = any(cast(:ids as uuid[])) and body ->> 'parent_id' is not null)
    """)


class SqlFirstLoad:
    """``ports.loading.ChunkStore`` over PostgreSQL. ``can_fetch`` tells whether a connector (by name) can fetch."""

    def __init__(self, database: Database, can_fetch: Callable[[str], bool]) -> None:
        self._database = database
        self._can_fetch = can_fetch

    def take(self, arrival: Arrival, enter: Callable[[NewBatch], Entered], follow: Callable[[Batch], Settled]) -> Taken:
        """See ChunkStore. A transaction for what is known, and one for what is new."""

        def known(connection: Statements, sender: Any, found: Arrival, candidates: dict[UUID, Change]) -> Taken:
            return follow_known(connection, found, candidates, sender, self._can_fetch, follow)

        def new(connection: Statements, sender: Any, found: Arrival, candidates: dict[UUID, Change]) -> Taken:
            return self._enter(connection, sender, found, candidates, enter)

        followed = self._part(arrival, known)
        try:
            entered = self._part(replace(arrival, changes=followed.left), new)
        except DependencyDown:
            if not followed.accepted:
                raise
            return followed
        return _joined(followed, entered)

    def _part(self, arrival: Arrival, take: _Take) -> Taken:
        """One transaction."""
        candidates = _candidates(arrival)
        if not candidates:
            return Taken(0, arrival.changes)
        try:
            with self._database.line(gives_way=False) as connection, planned_once(connection):
                sender = _lock_sender(connection, arrival, candidates)
                if sender.state not in PROCESSING:
                    return Taken(0, arrival.changes)
                taken = take(connection, sender, arrival, candidates)
        except psycopg.Error:
            # Somebody else has come to one of its entities first, or one of them cannot be written: this part is
            # undone, and workers find out which.
            return Taken(0, arrival.changes)
        if taken.accepted and sender.untouched:
            touch(self._database, [sender.id])
        return taken

    def _enter(
        self,
        connection: Statements,
        sender: Any,
        arrival: Arrival,
        candidates: dict[UUID, Change],
        enter: Callable[[NewBatch], Entered],
    ) -> Taken:
        heard = heard_of(connection, list(candidates))
        fresh = {
            key: change for key, change in candidates.items() if key not in heard and change.order == sender.order_kind
        }
        if not fresh:
            return Taken(0, arrival.changes)
        given, loaded, ours = self._load(connection, arrival, sender, fresh)
        entered = enter(given)
        return _write(connection, arrival, _Chunk(sender, given, loaded, ours), entered)

    def _load(
        self, connection: Statements, arrival: Arrival, sender: Any, fresh: Mapping[UUID, Change]
    ) -> tuple[NewBatch, Loaded, list[UUID]]:
        """The batch: what is new, and what is staged and called for by it, which is ours until the commit."""
        connection_id = arrival.connection_id
        accounts, subscriptions = _named(connection_id, fresh)
        scope = {"ids": id_array(accounts), "connection": connection_id}
        ours = list(connection.execute(_STAGED, scope).scalars()) if accounts else []
        if any(change.body["parent_id"] is not None for change in fresh.values()) or (
            ours and connection.execute(_PARENTED, {"ids": id_array(ours)}).scalar_one()
        ):
            # One writer of links at a time: two cannot close a cycle between them. What has no parent closes none.
            connection.execute(HIERARCHY_LOCK, {"connection_id": str(connection_id)})
        loaded = load_known(connection, ours, self._can_fetch)
        known = loaded.batch
        new_accounts = [key for key, change in fresh.items() if change.kind is Kind.ACCOUNT]
        products = {change.body["product"] for change in fresh.values() if change.kind is Kind.SUBSCRIPTION}
        batch = Batch(
            now=known.now,
            entities=known.entities,
            relatives=known.relatives | read_relatives(ask_relatives(connection, accounts, subscriptions)),
            needed=known.needed | (needed_accounts(connection, new_accounts) if new_accounts else set()),
            rules=read_rules(
                ask_rules(connection, [connection_id], known.entities.values(), products), self._can_fetch
            ),
        )
        news = {
            key: New(key, message, change)
            for message, (key, change) in zip(message_ids(len(fresh)), fresh.items(), strict=True)
        }
        given = NewBatch(sender.tenant_id, connection_id, arrival.origin, news, batch)
        return given, loaded, ours


_Take = Callable[[Statements, Any, Arrival, dict[UUID, Change]], Taken]


def _lock_sender(connection: Statements, arrival: Arrival, candidates: Mapping[UUID, Change]) -> Any:
    """The connection, share-locked until the commit; its order is pinned by the first that speaks one."""
    sender = connection.execute(_SENDER, {"id": arrival.connection_id}).one()
    if sender.order_kind is None:
        order = next(iter(candidates.values())).order
        connection.execute(_PIN, {"id": arrival.connection_id, "order": order})
        sender = connection.execute(_SENDER, {"id": arrival.connection_id}).one()
    return sender


def _joined(one: Taken, other: Taken) -> Taken:
    return Taken(
        one.accepted + other.accepted,
        other.left,
        one.shards | other.shards,
        one.deliveries or other.deliveries,
        one.fetches or other.fetches,
        Counter(one.states) + Counter(other.states),
    )


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What was loaded for a chunk. ``ours`` are streams that were there and are locked."""

    sender: Any
    given: NewBatch
    loaded: Loaded
    ours: list[UUID]


def _candidates(arrival: Arrival) -> dict[UUID, Change]:
    """By stream, the states that count by themselves; of what is named twice, none."""
    named = [
        (stream_id(arrival.connection_id, change.kind, change.source_id), change)
        for change in arrival.changes
        if change.action is Action.STATE and change.version is not None and change.order is not OrderKind.OBSERVED
    ]
    candidates = dict(named)
    if len(candidates) == len(arrival.changes):
        return candidates
    names = Counter((change.kind, change.source_id) for change in arrival.changes)
    return {key: change for key, change in named if names[change.kind, change.source_id] == 1}


def _named(connection_id: UUID, fresh: Mapping[UUID, Change]) -> tuple[set[UUID], set[UUID]]:
    """The accounts and the subscriptions that these name."""
    accounts: set[str] = set()
    parents: set[str] = set()
    for change in fresh.values():
        own = accounts if change.kind is Kind.ACCOUNT else parents
        if change.body["parent_id"] is not None:
            own.add(change.body["parent_id"])
        if change.body.get("account_id") is not None:
            accounts.add(change.body["account_id"])
    return (
        {stream_id(connection_id, Kind.ACCOUNT, name) for name in accounts},
        {stream_id(connection_id, Kind.SUBSCRIPTION, name) for name in parents},
    )


def _write(connection: Statements, arrival: Arrival, chunk: _Chunk, entered: Entered) -> Taken:
    """Everything that was decided for good. The audit comes last: its lock is held to the commit."""
    settled, given = entered.settled, chunk.given
    decided = {stream for stream, verdict in settled.verdicts.values() if verdict.state in _FOR_GOOD} & given.new.keys()
    deliveries, shards = False, set[int]()
    entries: list[AuditEntry] = []
    if entered.plain:
        deliveries = write_plain(connection, arrival.origin, chunk.sender, entered.plain, chunk.loaded.leap)
        entries += plain_entries(chunk.sender, entered.plain)
    if decided:
        part, loaded = settled.of(decided), _with_new(chunk, decided)
        store_settled(connection, arrival.origin, chunk.sender, part, {key: given.new[key] for key in decided})
        altered, due = _write_new(connection, part, loaded)
        deliveries = deliveries or due
        entries += audit_entries(loaded, part, altered)
    _wake(connection, chunk, entered, decided, shards)
    if chunk.ours:
        written = write_settled(connection, chunk.loaded, settled.of(set(chunk.ours)), chunk.ours)
        shards |= written.wake_shards
        deliveries = deliveries or written.deliveries
    append_audit(connection, entries)
    done = decided | {new.record_id for new, _content, _digest in entered.plain}
    taken = {id(given.new[key].change) for key in done}
    left = [change for change in arrival.changes if id(change) not in taken]
    states = Counter(verdict.state for stream, verdict in settled.verdicts.values() if stream in decided)
    states[MessageState.APPLIED] += len(entered.plain)
    return Taken(len(done), left, frozenset(shards), deliveries, states=states)


def _write_new(connection: Statements, settled: Settled, loaded: Loaded) -> tuple[dict[UUID, int], bool]:
    """Staging, mirror, history and outbox of new entities that the line has decided."""
    write_staging(connection, settled, loaded)
    places = place(settled, loaded)
    told = presents(settled, places)
    write_history(connection, settled, places, told)
    changed = [settled.entities[key] for key in settled.changed]
    return write_mirror(connection, changed, loaded.before, places, told)


def _wake(connection: Statements, chunk: _Chunk, entered: Entered, decided: Collection[UUID], shards: set[int]) -> None:
    """What waited for these has work now; nearly always nobody does."""
    if not anybody_waits(connection, chunk.sender):
        return
    plain = {new.record_id: _unheard(chunk, new.record_id) for new, _content, _digest in entered.plain}
    settled = entered.settled.of(decided)
    settled.entities |= plain
    settled.entered |= plain.keys()
    settled.moved |= plain.keys()
    before = {key: _unheard(chunk, key) for key in settled.entities}
    shards |= wake_set_free(connection, settled, before, id_array(()))


def _unheard(chunk: _Chunk, key: UUID) -> Entity:
    """A new entity as it was before."""
    given, change = chunk.given, chunk.given.new[key].change
    return Entity(key, given.tenant_id, given.connection_id, change.kind, change.source_id)


def _with_new(chunk: _Chunk, keys: Collection[UUID]) -> Loaded:
    return replace(chunk.loaded, before={key: _unheard(chunk, key) for key in keys}, places={})
