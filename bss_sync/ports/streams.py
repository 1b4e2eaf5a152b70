"""Streams: the messages of one entity in their order, claimed, decided and written in sets.

The line (``bss_sync.pipeline.line``) uses a ``StreamStore`` in two short transactions: ``claim`` takes leases and
counts the attempt, ``work`` locks the claimed streams, checks the fencing tokens, loads everything that the rules
need, and writes what was decided. Nothing is written by a claim whose lease another worker has taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from bss_sync.domain.change import Action, Content, Json, Kind, MessageState, OrderKind, WaitReason
from bss_sync.domain.guard import ENDED_STATUSES, Guard
from bss_sync.domain.made_quickly import made_quickly
from bss_sync.domain.product import Catalogue
from bss_sync.ports.inbox import Origin

SHARED_STREAMS = 128
"""Streams of a batch that several connections share: short, so that none waits long for the others' part."""


@made_quickly
@dataclass(frozen=True, slots=True)
class InboxMessage:
    """A stored message, as the rules see it. ``body`` is the contract's data, not translated yet."""

    id: UUID
    seq: int
    message_id: str
    origin: Origin
    action: Action
    order: OrderKind
    version: int | None
    sent_at: datetime
    effective_at: datetime
    received_at: datetime
    body: Mapping[str, Json]
    state: MessageState
    wait_reason: WaitReason | None = None
    wait_until: datetime | None = None
    fetch_asked: bool = False
    passed: tuple[str, ...] = ()
    trace: str | None = None
    cleared: bool = False
    """An admin has let it past the guard."""
    counted: bool = False
    """A later state has passed it when it was here already: its version is not missing, and it fills no gap."""


@made_quickly
@dataclass(frozen=True, slots=True)
class Position:
    """The highest version known of an entity, in scope or not. ``version`` is None when nothing is known yet.

    ``epoch`` grows when an admin accepts that the source counts anew (``version_regressed``); messages received before
    ``epoch_at`` belong to the past. ``sent_at`` and ``message_id`` are the evidence that wins or loses a tie, ``seq``
    is the inbox's number of the last message that said how the entity is: observed states have no other order.
    """

    epoch: int = 0
    epoch_at: datetime | None = None
    version: int | None = None
    sent_at: datetime | None = None
    message_id: str | None = None
    seq: int | None = None
    digest: bytes | None = None
    deleted: bool = False


@made_quickly
@dataclass(frozen=True, slots=True)
class Mirrored:
    """The present of a mirrored record. ``content`` is what the source says, before fields taken over are laid on."""

    content: Content
    version: int
    epoch: int
    order: OrderKind
    effective_at: datetime
    message: UUID
    deleted_at: datetime | None = None
    ended_at: datetime | None = None
    ended_reason: str | None = None
    parent_linked: bool = False
    passed: tuple[str, ...] = ()


@made_quickly
@dataclass(frozen=True, slots=True)
class Entity:
    """Everything known of one entity.

    ``taken`` are the open takeovers; ``laid`` are the values in which the mirror's columns differ from the content.
    ``versions`` are those of the open messages' versions, and of the position's, that history has already;
    ``held`` are the versions of held messages.
    """

    id: UUID
    tenant_id: UUID
    connection_id: UUID
    kind: Kind
    source_id: str
    position: Position = Position()
    mirrored: Mirrored | None = None
    staged: InboxMessage | None = None
    staged_end: InboxMessage | None = None
    open: tuple[InboxMessage, ...] = ()
    versions: frozenset[int] = frozenset()
    held: frozenset[int] = frozenset()
    taken: Mapping[str, Json] = field(default_factory=dict)
    laid: Mapping[str, Json] = field(default_factory=dict)


def is_live(mirrored: Mirrored | None) -> bool:
    """Whether a record counts as live for the guard: neither deleted nor ended, and of no final status."""
    if mirrored is None or mirrored.deleted_at is not None or mirrored.ended_at is not None:
        return False
    return mirrored.content.get("status") not in ENDED_STATUSES


