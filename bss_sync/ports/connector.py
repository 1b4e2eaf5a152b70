"""What bss_sync expects of a connector, and what a connector may expect in return.

A connector is one folder under ``connectors/`` with the same file names in each: ``config`` (a pydantic model of its
settings), ``client`` (calls to the system), ``webhook`` (verification and parsing of what it pushes), ``mapper``
(its records into the contract's shapes). It is registered through the entry-point group ``bss_sync.connectors`` as a
``ConnectorSpec`` and needs no change elsewhere.

Rules for both sides:
- A connector never touches the database and never imports requests: outbound calls go through ``HttpClient``.
- What it returns is in the contract's shape: ``Observation.body`` has every member that the contract's ``data`` has.
- It raises only errors of ``bss_sync.domain.errors``: ``Transient`` may be tried again, ``Terminal`` may not.
- Source ids are normalised by the connector where its system ignores case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from bss_sync.domain.change import Action, Change, Json, Kind, OrderKind
from bss_sync.domain.made_quickly import made_quickly
from bss_sync.ports.http import HttpClient


class ConnectionSettings(BaseModel):
    """Settings that every connection has, whatever its connector. Connectors' configs extend it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    account_scope: str = Field("first_paid", pattern="^(first_paid|all)$", description="When accounts are copied.")
    poll_seconds: float = Field(300, ge=0, description="Seconds between polls; 0 switches polling off.")
    silence_seconds: float = Field(86_400, ge=0, description="Silence longer than this is reported; 0: never.")
    guard_share: float = Field(0.10, gt=0, le=1, description="Share of records whose end makes the guard stop.")
    guard_count: int = Field(20, ge=0, description="Number of ended records below which the guard never stops.")
    staging_days: int = Field(400, ge=1, description="Days that out-of-scope state is kept.")
    wait_seconds: float = Field(900, ge=0, description="Seconds that a message waits for its parent until a fetch.")
    allow_http_private: bool = Field(False, description="Permit http and private addresses (test systems).")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a connector can do, as data.

    push     messages arrive at the contract's webhook door, signed as Standard Webhooks
    hooks    messages in the system's own format arrive at ``…/hooks``
    fetch    one entity can be fetched by its id
    list     all entities can be listed (reconcile, backfill)
    poll     changes since a cursor can be listed; without it a poll lists everything
    target   it can be the distributor's own BSS
    order    how its versions are ordered; None: each sender says (sequence or timestamp)
    """

    push: bool = False
    hooks: bool = False
    fetch: bool = False
    list: bool = False
    poll: bool = False
    target: bool = False
    order: OrderKind | None = None


@made_quickly
@dataclass(frozen=True, slots=True)
class Observation:
    """The state of one entity as the source showed it when asked, in the contract's shape.

    ``version`` is the source's own (sequence, or microseconds for timestamp), None for observed sources.
    ``body`` is None when the source says that the entity is gone (``deleted``). ``passed`` names the instances of
    bss_sync that it came through, the lowest first; empty for every other system.
    """

    kind: Kind
    source_id: str
    version: int | None
    body: Mapping[str, Json] | None
    changed_at: datetime | None = None
    effective_at: datetime | None = None
    passed: tuple[str, ...] = ()

    @property
    def action(self) -> Action:
        """DELETED when the source says that it is gone."""
        return Action.DELETED if self.body is None else Action.STATE


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a poll. ``cursor`` is opaque and is stored only after the page's messages are committed.

    ``anew``: the source could not go on from the cursor (a backup was restored there) and begins anew. What it has lost
    is in no page: the connection is compared when all is read.
    """

    observations: Sequence[Observation]
    cursor: str | None
    more: bool
    anew: bool = False


class SourceClient(Protocol):
    """A reseller's BSS that can be asked. Every call may raise Transient or Terminal."""

    def check(self) -> str:
        """One cheap call that proves address and credentials; returns what was seen, in one line."""
        ...

    def fetch(self, kind: Kind, source_id: str) -> Observation | None:
        """The present state; an Observation without body when it is known to be gone; None when never heard of."""
        ...

    def list_all(self) -> Iterator[Observation]:
        """Every entity, accounts before subscriptions, streaming. A listing that breaks off raises, never just ends."""
        ...

    def poll(self, cursor: str | None) -> Page:
        """Changes since ``cursor`` (None: from the beginning), oldest first; may repeat, must not miss."""
        ...


