"""A reseller's BSS as a pure model: what it holds, every version that it ever held, and how it answers questions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random

from bss_sync.domain.change import Action, Change, Json, Kind, OrderKind, timestamp_version
from bss_sync.ports.connector import Observation, Page

ACCOUNTS = ("a1", "a2", "a3", "a4", "a5")
SUBSCRIPTIONS = ("s1", "s2", "s3", "s4")
PAGE = 7
ODD_STATUS = "hibernating"
"""A word of the source's own, in a share ``odd`` of its subscriptions."""

Entity = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class Version:
    """One state of one entity, ``number`` in the order of the whole BSS. ``body`` is None where it was deleted."""

    number: int
    kind: Kind
    source_id: str
    version: int
    body: dict[str, Json] | None
    changed_at: datetime
    effective_at: datetime

    def observation(self, order: OrderKind) -> Observation:
        """What the BSS answers when it is asked."""
        version = None if order is OrderKind.OBSERVED else self.version
        body = None if self.body is None else dict(self.body)
        return Observation(self.kind, self.source_id, version, body, self.changed_at, self.effective_at)

    def change(self, order: OrderKind, *, notify: bool) -> Change:
        """What the BSS sends: the state, or only that there is one."""
        told = Action.DELETED if self.body is None else Action.STATE
        action = Action.NOTIFIED if notify else told
        return Change(
            message_id=f"m{self.number}",
            kind=self.kind,
            source_id=self.source_id,
            action=action,
            version=None if notify else self.version,
            sent_at=self.changed_at,
            effective_at=self.effective_at,
            body={} if notify or self.body is None else dict(self.body),
            digest=hashlib.sha256(repr((self.number, action, self.body)).encode()).digest(),
            order=order,
        )


