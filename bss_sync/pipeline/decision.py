"""What a decision may ask, and what it gives back. The words that every branch of ``merge`` uses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol
from uuid import UUID

from bss_sync.domain.change import MessageState
from bss_sync.domain.errors import UnknownValue
from bss_sync.domain.made_quickly import made_quickly
from bss_sync.ports.streams import (
    ConnectionRules,
    Entity,
    FetchRequest,
    Gap,
    HistoryRow,
    InboxMessage,
    Relative,
    Verdict,
)


class World(Protocol):
    """What a decision may ask about everything but its own entity."""

    now: datetime

    def rules(self, connection_id: UUID) -> ConnectionRules:
        """Today's rules of the connection."""
        ...

    def relative(self, record_id: UUID) -> Relative:
        """How another entity stands."""
        ...

    def is_needed(self, account_id: UUID) -> bool:
        """Whether a message waits for this account."""
        ...

    def closes_cycle(self, child: UUID, parent: UUID) -> bool:
        """Whether linking child below parent would close a cycle."""
        ...


@made_quickly
@dataclass(frozen=True, slots=True)
class Decision:
    """What one step changes. ``entity`` is as it is afterwards; ``changed``: its row in the mirror must be written."""

    entity: Entity
    verdicts: tuple[Verdict, ...] = ()
    history: tuple[HistoryRow, ...] = ()
    gap: Gap | None = None
    closed_gap: tuple[int, str] | None = None
    confirmed: int | None = None
    fetch: FetchRequest | None = None
    changed: bool = False
    needs: UUID | None = None


def verdict_on(message: InboxMessage, state: MessageState, word: str, reason: str | None = None) -> Verdict:
    """The verdict on a message. ``word`` says what was done, ``reason`` why, where there is one."""
    return Verdict(message.id, state, word, reason)


def superseded(entity: Entity, message: InboxMessage, word: str) -> Decision:
    """The message changes nothing in the present."""
    return Decision(entity, (verdict_on(message, MessageState.SUPERSEDED, word),))


def quarantined(entity: Entity, message: InboxMessage, error: UnknownValue) -> Decision:
    """Held until an admin maps the value."""
    verdict = replace(
        verdict_on(message, MessageState.QUARANTINED, "held", f"unknown_{error.field}"),
        held_field=error.field,
        held_value=error.value,
    )
    return Decision(entity, (verdict,))


def passed_unread(entity: Entity, message: InboxMessage, error: UnknownValue) -> Decision:
    """Below the present, and not to be read yet: it enters history when an admin maps the value."""
    verdict = replace(
        verdict_on(message, MessageState.SUPERSEDED, "late_unknown_value"),
        held_field=error.field,
        held_value=error.value,
    )
    return Decision(entity, (verdict,))


def fetch_of(entity: Entity, reason: str) -> FetchRequest:
    """Ask the source for this entity."""
    return FetchRequest(entity.id, entity.connection_id, entity.tenant_id, entity.kind, entity.source_id, reason)
