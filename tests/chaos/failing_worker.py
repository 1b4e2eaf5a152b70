"""``python -m tests.chaos.failing_worker``: the worker, wired as always, but one of its ports fails at a named point.

The product knows no failpoints: its ports are wrapped here, so nothing of this exists in an installation. ``--do kill``
ends the process there like SIGKILL (nothing is flushed, closed or drained), ``--do stop`` stops it like SIGSTOP.
``--deadly ID``: deciding this entity ends the process, as a message would that the parser's C code cannot stand.

    claim.committed       streams are leased; nothing is decided
    decided.uncommitted   everything is written; the commit has not been sent
    decided.committed     the commit is answered; nobody has been woken
    delivery.claimed      deliveries are leased; no intent is written
    delivery.intended     the intent is written; nothing was called
    remote.written        the target has answered 2xx; nothing of it is stored, other calls are under way
    remote.answered       all calls have ended; the settlement has not begun
    delivery.uncommitted  the settlement is written; the commit has not been sent
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn
from uuid import UUID

from sqlalchemy import event

from bss_sync.bootstrap import App, open_app
from bss_sync.domain.errors import DependencyDown
from bss_sync.jobs.work import Work, make_work
from bss_sync.pipeline.deliver import Deliverer
from bss_sync.ports.connector import TargetClient, TargetRecord, TargetWrite
from bss_sync.ports.delivery import (
    Claimed,
    Delivered,
    DeliveryStore,
    Intent,
    OpenTarget,
    Targets,
    Undelivered,
)
from bss_sync.ports.streams import Batch, Claim, LittleWork, Settled, Written
from bss_sync.runner import Parts, Worker, wait_for_signal
from bss_sync.settings import load_settings
from bss_sync.telemetry import configure_logging
from tests.stream_stores import Passing

EXIT_CODE = 77
"""So that who started the process knows that it reached its point."""

DEPENDENCY_DOWN = 3
DEADLY_EXIT_CODE = 78
"""That it met the deadly message."""

STREAM_POINTS = ("claim.committed", "decided.uncommitted", "decided.committed")
DELIVERY_POINTS = (
    "delivery.claimed",
    "delivery.intended",
    "remote.written",
    "remote.answered",
    "delivery.uncommitted",
)
POINTS = STREAM_POINTS + DELIVERY_POINTS


class Failpoint:
    """Acts when its name is passed for the ``turn``-th time; once. Thread-safe."""

    def __init__(self, name: str | None, act: Callable[[], None], turn: int = 1) -> None:
        self._name = name
        self._act = act
        self._left = turn
        self._lock = threading.Lock()

    def passing(self, name: str) -> None:
        """The work has come to this point."""
        if name != self._name:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._act()


def die() -> None:
    """At once: no handler runs, no buffer is flushed, no socket is closed politely."""
    os._exit(EXIT_CODE)


def stop() -> None:
    """Stand still until somebody sends SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


class _Commits:
    """Knows which commit of this thread is meant, and passes the point just before it is sent."""

    def __init__(self, app: App, point: Failpoint) -> None:
        self._meant = threading.local()
        self._point = point
        event.listen(app.database.pool("engine"), "commit", lambda _connection: self._committing())
        app.database.before_commit = self._committing

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Run ``work``, whose commit is the point ``name``."""
        self._meant.name = name
        try:
            return work()
        finally:
            self._meant.name = None

    def _committing(self) -> None:
        name = getattr(self._meant, "name", None)
        if name is not None:
            self._point.passing(name)


class _Deadly(dict[str, Any]):
    """A message's body whose reading ends the process."""

    def __getitem__(self, key: str) -> NoReturn:
        os._exit(DEADLY_EXIT_CODE)


@dataclass
class FailingStreams(Passing):
    """A StreamStore with points."""

    point: Failpoint
    commits: _Commits
    deadly: str | None

    def claim(self, shard: int, limit: int) -> list[Claim]:
        """See StreamStore."""
        claims = super().claim(shard, limit)
        if claims:
            self.point.passing("claim.committed")
        return claims

    def claim_little(self, shards: Sequence[int], limit: int) -> LittleWork:
        """See StreamStore."""
        little = super().claim_little(shards, limit)
        if little.claims:
            self.point.passing("claim.committed")
        return little

    def work(self, claims: Sequence[Claim], settle: Callable[[Batch], Settled]) -> tuple[Settled, Written]:
        """See StreamStore."""

        def poisoned(batch: Batch) -> Settled:
            for key, entity in batch.entities.items():
                if entity.source_id == self.deadly:
                    bad = tuple(replace(message, body=_Deadly(message.body)) for message in entity.open)
                    batch.entities[key] = replace(entity, open=bad)
            return settle(batch)

        done: tuple[Settled, Written] = self.commits.run(
            "decided.uncommitted", lambda: self.inner.work(claims, poisoned)
        )
        self.point.passing("decided.committed")
        return done


