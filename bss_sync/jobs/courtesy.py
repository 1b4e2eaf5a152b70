"""Courtesy: a long backlog leaves room while somebody with little to do is about (fair shares, docs/breakers.md).

Two cores that a flood keeps busy make everybody's statements take twice as long, in whatever order the work is done.
So the flood, and nobody else, takes smaller batches, one at a time for every two cores, rests between them, and stands
back at its statements while the little work of another is under way in the same process. Alone it never rests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

LOOK_SECONDS = 0.5
"""Somebody who comes or goes is noticed within so long."""
REST_SHARE = 1.0
"""A batch that took a second is followed by so many seconds of rest."""
REST_SECONDS_MAX = 0.5
STAND_BACK_SECONDS_MAX = 0.15
"""In all, for one batch: its transaction is open meanwhile."""
LANE_SECONDS_MAX = 0.5
"""So long a flood's batch waits for those of other processes: one that was stopped in the middle stops nobody."""
POLITE_STREAMS = 64
"""A flood's batch while others are about: nobody waits long for its end."""


class Lane(Protocol):
    """Where batches of floods are under way on this machine: few at one time."""

    def entered(self, seconds_max: float) -> AbstractContextManager[bool]:
        """Wait for a place, no longer than that; it is held within."""
        ...


@dataclass
class Courtesy:
    """What one process leaves to those who have little to do. ``others`` asks PostgreSQL for them. Thread-safe."""

    others: Callable[[], bool]
    lane: Lane
    clock: Callable[[], float] = time.monotonic
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _here: threading.local = field(default_factory=threading.local)
    _going_first: int = 0
    _looked_at: float = float("-inf")
    _near: bool = False

    def needed(self) -> bool:
        """Whether somebody with little to do is about. For who has much: it may ask PostgreSQL."""
        if self.clock() - self._looked_at >= LOOK_SECONDS:
            self._near = self.others()
            self._looked_at = self.clock()
        return self._near

    def rest_seconds(self, worked_seconds: float) -> float:
        """How long a backlog leaves the machine to the others after so long at work."""
        return min(worked_seconds * REST_SHARE, REST_SECONDS_MAX) if self.needed() else 0.0

    @contextmanager
    def going_first(self) -> Iterator[None]:
        """Little work is under way in this thread: who stands back waits."""
        with self._changed:
            self._going_first += 1
        try:
            yield
        finally:
            with self._changed:
                self._going_first -= 1
                self._changed.notify_all()

    @contextmanager
    def standing_back(self) -> Iterator[None]:
        """A backlog's batch is under way in this thread, in the lane: ``give_way`` waits in here, and nowhere else."""
        with self.lane.entered(LANE_SECONDS_MAX):
            self._here.until = self.clock() + STAND_BACK_SECONDS_MAX
            try:
                yield
            finally:
                self._here.until = None

    def give_way(self) -> None:
        """Wait until no little work is under way, as far as this thread stands back and for no longer than it may."""
        until: float | None = getattr(self._here, "until", None)
        if until is None or not self._going_first:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._going_first, max(0.0, until - self.clock()))
