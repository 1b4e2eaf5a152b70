"""The stores of the line with somebody looking on: figures, traces and log lines, none of which changes what is done.

Events of the log (docs/watching.md): ``batch.decided`` and ``batch.delivered``, one line per batch; ``message.held``, a
line for each message that needs a person, bounded per batch; ``message.decided`` and ``record.delivered``, one line
each, at level debug only: at the speed of sets a line per message would cost more than the message.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog

from bss_sync.domain.change import HELD, MessageState
from bss_sync.ports.delivery import Claimed, Delivered, DeliveryStore, Intent, Undelivered
from bss_sync.ports.inbox import Arrival
from bss_sync.ports.loading import ChunkStore, Entered, NewBatch, Taken
from bss_sync.ports.streams import Batch, Claim, InboxMessage, LittleWork, Settled, StreamStore, Verdict, Written
from bss_sync.ports.tracing import Traces
from bss_sync.telemetry import Metrics

HELD_LINES_MAX = 20
"""Held messages of one batch that get a line; more are counted in the batch's line."""

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")

_log = structlog.get_logger(__name__)


@dataclass
class WatchedStreams:
    """A StreamStore that is watched."""

    inner: StreamStore
    metrics: Metrics
    traces: Traces

    def claim(self, shard: int, limit: int) -> list[Claim]:
        """See StreamStore."""
        return self.inner.claim(shard, limit)

    def claim_little(self, shards: Sequence[int], limit: int) -> LittleWork:
        """See StreamStore."""
        return self.inner.claim_little(shards, limit)

    def work(self, claims: Sequence[Claim], settle: Callable[[Batch], Settled]) -> tuple[Settled, Written]:
        """See StreamStore. What is noted is noted after the commit."""
        started = time.monotonic()
        seen = _Seen()
        with self.traces.span("line.process") as span:

            def watched(batch: Batch) -> Settled:
                seen.note(batch)
                return settle(batch)

            settled, written = self.inner.work(claims, watched)
            seconds = time.monotonic() - started
            verdicts = seen.verdicts(settled)
            if self.traces.enabled:
                span.set(streams=len(claims), decided=len(settled.verdicts))
                for message, _stream, verdict in verdicts:
                    if message.trace is not None:
                        span.link(message.trace)
                        self._trace(message, verdict, seen.now + timedelta(seconds=seconds))
        self._count(verdicts, seen.now, seconds)
        self._tell(settled, verdicts, seconds)
        return settled, written

    def rehearse(self, message_ids: Sequence[UUID], settle: Callable[[Batch], Settled]) -> Settled:
        """See StreamStore."""
        return self.inner.rehearse(message_ids, settle)

    def release(self, claims: Sequence[Claim]) -> None:
        """See StreamStore."""
        self.inner.release(claims)

    def _trace(self, message: InboxMessage, verdict: Verdict, ended_at: datetime) -> None:
        assert message.trace is not None, "only what came traced is traced"
        self.traces.add(
            f"message.{verdict.state}",
            parent=message.trace,
            begun_at=message.received_at,
            ended_at=ended_at,
            message=str(message.id),
            message_id=message.message_id,
            verdict=verdict.verdict,
        )

    def _count(self, verdicts: Iterable[_Decided], now: datetime, seconds: float) -> None:
        """Both times are PostgreSQL's, so that a wrong clock of ours shows nowhere."""
        self.metrics.batch_seconds.observe(seconds)
        lags: dict[MessageState, Callable[[float], None]] = {}
        for message, _stream, verdict in verdicts:
            observe = lags.get(verdict.state)
            if observe is None:
                observe = lags[verdict.state] = self.metrics.decided_seconds.labels(verdict.state.value).observe
            observe(max(0.0, (now - message.received_at).total_seconds()) + seconds)

    def _tell(self, settled: Settled, verdicts: Sequence[_Decided], seconds: float) -> None:
        if not settled.verdicts:
            return
        if _log.is_enabled_for(logging.DEBUG):
            for message, stream, verdict in verdicts:
                _log.debug("message.decided", **_facts(message.id, message.message_id, stream, verdict))
        held = [(key, *pair) for key, pair in settled.verdicts.items() if pair[1].state in HELD]
        known = {message.id: message.message_id for message, _stream, _verdict in verdicts}
        for key, stream, verdict in held[:HELD_LINES_MAX]:
            _log.warning("message.held", **_facts(key, known.get(key), stream, verdict))
        states = Counter(verdict.state.value for _stream, verdict in settled.verdicts.values())
        _log.info("batch.decided", messages=len(settled.verdicts), seconds=round(seconds, 6), **states)


