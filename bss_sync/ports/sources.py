"""Resellers' BSS that are asked: single entities, changes since a cursor, whole listings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from bss_sync.domain.change import Kind, OrderKind
from bss_sync.domain.tenancy import Connection
from bss_sync.ports.breakers import FREE, Gate
from bss_sync.ports.connector import Capabilities, ConnectionSettings, SourceClient


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A connection's source, ready to be called. ``gate`` is to be closed when the work is done.

    ``program``: a digest of the code that reads its answers.
    """

    connection: Connection
    capabilities: Capabilities
    config: ConnectionSettings
    client: SourceClient
    gate: Gate = FREE
    program: Callable[[], bytes] = bytes

    @property
    def order(self) -> OrderKind:
        """How its versions are ordered."""
        configured = getattr(self.config, "order", None)
        return self.connection.order or configured or self.capabilities.order or OrderKind.SEQUENCE


class Sources(Protocol):
    """Opens sources with their settings and secrets of now."""

    def source(self, connection_id: UUID, *, push_only: bool = False) -> OpenSource:
        """ConfigurationError when a setting or secret is wrong.

        CannotFetch when its connector can only push, unless that will do (``push_only``): its client then refuses.
        """
        ...


@dataclass(frozen=True, slots=True)
class FetchTask:
    """One entity to ask for, leased. ``asked`` grows with each wish: a wish that came during the fetch stays."""

    stream_id: UUID
    tenant_id: UUID
    connection_id: UUID
    kind: Kind
    source_id: str
    reason: str
    token: int
    attempts: int
    asked: int
    version: int | None
    """The version of the entity that we know, None when none is known."""
    again: bool = False
    """It failed before at the source: to ask is a retry."""
    reserved: int = 0
    """Retries that its claim has taken out of the budget; whoever opens the source holds them at its gate."""


class FetchStore(Protocol):
    """Wishes for single entities; one row per entity, so that fetches of one are serial. Each is one transaction."""

    def claim(self, limit: int) -> Sequence[FetchTask]:
        """Lease due wishes of processing connections, in fair shares; attempts + 1.

        None of a connection whose breaker is open, one to try when its time has come; of what has failed before, as
        much as the connection's retry budget affords.
        """
        ...

    def observed(self, task: FetchTask) -> bool:
        """The present state is in the inbox: notifications that waited for it are applied (verdict ``fetched``).

        False when the lease was lost. A wish that came meanwhile is due at once.
        """
        ...

    def not_found(self, task: FetchTask) -> bool:
        """The source has never heard of it: what waits for it is dead, ``not_found_at_source``."""
        ...

    def failed(self, task: FetchTask, error: str, delay_seconds: float, *, counted: bool = True) -> None:
        """Try again later; ``counted`` False: it was the remote's failure, or nothing was asked at all."""
        ...

    def given_up(self, task: FetchTask, reason: str) -> None:
        """It can never succeed: notifications that waited for it are dead with the reason."""
        ...


@dataclass(frozen=True, slots=True)
class PollTask:
    """One connection to ask for changes, leased. ``token`` is until when: whoever has another one is fenced."""

    connection_id: UUID
    tenant_id: UUID
    cursor: str | None
    failures: int
    token: datetime
    lost: bool = False
    """Whoever polled it last has not come back from it."""


class PollStore(Protocol):
    """When which connection is to be asked, and how far it was. Each method one transaction.

    A task whose lease another worker has taken over changes nothing any more.
    """

    def claim(self) -> PollTask | None:
        """Lease one due, processing connection whose breaker lets calls through."""
        ...

    def advanced(self, task: PollTask, cursor: str | None) -> PollTask:
        """The messages up to ``cursor`` are committed; keeps the lease, by the task that is answered. LeaseLost."""
        ...

    def finished(self, task: PollTask, due_seconds: float) -> None:
        """Done; due again after so many seconds."""
        ...

    def failed(self, task: PollTask, error: str, due_seconds: float) -> None:
        """Not done; try again after so many seconds."""
        ...


class ProbeStore(Protocol):
    """What probes of silent sources leave behind."""

    def probed(self, connection_id: UUID, *, alive: bool, detail: str) -> None:
        """Audit ``connection.probed``."""
        ...
