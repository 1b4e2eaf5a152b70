"""Loads: what a listing, a file or a poll brings is stored and decided in one transaction, a chunk at a time.

The inbox (``ports.inbox``) stores first and lets a worker decide later, because whoever sent it must not wait for the
decision. Nobody waits for a chunk of what we have asked for: what is plain in it is decided at once, by the same rules
(``pipeline.entrance``), and everything else of it goes through the inbox as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from bss_sync.domain.change import Change, Content, MessageState
from bss_sync.domain.made_quickly import made_quickly
from bss_sync.ports.inbox import Arrival, Origin
from bss_sync.ports.streams import Batch, Settled


@made_quickly
@dataclass(frozen=True, slots=True)
class New:
    """A state of an entity that has no stream yet. ``message`` is the id that it gets in the inbox."""

    record_id: UUID
    message: UUID
    change: Change


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a chunk brings (``new``), and what its decisions may ask.

    The batch's entities are accounts that were out of scope and may be needed now; its relatives are all that the new
    ones name.
    """

    tenant_id: UUID
    connection_id: UUID
    origin: Origin
    new: Mapping[UUID, New]
    batch: Batch


@dataclass(frozen=True, slots=True)
class Entered:
    """What was decided: by the line, and (new, content, content's digest) of each that simply enters the mirror.

    Those that simply enter are subscriptions without a parent. What is decided otherwise than for good is left.
    """

    settled: Settled
    plain: Sequence[tuple[New, Content, bytes]]


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a chunk: ``accepted`` messages are stored and decided, ``left`` are for the inbox.

    ``shards`` have work now; ``deliveries``: something is due to be delivered; ``fetches``: something to be fetched.
    ``states`` counts what became of the accepted ones.
    """

    accepted: int
    left: Sequence[Change]
    shards: frozenset[int] = frozenset()
    deliveries: bool = False
    fetches: bool = False
    states: Mapping[MessageState, int] = field(default_factory=dict)


class ChunkStore(Protocol):
    """Takes chunks. One transaction each; nothing is stored of a chunk that fails."""

    def take(self, arrival: Arrival, enter: Callable[[NewBatch], Entered], follow: Callable[[Batch], Settled]) -> Taken:
        """Store and decide what is plain.

        ``enter``  entities that nobody has heard of: states that enter the mirror, or that are known out of scope now
        ``follow`` subscriptions at which nobody is, and of which nothing is open: states above all that is known. The
                   batch has them with their new states as open messages; what is in the answer is written

        Left are all others, what both do not decide for good, and everything while the connection is not processed.
        DependencyDown when nothing could be stored.
        """
        ...
