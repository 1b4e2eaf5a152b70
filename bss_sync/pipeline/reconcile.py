"""Reconcile: source ↔ mirror ↔ target; each difference named, and repaired by the same inbox (one line, no side doors).

    ranges   a source that tells what its ranges of ids come to (a chain link): equal ones are level, and not listed
    list     the source's listing or a snapshot, in chunks; each compared with what we hold      (pipeline.compare)
             what differs enters the inbox as origin ``reconcile``
    absent   only after a complete listing: live records that it lacks are deletions,
             under the blast-radius guard; a listing that breaks off deletes nothing
    links    records whose account or parent is mirrored but not linked are looked at again
    target   the distributor's BSS against the mirror: edits are lock violations, what is missing becomes due

What changes while the listing runs is left alone: the next comparison will tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NoReturn

from bss_sync.domain.errors import BssSyncError, CannotFetch, GuardStopped, InvalidMessage, Transient
from bss_sync.pipeline.compare import astray_fields
from bss_sync.pipeline.gather import CHUNK
from bss_sync.pipeline.load import chunked
from bss_sync.pipeline.reconcile_result import Request, Result
from bss_sync.pipeline.reconcile_source import SourceComparison
from bss_sync.ports.connector import Observation
from bss_sync.ports.inbox import InboxStore
from bss_sync.ports.reconciliation import Holdings, Run, RunStore
from bss_sync.ports.runtime import Clock, WakeUps
from bss_sync.ports.sources import OpenSource, Sources

__all__ = ["PROGRESS_SECONDS", "Reconciler", "Request", "Result"]

PROGRESS_SECONDS = 1.0


@dataclass
class Reconciler:
    """Reconciles connections. ``target`` compares the mirror with the target (pipeline.reconcile_target)."""

    sources: Sources
    holdings: Holdings
    inbox: InboxStore
    runs: RunStore
    wake: WakeUps
    clock: Clock
    target: Callable[[Request, Result, Callable[[], None]], None]

    def reconcile(self, request: Request, progress: Callable[[int], None] = lambda _listed: None) -> Result:
        """Compare and, unless it is a dry run, repair.

        GuardStopped when ends would exceed the guard: everything else was done, the run waits for an admin. Other
        errors of the source are in the result; PostgreSQL's are raised, and the run is failed.
        """
        if request.run is None and request.snapshot is not None and not request.dry_run:
            # An approval of a snapshot's ends counts for the next snapshot that is given.
            request = replace(request, run=self.runs.claim_approved(request.connection_id))
        run = request.run or (None if request.quiet else self._start(request))
        result = Result(None if run is None else run.id, request.dry_run)
        result.cursor = None if run is None else run.options.get("cursor")
        try:
            self._compare_source(request, result, progress)
            if request.target:
                self.target(request, result, lambda: self._tell(result))
        except BaseException:
            if run is not None:
                self.runs.finish(run.id, "failed", result.as_json())
            raise
        if result.stopped:
            self._stop(request, result, run or self._start(request))
        if run is not None:
            self.runs.finish(run.id, "done", result.as_json())
        return result

    def _start(self, request: Request) -> Run:
        options = request.options()
        return self.runs.start(request.connection_id, "reconcile", options, requested_by=request.requested_by)

    def _stop(self, request: Request, result: Result, run: Run) -> NoReturn:
        result.run_id = run.id
        self.runs.finish(run.id, "stopped", result.as_json())
        again = "; then give the snapshot again" if request.snapshot is not None else ""
        raise GuardStopped(
            f"{result.ends} records would end. The other repairs are done; run {run.id} waits for an admin.",
            next_step=f"Look at it: bss-sync run show {run.id}; then: bss-sync run approve {run.id} (or reject){again}",
        )

    def _tell(self, result: Result) -> None:
        """How far the run is, once a second at most: who has told nothing for a minute has lost its process."""
        if result.run_id is not None and time.monotonic() > result.tell_at:
            self.runs.progress(result.run_id, {"listed": result.listed, "repaired": result.repaired})
            result.tell_at = time.monotonic() + PROGRESS_SECONDS

    def _compare_source(self, request: Request, result: Result, progress: Callable[[int], None]) -> None:
        try:
            source = self.sources.source(request.connection_id, push_only=request.snapshot is not None)
            listed = self._listed(request, result, source)
        except BssSyncError as error:
            result.source_error = f"{error.detail} {error.advice}"
            self._compare_itself(request, result)
            return
        with closing(source.gate), self.holdings.listing(request.connection_id) as listing:
            work = SourceComparison(self, request, result, source, listing)
            try:
                for chunk in chunked(work.narrowed(listed), CHUNK):
                    work.take(chunk)
                    progress(result.listed)
                    self._tell(result)
            except (Transient, CannotFetch, InvalidMessage) as error:
                # It broke off: what it did not come to is not absent.
                result.source_error = f"{error.slug}: {error.detail}"
                return
            work.end_absent()
            if not work.level:
                work.relink()

    def _listed(self, request: Request, result: Result, source: OpenSource) -> Iterable[Observation]:
        if request.snapshot is not None:
            return request.snapshot
        if request.since_last and source.capabilities.poll:
            result.since = self.runs.checkpoint(request.connection_id)
        if result.since is not None:
            return _changes_of(source, result.since, result)
        if not source.capabilities.list:
            raise CannotFetch(f"{source.connection.name} cannot be listed.")
        return source.client.list_all()

    def _compare_itself(self, request: Request, result: Result) -> None:
        """Nobody tells what the source holds: at least the mirror shows what it keeps as the source's last word."""
        with self.holdings.listing(request.connection_id) as listing:
            for chunk in listing.astray():
                result.add(difference for held in chunk for difference in astray_fields(held))
                self._tell(result)
                if not request.dry_run:
                    self.holdings.wake([held.stream_id for held in chunk])


def _changes_of(source: OpenSource, cursor: str, result: Result) -> Iterator[Observation]:
    """What has changed since ``cursor``; the result keeps how far that was read."""
    more, at = True, cursor
    while more:
        page = source.client.poll(at)
        yield from (one for one in page.observations if one.body is not None or one.version is not None)
        more = page.more and page.cursor is not None and page.cursor != at
        at = page.cursor or at
        result.cursor = at
