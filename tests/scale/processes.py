"""The program's own processes while much is loaded: watched, waited for, and killed with SIGKILL where wanted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from bench.places import Installation

PATIENCE_SECONDS = 3600
_READ = "select coalesce((progress ->> 'read')::int, 0) from run order by created_at desc limit 1"
SETTLED = "select not exists (select from message where state in ('pending', 'waiting'))"


class Watched:
    """A process and its memory."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._own = psutil.Process(process.pid)
        self._seen: list[int] = []

    def look(self) -> None:
        """Note how much it has now."""
        try:
            self._seen.append(self._own.memory_info().rss >> 20)
        except psutil.Error:
            return

    @property
    def most_mb(self) -> int:
        """The most that it had."""
        return max(self._seen, default=0)

    def over_time(self) -> list[int]:
        """A dozen looks, evenly spread."""
        return self._seen[:: max(1, len(self._seen) // 12)]


def _start(environment: dict[str, str], arguments: list[str]) -> Watched:
    command = [sys.executable, "-m", "bss_sync.cli.main", *arguments]
    return Watched(subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True))


def command(
    environment: dict[str, str], arguments: list[str], kill_when: Callable[[], bool] | None, *, code: int = 0
) -> Watched:
    """Run a command to its end, with that exit code, or to the moment when it is to be killed."""
    watched, looks = _start(environment, arguments), 0
    while watched.process.poll() is None:
        watched.look()
        looks += 1
        if kill_when is not None and looks % 5 == 0 and kill_when():
            watched.process.kill()
            watched.process.wait()
            return watched
        time.sleep(0.2)
    assert kill_when is None, "it ended before it could be killed"
    assert watched.process.returncode == code, f"{arguments} ended with {watched.process.returncode}"
    return watched


@contextmanager
def working(here: Installation, environment: dict[str, str]) -> Iterator[list[Watched]]:
    """Two workers and a scheduler until the end of the block."""
    assert here.redis_url, "workers are woken by Redis"
    workers = [_start(environment, ["worker"]) for _ in range(2)]
    scheduler = _start(environment, ["scheduler"])
    over = threading.Event()

    def look() -> None:
        while not over.wait(1.0):
            for worker in workers:
                worker.look()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield workers
    finally:
        over.set()
        looking.join()
        for one in (*workers, scheduler):
            one.process.terminate()
            one.process.wait(60)


def wait(here: Installation, fact: str) -> None:
    """Until PostgreSQL says that it is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not here.ask(fact):
        assert time.monotonic() < deadline, f"never true: {fact}"
        time.sleep(0.5)


def rows_read(here: Installation) -> int:
    """How far the last load is."""
    return int(here.ask(_READ) or 0)