@runtime_checkable
class PagedSource(Protocol):
    """What a source may offer beside ``SourceClient``: a listing that can be gone on with.

    Whoever was killed between two pages goes on behind the last that was dealt with; and while one is compared, the
    next is read.
    """

    def list_page(self, cursor: str | None) -> Page:
        """What ``list_all`` gives, page by page; None: from the beginning. The last page has ``more`` False.

        A cursor stays good for days, and whatever lives from before the listing until its end is on some page.
        """
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A page of a listing as it was answered, not read yet.

    digest     SHA-256 of all that was answered. The same cursor, settings and digest: the same page, always
    following  the cursor of the page behind it; None: it is the last. Raises for an answer that is cut off
    read       what it says, in the contract's shape
    """

    digest: bytes
    following: Callable[[], str | None]
    read: Callable[[], Sequence[Observation]]


@runtime_checkable
class AnsweringSource(PagedSource, Protocol):
    """What a paged source may offer beside: its answers, before they are read.

    A page that is answered as it was when it was level, over a mirror that is as it was, is level: nobody reads it.
    """

    def answer_page(self, cursor: str | None) -> Answer:
        """What ``list_page`` reads, from the same cursors."""
        ...


class RangeForm(StrEnum):
    """What the sums of a range are made of."""

    TEXT = "text"  # ids as they are written
    UUID = "uuid"  # ids as 16 bytes: the only form of the release before


@dataclass(frozen=True, slots=True)
class RangeDigest:
    """What one range of ids comes to. Two sides hold the same versions of the same entities when theirs are equal.

    ``count`` is the number of entities, deleted ones included; ``sums`` are made of their ids, versions and deletions.
    """

    count: int
    sums: str
    form: RangeForm = RangeForm.TEXT


@runtime_checkable
class RangedSource(Protocol):
    """What a source may offer beside ``SourceClient``: to be compared by ranges of ids before anything is listed.

    A range is named by the first characters of the ids in it. How the sums are made is both sides' business
    (``bss_sync.adapters.sql.ranges``).
    """

    def ranges(self, receiver: str) -> Mapping[str, RangeDigest] | None:
        """Every range with an entity in it, without those that came through the instance ``receiver``.

        None when everything is to be listed and compared field by field.
        """
        ...

    def list_ranges(self, ranges: Sequence[str]) -> Iterator[Observation]:
        """Every entity of these ranges, as ``list_all`` gives them."""
        ...


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """One record as the distributor's external BSS holds it now.

    ``fields`` are the mirrored fields in canonical form plus ``ended`` (bool). ``changed_by``, ``changed_at``: as far
    as the BSS tells.
    """

    external_id: str
    kind: Kind
    reference: str
    fields: Mapping[str, Json]
    changed_by: str | None = None
    changed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class TargetWrite:
    """What a delivery wants the external BSS to hold.

    ``reference`` is our record id, kept by the BSS so that a create can be looked up; ``idempotency_key`` is the same
    on every retry of one intent. ``external_id`` is None for a create. ``fields`` hold the mirrored fields with
    ``account_id``/``parent_id`` replaced by the *external* ids of those records, ``name``, ``bill_to`` (the tenant
    reseller's name) and ``ended``: an end never removes the record.
    """

    kind: Kind
    reference: str
    external_id: str | None
    fields: Mapping[str, Json]
    idempotency_key: str


class TargetClient(Protocol):
    """The distributor's external BSS. A timeout after sending raises RemoteUnknown: look up before sending again."""

    def check(self) -> str:
        """One cheap call that proves address and credentials."""
        ...

    def look_up(self, kind: Kind, reference: str) -> TargetRecord | None:
        """The record that carries our reference, or None."""
        ...

    def write(self, write: TargetWrite) -> TargetRecord:
        """Create or update; returns what the BSS holds afterwards."""
        ...

    def changes(self, cursor: str | None) -> tuple[Sequence[TargetRecord], str | None, bool]:
        """Records changed since ``cursor`` (None: all), the next cursor, and whether more is waiting."""
        ...

    def list_all(self) -> Iterator[TargetRecord]:
        """Every record that carries a reference of ours, streaming."""
        ...


class HookParser(Protocol):
    """Verifies and parses what a system pushes in its own format to ``…/hooks``."""

    def parse(
        self, headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes], now: datetime
    ) -> Sequence[Change]:
        """The changes of one request. NotVerified when the signature is wrong, InvalidMessage when it is no message.

        ``headers`` have lower-case names. An event of the system that does not concern us gives an empty sequence.
        """
        ...


class ConnectorSpec(Protocol):
    """What an entry point gives: data about the connector and its factories."""

    name: str
    title: str
    capabilities: Capabilities
    config: type[ConnectionSettings]
    secret_names: Sequence[str]
    """Names of secrets that ``connection add --secret NAME=-`` takes, beside the webhook's own (``api_key``, …)."""

    def source(self, config: Any, secrets: Mapping[str, SecretStr], http: HttpClient) -> SourceClient | None:
        """The client that asks the system, or None when it can only push."""
        ...

    def target(self, config: Any, secrets: Mapping[str, SecretStr], http: HttpClient) -> TargetClient | None:
        """The client that writes to it as the distributor's BSS, or None."""
        ...

    def hooks(self, config: Any) -> HookParser | None:
        """The parser of its own webhook format, or None."""
        ...
