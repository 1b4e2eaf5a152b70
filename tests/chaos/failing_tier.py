"""``python -m tests.chaos.failing_tier``: one tier as a single process, as ``serve`` runs it. It ends at a named point.

Beside the points of ``failing_worker``:

    poll.claimed    the poll is leased; the tier below was not asked
    poll.answered   the tier below has answered; nothing of it is stored
    poll.accepted   the page's messages are committed; the cursor is not
    poll.advanced   the cursor is committed; the poll is not over
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from bss_sync.bootstrap import open_app
from bss_sync.jobs.work import Work
from bss_sync.ports.connector import Page
from bss_sync.ports.sources import OpenSource, PollStore, PollTask, Sources
from bss_sync.runner import Parts, Worker, running_scheduler
from bss_sync.settings import load_settings
from bss_sync.telemetry import configure_logging
from bss_sync.web.server import run_web
from tests.chaos.failing_worker import POINTS, Failpoint, die, failing_work

POLL_POINTS = ("poll.claimed", "poll.answered", "poll.accepted", "poll.advanced")


@dataclass
class FailingPolls:
    """A PollStore with points. Only what came behind a page with something in it counts."""

    inner: PollStore
    point: Failpoint
    brought: bool = False

    def claim(self) -> PollTask | None:
        """See PollStore."""
        task = self.inner.claim()
        if task is not None:
            self.point.passing("poll.claimed")
        return task

    def advanced(self, task: PollTask, cursor: str | None) -> PollTask:
        """See PollStore."""
        if self.brought:
            self.point.passing("poll.accepted")
        renewed = self.inner.advanced(task, cursor)
        if self.brought:
            self.point.passing("poll.advanced")
        self.brought = False
        return renewed

    def finished(self, task: PollTask, due_seconds: float) -> None:
        """See PollStore."""
        self.inner.finished(task, due_seconds)

    def failed(self, task: PollTask, error: str, due_seconds: float) -> None:
        """See PollStore."""
        self.inner.failed(task, error, due_seconds)


@dataclass
class _FailingSources:
    """Sources whose client has a point after each page that brings something."""

    inner: Sources
    polls: FailingPolls

    def source(self, connection_id: UUID, *, push_only: bool = False) -> OpenSource:
        """See Sources."""
        opened = self.inner.source(connection_id, push_only=push_only)
        return replace(opened, client=_FailingClient(opened.client, self.polls))


class _FailingClient:
    """A SourceClient with a point."""

    def __init__(self, inner: Any, polls: FailingPolls) -> None:
        self._inner, self._polls = inner, polls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def poll(self, cursor: str | None) -> Page:
        """See SourceClient."""
        page: Page = self._inner.poll(cursor)
        if page.observations:
            # A page that is read ahead takes nothing back of the one that is worked on.
            self._polls.brought = True
            self._polls.point.passing("poll.answered")
        return page


def with_poll_points(work: Work, point: Failpoint) -> Work:
    """The same work, its polls with points."""
    polls = FailingPolls(work.poller.store, point)
    work.poller = replace(work.poller, store=polls, sources=_FailingSources(work.poller.sources, polls))
    return work


def main() -> None:
    """Serve until SIGTERM, or until the point."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.failing_tier")
    parser.add_argument("--at", choices=POINTS + POLL_POINTS, required=True)
    parser.add_argument("--turn", type=int, default=1, help="the how manieth passing counts")
    options = parser.parse_args()
    settings = load_settings()
    configure_logging(level=settings.log_level)
    parts = Parts(None)
    point = Failpoint(options.at, die, options.turn)
    with open_app(settings, wake=parts.wake) as app:
        work = with_poll_points(failing_work(app, parts, point, None), point)
        worker = Worker(parts.broker, work, parts.wake, settings.worker_threads)
        worker.start()
        with running_scheduler(app, parts.wake):
            run_web(app, settings.bind, _say)
        worker.drain()


def _say(port: int) -> None:
    sys.stdout.write(f"listening on http://127.0.0.1:{port}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
