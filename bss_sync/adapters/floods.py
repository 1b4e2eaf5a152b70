"""Who floods: a connection that sends much while another sends little (fair shares, docs/breakers.md).

Counts arrivals per connection in one process of the door, in memory; nothing that is answered depends on it, only how
long it takes. For one event loop: not thread-safe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

FLOOD_MESSAGES = 64.0
"""Messages of the last second or so; who sends less floods nobody."""
FLOOD_RATIO = 4.0
"""A flood is so many times what the least busy connection sends: where all send much, nobody floods."""
NEAR_SECONDS = 3.0
"""Who has sent within so long is about."""
LOOK_SECONDS = 0.25
SUDDEN_SECONDS = 0.02
"""Who has just come to send much is looked at so soon: a flood's first messages are most of what it costs others."""
MEMORY_SECONDS = 1.0
"""How fast a count fades."""


@dataclass(slots=True)
class _Seen:
    """A connection's faded count as it was at ``at``."""

    number: float
    at: float


@dataclass(slots=True)
class Floods:
    """Counts, and looks who floods: four times a second, and as soon as somebody has come to send much."""

    clock: Callable[[], float] = time.monotonic
    _seen: dict[UUID, _Seen] = field(default_factory=dict)
    _flooding: frozenset[UUID] = frozenset()
    _looked_at: float = float("-inf")
    _sudden: bool = False
    """Somebody has come to send much since the last look."""

    def note(self, connection_id: UUID, messages: int) -> bool:
        """Count so many messages. Whether their connection floods."""
        now = self.clock()
        seen = self._seen.setdefault(connection_id, _Seen(0.0, now))
        before = _faded(seen, now)
        seen.number, seen.at = before + messages, now
        self._sudden = self._sudden or before < FLOOD_MESSAGES <= seen.number
        if now - self._looked_at >= (SUDDEN_SECONDS if self._sudden else LOOK_SECONDS):
            self._looked_at, self._sudden = now, False
            self._look(now)
        return connection_id in self._flooding

    def _look(self, now: float) -> None:
        self._seen = {one: seen for one, seen in self._seen.items() if now - seen.at <= NEAR_SECONDS}
        numbers = {one: _faded(seen, now) for one, seen in self._seen.items()}
        least = max(FLOOD_MESSAGES, FLOOD_RATIO * min(numbers.values()))
        self._flooding = frozenset(one for one, number in numbers.items() if number >= least)


def _faded(seen: _Seen, now: float) -> float:
    return seen.number * math.exp((seen.at - now) / MEMORY_SECONDS)