@dataclass
class FailingDeliveries:
    """A DeliveryStore with points."""

    inner: DeliveryStore
    point: Failpoint
    commits: _Commits

    def claim(self, limit: int, retries: int | None = None) -> Sequence[Claimed]:
        """See DeliveryStore."""
        claimed = self.inner.claim(limit, retries)
        if claimed:
            self.point.passing("delivery.claimed")
        return claimed

    def write_intents(self, intents: Sequence[tuple[Claimed, Intent]]) -> frozenset[UUID]:
        """See DeliveryStore."""
        ours = self.inner.write_intents(intents)
        self.point.passing("delivery.intended")
        return ours

    def settle(self, outcomes: Sequence[Delivered | Undelivered]) -> frozenset[UUID]:
        """See DeliveryStore."""
        self.point.passing("remote.answered")
        settled: frozenset[UUID] = self.commits.run("delivery.uncommitted", lambda: self.inner.settle(outcomes))
        return settled

    def release(self, claimed: Sequence[Claimed], delay_seconds: float) -> None:
        """See DeliveryStore."""
        self.inner.release(claimed, delay_seconds)


@dataclass
class _FailingTargets:
    """Targets whose client has a point."""

    inner: Targets
    point: Failpoint

    def target(self) -> OpenTarget | None:
        """See Targets."""
        opened = self.inner.target()
        return None if opened is None else replace(opened, client=_FailingClient(opened.client, self.point))


class _FailingClient:
    """A TargetClient with a point after each write."""

    def __init__(self, inner: TargetClient, point: Failpoint) -> None:
        self.check = inner.check
        self.look_up = inner.look_up
        self.changes = inner.changes
        self.list_all = inner.list_all
        self._inner = inner
        self._point = point

    def write(self, write: TargetWrite) -> TargetRecord:
        """See TargetClient."""
        record = self._inner.write(write)
        self._point.passing("remote.written")
        return record


def failing_work(app: App, parts: Parts, point: Failpoint, deadly: str | None) -> Work:
    """The work of a process as ``make_work`` wires it, with points in its ports."""
    work = make_work(app, parts.wake)
    commits = _Commits(app, point)
    work.streams = FailingStreams(work.streams, point, commits, deadly)
    deliverer = work.deliverer
    work.deliverer = Deliverer(
        FailingDeliveries(deliverer.store, point, commits),
        _FailingTargets(deliverer.targets, point),
        deliverer.calls_at_once,
        deliverer.lease_seconds,
    )
    return work


def main() -> None:
    """Work until SIGTERM, or until the point."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.failing_worker", description=__doc__)
    parser.add_argument("--at", choices=POINTS)
    parser.add_argument("--turn", type=int, default=1, help="the how manieth passing counts")
    parser.add_argument("--do", choices=("kill", "stop"), default="kill")
    parser.add_argument("--deadly", metavar="ID")
    options = parser.parse_args()
    try:
        _run(options)
    except DependencyDown:
        # As the program itself does: whoever started it starts it again.
        sys.exit(DEPENDENCY_DOWN)


def _run(options: argparse.Namespace) -> None:
    settings = load_settings()
    configure_logging(level=settings.log_level)
    assert settings.redis_url is not None, "workers are woken through Redis"
    parts = Parts(settings.redis_url.get_secret_value())
    point = Failpoint(options.at, die if options.do == "kill" else stop, options.turn)
    with open_app(settings, wake=parts.wake) as app:
        work = failing_work(app, parts, point, options.deadly)
        worker = Worker(parts.broker, work, parts.wake, settings.worker_threads)
        worker.start()
        sys.stdout.write("working\n")
        sys.stdout.flush()
        wait_for_signal()
        worker.drain()


if __name__ == "__main__":
    main()
