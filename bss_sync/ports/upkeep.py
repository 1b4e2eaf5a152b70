"""What the sweeper needs: what is stranded, who is silent, what is too old."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from bss_sync.ports.retention import Turn


@dataclass(frozen=True, slots=True)
class Hints:
    """Where there is work now, whoever may have been told before."""

    shards: tuple[int, ...]
    deliveries: bool
    fetches: bool
    polls: bool


@dataclass(frozen=True, slots=True)
class Silent:
    """A connection that has sent nothing for longer than its rhythm."""

    connection_id: UUID
    tenant_id: UUID
    name: str
    last_received_at: datetime | None
    silence_seconds: float


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows were too old, by table."""

    staging: int
    message_keys: int
    idempotency: int


class UpkeepStore(Protocol):
    """Small set-based statements over indexes, with PostgreSQL's clock. What a method writes, it writes as a whole."""

    def hints(self) -> Hints:
        """Wake waiting messages past their deadline, then say where there is work."""
        ...

    def settle_epoch(self) -> bool:
        """Put a restored backup in order, should this database have become one; whether it had.

        In more than one transaction where there is much to do.
        """
        ...

    def note_floor(self) -> None:
        """Note where a list of what changed since now would begin, and forget most of what is over a month old."""
        ...

    def wake_released(self) -> int:
        """Wake streams whose messages wait for what is mirrored by now, and staged accounts that messages wait for.

        Returns how many.
        """
        ...

    def settle_parking(self) -> int:
        """Un-park pending messages of processing connections and park those of others; returns how many."""
        ...

    def close_due(self) -> int:
        """Close the connections whose last day has begun, as it was approved; returns how many."""
        ...

    def mark_silent(self) -> Sequence[Silent]:
        """Mark and audit (``connection.silent``) connections that are newly silent, and return them."""
        ...

    def prune(self) -> Pruned:
        """Drop what is older than its time: staging, message keys, idempotency keys. A bounded number per call."""
        ...

    def retain(self) -> Turn | None:
        """The next step of a pass over messages and history (RetentionStore); None: nothing is left to do."""
        ...


class Hinting(Protocol):
    """Wake-ups as the sweeper sends them."""

    def process(self, *shards: int) -> None:
        """There are messages to decide in these shards: one hint, that one worker takes, for all of them."""
        ...

    def deliver(self) -> None:
        """There are records to deliver."""
        ...

    def fetch(self) -> None:
        """There are entities to fetch."""
        ...

    def poll(self) -> None:
        """There are sources, or the external BSS, to ask for changes."""
        ...

    def probe(self, connection_id: UUID) -> None:
        """This connection is silent."""
        ...
