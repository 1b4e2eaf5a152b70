"""How the simulated reseller BSS pushes: Standard Webhooks, retried with the same id, and disturbed on request."""

from __future__ import annotations

import heapq
import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal
from urllib.parse import urlsplit
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from bss_sync.domain.change import Json, OrderKind
from connectors.simulator.reseller import Refused, Revision, timestamp_text

_RETRY_SECONDS_MAX = 5.0


class Style(StrEnum):
    """What a push looks like."""

    STATE = "state"  # one message with the whole state
    NOTIFY = "notify"  # one message with the id alone
    BATCH = "batch"  # an array of messages
    CLOUDEVENTS = "cloudevents"  # one CloudEvent, structured
    CLOUDEVENTS_BINARY = "cloudevents_binary"  # one CloudEvent, its attributes as headers
    CLOUDEVENTS_BATCH = "cloudevents_batch"  # an array of CloudEvents


_IN_SETS = frozenset({Style.BATCH, Style.CLOUDEVENTS_BATCH})


class Endpoint(BaseModel):
    """Where to push, and the secret that signs (``whsec_…``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://")
    secret: str = Field(min_length=1, repr=False)


class Knobs(BaseModel):
    """What is disturbed. The counters count down with each message queued."""

    model_config = ConfigDict(extra="forbid")

    style: Style = Field(Style.STATE, description="what a push looks like")
    batch_size: int = Field(100, ge=1, le=500, description="messages in one array")
    drop: int = Field(0, ge=0, description="the next messages are lost")
    duplicate: int = Field(0, ge=0, description="the next messages are sent twice, with the same id")
    delay_seconds: float = Field(0, ge=0, description="each message leaves so much later")
    jitter_seconds: float = Field(0, ge=0, description="and by up to so much more, drawn with the seed: they overtake")
    seed: int = Field(0, description="seed of what is drawn")
    hold: bool = Field(False, description="messages are kept until they are released")


class Release(BaseModel):
    """How held messages leave."""

    model_config = ConfigDict(extra="forbid")

    sequence: Literal["same", "reversed", "shuffled"] = "same"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """One message; its id survives every retry."""

    id: str
    type: str
    timestamp: str
    data: Mapping[str, Json]

    def plain(self) -> dict[str, Json]:
        """The contract's message."""
        return {"type": self.type, "timestamp": self.timestamp, "data": self.data}

    def element(self) -> dict[str, Json]:
        """The same as an element of an array."""
        return {"id": self.id, **self.plain()}

    def event(self, source: str) -> dict[str, Json]:
        """The same as a CloudEvent."""
        about = {"specversion": "1.0", "id": self.id, "source": source, "type": self.type, "time": self.timestamp}
        return {**about, "datacontenttype": "application/json", "data": self.data}


@dataclass(slots=True)
class Counters:
    """What became of the messages and of the requests that carried them."""

    delivered: int = 0
    refused: int = 0
    dropped: int = 0
    attempts: int = 0
    last_status: int | None = None
    refusals: list[str] = field(default_factory=list)


