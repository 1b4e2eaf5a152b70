"""An upgrade under load, and the way back: the release before and this one, side by side on one database and one Redis.

The old release's doors, workers and schedulers work; the new one's migrations run; new processes start beside the old
ones, which are told to end; then the same backwards, without touching the schema. What is answered meanwhile is judged
as everywhere in this suite (``verdict``), and how long anybody stood still is measured.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx
import psycopg

from tests.chaos.crew import Crew, Daemon
from tests.chaos.load import PRODUCT, Load
from tests.chaos.proxy import Proxy
from tests.chaos.scenarios import Figures, eventually
from tests.chaos.stack import DRIFT_SECONDS, UNGUARDED, Stack, _distributor, _environment, _free_port, own_postgres
from tests.chaos.verdict import verify
from tests.command_line import Answer
from tests.releases import Release
from tests.servers import Database, RedisServer, short_folder

STALL_SECONDS_MAX = 4.0
"""What a migration may hold up: one wait for a lock (2 s), and as much again for what it does under it."""
LEVEL_SECONDS_MAX = 90.0
START_SECONDS_MAX = 180.0
"""Twelve processes in all start on a machine that does other things too."""
LOOK_SECONDS = 0.1
KNOWN_OF_OLD = "NotSupportedError"
"""0.1.0 calls it a defect, once per session, when a table that it reads whole has got a column; then it does the work.

Later releases know that it passes (DependencyDown). This goes when the previous release is a later one.
"""
_SETTLED = "select count(*) from message where state in ('applied', 'superseded')"


class Pulse:
    """How far processing has come, looked at ten times a second: an instant (monotonic) for each step forward."""

    def __init__(self, database: Database) -> None:
        self.steps: list[float] = []
        self._url = database.superuser_url.replace("+psycopg", "")
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(30)

    def _run(self) -> None:
        before = 0
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._ending.wait(LOOK_SECONDS):
                row = connection.execute(_SETTLED).fetchone()
                assert row is not None
                if row[0] > before:
                    before = row[0]
                    self.steps.append(time.monotonic())


@dataclass
class _Stack(Stack):
    """Commands are the new release's."""

    release: Release

    def cli(self, *arguments: str) -> tuple[int, str]:
        """Run ``bss-sync``: exit code and what it said."""
        answer = self.release.run(self.environment, *arguments)
        return answer.code, answer.out + answer.err


