"""The line without one of its protections: what the oracles must notice. Nothing here is a switch of the product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID

from bss_sync.domain.errors import MessageConflict
from bss_sync.domain.tenancy import ConnectionState
from bss_sync.ports.inbox import Accepted, Arrival, Stale
from bss_sync.ports.streams import Batch, Claim, LittleWork, Settled, Written
from bss_sync.testing.simulation.line import SimulatedLine
from tests.simulation.memory_core import MemoryCore
from tests.simulation.profile import GUARD, Profile


class WithoutDeduplication(SimulatedLine):
    """Every repetition is a message of its own."""

    def accept(self, arrivals: Sequence[Arrival]) -> list[Accepted | MessageConflict | Stale]:
        """Forget the keys."""
        self.keys.clear()
        return super().accept(arrivals)


class WithoutTombstones(SimulatedLine):
    """A deletion is forgotten: whatever comes next is the first that was ever heard."""

    def _load(self, ids: Sequence[UUID], as_pending: frozenset[UUID]) -> Batch:
        batch = super()._load(ids, as_pending)
        for key, entity in batch.entities.items():
            if entity.position.deleted and entity.mirrored is not None:
                batch.entities[key] = replace(entity, position=replace(entity.position, version=None))
        return batch


class WithoutCycleCheck(SimulatedLine):
    """Nobody has a parent, as far as a decision can see."""

    def _load(self, ids: Sequence[UUID], as_pending: frozenset[UUID]) -> Batch:
        batch = super()._load(ids, as_pending)
        for key, relative in batch.relatives.items():
            batch.relatives[key] = replace(relative, parent_id=None)
        return batch


class WithoutRelease(SimulatedLine):
    """What waits is woken by nothing: not by an arrival, not by the sweeper."""

    def _write(self, settled: Settled, ours: Sequence[UUID]) -> None:
        ready = set(self.ready)
        super()._write(settled, ours)
        self.ready = ready

    def sweep(self) -> bool:
        """Look only for what is pending."""
        return any(self._is_free(key) for key in self._wanted())


class WithoutLateHistory(SimulatedLine):
    """A state that comes late is superseded and leaves no trace."""

    def _write(self, settled: Settled, ours: Sequence[UUID]) -> None:
        settled.history = [row for row in settled.history if not row.late]
        super()._write(settled, ours)


class WithoutVersions(SimulatedLine):
    """The last message wins, whatever its version."""

    def _load(self, ids: Sequence[UUID], as_pending: frozenset[UUID]) -> Batch:
        batch = super()._load(ids, as_pending)
        for key, entity in batch.entities.items():
            batch.entities[key] = replace(entity, position=replace(entity.position, version=None))
        return batch


class TornWrites(SimulatedLine):
    """Verdicts are committed before the mirror is: a process that dies between them loses what was decided."""

    def work(self, claims: Sequence[Claim], settle: Callable[[Batch], Settled]) -> tuple[Settled, Written]:
        """Every seventh time the mirror is not written."""
        entities = dict(self.entities)
        answer = super().work(claims, settle)
        self._works = getattr(self, "_works", 0) + 1
        if self._works % 7 == 0:
            self.entities = entities
        return answer


class WithoutGate(SimulatedLine):
    """Whoever asks gets work, whatever state the connection is in."""

    def claim(self, shard: int, limit: int) -> list[Claim]:
        """As if it were live."""
        state, self.state = self.state, ConnectionState.LIVE
        claims = super().claim(shard, limit)
        self.state = state
        return claims

    def claim_little(self, shards: Sequence[int], limit: int) -> LittleWork:
        """As if it were live."""
        state, self.state = self.state, ConnectionState.LIVE
        little = super().claim_little(shards, limit)
        self.state = state
        return little


class WithoutTakeover(SimulatedLine):
    """The source's word is shown, whoever owns the field."""

    def _load(self, ids: Sequence[UUID], as_pending: frozenset[UUID]) -> Batch:
        batch = super()._load(ids, as_pending)
        for key, entity in batch.entities.items():
            batch.entities[key] = replace(entity, taken={})
        return batch


class WithoutRehearsal(SimulatedLine):
    """A dry run tells what is, not what would be."""

    def rehearse(self, message_ids: Sequence[UUID], settle: Callable[[Batch], Settled]) -> Settled:
        """Decide nothing anew."""
        ids = list({self.messages[key].stream for key in message_ids})
        return settle(self._load(ids, frozenset()))


PROTECTIONS: dict[str, Callable[[], SimulatedLine]] = {
    "fencing": lambda: SimulatedLine(fencing=False),
    "lease and fencing": lambda: SimulatedLine(leasing=False, fencing=False),
    "deduplication": WithoutDeduplication,
    "look-up before create": SimulatedLine,
    "tombstone": WithoutTombstones,
    "cycle check": WithoutCycleCheck,
    "release of what waits": WithoutRelease,
    "late history": WithoutLateHistory,
    "version order": WithoutVersions,
    "one transaction": TornWrites,
    "connection state gate": WithoutGate,
    "takeover": WithoutTakeover,
    "a dry run of a replay": WithoutRehearsal,
}


def sabotaged_core(products: Sequence[str], profile: Profile, without: str | None) -> MemoryCore:
    """The stores in memory, without one protection if one is named."""
    line = SimulatedLine() if without is None else PROTECTIONS[without]()
    line.guard = GUARD if profile.guarded else None
    return MemoryCore(products, accounts_at_once=profile.accounts_at_once, line=line)
