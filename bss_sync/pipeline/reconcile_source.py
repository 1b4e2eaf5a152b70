"""The source's listing against the mirror: the first half of a reconciliation (pipeline.reconcile has the path)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from bss_sync.domain.change import Change, Kind, OrderKind
from bss_sync.domain.errors import BssSyncError, UnknownValue
from bss_sync.domain.guard import exceeds
from bss_sync.pipeline.compare import SAME, Comparison, behind, compare, is_below
from bss_sync.pipeline.feed import CHUNK, feed
from bss_sync.pipeline.file_rows import Snapshot
from bss_sync.pipeline.level_pages import rules_digest
from bss_sync.pipeline.observation import change_of
from bss_sync.pipeline.read_pages import answered
from bss_sync.pipeline.reconcile_result import Request, Result
from bss_sync.pipeline.subtree import Subtree
from bss_sync.pipeline.translate import translate
from bss_sync.ports.connector import ConnectionSettings, Observation, RangedSource, RangeForm
from bss_sync.ports.inbox import InboxStore, Origin
from bss_sync.ports.level_pages import AnsweredPage, LevelPage
from bss_sync.ports.reconciliation import Cause, Difference, Held, Holdings, Listed, Listing, Problem
from bss_sync.ports.runtime import Clock, WakeUps
from bss_sync.ports.sources import OpenSource

ASKED_MAX = 200
"""So many absent records are asked for one by one before the guard is; more only once it has let them."""
ASKED_AT_ONCE = 8


class Parts(Protocol):
    """What a comparison works with: the reconciler's."""

    holdings: Holdings
    inbox: InboxStore
    wake: WakeUps
    clock: Clock


