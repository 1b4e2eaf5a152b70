"""The inbox and the streams in memory, with leases, fencing tokens, claims made alone, an outbox and an audit.

What ``bss_sync.testing.memory`` leaves out for the rules' sake is here, with the semantics of PostgreSQL's stores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

from bss_sync.domain.change import HELD, OPEN, Json, Kind, MessageState, WaitReason, stream_id
from bss_sync.domain.errors import LeaseLost
from bss_sync.domain.product import Catalogue
from bss_sync.domain.tenancy import PROCESSING, ConnectionState
from bss_sync.ports.delivery import Intent
from bss_sync.ports.streams import Batch, Claim, Entity, LittleWork, Settled, Standing, Written
from bss_sync.testing.memory import MemoryLine, StoredMessage

SOLO_CLAIMS_MAX = 3


@dataclass(slots=True)
class Lease:
    """Who may write a stream. ``unfinished`` claims ended without a verdict, ``alone`` of them made alone.

    ``woken``: the claim took a wake-up along, which is due again should the claim never end.
    """

    token: int = 0
    until: datetime | None = None
    unfinished: int = 0
    alone: int = 0
    woken: bool = False


@dataclass(slots=True)
class Delivery:
    """One row of the outbox."""

    record_id: UUID
    due_at: datetime | None
    desired_revision: int = 1
    confirmed_revision: int = 0
    state: str = "pending"
    lease_until: datetime | None = None
    token: int = 0
    attempts: int = 0
    external_id: str | None = None
    confirmed: dict[str, object] | None = None
    intent: Intent | None = None
    """What was last meant to be sent; its key is empty once its end is known."""


@dataclass(slots=True)
class Wish:
    """One row of the wishes for single entities."""

    kind: Kind
    source_id: str
    reason: str
    due_at: datetime
    asked: int = 1
    token: int = 0
    attempts: int = 0
    lease_until: datetime | None = None


@dataclass
class SimulatedLine(MemoryLine):
    """``InboxStore`` and ``StreamStore`` with everything that other workers may do to it.

    ``fencing``, ``leasing`` and ``dedup`` are switched off only to show that the simulation notices.
    """

    lease_seconds: float = 30
    fencing: bool = True
    leasing: bool = True
    leases: dict[UUID, Lease] = field(default_factory=dict)
    deliveries: dict[UUID, Delivery] = field(default_factory=dict)
    wishes: dict[UUID, Wish] = field(default_factory=dict)
    revisions: dict[UUID, int] = field(default_factory=dict)
    changed_at: dict[UUID, datetime] = field(default_factory=dict)
    audit: Counter[tuple[UUID, MessageState]] = field(default_factory=Counter)
    target_configured: bool = True
    state: ConnectionState = ConnectionState.LIVE

    # --- claims -------------------------------------------------------------------------------------------------------

    def claim(self, shard: int, limit: int) -> list[Claim]:
        """``ports.streams.StreamStore.claim``."""
        if self.state not in PROCESSING:
            return []
        wanted = [key for key in self._wanted() if self._shard(key) == shard and self._is_free(key)]
        unfinished = [key for key in wanted if self._lease(key).unfinished > 0]
        if unfinished:
            return [self._take(min(unfinished, key=lambda key: (self._lease(key).alone, key)), alone=True)]
        return [self._take(key, alone=False) for key in wanted[:limit]]

    def claim_little(self, shards: Sequence[int], limit: int) -> LittleWork:
        """``ports.streams.StreamStore.claim_little``: of all that is pending, which is little here."""
        pending = {item.stream for item in self.messages.values() if item.message.state is MessageState.PENDING}
        free = [key for key in self._wanted() if self._shard(key) in shards and self._is_free(key)]
        little = [key for key in free if key in pending and self._lease(key).unfinished == 0]
        if self.state not in PROCESSING:
            return LittleWork()
        behind = frozenset(self._shard(key) for key in free if key not in little)
        return LittleWork([self._take(key, alone=False) for key in little[:limit]], behind)

    def _wanted(self) -> list[UUID]:
        pending: dict[UUID, None] = {}
        for item in self.messages.values():
            if item.message.state is MessageState.PENDING:
                pending[item.stream] = None
        taken_along = {key for key, lease in self.leases.items() if lease.woken}
        return [*pending, *sorted((self.ready | taken_along) - pending.keys())]

    def _lease(self, key: UUID) -> Lease:
        return self.leases.setdefault(key, Lease())

    def _is_free(self, key: UUID) -> bool:
        until = self._lease(key).until
        return not self.leasing or until is None or until < self.now

    def _take(self, key: UUID, *, alone: bool) -> Claim:
        lease = self._lease(key)
        killer, again = lease.alone >= SOLO_CLAIMS_MAX, lease.alone > 0
        lease.token += 1
        lease.until = self.now + timedelta(seconds=self.lease_seconds)
        lease.unfinished += 1
        lease.alone += alone
        lease.woken = lease.woken or key in self.ready
        self.ready.discard(key)
        return Claim(key, lease.token, killer, alone, again)

    def work(self, claims: Sequence[Claim], settle: Callable[[Batch], Settled]) -> tuple[Settled, Written]:
        """``ports.streams.StreamStore.work``."""
        ours = [c.stream_id for c in claims if not self.fencing or self._lease(c.stream_id).token == c.token]
        if not ours:
            raise LeaseLost(f"Another worker holds all {len(claims)} streams of this claim.")
        batch = self._load(ours, frozenset())
        before = dict(batch.entities)
        settled = settle(batch)
        self._note(before, settled)
        self._write(settled, ours)
        self._enqueue(before, settled)
        for key in ours:
            lease = self._lease(key)
            if settled.partial:
                lease.unfinished, lease.alone = 1, min(lease.alone, 2)
            else:
                lease.until, lease.unfinished, lease.alone, lease.woken = None, 0, 0, False
        shards = {self._shard(key) for key in self._wanted() if self._is_free(key)}
        return settled, Written(frozenset(shards), deliveries=bool(settled.changed), fetches=bool(settled.fetches))

    def decide_at_once(
        self, stored: Mapping[UUID, StoredMessage], ours: Sequence[UUID], settle: Callable[[Batch], Settled]
    ) -> Settled:
        """Store messages and decide them in one step; those without a verdict are not stored (``chunks``)."""
        self.messages |= stored
        batch = self._load(ours, frozenset())
        before = dict(batch.entities)
        settled = settle(batch)
        for key in stored.keys() - settled.verdicts.keys():
            del self.messages[key]
        before = {key: self.entities[key] for key in settled.entities} | before
        self._note(before, settled)
        self._write(settled, list(settled.entities))
        self._enqueue(before, settled)
        return settled

    def is_idle(self, key: UUID, *, woken: bool = False) -> bool:
        """Whether nobody is at a stream and nothing of it is open; ``woken``: although it may be looked at again."""
        lease = self._lease(key)
        called = (key in self.ready or lease.woken) and not woken
        return self._is_free(key) and not (lease.unfinished or lease.alone or called or self.waits(key))

    def release(self, claims: Sequence[Claim]) -> None:
        """``ports.streams.StreamStore.release``."""
        for claim in claims:
            lease = self._lease(claim.stream_id)
            if lease.token == claim.token:
                lease.until = None

    # --- what PostgreSQL's stores write beside ------------------------------------------------------------------------

    def _note(self, before: dict[UUID, Entity], settled: Settled) -> None:
        waited = {m.id for entity in before.values() for m in entity.open if m.state is MessageState.WAITING}
        for message_id, (_stream, verdict) in settled.verdicts.items():
            if verdict.state is not MessageState.WAITING or message_id not in waited:
                self.audit[message_id, verdict.state] += 1

    def _enqueue(self, before: dict[UUID, Entity], settled: Settled) -> None:
        for key in settled.changed:
            self.changed_at[key] = self.now
            entity = settled.entities[key]
            if _face(before[key]) == _face(entity):
                continue
            self.revisions[key] = self.revisions.get(key, 0) + 1
            if self.target_configured and self.state is ConnectionState.LIVE:
                self.make_due(key)
        for request in settled.fetches:
            wish = self.wishes.get(request.stream_id)
            if wish is None:
                self.wishes[request.stream_id] = Wish(request.kind, request.source_id, request.reason, self.now)
            else:
                wish.asked += 1
                wish.due_at = min(wish.due_at, self.now)
        self.fetches.clear()

    def make_due(self, key: UUID) -> None:
        """The record changed: its delivery is due."""
        row = self.deliveries.setdefault(key, Delivery(key, self.now))
        row.desired_revision, row.due_at, row.attempts = self.revisions[key], self.now, 0
        if row.state not in ("sending", "unknown"):
            row.state = "pending"

    # --- the sweeper --------------------------------------------------------------------------------------------------

    def sweep(self) -> bool:
        """``ports.upkeep``: wake what is past its deadline and what was released; whether anything has work now."""
        if self.state not in PROCESSING:
            return False
        for item in self.messages.values():
            message = item.message
            if message.state is not MessageState.WAITING:
                continue
            if message.wait_until is not None and message.wait_until <= self.now:
                self.ready.add(item.stream)
            if message.wait_reason in (WaitReason.PARENT, WaitReason.ACCOUNT) and item.waits_for is not None:
                self._wake_released(item.stream, item.waits_for, message.wait_reason)
        return any(self._is_free(key) for key in self._wanted())

    def _wake_released(self, stream: UUID, awaited: UUID, reason: WaitReason) -> None:
        entity = self.entities.get(awaited)
        if entity is None:
            return
        known = self.entities[stream].kind is Kind.SUBSCRIPTION and reason is WaitReason.PARENT
        if entity.mirrored is not None or (known and entity.position.version is not None):
            self.ready.add(stream)
        staged = entity.staged
        if staged is not None and self.messages[staged.id].message.state not in OPEN:
            self.ready.add(awaited)

    def held(self, key: UUID) -> bool:
        """Whether a message of the stream is quarantined or dead."""
        return any(item.stream == key and item.message.state in HELD for item in self.messages.values())

    def waits(self, key: UUID) -> bool:
        """Whether a message of the stream is not decided yet."""
        return any(item.stream == key and item.message.state in OPEN for item in self.messages.values())

    def offer(self, connection_id: UUID, code: str, *, retired: bool = False) -> None:
        """Put a product into the catalogue, or retire it; what is staged for it is looked at again."""
        self.set_product(connection_id, code, retired=retired)
        for key, entity in self.entities.items():
            if not retired and entity.staged is not None and entity.staged.body.get("product") == code:
                self.ready.add(key)

    def fetched(self, key: UUID) -> None:
        """The present state of the stream's entity is in the inbox: what waited for the fetch is applied."""
        for item in self.messages.values():
            waiting = item.message.state is MessageState.WAITING and item.message.wait_reason is WaitReason.FETCH
            if item.stream == key and waiting:
                self.decide(item.message.id, MessageState.APPLIED)

    def bury(self, key: UUID) -> None:
        """The source does not know the stream's entity: what waits for it is dead."""
        for item in self.messages.values():
            message = item.message
            fetching = item.stream == key and message.wait_reason is WaitReason.FETCH
            if message.state is MessageState.WAITING and (fetching or (item.waits_for == key and message.fetch_asked)):
                self.decide(message.id, MessageState.DEAD)

    def decide(self, key: UUID, state: MessageState) -> None:
        """A verdict from outside of the streams: a fetch that succeeded or failed."""
        item = self.messages[key]
        item.message = replace(item.message, state=state, wait_reason=None, wait_until=None)
        self.audit[key, state] += 1

    def forgive(self, key: UUID) -> None:
        """A replay claims the stream like any other again."""
        lease = self._lease(key)
        lease.unfinished = lease.alone = 0

    def move(self, state: ConnectionState) -> None:
        """Move the connection. What the target lacks is due once it is live."""
        self.state = state
        if state is ConnectionState.LIVE:
            for key, entity in self.entities.items():
                mirrored, row = entity.mirrored, self.deliveries.get(key)
                if mirrored is None or (row is None and (mirrored.deleted_at or mirrored.ended_at)):
                    continue
                if row is None or row.confirmed_revision < self.revisions[key]:
                    self.desire(key)

    def desire(self, key: UUID) -> None:
        """The target lacks the record's present."""
        row = self.deliveries.setdefault(key, Delivery(key, self.now))
        row.desired_revision = max(row.desired_revision, self.revisions[key])
        row.due_at = self.now if row.due_at is None else min(row.due_at, self.now)
        if row.state not in ("sending", "unknown"):
            row.state = "pending"

    def set_product(self, connection_id: UUID, code: str, *, retired: bool) -> None:
        """Change the catalogue of a connection."""
        rules = self.rules[connection_id]
        catalogue = Catalogue({**rules.catalogue.codes, code: retired}, rules.catalogue.mapped)
        self.rules[connection_id] = replace(rules, catalogue=catalogue)

    def link(self, entity: Entity, field_name: str) -> UUID | None:
        """The record that an entity is linked to by ``parent_id`` or ``account_id``."""
        assert entity.mirrored is not None, "only a mirrored record is linked"
        source_id = entity.mirrored.content.get(field_name)
        if source_id is None or (field_name == "parent_id" and not entity.mirrored.parent_linked):
            return None
        kind = Kind.ACCOUNT if field_name == "account_id" else entity.kind
        return stream_id(entity.connection_id, kind, source_id)

    def below(self, connection_id: UUID, source_id: str) -> frozenset[UUID]:
        """An account, and all that is linked below it in the mirror."""
        mirrored = [entity for entity in self.entities.values() if entity.mirrored is not None]
        above = {one.id: {self.link(one, name) for name in ("parent_id", "account_id")} for one in mirrored}
        found = {stream_id(connection_id, Kind.ACCOUNT, source_id)}
        while more := {key for key, links in above.items() if links & found} - found:
            found |= more
        return frozenset(found)

    def standing(self, key: UUID) -> Standing:
        """How an entity stands for others."""
        entity = self.entities.get(key)
        return Standing.UNKNOWN if entity is None else self._relative(entity).standing


def shown(entity: Entity) -> dict[str, Json]:
    """What the mirror's columns show: the source's content, and what was taken over on top of it."""
    assert entity.mirrored is not None, "only a mirrored record shows anything"
    return {**entity.mirrored.content, **entity.laid}


def _face(entity: Entity) -> tuple[object, ...] | None:
    mirrored = entity.mirrored
    if mirrored is None:
        return None
    return shown(entity), mirrored.parent_linked, mirrored.deleted_at, mirrored.ended_at, mirrored.ended_reason
