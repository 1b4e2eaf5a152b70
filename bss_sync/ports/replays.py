"""Replays: stored messages decided anew, or given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from bss_sync.domain.change import Kind, MessageState


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message that a replay may concern. ``id`` is ours, ``message_id`` the sender's."""

    id: UUID
    message_id: str
    connection_id: UUID
    stream_id: UUID
    kind: Kind
    source_id: str
    state: MessageState


@dataclass(frozen=True, slots=True)
class Replayed:
    """How far a replay is: ``done`` of ``total`` messages are open again. ``shards`` have work by the last step.

    ``rest_seconds``: how long its rate lets nothing more be opened, by what the last step has opened.
    """

    done: int
    total: int
    shards: frozenset[int]
    rest_seconds: float

    @property
    def finished(self) -> bool:
        """Whether nothing is left to open."""
        return self.done >= self.total


@dataclass(frozen=True, slots=True)
class DueReplay:
    """A replay that nobody is at. ``rate``: messages a second; None: as fast as it goes."""

    run_id: UUID
    rate: float | None


class ReplayStore(Protocol):
    """Opens stored messages again. Each method is one transaction: a step that is killed has happened or has not."""

    def begin(self, ids: Sequence[UUID], *, actor: str, rate: float | None, lease_seconds: float) -> UUID | None:
        """A run of kind ``replay`` over these messages: whole entities, accounts first, each in the order of arrival.

        What is applied, superseded or pending is left out; None when nothing is left. For ``lease_seconds`` it is the
        caller's to carry on.
        """
        ...

    def step(self, run_id: UUID, limit: int, *, lease_seconds: float) -> Replayed | None:
        """Open about ``limit`` messages more, never a part of an entity's; audited as ``message.replayed`` each.

        The run is done with its last message. For its rate's rest and ``lease_seconds`` more it is the caller's to
        carry on. None when it is not running, or another process is just at it.
        """
        ...

    def due(self) -> DueReplay | None:
        """A running replay whose lease has run out."""
        ...

    def load(self, ids: Sequence[UUID]) -> Sequence[StoredMessage]:
        """These messages, in the order in which they came; ids that are unknown are left out."""
        ...

    def discard(self, ids: Sequence[UUID], reason: str, *, actor: str) -> int:
        """Give open or held messages up, with an audit entry ``message.discarded`` each; returns how many."""
        ...
