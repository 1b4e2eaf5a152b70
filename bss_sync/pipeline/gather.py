"""Gather: ask the resellers' BSS. What they answer enters by the inbox and is decided by the line.

fetch   one entity that somebody asked for: a notification, a gap, a missing parent, a conflict
poll    changes since a cursor; a source that has none is listed and compared
probe   a silent connection: is its source alive?
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from uuid import UUID

from bss_sync.domain.change import Change
from bss_sync.domain.errors import (
    BssSyncError,
    CannotFetch,
    DependencyDown,
    GuardStopped,
    LeaseLost,
    MessageConflict,
    StateConflict,
    Transient,
)
from bss_sync.pipeline.deliver import backoff_seconds
from bss_sync.pipeline.feed import CHUNK, feed
from bss_sync.pipeline.intake import AT_ONCE, Chunk, Intake
from bss_sync.pipeline.observation import change_of
from bss_sync.pipeline.read_pages import answered, pages_of, read_ahead
from bss_sync.ports.connector import Observation, Page
from bss_sync.ports.inbox import InboxStore, Origin
from bss_sync.ports.loading import ChunkStore
from bss_sync.ports.runtime import Clock, WakeUps
from bss_sync.ports.sources import FetchStore, FetchTask, OpenSource, PollStore, PollTask, ProbeStore, Sources

FETCH_BATCH = 32
FETCHES_AT_ONCE = 8
ADVANCES_PER_LEASE = 15
"""So often a poll's cursor is written down while one lease would last."""


@dataclass(frozen=True, slots=True)
class FetchResult:
    """What one batch of fetches did."""

    observed: int
    failed: int
    more: bool


@dataclass
class Fetcher:
    """Fetches single entities, as far as each connection's breaker lets calls through."""

    store: FetchStore
    sources: Sources
    inbox: InboxStore
    wake: WakeUps
    clock: Clock

    def fetch(self, limit: int = FETCH_BATCH) -> FetchResult:
        """One batch, each entity asked for once; the answers of one connection enter together."""
        tasks = self.store.claim(limit)
        if not tasks:
            return FetchResult(0, 0, more=False)
        opened = {connection_id: self._open(connection_id) for connection_id in {one.connection_id for one in tasks}}
        for task in tasks:
            source = opened[task.connection_id]
            if task.reserved and isinstance(source, OpenSource):
                source.gate.hold(task.reserved)
        with ThreadPoolExecutor(min(FETCHES_AT_ONCE, len(tasks)), thread_name_prefix="fetch") as pool:
            changes = list(pool.map(lambda task: self._attempt(task, opened[task.connection_id]), tasks))
        for source in opened.values():
            if isinstance(source, OpenSource):
                source.gate.close()
        fetched: dict[UUID, list[tuple[FetchTask, Change]]] = {}
        for task, change in zip(tasks, changes, strict=True):
            if change is not None:
                fetched.setdefault(task.connection_id, []).append((task, change))
        observed = sum(self._take(connection_id, pairs) for connection_id, pairs in fetched.items())
        return FetchResult(observed, len(tasks) - observed, more=len(tasks) == limit)

    def _open(self, connection_id: UUID) -> OpenSource | BssSyncError:
        try:
            return self.sources.source(connection_id)
        except BssSyncError as error:
            return error

    def _attempt(self, task: FetchTask, source: OpenSource | BssSyncError) -> Change | None:
        """What the source says of one entity; None when it was settled without a change."""
        tries = False
        try:
            if isinstance(source, BssSyncError):
                raise source
            pause, tries = source.gate.wait_seconds(), source.gate.limit(2) < 2
            if pause > 0:
                self.store.failed(task, "the source asked to wait or is down", pause, counted=False)
                return None
            with source.gate.attempt(again=task.again), answered():
                observation = source.client.fetch(task.kind, task.source_id)
            return self._change(task, source, observation)
        except Transient as error:
            delay = backoff_seconds(task.attempts, error.retry_after_seconds)
            # Who tries whether the source is back fails for the source's sake, not its own.
            self.store.failed(task, f"{error.slug}: {error.detail}", delay, counted=not tries)
        except BssSyncError as error:
            self.store.given_up(task, f"{error.slug}: {error.detail}")
        return None

    def _change(self, task: FetchTask, source: OpenSource, observation: Observation | None) -> Change | None:
        # Gone, and nothing was ever known of it: there is nothing to end.
        nothing = observation is not None and observation.body is None and observation.version is None
        if observation is None or (nothing and task.version is None):
            self.store.not_found(task)
            return None
        now = self.clock.now()
        return change_of(observation, origin=Origin.FETCH, order=source.order, now=now, known_version=task.version)

    def _take(self, connection_id: UUID, pairs: Sequence[tuple[FetchTask, Change]]) -> int:
        try:
            tenant_id = pairs[0][0].tenant_id
            feed(self.inbox, self.wake, tenant_id, connection_id, Origin.FETCH, [change for _task, change in pairs])
        except StateConflict as error:
            for task, _change in pairs:
                self.store.given_up(task, f"{error.slug}: {error.detail}")
            return 0
        return sum(self.store.observed(task) for task, _change in pairs)