@dataclass
class Journey:
    """One stack on which two releases meet. ``broken``: promises that were not kept, in words."""

    stack: Stack
    old: Release
    new: Release
    load: Load
    pulse: Pulse
    urls: dict[str, str]
    """The door of each release: "old", "new"."""
    patience: float = 1.0
    broken: list[str] = field(default_factory=list)

    def daemons(self, which: str) -> list[Daemon]:
        """The processes of a release."""
        return [daemon for name, daemon in self.stack.crew.daemons.items() if name.startswith(which)]

    def begin(self, which: str) -> None:
        """Start a release's processes, wait until its door is ready and its others work, then send to its door too."""
        for daemon in self.daemons(which):
            daemon.wanted = True
        self.works(which)
        self.load.urls = [*self.load.urls, self.urls[which]]

    def works(self, which: str) -> None:
        """Wait until a release's door is ready and its others have begun."""
        try:
            eventually(lambda: _ready(self.urls[which]), f"the {which} door is ready", START_SECONDS_MAX)
            for daemon in self.daemons(which):
                eventually(lambda daemon=daemon: _works(daemon), f"{daemon.name} works", START_SECONDS_MAX)  # type: ignore[misc]  # a default
        except AssertionError as error:
            logs = {daemon.name: _said(daemon)[-600:] for daemon in self.daemons(which)}
            raise AssertionError(f"{error}; they said {logs}") from None

    def end(self, which: str) -> float:
        """Send to its door no more, then SIGTERM; the longest drain in seconds."""
        self.load.urls = [url for url in self.load.urls if url != self.urls[which]]
        time.sleep(0.3)
        ends = {daemon.name: len(daemon.exits) for daemon in self.daemons(which)}
        for daemon in self.daemons(which):
            daemon.wanted = False
            daemon.terminate()
        drains: list[float] = []
        for daemon in self.daemons(which):
            eventually(lambda daemon=daemon: len(daemon.exits) > ends[daemon.name], f"{daemon.name} ends")  # type: ignore[misc]  # a default
            if daemon.exits[-1].code != 0:
                self.broken.append(f"{daemon.name} ended with {daemon.exits[-1].code} on SIGTERM")
            drains.append(daemon.exits[-1].drain_seconds or 0.0)
        return max(drains)

    def flows(self, seconds: float, who: str) -> None:
        """Go on for so long, and until messages were answered and decided meanwhile."""
        since = time.monotonic()
        time.sleep(seconds)
        for what, steps in zip(("answered", "decided"), self._clocks, strict=True):
            eventually(lambda steps=steps: steps()[-1:] > [since], f"{who}: something is {what}")  # type: ignore[misc]  # a default

    def migrate(self, upgrades: int) -> Figures:
        """So many upgrades at once, under load, and how long the load and the processing stood still."""
        calm_from = time.monotonic() - 2.0
        started = time.monotonic()
        calm = [longest_stall(steps(), calm_from, started) for steps in self._clocks]
        begun = [self.new.start(self.stack.environment, "db", "upgrade") for _ in range(upgrades)]
        answers = [self.new.ended(process) for process in begun]
        for answer in answers:
            if answer.code != 0:
                self.broken.append(f"db upgrade ended with {answer.code}: {answer.err}")
        took = time.monotonic() - started
        time.sleep(1.0)
        until = time.monotonic()
        tries = sum(answer.err.count("trying again") for answer in answers)
        figures: Figures = {"upgrade_seconds": round(took, 2), "locks_given_up": tries}
        slowest = max((took for at, took in list(self.load.times) if at > started), default=0.0)
        stalls = [longest_stall(steps(), started, until) for steps in self._clocks]
        for what, seconds, before in zip(("answers", "processing"), stalls, calm, strict=True):
            figures[f"{what}_stall_seconds"] = round(seconds, 2)
            self._bounded(f"{what} stood still", seconds, before)
        figures["slowest_answer_seconds"] = round(slowest, 2)
        self._bounded("the slowest answer took", slowest, max(calm))
        return figures

    @property
    def _clocks(self) -> tuple[Callable[[], list[float]], ...]:
        return lambda: sorted(at for at, _ in list(self.load.times)), lambda: list(self.pulse.steps)

    def _bounded(self, what: str, seconds: float, calm: float) -> None:
        if seconds > STALL_SECONDS_MAX * self.patience + calm:
            self.broken.append(
                f"{what} {seconds:.1f} s during the upgrade; promised are {STALL_SECONDS_MAX:.0f} s ({calm:.1f} before)"
            )

    def judge(self, when: str) -> None:
        """Everything that was answered so far, against the model; then the load goes on."""
        self.load.end(LEVEL_SECONDS_MAX)
        found = verify(self.stack, [self.load], seconds_max=LEVEL_SECONDS_MAX)
        self.broken += [f"{when}: {fault}" for fault in found.faults]

    def defects(self) -> list[str]:
        """Lines of the processes' logs that name a defect or an error of the schema."""
        words = ("job.defect", "scheduler.defect", "does not exist", "Traceback", "unhandled exception")
        return [
            f"{daemon.name}: {line[:500]}"
            for daemon in self.stack.crew.daemons.values()
            for line in _said(daemon).splitlines()
            if any(word in line for word in words) and not (KNOWN_OF_OLD in line and daemon.name.startswith("old"))
        ]


def longest_stall(steps: Sequence[float], since: float, until: float) -> float:
    """The longest time without a step between two instants."""
    marks = [since, *(at for at in steps if since < at < until), until]
    return max(later - earlier for earlier, later in pairwise(marks))


def there_and_back(journey: Journey, *, seconds: float, short: bool = False) -> Figures:
    """The whole journey; ``seconds`` of load in each stage. ``short``: without what other tests show too."""
    broken, stack = journey.broken, journey.stack
    journey.begin("old")
    journey.load.start()
    journey.flows(max(2.0, seconds), "the old release alone")
    figures = journey.migrate(upgrades=1 if short else 2)
    journey.flows(seconds, "the old release on the new schema")
    if not _ready(journey.urls["old"]):
        broken.append("the old door is not ready on the new schema")
    if not short:
        # Who dies meanwhile must be able to come back.
        for daemon in journey.daemons("old"):
            daemon.kill()
        journey.works("old")
    journey.begin("new")
    journey.flows(seconds, "both releases")
    figures["drain_seconds"] = journey.end("old")
    journey.flows(seconds, "the new release alone")
    if not short:
        journey.judge("after the upgrade")
        journey.load.start()
        journey.flows(seconds, "the new release alone, later")
    journey.begin("old")
    journey.flows(seconds, "both releases on the way back")
    journey.end("new")
    journey.flows(seconds, "the old release after the way back")
    journey.judge("after the way back")
    broken += journey.defects()
    for which, release in (("old", journey.old), ("new", journey.new)):
        broken += [
            f"{daemon.name} did not run its own release's code"
            for daemon in journey.daemons(which)
            if not release.runs_in(_said(daemon))
        ]
    figures["messages"] = len(journey.load.answered)
    figures["effects"] = len(stack.effects())
    figures["unanswered"] = journey.load.lost
    return figures


