"""One way to tell a story about a reseller's BSS, played by the line in memory and by the line on PostgreSQL.

A ``Scenario`` sends what the source would send, lets the line come to rest, and shows what became of it. Tests are
written once and run on both, so that the twin in memory cannot promise what PostgreSQL does not keep.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from bss_sync.domain.change import Action, Change, Json, Kind, OrderKind, timestamp_version
from bss_sync.ports.inbox import Origin

START = datetime(2026, 1, 1, tzinfo=UTC)
ACCOUNT, SUBSCRIPTION = Kind.ACCOUNT, Kind.SUBSCRIPTION
WAIT_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Shown:
    """A mirrored record as its readers see it. ``parent`` and ``account`` are the source ids that it is linked to."""

    values: Mapping[str, Json]
    version: int
    deleted: bool
    ended: str | None
    parent: str | None
    account: str | None

    def __getitem__(self, name: str) -> Json:
        return self.values[name]


class Told(NamedTuple):
    """One row of history."""

    version: int
    effective_at: datetime
    state: Mapping[str, Json]
    deleted: bool
    late: bool
    ended: str | None
    epoch: int


class Hole(NamedTuple):
    """One gap that is still open."""

    first: int
    last: int
    missing: int


class Asked(NamedTuple):
    """One entity that is to be fetched."""

    kind: Kind
    source_id: str


def account_body(parent: str | None = None, **other: Json) -> dict[str, Json]:
    """An account's state in the contract's words."""
    return {"name": "Cloud Customer X", "number": None, "email": None, "kind": "customer", "parent_id": parent} | other


def subscription_body(account: str | None = None, parent: str | None = None, **other: Json) -> dict[str, Json]:
    """A subscription's state in the contract's words: paid, active, one of the distributor's products."""
    return {
        "account_id": account,
        "parent_id": parent,
        "product": "OURS-1",
        "status": "active",
        "trial": False,
        "start_date": "2026-01-01",
        "end_date": None,
        "activation_date": None,
        "cancellation_date": None,
        "auto_renew": True,
        "billing_cycle": "P1M",
        "term": "P1Y",
        "quantity": "1",
        "characteristics": {},
    } | other


