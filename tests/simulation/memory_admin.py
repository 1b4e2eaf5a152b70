"""An admin's acts on the stores in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from bss_sync.domain.change import MessageState, WaitReason, stream_id
from bss_sync.domain.tenancy import ConnectionState
from bss_sync.testing.simulation.gathering import MemoryPolls
from bss_sync.testing.simulation.line import SimulatedLine
from tests.simulation.core import Name

DECIDED = frozenset({MessageState.APPLIED, MessageState.SUPERSEDED, MessageState.PENDING})


@dataclass
class MemoryAdmin:
    """``admin.Admin`` over the twins."""

    line: SimulatedLine
    polls: MemoryPolls
    connection_id: UUID
    _replay: list[UUID] = field(default_factory=list)

    def map_status(self, source_value: str, canonical: str) -> None:
        """See Admin."""
        rules = self.line.rules[self.connection_id]
        mapped = {**rules.value_maps, ("status", source_value): canonical}
        self.line.rules[self.connection_id] = replace(rules, value_maps=mapped)
        for item in self.line.messages.values():
            verdict, state = item.verdict, item.message.state
            held = state in (MessageState.QUARANTINED, MessageState.SUPERSEDED)
            if held and verdict is not None and verdict.held_field:
                passed = state is MessageState.SUPERSEDED
                item.message = replace(item.message, state=MessageState.PENDING, counted=passed)

    def take(self, name: Name, field: str, value: str) -> None:
        """See Admin."""
        key = stream_id(self.connection_id, *name)
        entity = self.line.entities[key]
        self.line.entities[key] = replace(entity, taken={**entity.taken, field: value})
        self.line.ready.add(key)

    def give_back(self, name: Name, field: str) -> None:
        """See Admin."""
        key = stream_id(self.connection_id, *name)
        entity = self.line.entities[key]
        self.line.entities[key] = replace(
            entity, taken={known: value for known, value in entity.taken.items() if known != field}
        )
        self.line.ready.add(key)

    def begin_replay(self, ids: Sequence[UUID]) -> bool:
        """See Admin."""
        chosen = [key for key in ids if self.line.messages[key].message.state not in DECIDED]
        self._replay += sorted(chosen, key=lambda key: (self.line.messages[key].stream, key))
        return bool(chosen)

    def carry_replay(self, limit: int) -> bool:
        """See Admin."""
        if not self._replay:
            return False
        streams = {self.line.messages[key].stream for key in self._replay[:limit]}
        step = [key for key in self._replay if self.line.messages[key].stream in streams]
        self._replay = [key for key in self._replay if key not in step]
        for key in step:
            item = self.line.messages[key]
            if item.message.state not in DECIDED:
                needs = (WaitReason.ACCOUNT, WaitReason.PARENT)
                if item.message.state is not MessageState.DEAD and item.message.wait_reason not in needs:
                    item.waits_for = None
                item.message = replace(
                    item.message, state=MessageState.PENDING, wait_reason=None, wait_until=None, fetch_asked=False
                )
                item.verdict = None
                self.line.forgive(item.stream)
        return True

    def discard(self, ids: Sequence[UUID]) -> None:
        """See Admin."""
        for key in ids:
            item = self.line.messages[key]
            self.line.decide(key, MessageState.DISCARDED)
            item.waits_for = None
            entity = self.line.entities[item.stream]
            kept = [None if one is not None and one.id == key else one for one in (entity.staged, entity.staged_end)]
            self.line.entities[item.stream] = replace(entity, staged=kept[0], staged_end=kept[1])

    def move(self, state: ConnectionState) -> None:
        """See Admin."""
        self.line.move(state)

    def answer_guard(self, *, yes: bool) -> bool:
        """See Admin."""
        stopped = self.line.stopped[self.connection_id] > 0
        if stopped and yes:
            self.line.let_pass(self.connection_id)
        elif stopped:
            self.line.stopped[self.connection_id] = 0
            self.discard(self.line.held_by_guard())
        return stopped

    def forget(self) -> None:
        """See Admin."""
        self.line.keys.clear()
        self.polls.cursor = None
