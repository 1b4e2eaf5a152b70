"""Scenarios on the line in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

from bss_sync.domain.change import Change, Json, Kind, MessageState, stream_id
from bss_sync.domain.product import Catalogue
from bss_sync.pipeline.line import accept, process
from bss_sync.ports.inbox import Accepted, Arrival, Origin
from bss_sync.ports.streams import ConnectionRules, Entity
from bss_sync.testing.memory import MemoryLine, StoredMessage
from tests.scenario import START, WAIT_SECONDS, Asked, Hole, Scenario, Shown, Told


@dataclass(kw_only=True)
class MemoryScenario(Scenario):
    """A connection of a ``MemoryLine``."""

    line: MemoryLine
    connection_id: UUID

    @classmethod
    def connected(cls, *, can_fetch: bool = False, accounts_at_once: bool = False) -> MemoryScenario:
        """A live connection."""
        line = MemoryLine(now=START + timedelta(days=300))
        connection_id = line.connect(
            "OURS-1", "OURS-2", can_fetch=can_fetch, accounts_at_once=accounts_at_once, wait_seconds=WAIT_SECONDS
        )
        return cls(line=line, connection_id=connection_id)

    def accept(self, changes: Sequence[Change], origin: Origin) -> None:
        tenant_id = self.line.tenants[self.connection_id]
        self.line.now += timedelta(milliseconds=1)
        (answer,) = accept(self.line, [Arrival(tenant_id, self.connection_id, None, origin, changes)])
        assert isinstance(answer, Accepted)

    def work(self) -> None:
        self.line.run(process)

    def verdict(self, message_id: str) -> tuple[str, str | None, str | None]:
        item = self._stored(message_id)
        verdict = item.verdict
        return (
            item.message.state.value,
            None if verdict is None else verdict.verdict,
            None if verdict is None else verdict.reason,
        )

    def _stored(self, message_id: str) -> StoredMessage:
        return next(item for item in self.line.messages.values() if item.message.message_id == message_id)

    def states(self) -> list[str]:
        return [item.message.state.value for item in self.line.messages.values()]

    def _entity(self, kind: Kind, source_id: str) -> Entity | None:
        return self.line.entities.get(stream_id(self.connection_id, kind, source_id))

    def mirror(self, kind: Kind, source_id: str) -> Shown | None:
        entity = self._entity(kind, source_id)
        if entity is None or entity.mirrored is None:
            return None
        mirrored = entity.mirrored
        values = {**mirrored.content, **entity.taken}
        return Shown(
            values,
            mirrored.version,
            mirrored.deleted_at is not None,
            mirrored.ended_reason,
            values["parent_id"] if mirrored.parent_linked else None,
            values.get("account_id"),
        )

    def mirrored(self, kind: Kind) -> set[str]:
        return set(self.line.mirror(kind))

    def history(self, kind: Kind, source_id: str) -> list[Told]:
        record_id = stream_id(self.connection_id, kind, source_id)
        return [
            Told(row.version, row.effective_at, row.state, row.deleted, row.late, row.ended_reason, row.epoch)
            for row in self.line.history
            if row.record_id == record_id
        ]

    def gaps(self, kind: Kind, source_id: str) -> list[Hole]:
        record_id = stream_id(self.connection_id, kind, source_id)
        found = [gap for gap in self.line.gaps if gap.stream_id == record_id]
        return [Hole(gap.from_version, gap.to_version, gap.missing) for gap in found]

    def fetches(self) -> set[Asked]:
        return {Asked(request.kind, request.source_id) for request in self.line.fetches}

    def pass_time(self, seconds: float) -> None:
        self.line.now += timedelta(seconds=seconds)
        for item in self.line.messages.values():
            until = item.message.wait_until
            if item.message.state is MessageState.WAITING and until is not None and until <= self.line.now:
                self.line.ready.add(item.stream)
        self.work()

    def _rules(self) -> ConnectionRules:
        return self.line.rules[self.connection_id]

    def _catalogue(self, code: str, *, retired: bool) -> None:
        rules = self._rules()
        catalogue = Catalogue({**rules.catalogue.codes, code: retired}, rules.catalogue.mapped)
        self.line.rules[self.connection_id] = replace(rules, catalogue=catalogue)

    def offer(self, code: str) -> None:
        self._catalogue(code, retired=False)
        for key, entity in self.line.entities.items():
            if entity.staged is not None and entity.staged.body.get("product") == code:
                self.line.ready.add(key)
        self.work()

    def retire(self, code: str) -> None:
        self._catalogue(code, retired=True)

    def map_value(self, name: str, source_value: str, canonical: str) -> None:
        rules = self._rules()
        mapped = {**rules.value_maps, (name, source_value): canonical}
        self.line.rules[self.connection_id] = replace(rules, value_maps=mapped)
        for item in self.line.messages.values():
            verdict = item.verdict
            state = item.message.state
            held = state in (MessageState.QUARANTINED, MessageState.SUPERSEDED) and verdict is not None
            if held and verdict is not None and (verdict.held_field, verdict.held_value) == (name, source_value):
                passed = state is MessageState.SUPERSEDED
                item.message = replace(item.message, state=MessageState.PENDING, counted=passed)
        self.work()

    def take(self, kind: Kind, source_id: str, name: str, value: Json) -> None:
        self._lay(kind, source_id, {name: value}, ())

    def give_back(self, kind: Kind, source_id: str, name: str) -> None:
        self._lay(kind, source_id, {}, (name,))

    def _lay(self, kind: Kind, source_id: str, taken: dict[str, Json], released: Sequence[str]) -> None:
        entity = self._entity(kind, source_id)
        assert entity is not None, "only a known entity has fields"
        kept = {name: value for name, value in entity.taken.items() if name not in released}
        self.line.entities[entity.id] = replace(entity, taken=kept | taken)
        self.line.ready.add(entity.id)
        self.work()

    def replay(self, *message_ids: str) -> None:
        for message_id in message_ids:
            item = self._stored(message_id)
            item.message = replace(item.message, state=MessageState.PENDING)
        self.work()

    def accept_source(self, kind: Kind, source_id: str) -> None:
        entity = self._entity(kind, source_id)
        assert entity is not None, "only a known entity has a position"
        self.line.now += timedelta(seconds=1)
        self.line.begin_epoch(entity.id)