@dataclass(kw_only=True)
class Scenario(ABC):
    """A live connection and the line behind it. ``sent`` counts messages: each is sent a minute after the last."""

    sent: int = 0
    order: OrderKind = OrderKind.SEQUENCE

    # --- what the source does ---------------------------------------------------------------------------------------

    def change(
        self,
        kind: Kind,
        source_id: str,
        version: int | datetime | None,
        body: Mapping[str, Json] | None,
        *,
        action: Action = Action.STATE,
        message_id: str | None = None,
        sent_at: datetime | None = None,
        effective_at: datetime | None = None,
    ) -> Change:
        """A message that is not sent yet. A version that is a moment makes it a timestamp source's."""
        self.sent += 1
        sent_at = sent_at or START + timedelta(minutes=self.sent)
        order = self.order
        if isinstance(version, datetime):
            order, version = OrderKind.TIMESTAMP, timestamp_version(version)
        identity = message_id or f"msg-{self.sent}"
        text = json.dumps([kind, source_id, action, version, body], sort_keys=True)
        return Change(
            message_id=identity,
            kind=kind,
            source_id=source_id,
            action=action,
            version=version,
            sent_at=sent_at,
            effective_at=effective_at or sent_at,
            body=dict(body or {}),
            digest=hashlib.sha256(text.encode()).digest(),
            order=order,
        )

    def send(self, *changes: Change, origin: Origin = Origin.DOOR, work: bool = True) -> str:
        """Accept the messages together and let the line come to rest; returns the first one's id."""
        self.accept(changes, origin)
        if work:
            self.work()
        return changes[0].message_id

    def account(
        self, source_id: str, version: int | datetime | None = 1, parent: str | None = None, **other: Json
    ) -> str:
        """The source says how an account is."""
        return self.send(self.change(ACCOUNT, source_id, version, account_body(parent, **other)))

    def subscription(
        self,
        source_id: str,
        version: int | datetime | None = 1,
        account: str | None = None,
        parent: str | None = None,
        **other: Json,
    ) -> str:
        """The source says how a subscription is."""
        return self.send(self.change(SUBSCRIPTION, source_id, version, subscription_body(account, parent, **other)))

    def delete(self, kind: Kind, source_id: str, version: int | datetime | None) -> str:
        """The source says that an entity is gone."""
        return self.send(self.change(kind, source_id, version, None, action=Action.DELETED))

    def notify(self, kind: Kind, source_id: str) -> str:
        """The source says only that something changed."""
        return self.send(self.change(kind, source_id, None, None, action=Action.NOTIFIED))

    def answer(
        self, kind: Kind, source_id: str, version: int | datetime | None, body: Mapping[str, Json] | None, **other: Any
    ) -> str:
        """The source answers a question of ours: a fetch unless ``origin`` says otherwise."""
        origin = other.pop("origin", Origin.FETCH)
        action = Action.DELETED if body is None else Action.STATE
        return self.send(self.change(kind, source_id, version, body, action=action, **other), origin=origin)

    # --- what happened ----------------------------------------------------------------------------------------------

    def shown(self, kind: Kind, source_id: str) -> Shown:
        """A record that must be in the mirror."""
        found = self.mirror(kind, source_id)
        assert found is not None, f"{kind} {source_id} is not in the mirror"
        return found

    def reason(self, message_id: str) -> str | None:
        """Why a message stands as it does."""
        return self.verdict(message_id)[2]

    def state(self, message_id: str) -> str:
        """Where a message stands."""
        return self.verdict(message_id)[0]

    def word(self, message_id: str) -> str | None:
        """What was decided about a message, in a word."""
        return self.verdict(message_id)[1]

    def as_of(self, kind: Kind, source_id: str, moment: datetime) -> Told | None:
        """What was true at a moment, as we know it now."""
        known = [(row.epoch, row.version, place, row) for place, row in enumerate(self.history(kind, source_id))]
        there = [item for item in known if item[3].effective_at <= moment]
        return max(there, key=lambda item: item[:3])[3] if there else None

    def children(self, source_id: str) -> set[str]:
        """The accounts that are linked below one."""
        return {key for key in self.mirrored(ACCOUNT) if self.shown(ACCOUNT, key).parent == source_id}

    def settled(self) -> bool:
        """Whether no message is open."""
        return not {"pending", "waiting"} & set(self.states())

    # --- what each line does in its own way -------------------------------------------------------------------------

    @abstractmethod
    def accept(self, changes: Sequence[Change], origin: Origin) -> None:
        """Store messages."""

    @abstractmethod
    def work(self) -> None:
        """Process until nothing is left to do: what workers and the sweeper do together."""

    @abstractmethod
    def verdict(self, message_id: str) -> tuple[str, str | None, str | None]:
        """State, word and reason of a message."""

    @abstractmethod
    def states(self) -> list[str]:
        """The states of all messages."""

    @abstractmethod
    def mirror(self, kind: Kind, source_id: str) -> Shown | None:
        """A record of the mirror, tombstones included."""

    @abstractmethod
    def mirrored(self, kind: Kind) -> set[str]:
        """Source ids of a kind's records."""

    @abstractmethod
    def history(self, kind: Kind, source_id: str) -> list[Told]:
        """The rows of a record's history, as they were recorded."""

    @abstractmethod
    def gaps(self, kind: Kind, source_id: str) -> list[Hole]:
        """Open gaps."""

    @abstractmethod
    def fetches(self) -> set[Asked]:
        """What is to be fetched."""

    @abstractmethod
    def pass_time(self, seconds: float) -> None:
        """Let time go by, and the line notice it."""

    @abstractmethod
    def offer(self, code: str) -> None:
        """Put a product into the catalogue."""

    @abstractmethod
    def retire(self, code: str) -> None:
        """Let nothing new of a product in."""

    @abstractmethod
    def map_value(self, name: str, source_value: str, canonical: str) -> None:
        """An admin maps an unknown value."""

    @abstractmethod
    def take(self, kind: Kind, source_id: str, name: str, value: Json) -> None:
        """An admin takes a field over and sets it."""

    @abstractmethod
    def give_back(self, kind: Kind, source_id: str, name: str) -> None:
        """An admin gives a field back."""

    @abstractmethod
    def replay(self, *message_ids: str) -> None:
        """Open stored messages again, also such as the command would leave alone, and let the line decide."""

    @abstractmethod
    def accept_source(self, kind: Kind, source_id: str) -> None:
        """An admin accepts that the source counts anew."""
