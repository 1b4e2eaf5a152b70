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
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn
from uuid import UUID

from bss_sync.domain.change import Action, Change, Kind, OrderKind
from bss_sync.domain.errors import BssSyncError, CannotFetch, GuardStopped, InvalidMessage, Transient, UnknownValue
from bss_sync.domain.guard import exceeds
from bss_sync.pipeline.compare import behind, compare
from bss_sync.pipeline.file_rows import Snapshot
from bss_sync.pipeline.gather import CHUNK, feed
from bss_sync.pipeline.load import chunked
from bss_sync.pipeline.observation import change_of
from bss_sync.pipeline.translate import translate
from bss_sync.ports.connector import ConnectionSettings, Observation, RangedSource
from bss_sync.ports.inbox import InboxStore, Origin
from bss_sync.ports.reconciliation import (
    Cause,
    Difference,
    Held,
    Holdings,
    Listed,
    Listing,
    Problem,
    Run,
    RunStore,
)
from bss_sync.ports.runtime import Clock, WakeUps
from bss_sync.ports.sources import OpenSource, Sources

DIFFERENCES_KEPT = 10_000
"""Differences that a result names; all are counted."""
PROGRESS_SECONDS = 1.0
VERIFIED_MAX = 200
"""Absent records that are asked for one by one before they are ended; beyond, the complete listing is proof enough."""


@dataclass(frozen=True, slots=True)
class Request:
    """What ``reconcile`` is asked for.

    accept  source ids that may count anew
    run     the run that an admin has approved after the guard had stopped it
    quiet   a routine comparison: it leaves a run behind only when the guard stops it
    """

    connection_id: UUID
    dry_run: bool = False
    snapshot: Iterable[Observation] | None = None
    accept: frozenset[str] = frozenset()
    requested_by: str = "system"
    run: Run | None = None
    target: bool = True
    quiet: bool = False


