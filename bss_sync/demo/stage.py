"""The stage: a throw-away home and the real processes on it, all of them ended by their ids when the demo ends."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from bss_sync.adapters.embedded import EmbeddedPostgres
from bss_sync.demo.calls import Caller

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 35.0
"""serve drains for up to 25 s."""
COMMAND_SECONDS_MAX = 60.0
WAIT_SECONDS_MAX = 20.0
LOOK_SECONDS = 0.01
LOG_LINES_SHOWN = 15
DISTRIBUTOR = "Cloud"
_MODULE = (sys.executable, "-P", "-m")
"""Runs a module of this installation, whatever the folder in which the demo was started holds."""


Result = TypeVar("Result")


class NotAsPromised(Exception):
    """Something did not come out: what was to be seen, and what was seen instead."""

    def __init__(self, what: str, expected: object, seen: object) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.seen = seen


@dataclass(frozen=True, slots=True)
class Running:
    """One process of the stage, its address, and the file that holds what it said."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    url: str

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


@dataclass(frozen=True, slots=True)
class Command:
    """A finished bss-sync command."""

    code: int
    output: str
    errors: str


class Stage:
    """A context manager, for the main thread. Nothing of the caller's own installation is read or touched."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="bss-sync-demo-"))
        self.bind = f"127.0.0.1:{_free_port()}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.upper().startswith("BSS_SYNC_")},
            "BSS_SYNC_HOME": str(self.home),
            "BSS_SYNC_BIND": self.bind,
            "BSS_SYNC_DISTRIBUTOR_NAME": DISTRIBUTOR,
            "BSS_SYNC_LOG_FORMAT": "json",
            "PYTHONUTF8": "1",
        }
        self._running: list[Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C must not leave processes behind.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self.close()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def serve(self) -> Running:
        """Start ``bss-sync serve``; ``ready`` waits for it."""
        return self._start("serve", ["bss_sync.cli.main", "serve"], f"http://{self.bind}")

    def ready(self, serving: Running) -> None:
        """Wait until ``bss-sync serve`` takes requests."""
        caller = Caller(serving.url)

        def is_ready() -> bool:
            try:
                return caller.call("GET", "/readyz").status == 200
            except OSError:
                return False

        self.eventually("bss-sync serve is ready", True, is_ready, seconds=START_SECONDS_MAX)

    def simulate(self, role: str) -> Running:
        """Start a BSS behind HTTP; it says its address when it listens."""
        return self._announced(role, ["connectors.simulator", "--role", role])

    def localstripe(self) -> Running:
        """Start localstripe; only where it is installed."""
        return self._announced("localstripe", ["bss_sync.testing.localstripe", "--port", "0"])

    def command(self, *arguments: str, typed: str = "") -> Command:
        """Run ``bss-sync ARGUMENTS``; ``typed`` is its standard input."""
        done = subprocess.run(
            [*_MODULE, "bss_sync.cli.main", *arguments],
            input=typed,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=self.environment,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
        return Command(done.returncode, done.stdout, done.stderr)

    def administer(self, *arguments: str, typed: str = "") -> Any:
        """Run ``bss-sync ARGUMENTS --json``, which must succeed; returns what it printed, decoded."""
        done = self.command(*arguments, "--json", typed=typed)
        if done.code != 0:
            self.check_alive()
            # Not what it printed to standard output: that may hold a secret.
            raise NotAsPromised(
                f"bss-sync {' '.join(arguments)}", "exit code 0", f"exit code {done.code}: {done.errors.strip()}"
            )
        return json.loads(done.output)

    def eventually(
        self, what: str, expected: object, look: Callable[[], object], *, seconds: float = WAIT_SECONDS_MAX
    ) -> float:
        """Look until ``expected`` is seen; returns how many milliseconds that took. NotAsPromised after ``seconds``."""
        started = time.monotonic()
        while (seen := look()) != expected:
            self.check_alive()
            if time.monotonic() - started > seconds:
                raise NotAsPromised(what, expected, f"{seen!r} (for {seconds:.0f} s)")
            time.sleep(LOOK_SECONDS)
        return (time.monotonic() - started) * 1_000

    def check_alive(self) -> None:
        """NotAsPromised when one of the processes has ended by itself."""
        for one in self._running:
            if one.process.poll() is not None:
                raise NotAsPromised(f"{one.name} runs", "a living process", f"exit code {one.process.returncode}")

    def troubles(self) -> list[str]:
        """The last lines that the processes said, but for what is usual."""
        lines = []
        for one in self._running:
            said = one.log.read_text(encoding="utf-8", errors="replace").splitlines()
            grave = [line for line in said if '"level": "info"' not in line]
            lines += [f"{one.name}: {line}" for line in grave[-LOG_LINES_SHOWN:]]
        return lines

    def administer_all(self, *commands: Sequence[str]) -> list[Any]:
        """``administer`` for several commands that do not depend on each other, side by side."""
        return side_by_side([partial(self.administer, *arguments) for arguments in commands])

    def close(self) -> None:
        """End every process and remove the home."""
        for one in self._running:
            one.process.terminate()
        while self._running:
            _end(self._running.pop())
        server = self.home / "postgres"
        if (server / "data" / "postmaster.pid").exists():
            # serve had to be killed, and its PostgreSQL still runs: the last user who leaves stops it.
            with EmbeddedPostgres(self.home):
                pass
        if server.is_symlink():
            shutil.rmtree(server.resolve(), ignore_errors=True)
        shutil.rmtree(self.home, ignore_errors=True)

    def _announced(self, name: str, module: Sequence[str]) -> Running:
        return self._start(name, module, None)

    def _start(self, name: str, module: Sequence[str], url: str | None) -> Running:
        log = self.home / f"{name}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [*_MODULE, *module],
                stdin=subprocess.DEVNULL,
                stdout=file if url is not None else subprocess.PIPE,
                stderr=file,
                text=True,
                env=self.environment,
                # Ctrl-C is for the demo, which ends its processes in order.
                start_new_session=True,
            )
        try:
            running = Running(name, process, log, url or _announced_url(name, process))
        except BaseException:
            process.kill()
            process.wait()
            raise
        self._running.append(running)
        return running


def side_by_side(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """The results of calls that do not depend on each other, in their order."""
    with ThreadPoolExecutor(max_workers=len(calls)) as pool:
        return [one.result() for one in [pool.submit(call) for call in calls]]


def _announced_url(name: str, process: subprocess.Popen[str]) -> str:
    """The url of the one JSON line that the process prints once it listens."""
    assert process.stdout is not None, "started with a pipe"
    with process.stdout as said, selectors.DefaultSelector() as selector:
        selector.register(said, selectors.EVENT_READ)
        line = said.readline() if selector.select(START_SECONDS_MAX) else ""
    if not line:
        raise NotAsPromised(f"{name} starts", "its address", "nothing")
    return str(json.loads(line)["url"])


def _end(one: Running) -> None:
    try:
        one.process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        one.process.kill()
        one.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def picked(record: Mapping[str, Any] | None, expected: Mapping[str, object]) -> dict[str, object] | None:
    """Those members of a record that ``expected`` speaks of, to be compared with it; None without a record."""
    return None if record is None else {name: record.get(name) for name in expected}
