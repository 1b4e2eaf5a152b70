"""The actors: each takes its hint and does one kind of work.

The broker has no middleware: no retries, no time limits, no results. What an attempt left undone stands in PostgreSQL,
where attempts are counted and retry times kept; the sweeper hints at it again.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from uuid import UUID

import dramatiq
import structlog

from bss_sync.adapters.broker import InProcessWakeUps, Job, RedisWakeUps
from bss_sync.domain.errors import BssSyncError
from bss_sync.jobs.work import Work

_log = structlog.get_logger(__name__)

_PRIORITIES = {Job.PROCESS: 0, Job.DELIVER: 1, Job.FETCH: 2, Job.POLL: 3, Job.PROBE: 4}
"""Lower is sooner, where threads are short."""


def declare_actors(broker: dramatiq.Broker, work: Work, wake: InProcessWakeUps | RedisWakeUps) -> None:
    """Give every job its actor on ``broker``."""

    def process(*shards: int) -> None:
        wake.taken(Job.PROCESS, *shards)
        _report(Job.PROCESS, lambda: work.process(*shards))

    def deliver() -> None:
        wake.taken(Job.DELIVER)
        _report(Job.DELIVER, work.deliver)

    def fetch() -> None:
        wake.taken(Job.FETCH)
        _report(Job.FETCH, work.fetch)

    def poll() -> None:
        wake.taken(Job.POLL)
        _report(Job.POLL, work.poll)

    def probe(connection_id: str) -> None:
        wake.taken(Job.PROBE, connection_id)
        _report(Job.PROBE, lambda: work.probe(UUID(connection_id)))

    functions: tuple[Callable[..., None], ...] = (process, deliver, fetch, poll, probe)
    for job, function in zip(Job, functions, strict=True):
        decorate = dramatiq.actor(actor_name=job, queue_name=job, priority=_PRIORITIES[job], broker=broker)
        decorate(function)


def _report(job: Job, work: Callable[[], object]) -> None:
    """Run, and log what went wrong: an operating error by its name, a defect with its stack."""
    try:
        work()
    except BssSyncError as error:
        _log.warning("job.failed", job=str(job), error=type(error).__name__, detail=error.detail)
    except Exception as error:  # noqa: BLE001 - a defect in one job must not end the thread that runs the others
        # The stack names places in the code; the values of a database error may be personal and stay out.
        _log.error("job.defect", job=str(job), error=type(error).__name__, places=places(error))


def places(error: BaseException) -> list[str]:
    """Where an error came from, without any value."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
