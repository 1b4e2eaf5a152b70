"""The inbox, as the line sees it: the one way in, for the door, polls, fetches, files and reconciliation alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from bss_sync.domain.change import Change
from bss_sync.domain.errors import MessageConflict
from bss_sync.domain.made_quickly import made_quickly


class Origin(StrEnum):
    """By which way a message came in."""

    DOOR = "door"  # the contract's webhook door
    HOOK = "hook"  # a system's own webhook format
    POLL = "poll"  # a poll of the source
    FETCH = "fetch"  # one entity fetched on demand: authoritative at an equal version
    BACKFILL = "backfill"  # the first load from the source's listing
    IMPORT = "import"  # a file
    RECONCILE = "reconcile"  # a repair: authoritative at an equal version


@made_quickly
@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of one connection: accepted as a whole or not at all.

    ``revision`` is the connection's revision that the request was verified with; None for what we asked for ourselves.
    ``trace`` is the traceparent (W3C) of the work that brought it, where that is traced.
    """

    tenant_id: UUID
    connection_id: UUID
    revision: int | None
    origin: Origin
    changes: Sequence[Change]
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """accepted + duplicates = what was sent. ``shard`` has work now; None while the connection is not processing."""

    accepted: int
    duplicates: int
    shard: int | None


@dataclass(frozen=True, slots=True)
class Stale:
    """The connection or its secrets changed since the request was verified: verify again and send again."""


class InboxStore(Protocol):
    """Stores arrivals durably."""

    def accept(self, arrivals: Sequence[Arrival]) -> list[Accepted | MessageConflict | Stale]:
        """One transaction for all arrivals; returns only after the commit, one answer per arrival, in order.

        A conflict (same key, other digest) refuses its whole arrival, leaves the others alone and is recorded in the
        audit; its message names the index of the element. The same arrival twice in one call: the second is a
        duplicate. DependencyDown when nothing could be stored.
        """
        ...