@dataclass
class Poller:
    """Polls due connections. ``by_listing`` compares a whole listing, for sources without a change feed.

    Pages are taken as a load takes its own (``pipeline.intake``): what is plain is decided at once.
    ``at_once``: so many are under way while the next is read; with 1 everything is done in its turn.
    """

    store: PollStore
    sources: Sources
    inbox: InboxStore
    chunks: ChunkStore
    wake: WakeUps
    clock: Clock
    by_listing: Callable[[OpenSource, Callable[[int], None]], object]
    lease_seconds: float
    at_once: int = AT_ONCE

    def poll(self) -> bool:
        """Poll one due connection. False when none is due."""
        task = self.store.claim()
        if task is None:
            return False
        lease, due_seconds = _PollLease(self.store, task), 60.0
        try:
            source = self.sources.source(task.connection_id)
            due_seconds = source.config.poll_seconds
            with closing(source.gate):
                if task.failures > 0 and source.gate.retries(1) == 0:
                    raise DependencyDown("So much has failed at this source that it is not asked again just now.")
                with source.gate.attempt(again=task.failures > 0):
                    self._poll(lease, source)
        except LeaseLost:
            # Its present holder says how far it is and when it is due.
            return True
        except CannotFetch:
            self.store.finished(lease.task, 3600.0)
        except GuardStopped as error:
            # The run that it left behind waits for an admin; asking again before would only stop again.
            self.store.failed(lease.task, f"{error.slug}: {error.detail}", max(due_seconds, 3600.0))
        except Transient as error:
            # Not later than the next poll would have been, but never before the source wishes.
            delay = max(min(backoff_seconds(task.failures + 1), due_seconds), error.retry_after_seconds or 0.0)
            self.store.failed(lease.task, f"{error.slug}: {error.detail}", delay)
        except BssSyncError as error:
            self.store.failed(lease.task, f"{error.slug}: {error.detail}", max(due_seconds, 60.0))
        else:
            self.store.finished(lease.task, due_seconds)
        return True

    def _poll(self, lease: _PollLease, source: OpenSource) -> None:
        task = lease.task
        if not source.capabilities.poll:
            if source.capabilities.list:
                # Each chunk of a long listing renews the lease.
                self.by_listing(source, lambda _listed: lease.advance(task.cursor))
            return
        anew = False
        for page in self._taken(lease, source):
            anew = anew or page.anew
        cursor = lease.task.cursor
        if anew and source.capabilities.list:
            self.by_listing(source, lambda _listed: lease.advance(cursor))

    def _taken(self, lease: _PollLease, source: OpenSource) -> Iterator[Page]:
        """Every page of the feed, taken; the cursor follows what is committed."""
        task, at_once = lease.task, self.at_once
        with ExitStack() as stack:
            pages = pages_of(lambda cursor: _asked(source, task, cursor), task.cursor)
            if at_once > 1:
                pages = stack.enter_context(closing(read_ahead(pages)))
            whose = task.tenant_id, task.connection_id
            # Who was lost before may have been killed by what comes next: workers find out which message it is.
            careful_at = 0 if task.lost else None
            intake = stack.enter_context(
                Intake(self.inbox, self.chunks, self.wake, whose, Origin.POLL, careful_at=careful_at, at_once=at_once)
            )
            # To write the cursor down waits for the chunks that are under way: not after each of them. But who may be
            # killed again must be further then than the one before: after each page, taken as one chunk.
            rests = at_once > 1 and not task.lost
            advance_seconds = self.lease_seconds / ADVANCES_PER_LEASE if rests else 0.0
            before = task.cursor
            for page in pages:
                yield page
                for chunk in self._chunks(page, source, before, whole=not rests):
                    lease.follow(intake.give(chunk), at_least_seconds=advance_seconds)
                before = page.cursor
            lease.follow(intake.rest(), at_least_seconds=advance_seconds)
            lease.catch_up()

    def _chunks(self, page: Page, source: OpenSource, before: str | None, *, whole: bool) -> Iterator[Chunk]:
        """A page's changes; its cursor, instead of the one ``before`` it, counts with the last of them."""
        now = self.clock.now()
        changes = [
            (0, change_of(one, origin=Origin.POLL, order=source.order, now=now))
            for one in page.observations
            if one.body is not None or one.version is not None
        ]
        last = 0 if whole else max(0, len(changes) - 1) // CHUNK * CHUNK
        for start in range(0, last, CHUNK):
            yield Chunk(CHUNK, changes[start : start + CHUNK], cursor=before)
        yield Chunk(len(changes) - last, changes[last:], cursor=page.cursor)


