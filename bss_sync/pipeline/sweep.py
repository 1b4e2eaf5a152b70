"""Sweep: what was missed, stranded or forgotten is woken again within seconds (architecture.md, decision 2).

One sweeper acts at a time, once a second: two statements each second, the rest less often. It decides nothing itself;
the line, the deliveries and the gatherers do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bss_sync.ports.upkeep import Hinting, Hints, Pruned, UpkeepStore

TICK_SECONDS = 1.0
EPOCH_SECONDS = 2.0
FLOOR_SECONDS = 60.0
RELEASE_SECONDS = 2.0
PARKING_SECONDS = 5.0
SILENCE_SECONDS = 10.0
CLOSING_SECONDS = 10.0
PRUNE_SECONDS = 60.0
RETENTION_SECONDS = 3600.0
"""Between two passes; within one there is a step each second. A part that was in use is tried again by the next."""


@dataclass
class Sweeper:
    """Sweeps. ``seconds`` is a monotonic clock: a wrong wall clock must not stop the sweeping."""

    store: UpkeepStore
    wake: Hinting
    seconds: Callable[[], float] = time.monotonic
    pruned: Pruned = field(default=Pruned(0, 0, 0))
    _due: dict[str, float] = field(default_factory=dict)

    def tick(self) -> Hints:
        """One sweep; returns what was hinted. DependencyDown when PostgreSQL does not answer: sweep again later."""
        self._put_in_order()
        hints = self.store.hints()
        for shard in hints.shards:
            self.wake.process(shard)
        if hints.deliveries:
            self.wake.deliver()
        if hints.fetches:
            self.wake.fetch()
        if hints.polls:
            self.wake.poll()
        if self._is_due("silence", SILENCE_SECONDS):
            for silent in self.store.mark_silent():
                self.wake.probe(silent.connection_id)
        if self._is_due("closing", CLOSING_SECONDS) and self.store.close_due():
            self.wake.deliver()
        if self._is_due("prune", PRUNE_SECONDS):
            self.pruned = self.store.prune()
        if self._is_due("retention", RETENTION_SECONDS) and self.store.retain() is not None:
            self._due["retention"] = self.seconds()
        return hints

    def _put_in_order(self) -> None:
        if self._is_due("epoch", EPOCH_SECONDS):
            self.store.settle_epoch()
        if self._is_due("floor", FLOOR_SECONDS):
            self.store.note_floor()
        if self._is_due("release", RELEASE_SECONDS):
            self.store.wake_released()
        if self._is_due("parking", PARKING_SECONDS):
            self.store.settle_parking()

    def _is_due(self, name: str, period_seconds: float) -> bool:
        now = self.seconds()
        if now < self._due.get(name, now):
            return False
        self._due[name] = now + period_seconds
        return True
