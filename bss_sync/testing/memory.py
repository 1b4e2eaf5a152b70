"""The line's stores in memory: the same semantics as PostgreSQL's, for properties over thousands of schedules.

One object is inbox and streams at once. Time stands still unless ``now`` is moved. What it leaves out: leases of other
processes (there is one), the audit and the outbox, which are adapters' work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from uuid import UUID, uuid4

from bss_sync.domain.change import HELD, OPEN, Action, Change, Kind, MessageState, WaitReason, shard_of, stream_id
from bss_sync.domain.errors import MessageConflict
from bss_sync.domain.guard import Guard
from bss_sync.domain.product import Catalogue
from bss_sync.ports.inbox import Accepted, Arrival, Stale
from bss_sync.ports.streams import (
    Batch,
    Claim,
    ConnectionRules,
    Entity,
    FetchRequest,
    Gap,
    HistoryRow,
    InboxMessage,
    LittleWork,
    Position,
    Reach,
    Relative,
    Settled,
    Standing,
    Verdict,
    Written,
    is_live,
)


@dataclass
class StoredMessage:
    """A message with the last verdict on it."""

    stream: UUID
    message: InboxMessage
    verdict: Verdict | None = None
    waits_for: UUID | None = None


@dataclass
class MemoryLine:
    """Inbox and streams of any number of connections, in memory."""

    rules: dict[UUID, ConnectionRules] = field(default_factory=dict)
    tenants: dict[UUID, UUID] = field(default_factory=dict)
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    messages: dict[UUID, StoredMessage] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)
    keys: dict[tuple[UUID, str], bytes] = field(default_factory=dict)
    entities: dict[UUID, Entity] = field(default_factory=dict)
    history: list[HistoryRow] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    fetches: list[FetchRequest] = field(default_factory=list)
    ready: set[UUID] = field(default_factory=set)
    guard: tuple[int, float] | None = None
    """The guard's count and share; None: it is not in the way."""
    ended: Counter[UUID] = field(default_factory=Counter)
    stopped: Counter[UUID] = field(default_factory=Counter)

    def connect(
        self,
        *products: str,
        accounts_at_once: bool = False,
        can_fetch: bool = False,
        wait_seconds: float = 900,
    ) -> UUID:
        """A new live connection whose catalogue has ``products``; returns its id."""
        connection_id = uuid4()
        self.tenants[connection_id] = uuid4()
        self.rules[connection_id] = ConnectionRules(
            connection_id=connection_id,
            name=f"connection-{len(self.rules)}",
            catalogue=Catalogue(dict.fromkeys(products, False), {}),
            value_maps={},
            accounts_at_once=accounts_at_once,
            wait_seconds=wait_seconds,
            can_fetch=can_fetch,
        )
        return connection_id

    def accept(self, arrivals: Sequence[Arrival]) -> list[Accepted | MessageConflict | Stale]:
        """``ports.inbox.InboxStore.accept``."""
        return [self._accept(arrival) for arrival in arrivals]

    def _accept(self, arrival: Arrival) -> Accepted | MessageConflict:
        for index, change in enumerate(arrival.changes):
            known = self.keys.get((arrival.connection_id, change.message_id))
            if known is not None and known != change.digest:
                return MessageConflict(f"[{index}]: id {change.message_id!r} was sent before with another body.")
        fresh = 0
        for change in arrival.changes:
            key = (arrival.connection_id, change.message_id)
            if key in self.keys:
                continue
            self.keys[key] = change.digest
            fresh += 1
            record_id = stream_id(arrival.connection_id, change.kind, change.source_id)
            if record_id not in self.entities:
                self.entities[record_id] = Entity(
                    id=record_id,
                    tenant_id=arrival.tenant_id,
                    connection_id=arrival.connection_id,
                    kind=change.kind,
                    source_id=change.source_id,
                )
            message = self.message_of(arrival, change)
            self.messages[message.id] = StoredMessage(record_id, message)
        return Accepted(fresh, len(arrival.changes) - fresh, shard_of(arrival.connection_id))

    def message_of(self, arrival: Arrival, change: Change) -> InboxMessage:
        """A message as the inbox stores it, pending."""
        return InboxMessage(
            id=uuid4(),
            seq=next(self.numbers),
            message_id=change.message_id,
            origin=arrival.origin,
            action=change.action,
            order=change.order,
            version=change.version,
            sent_at=change.sent_at,
            effective_at=change.effective_at,
            received_at=self.now,
            body=change.body,
            state=MessageState.PENDING,
            passed=change.passed,
        )

    def claim(self, shard: int, limit: int) -> list[Claim]:
        """``ports.streams.StreamStore.claim``; there is no other worker."""
        pending = {item.stream for item in self.messages.values() if item.message.state is MessageState.PENDING}
        wanted = [key for key in self.entities if key in pending | self.ready and self._shard(key) == shard]
        return [Claim(key, 0, killer=False) for key in wanted[:limit]]

    def claim_little(self, shards: Sequence[int], limit: int) -> LittleWork:  # noqa: ARG002  it is never worth while
        """``ports.streams.StreamStore.claim_little``."""
        return LittleWork(behind=frozenset(shards))

    def _shard(self, key: UUID) -> int:
        return shard_of(self.entities[key].connection_id)

    def work(self, claims: Sequence[Claim], settle: Callable[[Batch], Settled]) -> tuple[Settled, Written]:
        """``ports.streams.StreamStore.work``."""
        ids = [claim.stream_id for claim in claims]
        self.ready -= set(ids)
        settled = settle(self._load(ids, frozenset()))
        self._write(settled, ids)
        shards = {self._shard(key) for key in self.ready}
        return settled, Written(frozenset(shards), deliveries=False, fetches=bool(settled.fetches))

    def rehearse(self, message_ids: Sequence[UUID], settle: Callable[[Batch], Settled]) -> Settled:
        """``ports.streams.StreamStore.rehearse``."""
        ids = list({self.messages[key].stream for key in message_ids})
        return settle(self._load(ids, frozenset(message_ids)))

    def release(self, claims: Sequence[Claim]) -> None:
        """``ports.streams.StreamStore.release``."""
        self.ready |= {claim.stream_id for claim in claims}

    def run(self, process: Callable[[MemoryLine, int], object]) -> None:
        """Call ``process`` until nothing is left to do: what workers and the sweeper do together."""
        for _round in range(10_000):
            shards = {self._shard(key) for key in self.ready} | {
                self._shard(item.stream)
                for item in self.messages.values()
                if item.message.state is MessageState.PENDING
            }
            if not shards:
                return
            for shard in sorted(shards):
                process(self, shard)
        raise AssertionError("the line never came to rest")

    def state_of(self, message_id: str) -> MessageState:
        """The state of the message with this sender's id."""
        return next(m.message.state for m in self.messages.values() if m.message.message_id == message_id)

    def _load(self, ids: Sequence[UUID], as_pending: frozenset[UUID]) -> Batch:
        entities = {}
        for key in ids:
            opened = []
            for item in self.messages.values():
                if item.stream != key:
                    continue
                if item.message.id in as_pending:
                    opened.append(replace(item.message, state=MessageState.PENDING))
                elif item.message.state in OPEN:
                    opened.append(item.message)
            entity = self.entities[key]
            versions = frozenset(
                row.version for row in self.history if row.record_id == key and row.epoch == entity.position.epoch
            )
            entities[key] = replace(
                entity,
                open=tuple(opened),
                versions=versions,
                held=self._held_versions(key),
                staged=self._as_it_stands(entity.staged),
                staged_end=self._as_it_stands(entity.staged_end),
            )
        needed = {
            item.waits_for
            for item in self.messages.values()
            if item.waits_for is not None
            and (
                item.message.state in (MessageState.DEAD, MessageState.PENDING)
                or (
                    item.message.state is MessageState.WAITING
                    and item.message.wait_reason in (WaitReason.ACCOUNT, WaitReason.PARENT)
                )
            )
        }
        relatives = {key: self._relative(entity) for key, entity in self.entities.items()}
        return Batch(self.now, entities, relatives, needed, self.rules, self._guards())

    def _as_it_stands(self, staged: InboxMessage | None) -> InboxMessage | None:
        """What is staged, as the inbox has it now: it may wait, with its deadline."""
        return None if staged is None else self.messages[staged.id].message

    def _guards(self) -> dict[UUID, Guard]:
        """Nothing passes out of the hour here: time stands still."""
        if self.guard is None:
            return {}
        live = Counter(entity.connection_id for entity in self.entities.values() if is_live(entity.mirrored))
        count, share = self.guard
        return {
            key: Guard(count, share, live[key] + self.ended[key], self.ended[key], stopped=self.stopped[key] > 0)
            for key in self.rules
        }

    def let_pass(self, connection_id: UUID) -> None:
        """An admin's yes to the ends that the guard has held."""
        self.ended[connection_id] = self.stopped[connection_id] = 0
        for key in self.held_by_guard():
            item = self.messages[key]
            item.message = replace(item.message, state=MessageState.PENDING, cleared=True)

    def held_by_guard(self) -> list[UUID]:
        """The ends that the guard has held."""
        return [
            key
            for key, item in self.messages.items()
            if item.message.state is MessageState.QUARANTINED
            and item.verdict is not None
            and item.verdict.reason == "guard"
        ]

    def _held_versions(self, key: UUID) -> frozenset[int]:
        mine = [item.message for item in self.messages.values() if item.stream == key]
        return frozenset(one.version for one in mine if one.state in HELD and one.version is not None)

    def _relative(self, entity: Entity) -> Relative:
        mirrored = entity.mirrored
        if mirrored is not None:
            parent = mirrored.content["parent_id"]
            linked = mirrored.parent_linked and parent is not None
            return Relative(Standing.MIRRORED, stream_id(entity.connection_id, entity.kind, parent) if linked else None)
        if entity.staged is not None:
            return Relative(Standing.STAGED)
        return Relative(Standing.GONE if entity.position.deleted else Standing.UNKNOWN)

    def _write(self, settled: Settled, ours: Sequence[UUID]) -> None:
        for key, (_stream, verdict) in settled.verdicts.items():
            item = self.messages[key]
            item.verdict, item.waits_for = verdict, verdict.waits_for
            item.message = replace(
                item.message,
                state=verdict.state,
                wait_reason=verdict.wait_reason,
                wait_until=verdict.wait_until,
                fetch_asked=verdict.fetch_asked,
            )
        heard = {key for key in settled.entities if self.entities[key].position.version is not None}
        for key, entity in settled.entities.items():
            reach = settled.reach(self.entities[key])
            self.entities[key] = replace(entity, open=(), versions=frozenset(), held=frozenset())
            if reach is not None:
                self._overtake(key, reach)
        self.history.extend(settled.history)
        self.ended.update(settled.ends)
        self.stopped.update(settled.guarded)
        self.gaps.extend(settled.gaps)
        for key, version, _message_id in settled.closed_gaps:
            self._close_gaps(key, version)
        self.fetches.extend(settled.fetches)
        self._open_again(settled, frozenset(ours), heard)
        self._wake(settled, frozenset(ours))

    def _open_again(self, settled: Settled, ours: frozenset[UUID], heard: set[UUID]) -> None:
        """What is known since of what has entered, and dead letters whose relative has come."""
        since = {key: version for key, version in settled.known_since().items() if key in heard}
        for item in self.messages.values():
            message = item.message
            known = message.state is MessageState.OUT_OF_SCOPE and item.stream in since
            later = message.version is not None and message.version > since.get(item.stream, message.version)
            if known and (message.action is Action.DELETED or later):
                item.message = replace(message, state=MessageState.PENDING)
            came = item.waits_for is not None and item.waits_for in settled.entered | settled.arrived
            if message.state is MessageState.DEAD and came and item.stream not in ours:
                item.message = replace(message, state=MessageState.PENDING, wait_until=None, fetch_asked=False)

    def _wake(self, settled: Settled, ours: frozenset[UUID]) -> None:
        for item in self.messages.values():
            released = item.waits_for in settled.entered | settled.arrived
            opened = item.message.wait_reason is WaitReason.CYCLE and bool(settled.moved)
            if item.message.state is MessageState.WAITING and (released or opened) and item.stream not in ours:
                self.ready.add(item.stream)
        for key in settled.needed - set(settled.entities):
            staged = self.entities[key].staged if key in self.entities else None
            if staged is not None and self.messages[staged.id].message.state is not MessageState.WAITING:
                self.ready.add(key)
        reparented = bool(settled.moved - settled.entered)
        for key, entity in self.entities.items():
            if entity.mirrored is None or entity.mirrored.parent_linked or key in ours:
                continue
            parent = entity.mirrored.content["parent_id"]
            parent_id = None if parent is None else stream_id(entity.connection_id, entity.kind, parent)
            known = None if parent_id is None else self.entities.get(parent_id)
            apart = reparented and known is not None and known.mirrored is not None
            if parent_id in settled.entered or apart:
                self.ready.add(key)

    def _close_gaps(self, key: UUID, version: int) -> None:
        """``gaps`` keeps the open ones."""
        kept = []
        for gap in self.gaps:
            hit = gap.stream_id == key and gap.from_version <= version <= gap.to_version
            missing = gap.missing - 1 if hit else gap.missing
            if missing > 0:
                kept.append(replace(gap, missing=missing))
        self.gaps = kept

    def begin_epoch(self, key: UUID) -> None:
        """An admin accepts that the source counts anew (``ports.reconciliation``)."""
        entity = self.entities[key]
        position = Position(epoch=entity.position.epoch + 1, epoch_at=self.now)
        self.entities[key] = replace(entity, position=position)

    def _overtake(self, key: UUID, reach: Reach) -> None:
        for item in self.messages.values():
            held = item.stream == key and item.message.state in HELD
            if held and reach.covers(item.message):
                item.message = replace(item.message, state=MessageState.SUPERSEDED)

    def mirror(self, kind: Kind) -> dict[str, Entity]:
        """The mirrored entities of a kind by source id."""
        return {e.source_id: e for e in self.entities.values() if e.kind is kind and e.mirrored is not None}