class SourceComparison:
    """One pass over a listing."""

    def __init__(self, parts: Parts, request: Request, result: Result, source: OpenSource, listing: Listing) -> None:
        self._parts = parts
        self._request = request
        self._result = result
        self._source = source
        self._listing = listing
        self._rules = parts.holdings.rules(request.connection_id)
        spoken = request.snapshot.order if isinstance(request.snapshot, Snapshot) else None
        self._order = source.connection.order or spoken or source.order
        self._subtree = None if request.subtree is None else Subtree(listing, request.connection_id, request.subtree)

    @property
    def level(self) -> bool:
        """Whether the ranges were equal, all of them: then the whole mirror is not read for more."""
        return self._result.ranges > 0 and self._result.ranges_listed == 0

    def narrowed(self, listed: Iterable[Observation]) -> Iterable[Observation]:
        """What is to be listed: of a source that tells what its ranges come to, those that differ from ours."""
        client = self._source.client
        everything = self._result.since is None and self._subtree is None
        if self._request.snapshot is not None or not isinstance(client, RangedSource) or not everything:
            return listed
        # Each side sums up a million rows: at the same time.
        with ThreadPoolExecutor(1, thread_name_prefix="ranges") as asking:
            asked = asking.submit(client.ranges, self._rules.instance_id)
            ours = self._listing.ranges(RangeForm.TEXT)
            theirs = asked.result()
        former = theirs is not None and any(one.form is not RangeForm.TEXT for one in theirs.values())
        if former:
            ours = self._listing.ranges(RangeForm.UUID)
        if theirs is None or ours is None:
            return listed
        differing = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        self._result.ranges, self._result.ranges_listed = len(theirs.keys() | ours.keys()), len(differing)
        self._listing.narrow(differing)
        return client.list_ranges(differing) if differing else ()

    def rules_digest(self) -> bytes:
        """What pages are remembered under."""
        return rules_digest(self._source, self._rules, self._order)

    def pass_over(self, known: LevelPage) -> bool:
        """See level_pages.Comparison."""
        level = self._listing.still_level(known)
        self._result.listed += known.number if level else 0
        return level

    def take(self, chunk: Sequence[Observation]) -> None:
        """Compare a chunk: name what differs, then feed it. Done twice, it names and feeds nothing twice."""
        prepared = self.prepare(chunk, None)
        self.judge(prepared, self.look(prepared))

    def prepare(self, chunk: Sequence[Observation], page: AnsweredPage | None) -> _Chunk:
        """See level_pages.Comparison. Of one that is listed twice the last counts.

        ``page``: the chunk is all that it holds; where that is level it is remembered.
        """
        parts = []
        for kind in Kind:
            seen = {one.source_id: one for one in chunk if one.kind is kind}
            listed = [known for one in seen.values() if (known := self._listed(one)) is not None]
            if seen:
                parts.append(_Part(kind, seen, listed, page if len(listed) == len(chunk) else None))
        return _Chunk(len(chunk), parts)

    def look(self, chunk: _Chunk) -> list[frozenset[str]]:
        """See level_pages.Comparison: of each part the ids that are not just what we hold."""
        return [self._unlike(part) for part in chunk.parts]

    def _unlike(self, part: _Part) -> frozenset[str]:
        unlike = self._listing.unlike(part.kind, part.listed, part.page) if part.listed else frozenset()
        if len(part.listed) < len(part.seen):
            others = part.seen.keys() - {one.source_id for one in part.listed}
            self._listing.note(part.kind, sorted(others))
            unlike |= others
        return unlike

    def judge(self, chunk: _Chunk, looked: Sequence[frozenset[str]]) -> None:
        """See level_pages.Comparison."""
        judged: list[_Judged] = []
        for part, unlike in zip(chunk.parts, looked, strict=True):
            if unlike:
                judged += self._judged(part, unlike)
        self._result.listed += chunk.number
        if judged:
            self._result.add(difference for one in judged for difference in one.comparison.differences)
            if not self._request.dry_run:
                self._repair(judged)

    def _judged(self, part: _Part, unlike: frozenset[str]) -> Iterator[_Judged]:
        held = self._listing.look(part.kind, list(unlike))
        pairs = [(one, held[source_id]) for source_id, one in part.seen.items() if source_id in unlike]
        settled = True
        for one, its in pairs if self._subtree is None else self._subtree.of(pairs):
            comparison = compare(one, its, self._rules, self._order)
            regresses = _regresses(comparison.differences)
            # What is the same only because it has just changed, or was taken over, is to be looked at again.
            settled = settled and comparison == SAME and not its.changed and not its.taken
            # A feed of changes tells former versions too.
            if comparison != SAME and not (self._result.since is not None and regresses):
                yield _Judged(one, its, comparison, regresses)
        if part.page is not None and settled:
            self._listing.settle(part.page)

    def _listed(self, seen: Observation) -> Listed | None:
        """What is to be compared field by field; None for an end, and for words that nobody has mapped."""
        if seen.body is None:
            return None
        try:
            content = translate(seen.kind, seen.body, self._rules)
        except UnknownValue:
            return None
        return Listed(seen.source_id, None if self._order is OrderKind.OBSERVED else seen.version, content)

    def _repair(self, judged: Sequence[_Judged]) -> None:
        changes: list[Change] = []
        gone: list[Observation] = []
        for one in judged:
            if self._accept(one.held) if one.regresses else self._feeds(one.comparison):
                if one.seen.body is None and one.held.mirrored:
                    version = one.held.last_version if one.seen.version is None else one.seen.version
                    gone.append(replace(one.seen, version=version))
                else:
                    changes.append(self._change(one.seen, one.held.version))
        if gone:
            self._listing.end(gone)
        self._feed(changes)
        woken = [one.held.stream_id for one in judged if one.comparison.wake]
        if woken:
            self._parts.holdings.wake(woken)

    def _feeds(self, comparison: Comparison) -> bool:
        """Whether the inbox shall have it: a routine does not open dead letters again and again."""
        return comparison.feed and not (comparison.dead and self._request.quiet)

    def _accept(self, held: Held) -> bool:
        """An admin has named this entity: its source counts anew."""
        if held.source_id not in self._request.accept:
            return False
        actor = self._request.requested_by
        accepted = self._parts.holdings.begin_epoch(self._request.connection_id, held.kind, held.source_id, actor=actor)
        self._result.accepted += accepted
        return accepted

    def _change(self, seen: Observation, known_version: int | None) -> Change:
        return change_of(
            seen,
            origin=Origin.RECONCILE,
            order=self._order,
            now=self._parts.clock.now(),
            known_version=known_version,
            attempt=self._result.attempt,
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
        """The listing is complete: what it lacks is asked for, and what is gone ends, if the guard lets it."""
        assumed = self._find_gone() if self._result.since is None else 0
        self._result.ends = self._listing.ends_count() + assumed
        approved = self._request.run is not None and self._request.run.approved
        self._result.stopped = self._exceeds(self._result.ends) and not approved and not self._request.dry_run
        if self._request.dry_run or self._result.stopped:
            return
        for chunk in self._listing.ends():
            self._feed([self._change(one, one.version) for one in chunk])

    def _exceeds(self, ends: int) -> bool:
        return ends > 0 and exceeds_guard(self._source.config, ends, self._listing.live())

    def _find_gone(self) -> int:
        """Note which absent records are gone, and name them; returns how many were named without being asked for.

        Whoever is absent from a complete listing may live: it moved from page to page while that was read, or came
        after its page. So each is asked for, where that is possible; not while there are so many that the guard will
        stop anyway.
        """
        count = self._listing.unseen_count()
        approved = self._request.run is not None and self._request.run.approved
        asks = self._request.snapshot is None and self._source.capabilities.fetch
        too_many = count > ASKED_MAX and not approved and self._exceeds(count + self._listing.ends_count())
        for chunk in self._listing.unseen():
            if asks and not too_many:
                self._ask(chunk)
                continue
            self._result.add(_extra(held) for held in chunk)
            if not too_many:
                self._listing.end([_end_of(held) for held in chunk])
        return count if too_many else 0

    def _ask(self, chunk: Sequence[Held]) -> None:
        answers = self._answers(chunk)
        ends: list[Observation] = []
        told: list[Observation] = []
        for held, seen in zip(chunk, answers, strict=True):
            if isinstance(seen, BssSyncError):
                # Not known: it is named and not ended on a guess, and the next run will ask again.
                self._result.source_error = f"Not every absent record could be asked for: {seen.slug}: {seen.detail}"
                self._result.add([replace(_extra(held), cause=Cause.UNVERIFIED)])
            elif seen is None:
                ends.append(_end_of(held))
            elif seen.body is None and not is_below(seen, held, self._order):
                ends.append(seen if seen.version is not None else replace(seen, version=held.last_version))
            else:
                told.append(seen)
        gone = {(one.kind, one.source_id) for one in ends}
        self._result.add(_extra(held) for held in chunk if (held.kind, held.source_id) in gone)
        if ends:
            self._listing.end(ends)
        if told:
            # It lives, or it went at a version below ours: compared like what was listed.
            self.take(told)

    def _answers(self, chunk: Sequence[Held]) -> list[Observation | BssSyncError | None]:
        if len(chunk) < ASKED_AT_ONCE:
            return [self._fetched(held) for held in chunk]
        with ThreadPoolExecutor(ASKED_AT_ONCE, thread_name_prefix="ask") as pool:
            return list(pool.map(self._fetched, chunk))

    def _fetched(self, held: Held) -> Observation | BssSyncError | None:
        try:
            with answered():
                return self._source.client.fetch(held.kind, held.source_id)
        except BssSyncError as error:
            return error

    def relink(self) -> None:
        """Name what is not linked although it could be, and let the line look again."""
        for found in self._listing.unlinked():
            inside = found if self._subtree is None else [one for one in found if self._subtree.has(one[0])]
            self._result.add(_unlinked(*one) for one in inside)
            if inside and not self._request.dry_run:
                self._parts.holdings.wake([held.stream_id for held, _name, _linked_to in inside])


@dataclass(frozen=True, slots=True)
class _Part:
    """What a chunk says of one kind. ``listed``: what can be compared field by field. ``page``: it is all of that."""

    kind: Kind
    seen: Mapping[str, Observation]
    listed: Sequence[Listed]
    page: AnsweredPage | None


@dataclass(frozen=True, slots=True)
class _Chunk:
    """So many observations, by kind."""

    number: int
    parts: Sequence[_Part]


@dataclass(frozen=True, slots=True)
class _Judged:
    """An observation that is not just what we hold. ``regresses``: it counts below that."""

    seen: Observation
    held: Held
    comparison: Comparison
    regresses: bool


def _regresses(differences: Iterable[Difference]) -> bool:
    return any(one.problem is Problem.VERSION_REGRESSED for one in differences)


def _unlinked(held: Held, name: str, linked_to: str | None) -> Difference:
    return Difference(
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


def _extra(held: Held) -> Difference:
    cause = Cause.OVERWRITTEN if held.known_deleted else behind(held)
    return Difference(Problem.EXTRA, "mirror", held.kind, held.source_id, held.stream_id, cause=cause)


def _end_of(held: Held) -> Observation:
    """A deletion at the version that we know: it holds until the source shows the record alive, there or above."""
    return Observation(held.kind, held.source_id, held.last_version, None)


def exceeds_guard(settings: ConnectionSettings, ends: int, live: int) -> bool:
    """The blast-radius guard (domain.md section 7, guarantee 4): over the share and over the count."""
    return exceeds(ends, live, count=settings.guard_count, share=settings.guard_share)
