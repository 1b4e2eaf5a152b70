"""The source's listing against the mirror: the first half of a reconciliation (pipeline.reconcile has the path)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol
from uuid import UUID

from bss_sync.domain.change import Action, Change, Kind, OrderKind, stream_id
from bss_sync.domain.errors import Transient, UnknownValue
from bss_sync.domain.guard import exceeds
from bss_sync.pipeline.compare import behind, compare
from bss_sync.pipeline.file_rows import Snapshot
from bss_sync.pipeline.gather import CHUNK, feed
from bss_sync.pipeline.observation import change_of
from bss_sync.pipeline.reconcile_result import Request, Result
from bss_sync.pipeline.translate import translate
from bss_sync.ports.connector import ConnectionSettings, Observation, RangedSource
from bss_sync.ports.inbox import InboxStore, Origin
from bss_sync.ports.reconciliation import Cause, Difference, Held, Holdings, Listed, Listing, Problem
from bss_sync.ports.runtime import Clock, WakeUps
from bss_sync.ports.sources import OpenSource

VERIFIED_MAX = 200
"""Absent records that are asked for one by one before they are ended; beyond, the complete listing is proof enough."""


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
        self._gone: list[Change] = []
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
            unlike = self._unlike(kind, [one for one in chunk if one.kind is kind])
            for one, held in unlike if self._subtree is None else self._subtree.of(unlike):
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
        if self._result.since is not None and _regresses(comparison.differences):
            # A feed of changes tells former versions too.
            return False
        self._result.add(comparison.differences)
        feeds = comparison.feed
        if _regresses(comparison.differences):
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
        absent, verified = self._absent() if self._result.since is None else (0, [])
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
        if self._subtree is not None:
            unlinked = [one for one in unlinked if self._subtree.has(one[0])]
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


class Subtree:
    """Which of what is listed belongs below one account: by the mirror's tree, or by the listing where that differs.

    The source cannot list a part of itself, so everything is read; only what differs from the mirror is looked at.
    Accounts are listed before subscriptions, in any order among themselves: one below an account that is not known to
    be inside yet is kept until that is known.
    """

    def __init__(self, listing: Listing, connection_id: UUID, root: str) -> None:
        self._listing = listing
        self._connection_id = connection_id
        self._fresh = {root}
        self._kept: dict[str, list[tuple[Observation, Held]]] = {}
        listing.below(root)

    def has(self, held: Held) -> bool:
        """Whether the mirror has it inside."""
        return held.stream_id in self._listing.inside([held.stream_id])

    def of(self, pairs: Sequence[tuple[Observation, Held]]) -> Iterator[tuple[Observation, Held]]:
        """Those of these that are inside, and those kept before that are inside by them."""
        above = {one.source_id: self._above(one) for one, _held in pairs}
        known = [stream_id(self._connection_id, Kind.ACCOUNT, name) for name in above.values() if name is not None]
        inside = self._listing.inside([*(held.stream_id for _one, held in pairs), *known])
        for one, held in pairs:
            name = above[one.source_id]
            by_listing = name is not None and (
                name in self._fresh or stream_id(self._connection_id, Kind.ACCOUNT, name) in inside
            )
            if held.stream_id in inside or by_listing or self._is_root(one):
                yield from self._enter(one, held)
            elif name is not None and one.kind is Kind.ACCOUNT:
                self._kept.setdefault(name, []).append((one, held))

    def _is_root(self, one: Observation) -> bool:
        return one.kind is Kind.ACCOUNT and one.source_id in self._fresh

    def _enter(self, one: Observation, held: Held) -> Iterator[tuple[Observation, Held]]:
        opened = [(one, held)]
        while opened:
            seen, its = opened.pop()
            yield seen, its
            if seen.kind is Kind.ACCOUNT:
                self._fresh.add(seen.source_id)
                opened += self._kept.pop(seen.source_id, [])

    def _above(self, one: Observation) -> str | None:
        if one.body is None:
            return None
        name = one.body["parent_id"] if one.kind is Kind.ACCOUNT else one.body["account_id"]
        return None if name is None else str(name)


def _regresses(differences: Iterable[Difference]) -> bool:
    return any(one.problem is Problem.VERSION_REGRESSED for one in differences)


def _extra(held: Held) -> Difference:
    cause = Cause.OVERWRITTEN if held.known_deleted else behind(held)
    return Difference(Problem.EXTRA, "mirror", held.kind, held.source_id, held.stream_id, cause=cause)


def _end_of(held: Held) -> Observation:
    """A deletion at the version that we know: authoritative there, and any later state of the source is above it."""
    return Observation(held.kind, held.source_id, None, None)


def exceeds_guard(settings: ConnectionSettings, ends: int, live: int) -> bool:
    """The blast-radius guard (domain.md section 7, guarantee 4): over the share and over the count."""
    return exceeds(ends, live, count=settings.guard_count, share=settings.guard_share)
