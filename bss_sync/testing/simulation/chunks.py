"""Chunks of loads and polls that are decided where they are stored, in memory (``ports.loading.ChunkStore``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from bss_sync.domain.change import Action, Change, Content, Kind, MessageState, OrderKind, stream_id
from bss_sync.domain.tenancy import PROCESSING
from bss_sync.ports.inbox import Arrival
from bss_sync.ports.loading import Entered, New, NewBatch, Taken
from bss_sync.ports.streams import Batch, Entity, HistoryRow, InboxMessage, Mirrored, Position, Settled, Verdict
from bss_sync.testing.memory import StoredMessage
from bss_sync.testing.simulation.line import SimulatedLine

_FOR_GOOD = frozenset({MessageState.APPLIED, MessageState.OUT_OF_SCOPE})


class NoChunks:
    """A ChunkStore that takes nothing: all that is asked for goes through the inbox."""

    def take(self, arrival: Arrival, enter: Callable[[NewBatch], Entered], follow: Callable[[Batch], Settled]) -> Taken:
        """See ChunkStore."""
        del enter, follow  # nothing is decided here
        return Taken(0, arrival.changes)


@dataclass
class MemoryChunks:
    """``ports.loading.ChunkStore`` over the line."""

    line: SimulatedLine

    def take(self, arrival: Arrival, enter: Callable[[NewBatch], Entered], follow: Callable[[Batch], Settled]) -> Taken:
        """See ChunkStore."""
        if self.line.state not in PROCESSING:
            return Taken(0, arrival.changes)
        followed = self._followed(arrival, follow)
        entered = self._entered(replace(arrival, changes=followed.left), enter)
        return replace(entered, accepted=followed.accepted + entered.accepted)

    def _followed(self, arrival: Arrival, follow: Callable[[Batch], Settled]) -> Taken:
        quiet = {key: change for key, change in _candidates(arrival).items() if self._is_quiet(key, change)}
        if not quiet or self._is_known(arrival, quiet.values()):
            return Taken(0, arrival.changes)
        stored = {key: self._stored(arrival, key, change) for key, change in quiet.items()}
        settled = self.line.decide_at_once(
            {item.message.id: item for item in stored.values()},
            list(quiet),
            lambda batch: follow(replace(batch, needed=set(), guards={})),
        )
        return self._taken(arrival, quiet, {stream for stream, _verdict in settled.verdicts.values()})

    def _is_quiet(self, key: UUID, change: Change) -> bool:
        """A subscription that is known below this version, at which nobody is and of which nothing is open."""
        entity = self.line.entities.get(key)
        if entity is None or change.kind is not Kind.SUBSCRIPTION or change.body["parent_id"] is not None:
            return False
        known = entity.position.version
        if known is None or entity.position.deleted or (change.version or 0) <= known:
            return False
        kept = entity.staged is not None or entity.staged_end is not None or entity.taken
        return not kept and self.line.is_idle(key) and not self.line.held(key)

    def _entered(self, arrival: Arrival, enter: Callable[[NewBatch], Entered]) -> Taken:
        fresh = {key: change for key, change in _candidates(arrival).items() if key not in self.line.entities}
        if not fresh or self._is_known(arrival, fresh.values()):
            return Taken(0, arrival.changes)
        stored = {key: self._stored(arrival, key, change) for key, change in fresh.items()}
        new = {key: New(key, item.message.id, fresh[key]) for key, item in stored.items()}
        ours = self._called_for(arrival.connection_id, fresh.values())

        def settle(batch: Batch) -> Settled:
            copy = replace(batch, entities=dict(batch.entities), guards={})
            given = NewBatch(arrival.tenant_id, arrival.connection_id, arrival.origin, new, copy)
            entered = enter(given)
            pairs = entered.settled.verdicts.values()
            decided = {stream for stream, verdict in pairs if verdict.state in _FOR_GOOD} & new.keys()
            settled = entered.settled.of(decided | set(ours))
            for one, content, digest in entered.plain:
                _enter(settled, arrival, stored[one.record_id].message, one, content, digest)
            for key in settled.entities.keys() & new.keys():
                self.line.entities[key] = _unheard(arrival, new[key])
            return settled

        settled = self.line.decide_at_once({item.message.id: item for item in stored.values()}, ours, settle)
        return self._taken(arrival, fresh, settled.entities.keys() & new.keys())

    def _called_for(self, connection_id: UUID, changes: Collection[Change]) -> list[UUID]:
        """The accounts out of scope that these name, and theirs in turn, as far as nobody is at them."""
        named = {change.body.get("account_id") for change in changes} | {
            change.body["parent_id"] for change in changes if change.kind is Kind.ACCOUNT
        }
        found: set[UUID] = set()
        while named := named - {None}:
            keys = {stream_id(connection_id, Kind.ACCOUNT, name) for name in named} - found
            staged = {key: one.staged for key in keys if (one := self.line.entities.get(key)) and one.staged}
            found |= staged.keys()
            named = {message.body["parent_id"] for message in staged.values()}
        return sorted(key for key in found if self.line.is_idle(key, woken=True) and not self.line.held(key))

    def _is_known(self, arrival: Arrival, changes: Collection[Change]) -> bool:
        """Whether one of these messages is stored already: a key that is there undoes the transaction."""
        return any((arrival.connection_id, change.message_id) in self.line.keys for change in changes)

    def _stored(self, arrival: Arrival, key: UUID, change: Change) -> StoredMessage:
        return StoredMessage(key, self.line.message_of(arrival, change))

    def _taken(self, arrival: Arrival, given: Mapping[UUID, Change], done: Collection[UUID]) -> Taken:
        for key in done:
            self.line.keys[arrival.connection_id, given[key].message_id] = given[key].digest
        taken = {id(given[key]) for key in done}
        return Taken(len(taken), [change for change in arrival.changes if id(change) not in taken])


def _candidates(arrival: Arrival) -> dict[UUID, Change]:
    """By stream, the states that count by themselves; of what is named twice, none."""
    names = Counter((change.kind, change.source_id) for change in arrival.changes)
    return {
        stream_id(arrival.connection_id, change.kind, change.source_id): change
        for change in arrival.changes
        if change.action is Action.STATE
        and change.version is not None
        and change.order is not OrderKind.OBSERVED
        and names[change.kind, change.source_id] == 1
    }


def _unheard(arrival: Arrival, new: New) -> Entity:
    """A new entity as it was before."""
    return Entity(new.record_id, arrival.tenant_id, arrival.connection_id, new.change.kind, new.change.source_id)


def _enter(
    settled: Settled, arrival: Arrival, message: InboxMessage, new: New, content: Content, digest: bytes
) -> None:
    """What simply enters, as the line would have decided it."""
    change, version = new.change, message.version
    assert version is not None, "only counted states simply enter"
    settled.entities[new.record_id] = replace(
        _unheard(arrival, new),
        position=Position(
            version=version, sent_at=change.sent_at, message_id=change.message_id, seq=message.seq, digest=digest
        ),
        mirrored=Mirrored(content, version, 0, change.order, change.effective_at, new.message, passed=change.passed),
    )
    settled.verdicts[new.message] = (new.record_id, Verdict(new.message, MessageState.APPLIED, "entered"))
    settled.history.append(
        HistoryRow(new.record_id, 0, version, change.effective_at, content, deleted=False, message=new.message)
    )
    for touched in (settled.entered, settled.moved, settled.changed):
        touched.add(new.record_id)