@dataclass
class WatchedChunks:
    """A ChunkStore that is watched: what it decides is decided as soon as it is accepted."""

    inner: ChunkStore
    metrics: Metrics

    def take(self, arrival: Arrival, enter: Callable[[NewBatch], Entered], follow: Callable[[Batch], Settled]) -> Taken:
        """See ChunkStore."""
        started = time.monotonic()
        taken = self.inner.take(arrival, enter, follow)
        seconds = time.monotonic() - started
        if taken.accepted:
            self.metrics.batch_seconds.observe(seconds)
            for state, number in taken.states.items():
                observe = self.metrics.decided_seconds.labels(state.value).observe
                for _ in range(number):
                    observe(seconds)
            states = {state.value: number for state, number in taken.states.items()}
            _log.info("batch.decided", messages=taken.accepted, seconds=round(seconds, 6), **states)
        return taken


_Decided = tuple[InboxMessage, UUID, Verdict]


class _Seen:
    """The open messages of a batch as they were before it was settled, which replaces them."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)
        self._open: dict[UUID, InboxMessage] = {}

    def note(self, batch: Batch) -> None:
        self.now = batch.now
        self._open = {message.id: message for entity in batch.entities.values() for message in entity.open}

    def verdicts(self, settled: Settled) -> list[_Decided]:
        """What was decided and is news: a message that goes on waiting is none."""
        return [
            (message, stream, verdict)
            for key, (stream, verdict) in settled.verdicts.items()
            if (message := self._open.get(key)) is not None
            and not (message.state is MessageState.WAITING and verdict.state is MessageState.WAITING)
        ]


def _facts(message: UUID, sender_id: str | None, stream: UUID, verdict: Verdict) -> dict[str, str]:
    facts: dict[str, str | None] = {"message": str(message), "message_id": sender_id, "stream": str(stream)}
    # A reason is one of our words or the sender's value; only words are logged.
    reason = verdict.reason if verdict.reason is not None and _WORD.fullmatch(verdict.reason) else None
    waits_for = None if verdict.waits_for is None else str(verdict.waits_for)
    facts |= {"state": verdict.state.value, "verdict": verdict.verdict, "reason": reason, "waits_for": waits_for}
    return {name: value for name, value in facts.items() if value is not None}


@dataclass
class WatchedDeliveries:
    """A DeliveryStore that is watched."""

    inner: DeliveryStore
    metrics: Metrics
    traces: Traces
    _claimed: dict[UUID, float] = field(default_factory=dict)

    def claim(self, limit: int, retries: int | None = None) -> Sequence[Claimed]:
        """See DeliveryStore."""
        claimed = self.inner.claim(limit, retries)
        now = time.monotonic()
        # Whatever an earlier batch left behind was not settled by us.
        self._claimed = {one.record_id: now for one in claimed}
        return claimed

    def write_intents(self, intents: Sequence[tuple[Claimed, Intent]]) -> frozenset[UUID]:
        """See DeliveryStore."""
        return self.inner.write_intents(intents)

    def settle(self, outcomes: Sequence[Delivered | Undelivered]) -> frozenset[UUID]:
        """See DeliveryStore."""
        settled = self.inner.settle(outcomes)
        now, words = time.monotonic(), Counter[str]()
        for outcome in outcomes:
            if outcome.claimed.record_id in settled:
                word = outcome.action if isinstance(outcome, Delivered) else _WORDS[outcome.state]
                words[word] += 1
                self._note(outcome, word, now - self._claimed.get(outcome.claimed.record_id, now))
        for word, number in words.items():
            self.metrics.deliveries.labels(word).inc(number)
        if words:
            _log.info("batch.delivered", records=sum(words.values()), **words)
        return settled

    def release(self, claimed: Sequence[Claimed], delay_seconds: float) -> None:
        """See DeliveryStore."""
        self.inner.release(claimed, delay_seconds)

    def _note(self, outcome: Delivered | Undelivered, word: str, seconds: float) -> None:
        claimed = outcome.claimed
        self.metrics.delivery_seconds.observe(seconds)
        facts = {"stream": str(claimed.record_id), "message": str(claimed.desired.message), "outcome": word}
        if word == "dead":
            _log.warning("record.refused", attempts=claimed.attempts, **facts)
        elif _log.is_enabled_for(logging.DEBUG):
            _log.debug("record.delivered", attempts=claimed.attempts, seconds=round(seconds, 6), **facts)
        if claimed.desired.trace is not None and self.traces.enabled:
            ended_at = datetime.now(UTC)
            begun_at = ended_at - timedelta(seconds=seconds)
            trace = claimed.desired.trace
            self.traces.add(f"record.{word}", parent=trace, begun_at=begun_at, ended_at=ended_at, **facts)


_WORDS = {"pending": "failed", "unknown": "unknown", "dead": "dead"}
"""Outcomes of attempts that failed, by the state they leave behind."""
