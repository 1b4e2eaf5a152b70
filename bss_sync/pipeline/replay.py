"""Replay: decide stored messages anew by today's rules (domain.md section 6).

It can never move an entity to a lower version: the rules that decide are the line's own. What was applied or
superseded answers "no change". A dry run asks the same rules, on what is stored now, and writes nothing.

A replay is a run: its messages are written down when it begins, and opened again step by step, whole entities at a
time. A step is one transaction, so a replay that is killed goes on where it was, in any process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from uuid import UUID

from bss_sync.domain.change import MessageState
from bss_sync.domain.errors import FieldProblem, InvalidRequest
from bss_sync.ports.replays import Replayed, ReplayStore, StoredMessage
from bss_sync.ports.runtime import WakeUps
from bss_sync.ports.streams import Settled, Verdict

DONE = frozenset({MessageState.APPLIED, MessageState.SUPERSEDED})
"""What had its effect, or gave way to a newer one: replaying it changes nothing."""
REHEARSED_AT_ONCE = 1_000
REHEARSED_MAX = 1_000
"""Messages that one request is told about; a longer replay is looked at in its run."""
STEP_MESSAGES = 500
LEASE_SECONDS = 10.0
"""A replay that has made no step for so long has lost its process."""

NO_CHANGE = "no_change"


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a replay would do, or has begun, for one message. ``becomes`` is the state that it would take."""

    message: StoredMessage
    becomes: MessageState
    verdict: str
    reason: str | None = None

    @property
    def changes(self) -> bool:
        """Whether the message would stand otherwise: one that is held or waits again has not changed."""
        return self.becomes is not self.message.state

    def as_json(self) -> dict[str, str | None]:
        """As it is printed."""
        return {
            "id": str(self.message.id),
            "message_id": self.message.message_id,
            "kind": str(self.message.kind),
            "source_id": self.message.source_id,
            "state": str(self.message.state),
            "becomes": str(self.becomes),
            "verdict": self.verdict,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Begun:
    """A replay under way. ``planned``: what becomes of its first messages; ``run_id`` None: all are decided."""

    run_id: UUID | None
    chosen: int
    planned: list[Rehearsed]


@dataclass
class Replayer:
    """Replays and discards. ``rehearse`` is the line's: what it would decide for these messages, without writing."""

    store: ReplayStore
    rehearse: Callable[[Sequence[UUID]], Settled]
    wake: WakeUps
    pause: Callable[[float], None] = time.sleep

    def plan(self, ids: Sequence[UUID]) -> list[Rehearsed]:
        """The dry run: for each message what would become of it, in the order in which they came."""
        messages = self.store.load(ids)
        verdicts: dict[UUID, Verdict] = {}
        for group in _by_entities([message for message in messages if message.state not in DONE]):
            settled = self.rehearse([message.id for message in group])
            verdicts |= {key: verdict for key, (_stream, verdict) in settled.verdicts.items()}
        return [_rehearsed(message, verdicts) for message in messages]

    def begin(self, ids: Sequence[UUID], *, actor: str, rate: float | None = None) -> UUID | None:
        """A durable replay of these messages: whoever is alive carries it on. None when all of them are decided.

        InvalidRequest for a rate that is not above zero.
        """
        check_rate(rate)
        return self.store.begin(ids, actor=actor, rate=rate, lease_seconds=LEASE_SECONDS)

    def carry(
        self, run_id: UUID, *, rate: float | None = None, progress: Callable[[int], None] = lambda _done: None
    ) -> int:
        """Carry a replay to its end; returns how many messages were opened again. The workers decide them."""
        while True:
            step = self._step(run_id, rate, LEASE_SECONDS)
            if step is None:
                return 0
            progress(step.done)
            if step.finished:
                return step.done
            self.pause(step.rest_seconds)

    def carry_due(self) -> bool:
        """One step of a replay that nobody is at, its process having died, say. False when there is none."""
        due = self.store.due()
        if due is None:
            return False
        self._step(due.run_id, due.rate, 0.0)
        return True

    def _step(self, run_id: UUID, rate: float | None, lease_seconds: float) -> Replayed | None:
        limit = STEP_MESSAGES if rate is None else max(1, min(STEP_MESSAGES, int(rate)))
        step = self.store.step(run_id, limit, lease_seconds=lease_seconds)
        for shard in sorted(step.shards) if step is not None else ():
            self.wake.process(shard)
        return step

    def replay(self, ids: Sequence[UUID], *, actor: str, rate: float | None = None) -> Begun:
        """Begin a replay and say what today's rules make of its messages.

        A short one is carried out at once; a long or a slow one is left to the workers.
        """
        planned = self.plan(ids[:REHEARSED_MAX])
        run_id = self.begin(ids, actor=actor, rate=rate)
        if run_id is not None and len(ids) <= REHEARSED_MAX and rate is None:
            self.carry(run_id)
        return Begun(run_id, len(ids), planned)

    def discard(self, ids: Sequence[UUID], reason: str, *, actor: str) -> int:
        """Give messages up. InvalidRequest without a reason; returns how many: what is decided for good stays."""
        check_reason(reason)
        return self.store.discard(ids, reason.strip(), actor=actor)


def check_rate(rate: float | None) -> None:
    """InvalidRequest for a rate that is not above zero; a dry run refuses what its execution would."""
    if rate is not None and not rate > 0:
        raise InvalidRequest("A rate is above zero.", fields=(FieldProblem("rate", "messages a second, above 0"),))


def check_reason(reason: str) -> None:
    """InvalidRequest for a reason that says nothing; a dry run refuses what its execution would."""
    if not reason.strip():
        raise InvalidRequest(
            "A message is discarded for a reason.", fields=(FieldProblem("reason", "must not be empty"),)
        )


def _by_entities(messages: Sequence[StoredMessage]) -> Iterator[list[StoredMessage]]:
    """Groups in which every entity has all of its messages: they are decided together."""
    group: list[StoredMessage] = []
    ordered = sorted(messages, key=lambda message: (message.connection_id, message.kind, message.stream_id))
    for _stream, own in groupby(ordered, key=lambda message: message.stream_id):
        group += own
        if len(group) >= REHEARSED_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _rehearsed(message: StoredMessage, verdicts: Mapping[UUID, Verdict]) -> Rehearsed:
    verdict = verdicts.get(message.id)
    if verdict is None:
        return Rehearsed(message, message.state, NO_CHANGE)
    return Rehearsed(message, verdict.state, verdict.verdict, verdict.reason)
