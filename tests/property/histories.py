"""Random histories of a reseller's BSS: what happened there, as the messages that it would send, in true order."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from bss_sync.domain.change import Action, Change, Kind, OrderKind

START = datetime(2026, 1, 1, tzinfo=UTC)
ACCOUNTS = ("a1", "a2", "a3", "a4")
SUBSCRIPTIONS = ("s1", "s2", "s3")
PRODUCTS = ("OURS-1", "OURS-2", "FOREIGN")


@dataclass
class Source:
    """A pure model of a reseller's BSS: its present state and every message that it sent."""

    accounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    subscriptions: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[tuple[Kind, str], int] = field(default_factory=dict)
    log: list[Change] = field(default_factory=list)

    def put(self, kind: Kind, source_id: str, body: dict[str, Any]) -> None:
        """Create or change an entity."""
        (self.accounts if kind is Kind.ACCOUNT else self.subscriptions)[source_id] = body
        self._send(kind, source_id, Action.STATE, body)

    def delete(self, kind: Kind, source_id: str) -> None:
        """Delete an entity."""
        del (self.accounts if kind is Kind.ACCOUNT else self.subscriptions)[source_id]
        self._send(kind, source_id, Action.DELETED, {})

    def _send(self, kind: Kind, source_id: str, action: Action, body: dict[str, Any]) -> None:
        version = self.versions.get((kind, source_id), 0) + 1
        self.versions[kind, source_id] = version
        sent_at = START + timedelta(minutes=len(self.log))
        text = json.dumps([source_id, action, version, body], sort_keys=True)
        self.log.append(
            Change(
                message_id=f"msg-{len(self.log)}",
                kind=kind,
                source_id=source_id,
                action=action,
                version=version,
                sent_at=sent_at,
                effective_at=sent_at,
                body=dict(body),
                digest=hashlib.sha256(text.encode()).digest(),
                order=OrderKind.SEQUENCE,
            )
        )


def account(name: str = "Cloud Customer X", parent: str | None = None, kind: str = "customer") -> dict[str, Any]:
    """An account's body."""
    return {"name": name, "number": None, "email": None, "kind": kind, "parent_id": parent}


def subscription(product: str = "OURS-1", quantity: str = "1", **other: Any) -> dict[str, Any]:
    """A subscription's body."""
    body: dict[str, Any] = {
        "account_id": None,
        "parent_id": None,
        "product": product,
        "status": "active",
        "trial": False,
        "start_date": "2026-01-01",
        "end_date": None,
        "activation_date": None,
        "cancellation_date": None,
        "auto_renew": True,
        "billing_cycle": "P1M",
        "term": "P1Y",
        "quantity": quantity,
        "characteristics": {},
    }
    return body | other


def _descendants(source: Source, top: str) -> set[str]:
    below = {top}
    while True:
        more = {key for key, body in source.accounts.items() if body["parent_id"] in below} - below
        if not more:
            return below
        below |= more


@st.composite
def histories(draw: st.DrawFn, *, steps: int = 14, paid_only: bool = False) -> Source:
    """A source after up to ``steps`` random acts. Every reference names an entity that lives at that moment."""
    source = Source()
    for _step in range(draw(st.integers(1, steps))):
        _act(draw, source, paid_only=paid_only)
    return source


def _act(draw: st.DrawFn, source: Source, *, paid_only: bool) -> None:
    act = draw(st.sampled_from(("account", "account", "subscription", "subscription", "delete")))
    if act == "account":
        key = draw(st.sampled_from(ACCOUNTS))
        parents = sorted(set(source.accounts) - (_descendants(source, key) if key in source.accounts else {key}))
        parent = draw(st.sampled_from([None, *parents]))
        source.put(Kind.ACCOUNT, key, account(draw(st.sampled_from(("N1", "N2", "N3"))), parent))
    elif act == "subscription":
        key = draw(st.sampled_from(SUBSCRIPTIONS))
        holder = draw(st.sampled_from([None, *sorted(source.accounts)]))
        mains = [other for other in sorted(source.subscriptions) if other < key]
        parent = draw(st.sampled_from([None, *mains]))
        product = draw(st.sampled_from(PRODUCTS[:2] if paid_only else PRODUCTS))
        trial = False if paid_only else draw(st.booleans())
        quantity = str(draw(st.integers(0, 3)))
        source.put(
            Kind.SUBSCRIPTION,
            key,
            subscription(product, quantity, account_id=holder, parent_id=parent, trial=trial),
        )
    else:
        held = {body["account_id"] for body in source.subscriptions.values()}
        leaves = [key for key in sorted(source.accounts) if _descendants(source, key) == {key} and key not in held]
        gone = [(Kind.ACCOUNT, key) for key in leaves]
        gone += [(Kind.SUBSCRIPTION, key) for key in sorted(source.subscriptions)]
        if gone:
            source.delete(*draw(st.sampled_from(gone)))
