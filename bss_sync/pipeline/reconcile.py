"""Reconcile: source ↔ mirror ↔ target; each difference named, and repaired by the same inbox (one line, no side doors).

    ranges   a source that tells what its ranges of ids come to (a chain link): equal ones are level, and not listed
    list     the source's listing or a snapshot, page by page; each compared with what we hold   (pipeline.compare)
             what differs is named, then enters the inbox as origin ``reconcile``, then the page is done
    absent   only after a complete listing: live records that it lacks are asked for one by one, and those that are
             gone are deletions, under the blast-radius guard; a listing that breaks off deletes nothing
    links    records whose account or parent is mirrored but not linked are looked at again
    target   the distributor's BSS against the mirror: edits are lock violations, what is missing becomes due

What changes while the listing runs is left alone: the next comparison will tell. How far a run is, what it has seen and
what it has named survives its process: whoever carries it on goes on behind the last page that was done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import NoReturn, TypeVar
from uuid import UUID, uuid4

from bss_sync.domain.change import Kind
from bss_sync.domain.errors import BssSyncError, CannotFetch, DependencyDown, GuardStopped, NotFound
from bss_sync.pipeline.compare import astray_fields
from bss_sync.pipeline.feed import CHUNK
from bss_sync.pipeline.level_pages import Comparing, Reading, Step, step_of, steps_of
from bss_sync.pipeline.load import chunked
from bss_sync.pipeline.read_pages import listed, name_of, pages_of, read_ahead
from bss_sync.pipeline.reconcile_result import Phase, Request, Result
from bss_sync.pipeline.reconcile_source import SourceComparison
from bss_sync.ports.connector import AnsweringSource, Page, PagedSource, RangedSource
from bss_sync.ports.inbox import InboxStore
from bss_sync.ports.reconciliation import Holdings, Listing
from bss_sync.ports.runs import Run, RunStore
from bss_sync.ports.runtime import Clock, WakeUps
from bss_sync.ports.sources import OpenSource, Sources

__all__ = ["PROGRESS_SECONDS", "Reconciler", "Request", "Result"]

PROGRESS_SECONDS = 1.0

Told = TypeVar("Told")


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
        """Compare and, unless it is a dry run, repair. A run that was lost and was asked for the same is carried on.

        GuardStopped when ends would exceed the guard: everything else was done, the run waits for an admin. Other
        errors of the source are in the result. DependencyDown when PostgreSQL is down: the run is carried on by whoever
        comes first. Other errors are raised, and the run is failed.
        """
        self._check_names(request)
        if request.run is None and request.snapshot is not None and not request.dry_run:
            # An approval of a snapshot's ends counts for the next snapshot that is given.
            request = replace(request, run=self.runs.claim_approved(request.connection_id))
        if request.run is None and not request.quiet:
            request = replace(request, run=self._begun(request))
        run, identity = request.run, uuid4() if request.run is None else request.run.id
        findings = self.runs.findings(identity, request.connection_id)
        result = Result(None if run is None else run.id, request.dry_run, findings, attempt=str(identity))
        if run is not None:
            result.cursor = run.options.get("cursor")
            result.go_on(run)
        try:
            self._carry_out(request, result, identity, progress)
            result.sum_up()
            if result.stopped:
                self._stop(request, result, identity)
            if run is not None:
                self.runs.finish(run.id, "done", result.as_json())
        except GuardStopped as error:
            # What it has named stands in the run that waits, its own or the one before it.
            findings.forget(everything=error.run_id != identity and run is None)
            raise
        except DependencyDown:
            if run is not None:
                self.runs.let_go(run.id)
            raise
        except BaseException:
            # An interruption in the middle of a statement takes the run's session with it: the run is carried on.
            with suppress(DependencyDown):
                if run is not None:
                    self.runs.finish(run.id, "failed", result.as_json())
            raise
        findings.forget(everything=run is None)
        return result

    def _begun(self, request: Request) -> Run:
        lost = None
        if request.snapshot is None:
            lost = self.runs.carry_on(request.connection_id, "reconcile", request.options())
        return lost or self._start(request, uuid4())

    def _start(self, request: Request, identity: UUID) -> Run:
        return self.runs.start(
            request.connection_id,
            "reconcile",
            request.options(),
            requested_by=request.requested_by,
            run_id=identity,
        )

    def _check_names(self, request: Request) -> None:
        """NotFound for a name that nobody knows: nothing would differ, and it would read as if all were level."""
        wrong = list(self.holdings.unknown(request.connection_id, request.accept)) if request.accept else []
        kind = None
        if request.subtree is not None and not wrong:
            kind = Kind.ACCOUNT
            wrong = list(self.holdings.unknown(request.connection_id, [request.subtree], kind))
        if wrong:
            examples = ", ".join(self.holdings.examples(request.connection_id, kind)) or "none at all yet"
            raise NotFound(
                f"There is no {kind or 'record'} {', '.join(map(repr, wrong))} of this connection.",
                next_step=f"Name one by the id that its source gives it. There are, among others: {examples}.",
            )

    def _stop(self, request: Request, result: Result, identity: UUID) -> NoReturn:
        run, waiting = request.run, self.runs.waiting(request.connection_id, request.options(), identity)
        if waiting is not None:
            if run is not None:
                error = {"error": f"the guard has stopped run {waiting.id} over the same ends; it waits for an admin"}
                self.runs.finish(run.id, "rejected", result.as_json() | error)
            raise GuardStopped(
                f"{result.ends} records would end, and run {waiting.id} waits for an admin over the same ones already. "
                "The other repairs are done; there is no second run to decide on.",
                next_step=f"Look at it: bss-sync run show {waiting.id}; "
                f"then: bss-sync run approve {waiting.id} (or reject)",
                run_id=waiting.id,
            )
        run = run or self._start(request, identity)
        result.run_id = run.id
        self.runs.finish(run.id, "stopped", result.as_json())
        again = "; then give the snapshot again" if request.snapshot is not None else ""
        raise GuardStopped(
            f"{result.ends} records would end. The other repairs are done; run {run.id} waits for an admin.",
            next_step=f"Look at it: bss-sync run show {run.id}; then: bss-sync run approve {run.id} (or reject){again}",
            run_id=run.id,
        )

    def _keep(self, result: Result) -> None:
        """How far the run is: whoever carries it on goes on here."""
        if result.run_id is not None:
            self.runs.progress(result.run_id, result.as_progress())
            result.tell_at = time.monotonic() + PROGRESS_SECONDS

    def _tell(self, result: Result) -> None:
        """That the run is alive, once a second at most."""
        if time.monotonic() > result.tell_at:
            self._keep(result)

    def _carry_out(self, request: Request, result: Result, identity: UUID, progress: Callable[[int], None]) -> None:
        if result.phase is not Phase.TARGET:
            self._compare_source(request, result, identity, progress)
            if not result.stopped:
                result.phase = Phase.TARGET
                self._keep(result)
        if request.target:
            self.target(request, result, lambda: self._tell(result))

    def _compare_source(
        self, request: Request, result: Result, identity: UUID, progress: Callable[[int], None]
    ) -> None:
        try:
            source = self.sources.source(request.connection_id, push_only=request.snapshot is not None)
            if request.snapshot is None and not source.capabilities.list:
                raise CannotFetch(f"{source.connection.name} cannot be listed.")
        except BssSyncError as error:
            result.source_error = f"{error.detail} {error.advice}"
            self._compare_itself(request, result, identity)
            return
        with (
            closing(source.gate),
            self.holdings.listing(request.connection_id, identity, result.started) as listing,
        ):
            result.started = listing.started
            work = SourceComparison(self, request, result, source, listing)
            if result.phase is Phase.LIST:
                self._list(request, result, source, listing, work, progress)
                if result.source_error is not None:
                    return  # it broke off: what it did not come to is not absent
                result.phase = Phase.ABSENT
                self._keep(result)
            if result.phase is Phase.ABSENT:
                work.end_absent()
                result.phase = Phase.LINKS
                if not result.stopped:
                    self._keep(result)
            if not work.level:
                work.relink()

    def _list(
        self,
        request: Request,
        result: Result,
        source: OpenSource,
        listing: Listing,
        work: SourceComparison,
        progress: Callable[[int], None],
    ) -> None:
        def done(step: Step) -> None:
            result.page = step.cursor
            progress(result.listed)
            # A page without a cursor cannot be gone on behind: there the run only tells that it lives.
            (self._tell if step.cursor is None else self._keep)(result)

        with (
            closing(self._steps(request, result, source, listing, work)) as steps,
            Comparing(work, done) as comparing,
        ):
            while (step := _told(lambda: next(steps, None), result)) is not None:
                if comparing.passes_over(step):
                    continue
                observations = _told(step.read, result)
                if observations is None:
                    break
                comparing.take(step, observations)
            comparing.finish()

    def _steps(
        self, request: Request, result: Result, source: OpenSource, listing: Listing, work: SourceComparison
    ) -> Generator[Step]:
        """What the source says, from where an earlier process of this run was."""
        client = source.client
        if request.since_last and source.capabilities.poll and result.since is None:
            result.since = self.runs.checkpoint(request.connection_id)
        if result.since is not None:
            yield from steps_of(_changes_of(source, result))
            return
        paged = isinstance(client, PagedSource) and request.snapshot is None and request.subtree is None
        ranged = isinstance(client, RangedSource)
        if isinstance(client, PagedSource) and paged and not ranged:
            with closing(self._steps_of_pages(client, request, result, listing, work)) as read:
                yield from read
            return
        # It cannot be gone on with: what was seen before is listed anew, what was named stays.
        result.listed = 0
        listing.forget()
        if request.snapshot is not None:
            everything = request.snapshot
        else:
            everything = listed(work.narrowed(source.client.list_all()), name_of)
        for chunk in chunked(everything, CHUNK):
            yield step_of(chunk)

    def _steps_of_pages(
        self, client: PagedSource, request: Request, result: Result, listing: Listing, work: SourceComparison
    ) -> Generator[Step]:
        # A routine poll shares what it may call with others, and has time.
        ahead = not request.quiet
        if isinstance(client, AnsweringSource):
            rules = work.rules_digest()
            return Reading(client, rules, listing.level_pages(rules)).steps(result.page, ahead=ahead)
        pages = pages_of(client.list_page, result.page, each_once=True)
        return steps_of(read_ahead(pages) if ahead else pages)

    def _compare_itself(self, request: Request, result: Result, identity: UUID) -> None:
        """Nobody tells what the source holds: at least the mirror shows what it keeps as the source's last word."""
        with self.holdings.listing(request.connection_id, identity, result.started) as listing:
            for chunk in listing.astray():
                result.add(difference for held in chunk for difference in astray_fields(held))
                self._tell(result)
                if not request.dry_run:
                    self.holdings.wake([held.stream_id for held in chunk])


def _told(ask: Callable[[], Told | None], result: Result) -> Told | None:
    """What the source tells; None at the end, and when the listing broke off, however: then the result says why."""
    try:
        return ask()
    except BssSyncError as error:
        result.source_error = f"{error.slug}: {error.detail}"
        return None


def _changes_of(source: OpenSource, result: Result) -> Generator[Page]:
    """What has changed since; the result keeps how far that was read."""
    for page in pages_of(source.client.poll, result.page or result.since):
        told = [one for one in page.observations if one.body is not None or one.version is not None]
        yield replace(page, observations=told)
        result.cursor = page.cursor or result.cursor
