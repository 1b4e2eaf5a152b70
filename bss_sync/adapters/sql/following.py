"""Updates in PostgreSQL (ports/loading.py): what a chunk tells of known subscriptions, in one transaction.

How it stays out of the line's way:
- A stream is taken only while nobody is at it and nothing of it is open: no claim, no lease, no wake-up, no message
  that is pending, waits or is held. Its row is locked as the line locks it; one that is locked already is passed over,
  so that nobody waits for anybody crosswise. Whoever comes next decides with what is written here.
- What is written is what the line writes (``streams_write``), but that the messages are decided when they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from bss_sync.adapters.sql.direct import Statements
from bss_sync.adapters.sql.first_rows import store_followed
from bss_sync.adapters.sql.inbox_rows import message_ids
from bss_sync.adapters.sql.records import id_array
from bss_sync.adapters.sql.relatives import ask_relatives, read_relatives
from bss_sync.adapters.sql.rules import ask_rules, read_rules
from bss_sync.adapters.sql.stream_rows import laid_of, mirrored_of, place_of, position_of
from bss_sync.adapters.sql.streams_load import STREAM, SUBSCRIPTIONS, Loaded
from bss_sync.adapters.sql.streams_write import write_effects
from bss_sync.domain.change import Change, Kind, MessageState, stream_id
from bss_sync.ports.inbox import Arrival, Origin
from bss_sync.ports.loading import New, Taken
from bss_sync.ports.streams import Batch, Entity, InboxMessage, Settled

_IS_QUIET = """ and kind = 'subscription' and version is not null and not deleted
        and lease_until is null and ready_at is null and unfinished = 0 and solo_claims = 0
        and not exists (select from message m where m.stream_id = stream.id
                        and m.state in ('pending', 'waiting', 'quarantined', 'dead')
                        and settled_on(m.state, m.decided_at) = 'infinity')
        and not exists (select from staging g where g.stream_id = stream.id)
        and not exists (select from takeover o where o.record_id = stream.id and o.released_at is null)
        and id not in (select unnest(k.streams) from claim k where k.shard = :shard)
    order by id for no key update of stream skip locked"""
_QUIET = text(STREAM + _IS_QUIET)


def follow_known(
    connection: Statements,
    arrival: Arrival,
    candidates: Mapping[UUID, Change],
    sender: Any,
    can_fetch: Callable[[str], bool],
    follow: Callable[[Batch], Settled],
) -> Taken:
    """Store and decide what is above the present of quiet streams; the connection is share-locked."""
    wanted = [key for key, change in candidates.items() if _is_plain(change, sender)]
    streams = [
        row
        for row in connection.execute(_QUIET, {"ids": id_array(wanted), "shard": sender.shard}).all()
        if (candidates[row.id].version or 0) > row.version
    ]
    if not streams:
        return Taken(0, arrival.changes)
    arrived: dict[UUID, New] = {}
    arriving: dict[UUID, InboxMessage] = {}
    for row, message in zip(streams, message_ids(len(streams)), strict=True):
        change = candidates[row.id]
        arrived[message] = New(row.id, message, change)
        arriving[row.id] = _message(message, change, arrival.origin, sender.now)
    loaded = _load(connection, sender, streams, arriving, can_fetch)
    settled = follow(loaded.batch)
    if not settled.verdicts:
        return Taken(0, arrival.changes)
    store_followed(connection, arrival.origin, sender, settled, arrived)
    written = write_effects(connection, loaded, settled, list(settled.entities))
    taken = {id(arrived[message].change) for message in settled.verdicts}
    return Taken(
        len(taken),
        [change for change in arrival.changes if id(change) not in taken],
        written.wake_shards,
        written.deliveries,
        written.fetches,
        {MessageState.APPLIED: len(taken)},
    )


def _is_plain(change: Change, sender: Any) -> bool:
    return change.kind is Kind.SUBSCRIPTION and change.order == sender.order_kind and change.body["parent_id"] is None


def _load(
    connection: Statements,
    sender: Any,
    streams: Sequence[Any],
    arriving: Mapping[UUID, InboxMessage],
    can_fetch: Callable[[str], bool],
) -> Loaded:
    """What the rules may ask: of these streams nothing is open, staged or taken over, and they have no parents."""
    accounts = {
        stream_id(sender.id, Kind.ACCOUNT, account)
        for message in arriving.values()
        if (account := message.body["account_id"]) is not None
    }
    products = {message.body["product"] for message in arriving.values()}
    # All asked before any is read: they make one journey.
    found = connection.execute(SUBSCRIPTIONS, {"ids": id_array(row.id for row in streams)})
    relatives, rules = ask_relatives(connection, accounts, ()), ask_rules(connection, [sender.id], (), products)
    records = {row.id: row for row in found.all()}
    entities = {
        row.id: Entity(
            id=row.id,
            tenant_id=row.tenant_id,
            connection_id=row.connection_id,
            kind=Kind.SUBSCRIPTION,
            source_id=row.source_id,
            position=position_of(row),
            mirrored=mirrored_of(Kind.SUBSCRIPTION, records[row.id]),
            open=(arriving[row.id],),
            laid=laid_of(Kind.SUBSCRIPTION, records[row.id]),
        )
        for row in streams
        if row.id in records
    }
    batch = Batch(
        now=sender.now,
        entities=dict(entities),
        relatives=read_relatives(relatives),
        needed=set(),
        rules=read_rules(rules, can_fetch),
    )
    return Loaded(batch, entities, {key: place_of(record) for key, record in records.items()}, leap=0)


def _message(message: UUID, change: Change, origin: Origin, now: Any) -> InboxMessage:
    return InboxMessage(
        id=message,
        # It is numbered when it is stored, and the only one of its stream.
        seq=0,
        message_id=change.message_id,
        origin=origin,
        action=change.action,
        order=change.order,
        version=change.version,
        sent_at=change.sent_at,
        effective_at=change.effective_at,
        received_at=now,
        body=change.body,
        state=MessageState.PENDING,
        passed=change.passed,
    )