class WebhookSender:
    """One thread that sends what is due. A failed request comes again later, with the same ids; a 4xx is final.

    Others go past a message that waits for its retry, as with real senders.
    """

    def __init__(self, order: Callable[[], OrderKind], *, source: str = "urn:simulator") -> None:
        self._order = order
        self._source = source
        self._knobs = Knobs()
        self._random = random.Random(0)  # noqa: S311 - reproducible, no secret
        self._endpoint: Endpoint | None = None
        self._counters = Counters()
        # (due, number, tries, message): the number keeps the order of messages that are due together.
        self._queue: list[tuple[float, int, int, Message]] = []
        self._numbers = itertools.count()
        self._held: list[Message] = []
        self._in_flight = 0
        self._changed = threading.Condition()
        self._closing = False
        self._connection: http.client.HTTPConnection | None = None
        self._thread = threading.Thread(target=self._run, name="simulator-webhooks", daemon=True)
        self._thread.start()

    def configure(self, endpoint: Endpoint | None) -> None:
        """Push there from now on; None: changes are not pushed any more."""
        with self._changed:
            self._endpoint = endpoint
            self._changed.notify_all()

    def disturb(self, knobs: Knobs) -> None:
        """Set every knob anew."""
        with self._changed:
            self._knobs = knobs
            self._random = random.Random(knobs.seed)  # noqa: S311 - reproducible, no secret
        if not knobs.hold:
            self.release()

    def tell(self, revision: Revision) -> None:
        """Queue the message of one change."""
        order = self._order()
        with self._changed:
            if self._endpoint is None:
                return
            if self._knobs.drop > 0:
                self._knobs.drop -= 1
                self._counters.dropped += 1
                return
            # Without versions there is no state that the door would accept: the change can only be announced.
            notify = self._knobs.style is Style.NOTIFY or order is OrderKind.OBSERVED
            message = Message(
                id=f"msg_{uuid4().hex}",
                type=f"{revision.kind}.{'notified' if notify else revision.action}",
                timestamp=timestamp_text(revision.changed_at),
                data={"id": revision.id} if notify else revision.data(order),
            )
            copies = 1
            if self._knobs.duplicate > 0:
                self._knobs.duplicate -= 1
                copies = 2
            for _ in range(copies):
                if self._knobs.hold:
                    self._held.append(message)
                else:
                    self._enqueue(message)

    def release(self, how: Release | None = None) -> int:
        """Let the held messages go; returns how many."""
        how = how or Release()
        with self._changed:
            messages, self._held = self._held, []
            if how.sequence == "reversed":
                messages.reverse()
            elif how.sequence == "shuffled":
                random.Random(how.seed).shuffle(messages)  # noqa: S311 - reproducible, no secret
            for message in messages:
                self._enqueue(message)
        return len(messages)

    def wait_until_idle(self, timeout_seconds: float) -> bool:
        """Wait until nothing is queued or on its way; held messages do not count. False: it took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._in_flight, timeout_seconds)

    def view(self) -> dict[str, Json]:
        """Counters and knobs."""
        with self._changed:
            counters = self._counters
            return {
                "configured": self._endpoint is not None,
                "queued": len(self._queue) + self._in_flight,
                "held": len(self._held),
                "delivered": counters.delivered,
                "refused": counters.refused,
                "dropped": counters.dropped,
                "attempts": counters.attempts,
                "last_status": counters.last_status,
                "refusals": counters.refusals[-10:],
                "knobs": self._knobs.model_dump(mode="json"),
            }

    def close(self) -> None:
        """Stop the thread. What is queued is lost."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=15)
        self._disconnect()

    def _enqueue(self, message: Message) -> None:
        wait = self._knobs.delay_seconds + self._random.random() * self._knobs.jitter_seconds
        heapq.heappush(self._queue, (time.monotonic() + wait, next(self._numbers), 0, message))
        self._changed.notify_all()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            endpoint, style, entries = taken
            status, detail, retry_after = self._send(endpoint, style, [message for *_, message in entries])
            self._settle(entries, status, detail, retry_after)

    def _take(self) -> tuple[Endpoint, Style, list[tuple[int, Message]]] | None:
        """Wait for due messages; None when closing. An array takes as many as are due."""
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                if self._endpoint is not None and self._queue and self._queue[0][0] <= now:
                    style = self._knobs.style
                    size = self._knobs.batch_size if style in _IN_SETS else 1
                    entries: list[tuple[int, Message]] = []
                    while len(entries) < size and self._queue and self._queue[0][0] <= now:
                        _, _, tries, message = heapq.heappop(self._queue)
                        entries.append((tries, message))
                    self._in_flight = len(entries)
                    return self._endpoint, style, entries
                wait = self._queue[0][0] - now if self._queue and self._endpoint is not None else None
                self._changed.wait(wait)
        return None

    def _settle(
        self, entries: Sequence[tuple[int, Message]], status: int | None, detail: str, retry_after: float | None
    ) -> None:
        with self._changed:
            counters = self._counters
            counters.attempts += 1
            counters.last_status = status
            self._in_flight = 0
            if status is not None and 200 <= status < 300:
                counters.delivered += len(entries)
            elif status is not None and 400 <= status < 500 and status != 429:
                counters.refused += len(entries)
                counters.refusals.append(f"{status}: {detail}")
            else:
                for tries, message in entries:
                    wait = retry_after if retry_after is not None else 0.05 * 2.0 ** min(tries, 10)
                    due = time.monotonic() + min(wait, _RETRY_SECONDS_MAX)
                    heapq.heappush(self._queue, (due, next(self._numbers), tries + 1, message))
            self._changed.notify_all()

    def _send(
        self, endpoint: Endpoint, style: Style, messages: Sequence[Message]
    ) -> tuple[int | None, str, float | None]:
        """One request: its status (None: no answer), what the answer said, and its Retry-After."""
        headers, content = self._request(style, messages)
        message_id = messages[0].id if style not in _IN_SETS else f"msg_{uuid4().hex}"
        body = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
        moment = datetime.now(UTC)
        headers |= {
            "webhook-id": message_id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": Webhook(endpoint.secret).sign(message_id, moment, body),
        }
        address = urlsplit(endpoint.url)
        try:
            connection = self._connect(address.scheme, address.netloc)
            connection.request("POST", address.path or "/", body=body.encode(), headers=headers)
            response = connection.getresponse()
            detail = response.read().decode(errors="replace")[:500]
        except (OSError, http.client.HTTPException) as error:
            self._disconnect()
            return None, type(error).__name__, None
        wish = response.getheader("Retry-After") or ""
        return response.status, detail, float(wish) if wish.isdigit() else None

    def _request(self, style: Style, messages: Sequence[Message]) -> tuple[dict[str, str], Json]:
        """The headers (without the signature) and the content of one request."""
        first = messages[0]
        if style is Style.BATCH:
            return {"Content-Type": "application/json"}, [one.element() for one in messages]
        if style is Style.CLOUDEVENTS:
            return {"Content-Type": "application/cloudevents+json"}, first.event(self._source)
        if style is Style.CLOUDEVENTS_BATCH:
            events = [one.event(self._source) for one in messages]
            return {"Content-Type": "application/cloudevents-batch+json"}, events
        if style is Style.CLOUDEVENTS_BINARY:
            event = first.event(self._source)
            about = {f"ce-{name}": event[name] for name in ("specversion", "id", "source", "type", "time")}
            return {"Content-Type": "application/json", **about}, event["data"]
        return {"Content-Type": "application/json"}, first.plain()

    def _connect(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        """The open connection, or a new one when the endpoint has moved."""
        wanted = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        present = self._connection
        if present is None or f"{present.host}:{present.port}" != netloc or not isinstance(present, wanted):
            self._disconnect()
            present = self._connection = wanted(netloc, timeout=10)
        return present

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def check_secret(endpoint: Endpoint) -> None:
    """Refuse a secret that cannot sign, at once instead of at the first change."""
    try:
        Webhook(endpoint.secret)
    except (ValueError, EmptyWebhookSecretError) as error:
        raise Refused(422, f"The secret cannot sign: {error}") from None