@dataclass
class Result:
    """What was found and done. ``source_error``: why the source could not be listed to its end (exit code 3)."""

    run_id: UUID | None
    dry_run: bool
    listed: int = 0
    ranges: int = 0
    """Ranges that were compared as a whole; of these ``ranges_listed`` differed. 0 where everything was listed."""
    ranges_listed: int = 0
    repaired: int = 0
    accepted: int = 0
    ends: int = 0
    stopped: bool = False
    source_error: str | None = None
    target_error: str | None = None
    tell_at: float = 0.0
    renamed: bool = False
    """An account is among these: the names of subscriptions are made of accounts' names."""
    unsettled: set[UUID] = field(default_factory=set)
    """Records whose mirror was written past the line: until it is put right, nothing is to be concluded from it."""
    counts: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many differences there are."""
        return self.counts.total()

    def add(self, differences: Iterable[Difference]) -> None:
        """Count them, and name as many as a result may."""
        for difference in differences:
            self.counts[str(difference.problem)] += 1
            if difference.cause is Cause.OVERWRITTEN:
                self.unsettled.add(difference.record_id)
                self.renamed |= difference.kind is Kind.ACCOUNT
            if len(self.differences) < DIFFERENCES_KEPT:
                self.differences.append(difference)

    def as_json(self) -> dict[str, Any]:
        """The result as it is printed and kept in the run."""
        return {
            "run_id": None if self.run_id is None else str(self.run_id),
            "dry_run": self.dry_run,
            "listed": self.listed,
            "ranges": self.ranges,
            "ranges_listed": self.ranges_listed,
            "repaired": self.repaired,
            "accepted": self.accepted,
            "ends": self.ends,
            "stopped": self.stopped,
            "source_error": self.source_error,
            "target_error": self.target_error,
            "total": self.total,
            "counts": dict(sorted(self.counts.items())),
            "differences": [one.as_json() for one in self.differences],
        }


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
        options = {
            "dry_run": request.dry_run,
            "snapshot": request.snapshot is not None,
            "accept": sorted(request.accept),
        }
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
            listed = request.snapshot if request.snapshot is not None else _listing_of(source)
        except BssSyncError as error:
            result.source_error = f"{error.detail} {error.advice}"
            return
        with closing(source.gate), self.holdings.listing(request.connection_id) as listing:
            work = _Comparison(self, request, result, source, listing)
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
            work.relink()


def _listing_of(source: OpenSource) -> Iterable[Observation]:
    if not source.capabilities.list:
        raise CannotFetch(f"{source.connection.name} cannot be listed.")
    return source.client.list_all()


class _Comparison:
    """One pass over a listing."""

    def __init__(
        self, parts: Reconciler, request: Request, result: Result, source: OpenSource, listing: Listing
    ) -> None:
        self._parts = parts
        self._request = request
        self._result = result
        self._source = source
        self._listing = listing
        self._rules = parts.holdings.rules(request.connection_id)
        spoken = request.snapshot.order if isinstance(request.snapshot, Snapshot) else None
        self._order = source.connection.order or spoken or source.order
        self._gone: list[Change] = []

    def narrowed(self, listed: Iterable[Observation]) -> Iterable[Observation]:
        """What is to be listed: of a source that tells what its ranges come to, those that differ from ours."""
        client = self._source.client
        if self._request.snapshot is not None or not isinstance(client, RangedSource):
            return listed
        theirs = client.ranges(self._rules.instance_id)
        if theirs is None:
            return listed
        ours = self._listing.ranges()
        if ours is None:
            return listed
        differing = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        self._result.ranges, self._result.ranges_listed = len(theirs.keys() | ours.keys()), len(differing)
        self._listing.narrow(differing)
        return client.list_ranges(differing) if differing else ()

    def take(self, chunk: Sequence[Observation]) -> None:
        """Compare a chunk and feed what differs."""
        changes: list[Change] = []
        woken: list[UUID] = []
        for kind in Kind:
            for one, held in self._unlike(kind, [one for one in chunk if one.kind is kind]):
                if self._judge(one, held, changes):
                    woken.append(held.stream_id)
        self._result.listed += len(chunk)
        self._feed(changes)
        if woken and not self._request.dry_run:
            self._parts.holdings.wake(woken)

    def _unlike(self, kind: Kind, chunk: Sequence[Observation]) -> list[tuple[Observation, Held]]:
        """The observations that are not just what we hold, with what we hold. Of one listed twice the last counts."""
        seen = {one.source_id: one for one in chunk}
        if not seen:
            return []
        listed = [known for one in seen.values() if (known := self._listed(one)) is not None]
        unlike = self._listing.unlike(kind, listed) if listed else frozenset()
        if len(listed) < len(seen):
            others = seen.keys() - {one.source_id for one in listed}
            self._listing.note(kind, sorted(others))
            unlike |= others
        if not unlike:
            return []
        held = self._listing.look(kind, list(unlike))
        return [(one, held[source_id]) for source_id, one in seen.items() if source_id in unlike]

    def _listed(self, seen: Observation) -> Listed | None:
        """What is to be compared field by field; None for an end, and for words that nobody has mapped."""
        if seen.body is None:
            return None
        try:
            content = translate(seen.kind, seen.body, self._rules)
        except UnknownValue:
            return None
        return Listed(seen.source_id, None if self._order is OrderKind.OBSERVED else seen.version, content)

    def _judge(self, seen: Observation, held: Held, changes: list[Change]) -> bool:
        """Note the differences of one observation; whether its stream is to be woken."""
        comparison = compare(seen, held, self._rules, self._order)
        self._result.add(comparison.differences)
        feeds = comparison.feed
        if any(one.problem is Problem.VERSION_REGRESSED for one in comparison.differences):
            feeds = self._accept(held)
        if feeds and not self._request.dry_run:
            change = self._change(seen, held)
            if change.action is Action.DELETED and held.mirrored:
                self._gone.append(change)
            else:
                changes.append(change)
        return comparison.wake

    def _accept(self, held: Held) -> bool:
        """An admin has named this entity: its source counts anew."""
        if self._request.dry_run or held.source_id not in self._request.accept:
            return False
        actor = self._request.requested_by
        accepted = self._parts.holdings.begin_epoch(self._request.connection_id, held.kind, held.source_id, actor=actor)
        self._result.accepted += accepted
        return accepted

    def _change(self, seen: Observation, held: Held) -> Change:
        return change_of(
            seen,
            origin=Origin.RECONCILE,
            order=self._order,
            now=self._parts.clock.now(),
            known_version=held.version,
        )

    def _feed(self, changes: Sequence[Change]) -> None:
        connection = self._source.connection
        for start in range(0, len(changes), CHUNK):
            chunk = changes[start : start + CHUNK]
            answer = feed(
                self._parts.inbox, self._parts.wake, connection.tenant_id, connection.id, Origin.RECONCILE, chunk
            )
            self._result.repaired += answer.accepted

    def end_absent(self) -> None:
        """The listing is complete: what it lacks is gone, if the guard lets it."""
        absent, verified = self._absent()
        self._result.ends = len(self._gone) + absent
        if verified is not None:
            self._result.add(_extra(one) for one in verified)
        else:
            for chunk in self._listing.unseen():
                self._result.add(_extra(one) for one in chunk)
        guarded = self._result.ends > 0 and exceeds_guard(self._source.config, self._result.ends, self._listing.live())
        self._result.stopped = guarded and self._request.run is None and not self._request.dry_run
        if self._request.dry_run or self._result.stopped:
            return
        self._feed(self._gone)
        for chunk in [verified] if verified is not None else self._listing.unseen():
            self._feed([self._change(_end_of(one), one) for one in chunk])

    def _absent(self) -> tuple[int, list[Held] | None]:
        """(how many are absent, those that were asked for one by one and are gone indeed)."""
        count = self._listing.unseen_count()
        if count > VERIFIED_MAX or self._request.snapshot is not None or not self._source.capabilities.fetch:
            return count, None
        gone = [one for chunk in self._listing.unseen() for one in chunk if self._is_gone(one)]
        return len(gone), gone

    def _is_gone(self, held: Held) -> bool:
        try:
            seen = self._source.client.fetch(held.kind, held.source_id)
        except Transient:
            # Not known: it is not ended on a guess, and the next run will ask again.
            return False
        return seen is None or seen.body is None

    def relink(self) -> None:
        """Name what is not linked although it could be, and let the line look again."""
        unlinked = self._listing.unlinked()
        self._result.add(
            Difference(
                Problem.ORPHANED if linked_to is None else Problem.MIS_PARENTED,
                "mirror",
                held.kind,
                held.source_id,
                held.stream_id,
                name,
                (held.content or {}).get(name),
                linked_to,
                Cause.NOT_LINKED if linked_to is None else Cause.OVERWRITTEN,
            )
            for held, name, linked_to in unlinked
        )
        if unlinked and not self._request.dry_run:
            self._parts.holdings.wake([held.stream_id for held, _name, _linked_to in unlinked])


def _extra(held: Held) -> Difference:
    cause = Cause.OVERWRITTEN if held.known_deleted else behind(held)
    return Difference(Problem.EXTRA, "mirror", held.kind, held.source_id, held.stream_id, cause=cause)


def _end_of(held: Held) -> Observation:
    """A deletion at the version that we know: authoritative there, and any later state of the source is above it."""
    return Observation(held.kind, held.source_id, None, None)


def exceeds_guard(settings: ConnectionSettings, ends: int, live: int) -> bool:
    """The blast-radius guard (domain.md section 7, guarantee 4): over the share and over the count."""
    return exceeds(ends, live, count=settings.guard_count, share=settings.guard_share)
