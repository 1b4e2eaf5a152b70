"""Replay: decide stored messages anew by today's rules (domain.md section 6).

It can never move an entity to a lower version: the rules that decide are the line's own. What was applied or
superseded answers "no change". A dry run asks the same rules, on what is stored now, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from uuid import UUID

from bss_sync.domain.change import MessageState
from bss_sync.domain.errors import FieldProblem, InvalidRequest
from bss_sync.ports.replays import ReplayStore, StoredMessage
from bss_sync.ports.runtime import WakeUps
from bss_sync.ports.streams import Settled, Verdict

DONE = frozenset({MessageState.APPLIED, MessageState.SUPERSEDED})
"""What had its effect, or gave way to a newer one: replaying it changes nothing."""
REHEARSED_AT_ONCE = 1_000

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
        """Whether the message would be decided otherwise than it stands."""
        return self.becomes is not self.message.state or self.verdict != NO_CHANGE

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


@dataclass
class Replayer:
    """Replays and discards. ``rehearse`` is the line's: what it would decide for these messages, without writing."""

    store: ReplayStore
    rehearse: Callable[[Sequence[UUID]], Settled]
    wake: WakeUps

    def plan(self, ids: Sequence[UUID]) -> list[Rehearsed]:
        """The dry run: for each message what would become of it, in the order in which they came."""
        messages = self.store.load(ids)
        verdicts: dict[UUID, Verdict] = {}
        for group in _by_entities([message for message in messages if message.state not in DONE]):
            settled = self.rehearse([message.id for message in group])
            verdicts |= {key: verdict for key, (_stream, verdict) in settled.verdicts.items()}
        return [_rehearsed(message, verdicts) for message in messages]

    def replay(self, ids: Sequence[UUID], *, actor: str) -> list[Rehearsed]:
        """Open the messages again and wake their shards; returns what the rules say now: the workers do it."""
        planned = self.plan(ids)
        again = [one.message.id for one in planned if one.message.state not in DONE]
        for shard in sorted(self.store.reopen(again, actor=actor)) if again else ():
            self.wake.process(shard)
        return planned

    def discard(self, ids: Sequence[UUID], reason: str, *, actor: str) -> int:
        """Give messages up. InvalidRequest without a reason; returns how many: what is decided for good stays."""
        if not reason.strip():
            raise InvalidRequest(
                "A message is discarded for a reason.", fields=(FieldProblem("reason", "must not be empty"),)
            )
        return self.store.discard(ids, reason.strip(), actor=actor)


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