@dataclass
class Reseller:
    """A reseller that does whatever ``chance`` draws. ``products``: codes that it sells, the distributor's or not."""

    chance: Random
    order: OrderKind
    products: Sequence[str]
    now: Callable[[], datetime]
    odd: float = 0.0
    log: list[Version] = field(default_factory=list)
    present: dict[Entity, Version] = field(default_factory=dict)

    # --- what it holds ------------------------------------------------------------------------------------------------

    def live(self, kind: Kind) -> dict[str, dict[str, Json]]:
        """The bodies of what is live, by id, in the order of ids."""
        found = {key[1]: one.body for key, one in self.present.items() if key[0] is kind and one.body is not None}
        return dict(sorted(found.items()))

    def versions(self, kind: Kind, source_id: str) -> list[Version]:
        """Every version of one entity, oldest first."""
        return [one for one in self.log if one.kind is kind and one.source_id == source_id]

    def _write(self, kind: Kind, source_id: str, body: dict[str, Json] | None) -> Version:
        known = self.present.get((kind, source_id))
        now = self.now() + timedelta(microseconds=len(self.log))
        counted = known.version + 1 if known else 1
        version = timestamp_version(now) if self.order is OrderKind.TIMESTAMP else counted
        backdated = self.chance.random() < 0.15
        effective_at = now - timedelta(hours=self.chance.randrange(1, 96)) if backdated else now
        one = Version(len(self.log), kind, source_id, version, body, now, effective_at)
        self.log.append(one)
        self.present[kind, source_id] = one
        return one

    def recount(self) -> list[Version]:
        """It lost count of something live, and its next version is the first again. Nothing when all are new."""
        counted = [key for key, one in self.present.items() if one.body is not None and one.version > 1]
        if not counted:
            return []
        kind, source_id = key = self.chance.choice(counted)
        known = self.present[key]
        self.present[key] = replace(known, version=0)
        changed = {"quantity": "11"} if kind is Kind.SUBSCRIPTION else {"name": "Counted anew"}
        return [self._write(kind, source_id, {**(known.body or {}), **changed})]

    # --- what it does -------------------------------------------------------------------------------------------------

    def act(self) -> list[Version]:
        """Do something at random; returns the versions that it made (two for a swap)."""
        roll = self.chance.random()
        if roll < 0.24:
            return self._account()
        if roll < 0.36:
            return self._swap()
        if roll < 0.86 or not self.present:
            return [self._subscription()]
        return self._delete()

    def _account(self) -> list[Version]:
        key = self.chance.choice(ACCOUNTS)
        live = self.live(Kind.ACCOUNT)
        above = sorted(set(live) - self._below(key))
        parent = self.chance.choice([None, *above])
        body: dict[str, Json] = {"number": None, "email": None, "kind": "customer", "parent_id": parent}
        return [self._write(Kind.ACCOUNT, key, body | {"name": self.chance.choice("NOPQ")})]

    def _below(self, top: str) -> set[str]:
        live = self.live(Kind.ACCOUNT)
        below = {top}
        while more := {key for key, body in live.items() if body["parent_id"] in below} - below:
            below |= more
        return below

    def _swap(self) -> list[Version]:
        """A child and its parent change places: two messages, and a cycle for whoever sees only the first."""
        live = self.live(Kind.ACCOUNT)
        pairs = [(key, body["parent_id"]) for key, body in live.items() if body["parent_id"] in live]
        if not pairs:
            return self._account()
        child, parent = self.chance.choice(pairs)
        top = live[parent]["parent_id"]
        first = self._write(Kind.ACCOUNT, child, live[child] | {"parent_id": top})
        return [first, self._write(Kind.ACCOUNT, parent, live[parent] | {"parent_id": child})]

    def _subscription(self) -> Version:
        key = self.chance.choice(SUBSCRIPTIONS)
        live = self.live(Kind.SUBSCRIPTION)
        if key in live and self.chance.random() < 0.5:
            return self._write(Kind.SUBSCRIPTION, key, live[key] | {"quantity": str(self.chance.randrange(1, 9))})
        mains = [other for other in live if other < key]
        body: dict[str, Json] = {
            "account_id": self.chance.choice([None, *self.live(Kind.ACCOUNT), *self.live(Kind.ACCOUNT)]),
            "parent_id": self.chance.choice([None, None, *mains]),
            "product": self.chance.choice(self.products),
            "status": self._status(),
            "trial": self.chance.random() < 0.25,
            "start_date": "2026-01-01",
            "end_date": None,
            "activation_date": None,
            "cancellation_date": None,
            "auto_renew": True,
            "billing_cycle": "P1M",
            "term": "P1Y",
            "quantity": str(self.chance.randrange(1, 9)),
            "characteristics": {},
        }
        return self._write(Kind.SUBSCRIPTION, key, body)

    def _status(self) -> str:
        if self.odd and self.chance.random() < self.odd:
            return ODD_STATUS
        return self.chance.choice(("active", "active", "suspended", "terminated"))

    def _delete(self) -> list[Version]:
        """Delete a subscription, or an account that nothing live refers to."""
        accounts, subscriptions = self.live(Kind.ACCOUNT), self.live(Kind.SUBSCRIPTION)
        held = {body["account_id"] for body in subscriptions.values()}
        held |= {body["parent_id"] for body in accounts.values()}
        parents = {body["parent_id"] for body in subscriptions.values()}
        gone = [(Kind.ACCOUNT, key) for key in accounts if key not in held]
        gone += [(Kind.SUBSCRIPTION, key) for key in subscriptions if key not in parents]
        if not gone:
            return self._account()
        return [self._write(*self.chance.choice(gone), None)]


@dataclass
class ResellerClient:
    """``ports.connector.SourceClient`` over the model. ``pause`` is called where time may pass or a call may fail."""

    reseller: Reseller
    pause: Callable[[str], None]

    def check(self) -> str:
        """See SourceClient."""
        self.pause("source.check")
        return "a simulated BSS"

    def fetch(self, kind: Kind, source_id: str) -> Observation | None:
        """See SourceClient."""
        self.pause(f"source.fetch {kind} {source_id}")
        known = self.reseller.present.get((kind, source_id))
        return None if known is None else known.observation(self.reseller.order)

    def list_all(self) -> Iterator[Observation]:
        """See SourceClient: things may change between two pages, and the listing may break off at each."""
        for kind in Kind:
            after = ""
            while True:
                self.pause(f"source.list {kind} after {after!r}")
                page = [key for key in self.reseller.live(kind) if key > after][:3]
                if not page:
                    break
                for key in page:
                    yield self.reseller.present[kind, key].observation(self.reseller.order)
                after = page[-1]

    def poll(self, cursor: str | None) -> Page:
        """See SourceClient."""
        self.pause(f"source.poll {cursor}")
        start = int(cursor or 0)
        chosen = self.reseller.log[start : start + PAGE]
        more = start + PAGE < len(self.reseller.log)
        return Page([one.observation(self.reseller.order) for one in chosen], str(start + len(chosen)), more)
