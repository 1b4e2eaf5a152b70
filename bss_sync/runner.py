"""The loops of a worker and of a scheduler: started, stopped, drained.

A worker takes hints until it is told to stop, then ends what it has begun. A scheduler sweeps once a second while it
holds the scheduler's lock; others stand by and take over when that session ends.
"""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import dramatiq
import structlog

from bss_sync.adapters.broker import InProcessWakeUps, RedisWakeUps, in_process_broker, redis_broker
from bss_sync.adapters.sql.upkeep import SqlUpkeep, scheduler_lock
from bss_sync.bootstrap import App
from bss_sync.domain.errors import BssSyncError
from bss_sync.jobs.actors import declare_actors, places
from bss_sync.jobs.alerting import Alerting, make_alerter
from bss_sync.jobs.work import Work, make_work
from bss_sync.pipeline.sweep import TICK_SECONDS, Sweeper
from bss_sync.ports.upkeep import Hinting

_log = structlog.get_logger(__name__)

SWITCH_SECONDS = 0.001
NETWORK_THREADS = 3
"""Deliveries, fetches and polls wait for others most of the time; each has a thread beside the processing ones."""
DRAIN_MILLISECONDS = 25_000
"""Less than the 30 seconds that a service manager grants."""
STANDBY_SECONDS = 2.0
SIGNAL_SECONDS = 1.0
"""A daemon that is told to end notices it within so long, whichever of its threads was told."""
ALERTS_SECONDS_MAX = 5.0

WorkerWakeUps = InProcessWakeUps | RedisWakeUps


class Parts:
    """The broker and wake-ups of one process: in memory, or through Redis where it is configured."""

    def __init__(self, redis_url: str | None) -> None:
        self.broker: dramatiq.Broker
        self.wake: WorkerWakeUps
        if redis_url is None:
            inner = in_process_broker()
            self.broker, self.wake = inner, InProcessWakeUps(inner)
        else:
            self.broker, self.wake = redis_broker(redis_url), RedisWakeUps(redis_url)


class Worker:
    """The threads that take hints. ``drain`` lets each end what it does; nothing new is begun."""

    def __init__(self, broker: dramatiq.Broker, work: Work, wake: WorkerWakeUps, threads: int) -> None:
        declare_actors(broker, work, wake)
        self._work = work
        self._worker = dramatiq.Worker(broker, worker_timeout=1_000, worker_threads=threads + NETWORK_THREADS)

    def start(self) -> None:
        """Begin to take hints."""
        # A batch of hundreds is long stretches of Python: threads with little to do would wait 5 ms at each statement.
        sys.setswitchinterval(SWITCH_SECONDS)
        self._worker.start()
        _log.info("worker.started")
        # It will call others: the libraries for that are loaded at once, and not during its first call.
        importlib.import_module("bss_sync.adapters.http")

    def drain(self) -> None:
        """Stop taking hints and wait for what has begun, at most ``DRAIN_MILLISECONDS``."""
        self._work.stop()
        # Who takes hints and who waits for one look up once a second: both at the same time, not one after the other.
        for taking in self._worker.consumers.values():
            taking.stop()
        self._worker.stop(timeout=DRAIN_MILLISECONDS)
        _log.info("worker.drained")


@contextmanager
def running_worker(app: App, parts: Parts) -> Iterator[Worker]:
    """A worker over ``parts``; drained at the end. ``app.wake`` should be ``parts.wake``."""
    worker = Worker(parts.broker, make_work(app, parts.wake), parts.wake, app.settings.worker_threads)
    worker.start()
    try:
        yield worker
    finally:
        worker.drain()


class Scheduler:
    """The loop that sweeps while this process holds the lock."""

    def __init__(self, app: App, wake: Hinting) -> None:
        self._app = app
        self._wake = wake
        self._alerting = Alerting(make_alerter(app))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End after the present sweep; the lock goes to the next scheduler."""
        self._stopping.set()
        self._thread.join(timeout=10)
        self._alerting.stop(ALERTS_SECONDS_MAX)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._hold()
            except BssSyncError as error:
                _log.warning("scheduler.interrupted", error=type(error).__name__, detail=error.detail)
                self._stopping.wait(TICK_SECONDS)
            except Exception as error:  # noqa: BLE001 - a scheduler that ends would leave work stranded for ever
                _log.error("scheduler.defect", error=type(error).__name__, places=places(error))
                self._stopping.wait(STANDBY_SECONDS)

    def _hold(self) -> None:
        """One session: stand by until it holds the lock, then sweep until it is stopped or the session is lost."""
        sweeper = Sweeper(SqlUpkeep(self._app.database, self._app.settings.retention), self._wake)
        with scheduler_lock(self._app.database) as lock:
            acting = False
            while not self._stopping.is_set():
                held = lock.held()
                if held and not acting:
                    _log.info("scheduler.acting")
                acting = held
                self._app.metrics.scheduling.set(held)
                if held:
                    sweeper.tick()
                    self._app.metrics.swept_at.set_to_current_time()
                    self._alerting.tick()
                self._stopping.wait(TICK_SECONDS if held else STANDBY_SECONDS)


@contextmanager
def running_scheduler(app: App, wake: Hinting) -> Iterator[Scheduler]:
    """A scheduler; stopped at the end."""
    scheduler = Scheduler(app, wake)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()


def wait_for_signal() -> int:
    """Block until SIGTERM or SIGINT; returns its number. Only the main thread may call it."""
    stopped = threading.Event()
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        stopped.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # Without an end of its own it would sleep through a signal that the kernel has given to another thread: the
        # handler runs in this one, as soon as it runs at all.
        while not stopped.wait(SIGNAL_SECONDS):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return received[0]
