"""One stream alone, a transaction for each of its messages (architecture.md, decision 5).

A stream comes here when even a claim made alone ended without a verdict, or when it could not be written. Message by
message it shows which one it is, and only that one is held; everything before and after it is decided as ever. (The
first claim made alone is still one transaction: nearly always it was another stream's fault.)

    raises             the message is dead, with the stack; where the entity fails without any message, all are
    ends the process   the claim counts; after three of them the message is quarantined as ``process_killer``

What one transaction decided stays decided when the next one ends the process, so the message whose turn is first then
is the one to blame: what was never tried comes before what waits.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from bss_sync.domain.change import MessageState
from bss_sync.domain.errors import LeaseLost, Transient
from bss_sync.pipeline.sequence import in_order
from bss_sync.ports.streams import Batch, Claim, InboxMessage, Settled, StreamStore, Verdict

MESSAGES_MAX = 200
"""Transactions under one claim; what is left then is claimed alone again."""
KILLER = "process_killer"


class Rules(Protocol):
    """What ``pipeline.line`` does to some messages of a batch; the others stay as they are."""

    def wants(self, message: InboxMessage) -> bool:
        """Whether the message is to be decided."""
        ...

    def decide(self, batch: Batch, chosen: frozenset[UUID]) -> Settled:
        """Decide these."""
        ...

    def hold(self, batch: Batch, verdicts: Sequence[Verdict]) -> Settled:
        """Give these messages these verdicts."""
        ...


@dataclass(slots=True)
class Alone:
    """One claim made alone, and what came of it so far."""

    streams: StreamStore
    claim: Claim
    rules: Rules
    decided: int = 0
    wake_shards: set[int] = field(default_factory=set)
    deliveries: bool = False
    fetches: bool = False
    _tried: set[UUID] = field(default_factory=set)
    _turn: UUID | None = None
    """The message whose turn it is."""

    def run(self) -> None:
        """Decide what is open of the stream. Transient when a dependency is down."""
        accused = self.claim.killer
        try:
            for _ in range(MESSAGES_MAX):
                more = self._work(self._hold_killer) if accused else self._decide_one()
                if not more:
                    return
                accused = False
            self.streams.release([self.claim])
        except LeaseLost:
            return  # whoever holds it now goes on with the rest

    def _work(self, settle: Callable[[Batch], Settled]) -> bool:
        """One transaction; whether the lease was kept, because there is more to do."""
        settled, written = self.streams.work([self.claim], settle)
        self.decided += len(settled.verdicts)
        self.wake_shards |= written.wake_shards
        self.deliveries |= written.deliveries
        self.fetches |= written.fetches
        return settled.partial

    def _decide_one(self) -> bool:
        try:
            return self._work(self._decide_next)
        except (LeaseLost, Transient):
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, it belongs to this message, or to the entity
            reason, stack = type(error).__name__, "".join(traceback.format_exception(error))
        turn = self._turn if self._stands_without() else None
        return self._work(lambda batch: self._hold(batch, turn, MessageState.DEAD, reason, stack))

    def _stands_without(self) -> bool:
        """Whether the entity can be written when none of its messages is decided."""
        try:
            self._work(self._decide_none)
        except (LeaseLost, Transient):
            raise
        except Exception:  # noqa: BLE001  it is not the message, then
            return False
        return True

    def _decide_next(self, batch: Batch) -> Settled:
        left = self._left(batch)
        self._turn = left[0] if left else None
        settled = self.rules.decide(batch, frozenset(left[:1]))
        return self._with_rest(settled, left[1:])

    def _decide_none(self, batch: Batch) -> Settled:
        settled = self.rules.decide(batch, frozenset())
        settled.partial = True
        return settled

    def _hold_killer(self, batch: Batch) -> Settled:
        left = self._left(batch)
        return self._hold(batch, left[0] if left else None, MessageState.QUARANTINED, KILLER, None)

    def _hold(self, batch: Batch, turn: UUID | None, state: MessageState, reason: str, stack: str | None) -> Settled:
        """Hold the message whose turn it is; all that are left where it is the entity."""
        left = self._left(batch, again=turn)
        guilty = left if turn is None else [turn]
        verdict = "dead" if state is MessageState.DEAD else "held"
        settled = self.rules.hold(batch, [Verdict(one, state, verdict, reason, stack=stack) for one in guilty])
        self._tried.update(guilty)
        return self._with_rest(settled, [one for one in left if one not in guilty])

    def _with_rest(self, settled: Settled, rest: Sequence[UUID]) -> Settled:
        if self._turn is not None:
            self._tried.add(self._turn)
        settled.partial = bool(rest)
        return settled

    def _left(self, batch: Batch, again: UUID | None = None) -> list[UUID]:
        """The messages that are to be decided and have not had their turn, in their order."""
        (entity,) = batch.entities.values()
        wanted = [
            message
            for message in in_order(entity.open)
            if self.rules.wants(message) and (message.id not in self._tried or message.id == again)
        ]
        return [message.id for message in sorted(wanted, key=lambda one: one.state is not MessageState.PENDING)]
