"""One thread of a process per piece of work: a second hint for running work makes it run once more, never beside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable


class SetOfShards:
    """Shards that something is to be done about, added by any thread and taken by one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards: set[int] = set()

    def add(self, shards: Iterable[int]) -> None:
        """Each is in it once."""
        with self._lock:
            self._shards.update(shards)

    def take(self) -> list[int]:
        """All of them; none is left."""
        with self._lock:
            taken, self._shards = self._shards, set()
        return sorted(taken)


class Turns:
    """Runs work by name, each name by one thread at a time. Stops handing out turns once ``stop`` was called."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Hashable, bool] = {}
        self._stopping = threading.Event()

    @property
    def stopping(self) -> bool:
        """Whether work should end at its next boundary."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """No further turn begins; what runs ends at its next boundary."""
        self._stopping.set()

    def rest(self, seconds: float) -> None:
        """Leave the machine to others for so long; not once turns are over."""
        self._stopping.wait(seconds)

    def take(self, name: Hashable, work: Callable[[], None]) -> bool:
        """Run ``work``, again for every hint that comes meanwhile. False when another thread is at it: it will."""
        with self._lock:
            if name in self._running:
                self._running[name] = True
                return False
            self._running[name] = False
        while True:
            try:
                if not self.stopping:
                    work()
            except BaseException:
                self._leave(name)
                raise
            with self._lock:
                # Looked at and given back in one step: a hint that comes now finds the turn free.
                if self.stopping or not self._running[name]:
                    del self._running[name]
                    return True
                self._running[name] = False

    def _leave(self, name: Hashable) -> None:
        with self._lock:
            del self._running[name]