class Standing(StrEnum):
    """How a relative of an entity stands."""

    UNKNOWN = "unknown"  # never heard of
    GONE = "gone"  # its deletion is known, its content is not
    STAGED = "staged"  # known, out of scope
    MIRRORED = "mirrored"  # in the mirror, live or deleted


@made_quickly
@dataclass(frozen=True, slots=True)
class Relative:
    """An account or parent that an entity refers to. ``parent_id`` is its link in the mirror."""

    standing: Standing
    parent_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class ConnectionRules:
    """Today's rules of one connection. ``instance_id`` is our own: what has passed it already is refused."""

    connection_id: UUID
    name: str
    catalogue: Catalogue
    value_maps: Mapping[tuple[str, str], str]
    accounts_at_once: bool
    wait_seconds: float
    can_fetch: bool
    instance_id: str = ""


@dataclass(slots=True)
class Batch:
    """What ``work`` loaded: the claimed entities and all that their decisions may ask."""

    now: datetime
    entities: dict[UUID, Entity]
    relatives: dict[UUID, Relative]
    needed: set[UUID]
    """Accounts that a waiting message needs: their ``first paid subscription`` is there."""
    rules: Mapping[UUID, ConnectionRules]
    guards: Mapping[UUID, Guard] = field(default_factory=dict)
    """By connection, of those of which this batch may end something."""


