"""The outbox, level-triggered: the mirror is the desired state, a delivery drives the external BSS to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol
from uuid import UUID

from bss_sync.domain.change import Json, Kind
from bss_sync.ports.breakers import FREE, Gate
from bss_sync.ports.connector import TargetClient, TargetRecord


@dataclass(frozen=True, slots=True)
class Desired:
    """A record as the mirror holds it now, ready to be written.

    ``fields``: the mirrored fields in canonical form, ``account_id``/``parent_id`` as *external* ids, and ``name``,
    ``bill_to`` and ``ended``. ``message`` wrote its present state; ``trace`` is that message's, where it was traced.
    """

    revision: int
    fields: Mapping[str, Json]
    message: UUID | None = None
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Intent:
    """What was once meant to be sent, kept until it is known to have taken effect. ``key`` makes a retry harmless."""

    key: str
    revision: int
    fields: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Claimed:
    """One record to deliver, leased. ``stored`` is the intent of an attempt whose end is not known.

    ``confirmed`` is what the external BSS is known to hold; None when that is not known.
    """

    record_id: UUID
    tenant_id: UUID
    connection_id: UUID
    kind: Kind
    token: int
    attempts: int
    external_id: str | None
    confirmed: Mapping[str, Json] | None
    stored: Intent | None
    desired: Desired
    again: bool = False
    """It failed before at the remote: calls for it are retries. Whoever was killed at it has failed at nothing."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The external BSS holds ``intent``. ``action``: created, updated, found (a lost answer) or unchanged."""

    claimed: Claimed
    external_id: str
    intent: Intent
    action: str


@dataclass(frozen=True, slots=True)
class Undelivered:
    """An attempt that failed.

    state          ``pending`` (nothing took effect), ``unknown`` (it may have) or ``dead``
    delay_seconds  until the next attempt; None for dead
    forget         ``intent`` (it certainly had no effect), ``binding`` (the external record is gone) or nothing
    counted        whether it counts as an attempt; the call that tries whether the target is back does not
    """

    claimed: Claimed
    state: str
    error: str
    delay_seconds: float | None
    forget: frozenset[str] = field(default_factory=frozenset)
    counted: bool = True


class DeliveryStore(Protocol):
    """Claims and settles deliveries. Every method is one transaction; leases use PostgreSQL's clock."""

    def claim(self, limit: int, retries: int | None = None) -> Sequence[Claimed]:
        """Lease due deliveries of live connections whose account and parent are bound; attempts + 1.

        Connections share the batch fairly; of records that failed before at most ``retries`` (None: any number).
        A delivery whose account or parent is not bound yet is set aside and woken by its confirmation.
        """
        ...

    def write_intents(self, intents: Sequence[tuple[Claimed, Intent]]) -> frozenset[UUID]:
        """Keep what is about to be sent; returns the records whose lease is still ours."""
        ...

    def settle(self, outcomes: Sequence[Delivered | Undelivered]) -> frozenset[UUID]:
        """Write what became of the attempts, with audit entries; returns the records whose lease was still ours.

        A record that changed meanwhile stays due. What waited for a new binding becomes due.
        """
        ...

    def release(self, claimed: Sequence[Claimed], delay_seconds: float) -> None:
        """Give leases back unused; the attempt does not count."""
        ...


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """The target's row."""

    connector: str
    tenant_id: UUID
    drift_policy: str
    poll_seconds: float


@dataclass(frozen=True, slots=True)
class OpenTarget:
    """The distributor's external BSS, ready to be called. ``gate`` is to be closed when the work is done."""

    settings: TargetSettings
    client: TargetClient
    gate: Gate = FREE


class Targets(Protocol):
    """Opens the target with its settings and secrets of now."""

    def target(self) -> OpenTarget | None:
        """None when no target is configured: the mirror is the distributor's BSS."""
        ...


@dataclass(frozen=True, slots=True)
class Binding:
    """What is known of one delivered record when an edit is looked for. ``busy``: a delivery is in flight."""

    record_id: UUID
    tenant_id: UUID
    connection_id: UUID
    kind: Kind
    source_id: str
    external_id: str | None
    confirmed: Mapping[str, Json] | None
    intent: Mapping[str, Json] | None
    busy: bool


@dataclass(frozen=True, slots=True)
class Violation:
    """A record that somebody edited in the external BSS: each locked field with (expected, found)."""

    binding: Binding
    record: TargetRecord | None
    fields: Mapping[str, tuple[Json, Json]]


@dataclass(frozen=True, slots=True)
class DriftPoll:
    """The lease on the target's change feed.

    ``unjudged``: a backup was restored. The feed begins with our own writes from after it, which look like another's:
    it is read to its end and no edit is found in it; reconciliation compares what is there.
    """

    cursor: str | None
    lease_until: datetime
    unjudged: bool = False


class DriftStore(Protocol):
    """The target's change feed and what was found in it. Every method is one transaction."""

    def claim_feed(self) -> DriftPoll | None:
        """The feed, when it is due and nobody else reads it."""
        ...

    def finish_feed(self, poll: DriftPoll, cursor: str | None, *, due_seconds: float, error: str | None) -> None:
        """Keep the cursor and say when it is due again; nothing when the lease was lost."""
        ...

    def bindings(self, record_ids: Sequence[UUID]) -> Mapping[UUID, Binding]:
        """What is known of these records."""
        ...

    def record(self, violations: Sequence[Violation], *, policy: str, run_id: UUID | None = None) -> int:
        """Keep each edited field once, with an audit entry ``lock.violated``; with ``repair`` make the delivery due.

        Returns how many fields were new.
        """
        ...

    def settle_reported(self, record_ids: Sequence[UUID]) -> None:
        """These records are as intended again: what was only reported of them is settled."""
        ...
