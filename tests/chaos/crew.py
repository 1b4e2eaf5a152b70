"""The processes of one installation, and a supervisor that starts what has ended, as a service manager would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bss_sync.settings import PREFIX
from tests.chaos.failing_worker import DEADLY_EXIT_CODE, DEPENDENCY_DOWN, EXIT_CODE

RESTART_SECONDS = 0.2
LOOK_SECONDS = 0.05
EXPECTED_EXITS = frozenset({0, DEPENDENCY_DOWN, EXIT_CODE, DEADLY_EXIT_CODE, -signal.SIGKILL, -signal.SIGTERM})
"""Drained, a dependency was down at the start, a failpoint, killed, told to end before it had begun.

Anything else is a process that died by itself.
"""
_ROOT = Path(__file__).parents[2]
PROGRAM = ("-m", "bss_sync.cli.main")


@dataclass(frozen=True)
class Exit:
    """One end of a process: its code, when it was asked to end (SIGTERM) and how long that took."""

    code: int
    at: float
    drain_seconds: float | None


@dataclass
class Daemon:
    """One process that is started again whenever it ends. ``once``: arguments of its next starts, before the usual."""

    name: str
    usual: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    """Where its log is."""
    root: Path = _ROOT
    """Whose code it runs."""
    prefix: Sequence[str] = ()
    """What the command begins with: where it runs."""
    once: deque[Sequence[str]] = field(default_factory=deque)
    exits: list[Exit] = field(default_factory=list)
    wanted: bool = True
    process: subprocess.Popen[bytes] | None = None
    armed: Sequence[str] | None = None
    """What of ``once`` the present process was started with; it is used again when a dependency was down."""
    _told_at: float | None = None

    @property
    def log(self) -> Path:
        """What all its processes wrote."""
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        """One process, not waited for."""
        self.armed = self.once.popleft() if self.once else None
        arguments = self.armed or self.usual
        bare = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        self._told_at = None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, *arguments],
                cwd=self.root,
                env={**bare, **self.environment, "PYTHONPATH": str(self.root)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()

    def terminate(self) -> None:
        """SIGTERM; the drain is timed."""
        if self.process is not None:
            self._told_at = time.monotonic()
            self.process.terminate()

    def stopped(self) -> bool:
        """Whether the present process stands still (SIGSTOP)."""
        try:
            return self.process is not None and psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return False

    def resume(self) -> None:
        """SIGCONT."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def tend(self) -> None:
        """Note an end; start again when it is wanted and has rested."""
        if self.process is not None and (code := self.process.poll()) is not None:
            now = time.monotonic()
            if code == DEPENDENCY_DOWN and self.armed is not None:
                self.once.appendleft(self.armed)
            self.exits.append(Exit(code, now, None if self._told_at is None else now - self._told_at))
            self.process = None
        if self.process is None and self.wanted:
            if self.exits and time.monotonic() - self.exits[-1].at < RESTART_SECONDS:
                return
            self.start()


class Crew:
    """Supervises daemons in a thread."""

    def __init__(self, daemons: Sequence[Daemon]) -> None:
        self.daemons = {daemon.name: daemon for daemon in daemons}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="crew", daemon=True)

    def __getitem__(self, name: str) -> Daemon:
        """The daemon of this name."""
        return self.daemons[name]

    def start(self) -> None:
        """Start all, and go on starting them."""
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(LOOK_SECONDS):
            for daemon in self.daemons.values():
                daemon.tend()

    def end(self) -> None:
        """Kill all: how they drain is shown elsewhere."""
        self._ending.set()
        self._thread.join(10)
        for daemon in self.daemons.values():
            daemon.kill()
        for daemon in self.daemons.values():
            if daemon.process is not None:
                daemon.process.wait()

    def unexpected(self) -> list[str]:
        """Processes that ended in a way that nobody caused."""
        return [
            f"{daemon.name} ended with {one.code}: {daemon.log.read_text(errors='replace')[-3000:]}"
            for daemon in self.daemons.values()
            for one in daemon.exits
            if one.code not in EXPECTED_EXITS
        ]