@made_quickly
@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one message."""

    message: UUID
    state: MessageState
    verdict: str
    reason: str | None = None
    waits_for: UUID | None = None
    wait_reason: WaitReason | None = None
    wait_until: datetime | None = None
    fetch_asked: bool = False
    held_field: str | None = None
    held_value: str | None = None
    stack: str | None = None


@made_quickly
@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One state of a record: effective when, by which message. ``late``: it came after a higher version."""

    record_id: UUID
    epoch: int
    version: int
    effective_at: datetime
    state: Content
    deleted: bool
    message: UUID
    ended_reason: str | None = None
    late: bool = False


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """Ask the source for one entity."""

    stream_id: UUID
    connection_id: UUID
    tenant_id: UUID
    kind: Kind
    source_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Versions that were jumped over. ``missing`` of them are not here yet."""

    stream_id: UUID
    from_version: int
    to_version: int
    missing: int


@dataclass(frozen=True, slots=True)
class Reach:
    """What is held below this version, or without a version came before this number, has been overtaken."""

    version: int
    seq: int | None

    def covers(self, message: InboxMessage) -> bool:
        """Whether the message, which is held, has been."""
        if message.version is not None:
            return message.version < self.version
        return message.action is Action.STATE and message.seq < (self.seq or 0)


@dataclass(slots=True)
class Settled:
    """Everything that a batch decided; written in one transaction."""

    entities: dict[UUID, Entity] = field(default_factory=dict)
    verdicts: dict[UUID, tuple[UUID, Verdict]] = field(default_factory=dict)
    """message id → (stream id, its last verdict)"""
    history: list[HistoryRow] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    closed_gaps: list[tuple[UUID, int, str]] = field(default_factory=list)
    """(stream id, version that arrived late, message id)"""
    fetches: list[FetchRequest] = field(default_factory=list)
    confirmed: dict[UUID, int] = field(default_factory=dict)
    """Stream id → the version at which the source answered us: what is held up to it has been settled."""
    entered: set[UUID] = field(default_factory=set)
    """Records that are new in the mirror."""
    arrived: set[UUID] = field(default_factory=set)
    """Entities that were never heard of before and are out of scope: an add-on need not wait for such a parent."""
    moved: set[UUID] = field(default_factory=set)
    """Accounts and add-ons whose parent changed: cycles may have opened."""
    changed: set[UUID] = field(default_factory=set)
    """Records whose row in the mirror must be written."""
    ends: dict[UUID, int] = field(default_factory=dict)
    """Connection id → how many of its live records have ended, without what an admin has let through."""
    guarded: dict[UUID, int] = field(default_factory=dict)
    """Connection id → how many ends the guard has held."""
    needed: set[UUID] = field(default_factory=set)
    """Staged accounts that messages of this batch wait for."""
    partial: bool = False
    """More follows under the same claim: the lease stays, and so does that it was claimed alone."""

    def of(self, keys: Collection[UUID]) -> Settled:
        """What was decided of some entities: whoever takes a part sees to ends and to who waits elsewhere himself."""
        entities = {key: entity for key, entity in self.entities.items() if key in keys}
        return Settled(
            entities=entities,
            verdicts={message: pair for message, pair in self.verdicts.items() if pair[0] in entities},
            history=[row for row in self.history if row.record_id in entities],
            gaps=[gap for gap in self.gaps if gap.stream_id in entities],
            closed_gaps=[gap for gap in self.closed_gaps if gap[0] in entities],
            fetches=[request for request in self.fetches if request.stream_id in entities],
            confirmed={key: version for key, version in self.confirmed.items() if key in entities},
            entered=self.entered & entities.keys(),
            arrived=self.arrived & entities.keys(),
            moved=self.moved & entities.keys(),
            changed=self.changed & entities.keys(),
        )

    def reach(self, before: Entity) -> Reach | None:
        """How far held messages of an entity are settled by this; None where nothing moved.

        An answer to a question of ours settles its own version too.
        """
        position, confirmed = self.entities[before.id].position, self.confirmed.get(before.id)
        if confirmed is None and position == before.position:
            return None
        return Reach(max(position.version or 0, -1 if confirmed is None else confirmed + 1), position.seq)

    def known_since(self) -> dict[UUID, int]:
        """Records that are new, or whose past was completed → the lowest version that was written of them.

        What was known above it, and was out of scope then, belongs to their history now.
        """
        versions: dict[UUID, int] = {}
        for row in self.history:
            if row.late or row.record_id in self.entered:
                versions[row.record_id] = min(row.version, versions.get(row.record_id, row.version))
        return versions


@made_quickly
@dataclass(frozen=True, slots=True)
class Claim:
    """The lease on one stream.

    ``killer``: three claims made alone ended without a verdict. ``alone``: it was claimed alone; ``again``: and an
    earlier claim made alone ended without a verdict. ``batch`` is the store's name of what was claimed together.
    """

    stream_id: UUID
    token: int
    killer: bool
    alone: bool = False
    again: bool = False
    batch: UUID | None = None


@dataclass(frozen=True, slots=True)
class LittleWork:
    """What was claimed of connections with few pending messages; ``behind``: shards that have work besides."""

    claims: Sequence[Claim] = ()
    behind: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Written:
    """What writing a batch set free: shards that have work now, and whether deliveries or fetches are due."""

    wake_shards: frozenset[int]
    deliveries: bool
    fetches: bool


class StreamStore(Protocol):
    """Claims and writes streams. Every method is one transaction."""

    def claim(self, shard: int, limit: int) -> list[Claim]:
        """Lease up to ``limit`` streams of the shard that have work, and count the attempt.

        A stream whose last claim ended without a verdict is claimed alone. Paused connections have no work. Where
        several connections have work they share a shorter batch, weighted by priority. Those with few pending messages
        are left out of it while another has many: ``claim_little`` has them, before such a batch or beside it.
        """
        ...

    def claim_little(self, shards: Sequence[int], limit: int) -> LittleWork:
        """Lease up to ``limit`` streams with pending messages of the connections that have few, in all these shards.

        Where few streams of a shard were woken, they are taken too. A batch costs much and each of its streams little,
        so a few messages of many resellers share one.
        """
        ...

    def work(self, claims: Sequence[Claim], settle: Callable[[Batch], Settled]) -> tuple[Settled, Written]:
        """Lock, load, let ``settle`` decide, write, release the leases, commit.

        What is ``partial`` keeps its leases: ``work`` is called again with the same claims, and should that never end,
        the claim counts as the first one made alone for what is left. Claims whose token is no longer theirs are left
        out; LeaseLost when none is left.
        """
        ...

    def rehearse(self, message_ids: Sequence[UUID], settle: Callable[[Batch], Settled]) -> Settled:
        """What ``settle`` would decide if these messages were pending now. Locks nothing, writes nothing."""
        ...

    def release(self, claims: Sequence[Claim]) -> None:
        """Give leases back after an error: the streams will be claimed alone."""
        ...
