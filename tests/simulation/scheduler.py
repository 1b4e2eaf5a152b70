"""Tasks that take turns: exactly one runs at a time, and who is next is drawn from the seed.

Each task runs in a thread of its own, but only between two pauses and only while the scheduler waits for it; so the
line's own code, with its thread pools, runs unchanged, and the same seed gives the same interleaving.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Killed(BaseException):
    """The process of a task is gone. Nothing in the product may catch this and carry on."""


class Task:
    """One piece of work, paused before each thing that others could see."""

    def __init__(self, name: str, body: Callable[[Task], None]) -> None:
        self.name = name
        self.at = "start"
        self.finished = False
        self.killed = False
        self.error: BaseException | None = None
        self._body = body
        self._started = False
        self._inline = False
        # Plain locks, taken from the start: a release is a turn that is handed over.
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()

    def resume(self) -> None:
        """Let it run until its next pause or its end. Raises what it died of, unless it was killed."""
        assert not self.finished, "a finished task has no next step"
        if self._started:
            self._go.release()
        else:
            self._started = True
            threading.Thread(target=self._run, name=self.name, daemon=True).start()
        self._back.acquire()
        if self.error is not None:
            raise self.error

    def finish(self) -> None:
        """Run it to its end without a pause, where it is called. Raises what it died of, unless it was killed."""
        self._inline = True
        try:
            self._body(self)
        except Killed:
            self.killed = True
        finally:
            self.finished = True

    def kill(self) -> None:
        """Its process dies where it stands."""
        self.killed = True
        if self._started:
            self.resume()
        self.finished = True

    def pause(self, at: str) -> None:
        """Called by the task: give the turn back. Raises Killed when there is no further turn."""
        if self._inline and not self.killed:
            return
        if not self.killed:
            self.at = at
            self._back.release()
            self._go.acquire()
        if self.killed:
            raise Killed

    def _run(self) -> None:
        try:
            self._body(self)
        except Killed:
            self.killed = True
        except BaseException as error:  # noqa: BLE001 - carried over to the thread that waits for it
            self.error = error
        self.finished = True
        self._back.release()
