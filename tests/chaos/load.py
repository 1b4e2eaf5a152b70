"""The load: a reseller's BSS of its own making, which sends until each message is answered with 2xx, and remembers.

Nothing here is the product's: the official library signs, a plain HTTP client sends, and what the mirror ought to be is
computed from what was answered: the highest version of each entity.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
from standardwebhooks.webhooks import Webhook

PRODUCT = "M365"
AGAIN_SECONDS = (0.05, 0.3)
TIMEOUT_SECONDS = 15.0
ARRAY_SHARE = 0.25
TWICE_SHARE = 0.1
DELETED_SHARE = 0.08
SWAPPED_SHARE = 0.15


@dataclass(frozen=True)
class Told:
    """One message: an entity at a version."""

    message_id: str
    kind: str
    source_id: str
    version: int
    data: dict[str, Any]
    deleted: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """Which entity."""
        return self.kind, self.source_id


@dataclass
class Load:
    """Sends to the doors at ``urls``, each sender to entities of its own. Thread-safe.

    ``answered``: by message id, what a 2xx was given for; ``requests``: the same, as it was sent; ``statuses``: every
    answer; ``lost``: requests that ended without one; ``times``: of each 2xx, when it came (monotonic) and how long it
    took, in seconds.
    """

    urls: Sequence[str]
    connection: str
    secret: str
    seed: int
    prefix: str = "e"
    pairs: int = 24
    senders: int = 3
    pause_seconds: float = 0.02
    answered: dict[str, Told] = field(default_factory=dict)
    requests: list[Sequence[Told]] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    times: list[tuple[float, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _ending: threading.Event = field(default_factory=threading.Event)
    _abandoned: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin to send."""
        self._ending.clear()
        number = len(self._threads)
        for index in range(self.senders):
            name = f"{self.prefix}{number + index}"
            sender = _Sender(self, name, random.Random(f"{self.seed}/{name}"), self.pairs // self.senders)
            thread = threading.Thread(target=sender.run, args=(self._ending,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def end(self, seconds: float = 60) -> None:
        """Send nothing new; return when everything that was begun is answered."""
        self._ending.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.1, deadline - time.monotonic()))
            assert not thread.is_alive(), f"{thread.name} still waits for a 2xx after {seconds} s: {self.statuses}"

    def abandon(self) -> None:
        """Send nothing more, whatever is unanswered."""
        self._ending.set()
        self._abandoned.set()

    def tell(self, told: Sequence[Told]) -> None:
        """Send one request until it is answered with 2xx; one message, or an array."""
        with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
            self.send(client, told, random.Random(told[0].message_id))

    def send(self, client: httpx.Client, told: Sequence[Told], chance: random.Random) -> None:
        """See ``tell``."""
        turn = chance.randrange(len(self.urls))
        while not self._abandoned.is_set():
            url = self.urls[turn % len(self.urls)]
            turn += 1
            status, answer = self._post(client, url, told)
            if status == 202:
                if answer.get("accepted", 0) + answer.get("duplicates", 0) != len(told):
                    self.wrong.append(f"{len(told)} messages were answered with {answer}")
                with self._lock:
                    self.answered.update({one.message_id: one for one in told})
                    self.requests.append(told)
                return
            if status not in (0, 429, 503):
                self.wrong.append(f"a message was answered with {status}: {answer}")
                return
            time.sleep(chance.uniform(*AGAIN_SECONDS))

    def _post(self, client: httpx.Client, url: str, told: Sequence[Told]) -> tuple[int, dict[str, Any]]:
        now = datetime.now(UTC)
        elements = [_element(one) for one in told]
        webhook_id = told[0].message_id
        if len(told) == 1:
            del elements[0]["id"]
            body = json.dumps(elements[0])
        else:
            webhook_id, body = f"array-{webhook_id}", json.dumps(elements)
        headers = {
            "content-type": "application/json",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(self.secret).sign(webhook_id, now, body),
        }
        started = time.monotonic()
        try:
            answer = client.post(f"{url}/v1/connections/{self.connection}/messages", content=body, headers=headers)
        except httpx.TransportError:
            with self._lock:
                self.lost += 1
            return 0, {}
        with self._lock:
            self.statuses[answer.status_code] += 1
            if answer.status_code == 202:
                self.times.append((time.monotonic(), time.monotonic() - started))
        found: dict[str, Any] = {}
        with suppress(ValueError):
            found = answer.json()
        return answer.status_code, found

    def highest(self) -> dict[tuple[str, str], Told]:
        """What each entity ought to be: the highest version that was answered."""
        with self._lock:
            told = list(self.answered.values())
        best: dict[tuple[str, str], Told] = {}
        for one in told:
            if one.key not in best or one.version > best[one.key].version:
                best[one.key] = one
        return best


class _Sender:
    """One thread of the load and the entities that only it changes."""

    def __init__(self, load: Load, name: str, chance: random.Random, pairs: int) -> None:
        self._load = load
        self._name = name
        self._chance = chance
        self._pairs = pairs
        self._versions: Counter[tuple[str, str]] = Counter()
        self._number = 0

    def run(self, ending: threading.Event) -> None:
        """Until ``ending``."""
        with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
            while not ending.wait(self._load.pause_seconds):
                packet = self._packet()
                parts = [packet]
                if len(packet) > 1 and self._chance.random() > ARRAY_SHARE:
                    parts = [[one] for one in packet]
                for part in parts:
                    self._load.send(client, part, self._chance)
                    if self._chance.random() < TWICE_SHARE:
                        self._load.send(client, part, self._chance)

    def _packet(self) -> list[Told]:
        """One to a few messages about one customer and what it holds."""
        place = self._chance.randrange(self._pairs)
        holder, held = f"{self._name}-cust-{place}", f"{self._name}-sub-{place}"
        packet = []
        if not self._versions["account", holder] or self._chance.random() < 0.2:
            packet.append(self.account(holder))
        packet.append(self.subscription(held, holder))
        if self._chance.random() < SWAPPED_SHARE:
            # The newer one travels first.
            packet += [self.subscription(held, holder)]
            packet.reverse()
        return packet

    def account(self, source_id: str) -> Told:
        """The next version of an account."""
        version = self._next("account", source_id)
        words = {"name": f"{source_id} as {version}", "number": None, "email": None}
        data = {"id": source_id, "version": version, "parent_id": None, "kind": "customer", **words}
        return Told(self._id(), "account", source_id, version, data)

    def subscription(self, source_id: str, holder: str) -> Told:
        """The next version of a subscription: a change, an end, or a new beginning."""
        version = self._next("subscription", source_id)
        if version > 2 and self._chance.random() < DELETED_SHARE:
            return Told(
                self._id(), "subscription", source_id, version, {"id": source_id, "version": version}, deleted=True
            )
        data = subscription_data(source_id, version, holder)
        return Told(self._id(), "subscription", source_id, version, data)

    def _next(self, kind: str, source_id: str) -> int:
        self._versions[kind, source_id] += 1
        return self._versions[kind, source_id]

    def _id(self) -> str:
        self._number += 1
        return f"{self._name}-{self._number:06}"


def subscription_data(source_id: str, version: int, holder: str) -> dict[str, Any]:
    """The data of a subscription whose quantity tells its version."""
    dates = dict.fromkeys(("start_date", "end_date", "activation_date", "cancellation_date"))
    return {
        "id": source_id, "version": version, "account_id": holder, "parent_id": None, "product": PRODUCT,
        "status": "active", "trial": False, **dates, "auto_renew": True, "billing_cycle": "P1M", "term": None,
        "quantity": version, "characteristics": {},
    }  # fmt: skip


def _element(told: Told) -> dict[str, Any]:
    verb = "deleted" if told.deleted else "created" if told.version == 1 else "updated"
    # The time stands in the body, and the body of one id never changes.
    moment = datetime.fromtimestamp(1_700_000_000 + told.version, UTC).isoformat()
    return {"id": told.message_id, "type": f"{told.kind}.{verb}", "timestamp": moment, "data": told.data}