@contextmanager
def journey(
    seed: int, old: Release, new: Release, *, redis: RedisServer | None = None, workers: int = 1, patience: float = 1.0
) -> Iterator[Journey]:
    """A database at the old release's schema, its processes and the new one's, of which none is started yet."""
    with ExitStack() as stack:
        home, own_home = (stack.enter_context(short_folder()) for _ in range(2))
        postgres, server = stack.enter_context(own_postgres(home))
        database = stack.enter_context(server.database(migrated=False))
        if redis is None:
            redis = RedisServer(stack.enter_context(short_folder()))
            redis.start()
            stack.callback(redis.kill)
        target_url = stack.enter_context(_distributor())
        where = urlsplit(target_url)
        proxy = stack.enter_context(Proxy((where.hostname or "", where.port or 0), seed))
        environment = _environment(database, own_home, redis.url, 2.0)
        connection, secret, token = _prepare(old, environment, proxy.url)
        ports = {"old": _free_port(), "new": _free_port()}
        urls = {which: f"http://127.0.0.1:{port}" for which, port in ports.items()}
        stack.callback(postgres.start)
        crew = Crew(
            [
                daemon
                for which, release in (("old", old), ("new", new))
                for daemon in _daemons(which, release, environment, own_home, ports[which], workers)
            ]
        )
        stack.callback(crew.end)
        crew.start()
        one = _Stack(
            postgres, redis, database, crew, proxy, target_url, tuple(urls.values()), connection, secret, token,
            environment, 2.0, new,
        )  # fmt: skip
        load = Load((), connection, secret, seed, "e", pairs=24, senders=3, pause_seconds=0.05)
        stack.callback(load.abandon)
        pulse = stack.enter_context(Pulse(database))
        yield Journey(one, old, new, load, pulse, urls, patience)


def _daemons(
    which: str, release: Release, environment: dict[str, str], folder: Path, port: int, workers: int
) -> list[Daemon]:
    commands = {
        f"{which}-web": ("web", "--bind", f"127.0.0.1:{port}"),
        **{f"{which}-worker-{number}": ("worker",) for number in range(1, workers + 1)},
        f"{which}-scheduler": ("scheduler",),
    }
    return [
        Daemon(name, release.program(*command), environment, folder, root=release.folder, wanted=False)
        for name, command in commands.items()
    ]


def _prepare(release: Release, environment: dict[str, str], target_url: str) -> tuple[str, str, str]:
    """The schema, a live webhook connection, the catalogue, the target and a token, all by the release's commands."""

    def ok(*arguments: str) -> str:
        answer: Answer = release.run(environment, *arguments)
        assert answer.code == 0, f"{arguments}: {answer.code} {answer.out} {answer.err}"
        return answer.out

    unguarded = [word for name, value in UNGUARDED.items() for word in ("--set", f"{name}={value}")]
    ok("db", "upgrade")
    ok("product", "add", PRODUCT)
    commands = (
        ("connection", "add", "cloud-resell", "--connector", "webhook", *unguarded, "--activate", "--json"),
        ("token", "create", "--role", "auditor", "--name", "suite", "--json"),
        (
            "target", "set", "--connector", "simulator", "--poll-seconds", str(DRIFT_SECONDS),
            "--set", f"base_url={target_url}", "--set", "allow_http_private=true",
        ),
    )  # fmt: skip
    with ThreadPoolExecutor(2) as threads:
        added, token, _ = threads.map(lambda command: ok(*command), commands)
    connection = json.loads(added)
    return connection["id"], connection["secret"], json.loads(token)["token"]


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _works(daemon: Daemon) -> bool:
    said = ("listening on", "working", "scheduling")
    return daemon.process is not None and any(word in _said(daemon) for word in said)


def _said(daemon: Daemon) -> str:
    return daemon.log.read_text(errors="replace") if daemon.log.exists() else ""