def _asked(source: OpenSource, task: PollTask, cursor: str | None) -> Page:
    # Whichever thread asks: what has failed before is a retry.
    with source.gate.attempt(again=task.failures > 0):
        return source.client.poll(cursor)


@dataclass
class _PollLease:
    """A poll's task, whose token is another one after each step."""

    store: PollStore
    task: PollTask
    _behind: Chunk | None = None
    """The last chunk that is committed, where the cursor does not say so yet."""
    _renewed_at: float = field(default_factory=time.monotonic)

    def advance(self, cursor: str | None) -> None:
        """See PollStore.advanced."""
        self.task = self.store.advanced(self.task, cursor)
        self._behind, self._renewed_at = None, time.monotonic()

    def follow(self, done: Iterable[Chunk], *, at_least_seconds: float = 0.0) -> None:
        """Advance behind what is committed. MessageConflict when the source tells one message in two ways."""
        for chunk in done:
            if chunk.refusals:
                raise MessageConflict(chunk.refusals[0].detail)
            self._behind = chunk
            if time.monotonic() - self._renewed_at >= at_least_seconds:
                self.advance(chunk.cursor)

    def catch_up(self) -> None:
        """Advance to the last one."""
        if self._behind is not None:
            self.advance(self._behind.cursor)


def probe(sources: Sources, store: ProbeStore, connection_id: UUID) -> bool:
    """Ask a silent connection's source whether it is alive; the answer is kept in the audit."""
    try:
        source = sources.source(connection_id)
        with closing(source.gate), answered():
            seen = source.client.check()
    except CannotFetch:
        store.probed(connection_id, alive=False, detail="its connector can only push: ask the reseller")
        return False
    except BssSyncError as error:
        store.probed(connection_id, alive=False, detail=f"{error.slug}: {error.detail}")
        return False
    store.probed(connection_id, alive=True, detail=seen)
    return True
