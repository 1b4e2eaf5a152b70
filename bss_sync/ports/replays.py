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


class ReplayStore(Protocol):
    """Opens stored messages again. Each method is one transaction: a replay that is killed has happened or has not."""

    def load(self, ids: Sequence[UUID]) -> Sequence[StoredMessage]:
        """These messages, in the order in which they came; ids that are unknown are left out."""
        ...

    def reopen(self, ids: Sequence[UUID], *, actor: str) -> frozenset[int]:
        """Make them pending, with an audit entry ``message.replayed`` each; returns the shards to wake.

        Messages that are applied, superseded or pending by now are left alone.
        """
        ...

    def discard(self, ids: Sequence[UUID], reason: str, *, actor: str) -> int:
        """Give open or held messages up, with an audit entry ``message.discarded`` each; returns how many."""
        ...
