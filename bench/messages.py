"""Messages as resellers send them: each customer with four paid subscriptions."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from bench.places import PRODUCT, Installation, Reseller
from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.domain.change import Action, Change, Kind
from bss_sync.ports.inbox import Arrival, Origin

SUBSCRIPTIONS_PER_ACCOUNT = 4
CHUNK = 500
"""Messages per request: the contract's most."""


def account_body(number: int, version: int) -> dict[str, Any]:
    """A customer, as the contract's data."""
    return {
        "id": f"cust-{number:07d}",
        "version": version,
        "name": f"Customer {number}",
        "number": f"C{number:07d}",
        "email": f"it{number}@example.com",
        "kind": "customer",
        "parent_id": None,
    }


def subscription_body(number: int, place: int, version: int) -> dict[str, Any]:
    """A paid subscription of a customer; its quantity follows its version."""
    return {
        "id": f"sub-{number:07d}-{place}",
        "version": version,
        "account_id": f"cust-{number:07d}",
        "parent_id": None,
        "product": PRODUCT,
        "status": "active",
        "trial": False,
        "start_date": "2026-01-01",
        "end_date": "2026-12-31",
        "activation_date": "2026-01-01",
        "cancellation_date": None,
        "auto_renew": True,
        "billing_cycle": "P1M",
        "term": "P1Y",
        "quantity": 4 + version,
        "characteristics": {"edition": "business", "region": "eu-central"},
    }


def bodies(streams: int, version: int = 1) -> list[tuple[Kind, dict[str, Any]]]:
    """``streams`` entities: customers, each before its subscriptions."""
    found: list[tuple[Kind, dict[str, Any]]] = []
    for number in range(streams // (SUBSCRIPTIONS_PER_ACCOUNT + 1)):
        found.append((Kind.ACCOUNT, account_body(number, version)))
        places = range(SUBSCRIPTIONS_PER_ACCOUNT)
        found.extend((Kind.SUBSCRIPTION, subscription_body(number, place, version)) for place in places)
    return found


def change_of(kind: Kind, body: dict[str, Any]) -> Change:
    """A body as a verified change, sent now."""
    now = datetime.now(UTC)
    return Change(
        message_id=f"{body['id']}-{body['version']}",
        kind=kind,
        source_id=body["id"],
        action=Action.STATE,
        version=body["version"],
        sent_at=now,
        effective_at=now,
        # As the door keeps it.
        body=body | ({"quantity": str(body["quantity"])} if kind is Kind.SUBSCRIPTION else {}),
        digest=hashlib.sha256(json.dumps(body).encode()).digest(),
    )


def changes(streams: int, version: int = 1, *, shuffled: int | None = None) -> list[Change]:
    """The same as verified changes, in order or shuffled by a seed."""
    made = [change_of(kind, body) for kind, body in bodies(streams, version)]
    if shuffled is not None:
        random.Random(shuffled).shuffle(made)
    return made


def fill_inbox(installation: Installation, parts: Sequence[tuple[Reseller, Sequence[Change]]]) -> None:
    """Store changes by the line's own way in, many senders' in one transaction as at the door, and wake nobody."""
    database = Database(installation.database.login_url)
    try:
        inbox = SqlInbox(database)
        arrivals: list[Arrival] = []
        waiting = 0
        for reseller, sent in parts:
            for first in range(0, len(sent), CHUNK):
                own = tuple(sent[first : first + CHUNK])
                if arrivals and waiting + len(own) > CHUNK:
                    inbox.accept(arrivals)
                    arrivals, waiting = [], 0
                arrivals.append(Arrival(reseller.tenant_id, reseller.id, None, Origin.DOOR, own))
                waiting += len(own)
        if arrivals:
            inbox.accept(arrivals)
    finally:
        database.dispose()
