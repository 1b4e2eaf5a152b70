"""Gather: ask the resellers' BSS. What they answer enters by the inbox and is decided by the line.

fetch   one entity that somebody asked for: a notification, a gap, a missing parent, a conflict
poll    changes since a cursor; a source that has none is listed and compared
probe   a silent connection: is its source alive?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from bss_sync.domain.change import Change
from bss_sync.domain.errors import BssSyncError, CannotFetch, GuardStopped, StateConflict, Transient
from bss_sync.pipeline.deliver import Breaker, backoff_seconds
from bss_sync.pipeline.observation import change_of
from bss_sync.ports.connector import Observation
from bss_sync.ports.inbox import Accepted, Arrival, InboxStore, Origin, Stale
from bss_sync.ports.runtime import Clock, WakeUps
from bss_sync.ports.sources import FetchStore, FetchTask, OpenSource, PollStore, PollTask, ProbeStore, Sources

FETCH_BATCH = 32
CHUNK = 500
"""Messages per inbox transaction."""


def feed(
    inbox: InboxStore, wake: WakeUps, tenant_id: UUID, connection_id: UUID, origin: Origin, changes: Sequence[Change]
) -> Accepted:
    """Put our own changes into the inbox and hint at their shard. StateConflict when the connection is closed."""
    if not changes:
        return Accepted(0, 0, None)
    answer = inbox.accept([Arrival(tenant_id, connection_id, None, origin, changes)])[0]
    if isinstance(answer, Stale):
        raise StateConflict("The connection is closed and takes nothing any more.")
    if not isinstance(answer, Accepted):
        raise answer
    if answer.accepted and answer.shard is not None:
        wake.process(answer.shard)
    return answer


@dataclass(frozen=True, slots=True)
class FetchResult:
    """What one batch of fetches did."""

    observed: int
    failed: int
    more: bool


@dataclass
class Fetcher:
    """Fetches single entities. One per process; a breaker per connection remembers who is down."""

    store: FetchStore
    sources: Sources
    inbox: InboxStore
    wake: WakeUps
    clock: Clock
    breakers: dict[UUID, Breaker] = field(default_factory=dict)

    def fetch(self, limit: int = FETCH_BATCH) -> FetchResult:
        """One batch, each entity asked for once."""
        tasks = self.store.claim(limit)
        opened: dict[UUID, OpenSource | BssSyncError] = {}
        observed = sum(self._attempt(task, self._open(task.connection_id, opened)) for task in tasks)
        failed = len(tasks) - observed
        return FetchResult(observed, failed, more=len(tasks) == limit)

    def _open(self, connection_id: UUID, opened: dict[UUID, OpenSource | BssSyncError]) -> OpenSource | BssSyncError:
        if connection_id not in opened:
            try:
                opened[connection_id] = self.sources.source(connection_id)
            except BssSyncError as error:
                opened[connection_id] = error
        return opened[connection_id]

    def _attempt(self, task: FetchTask, source: OpenSource | BssSyncError) -> bool:
        breaker = self.breakers.setdefault(task.connection_id, Breaker())
        pause = breaker.wait_seconds()
        if pause > 0:
            self.store.failed(task, "the source asked to wait or is down", pause)
            return False
        try:
            if isinstance(source, BssSyncError):
                raise source
            observation = source.client.fetch(task.kind, task.source_id)
            breaker.succeeded()
            return self._take(task, source, observation)
        except Transient as error:
            breaker.failed(error.retry_after_seconds)
            delay = backoff_seconds(task.attempts, error.retry_after_seconds)
            self.store.failed(task, f"{error.slug}: {error.detail}", delay)
        except BssSyncError as error:
            self.store.given_up(task, f"{error.slug}: {error.detail}")
        return False

    def _take(self, task: FetchTask, source: OpenSource, observation: Observation | None) -> bool:
        if observation is None:
            self.store.not_found(task)
            return False
        if observation.body is None and observation.version is None and task.version is None:
            # Gone, and nothing was ever known of it: there is nothing to end.
            self.store.not_found(task)
            return False
        change = change_of(
            observation,
            origin=Origin.FETCH,
            order=source.order,
            now=self.clock.now(),
            known_version=task.version,
        )
        feed(self.inbox, self.wake, task.tenant_id, task.connection_id, Origin.FETCH, [change])
        return self.store.observed(task)


@dataclass
class Poller:
    """Polls due connections. ``by_listing`` compares a whole listing, for sources without a change feed."""

    store: PollStore
    sources: Sources
    inbox: InboxStore
    wake: WakeUps
    clock: Clock
    by_listing: Callable[[OpenSource], object]

    def poll(self) -> bool:
        """Poll one due connection. False when none is due."""
        task = self.store.claim()
        if task is None:
            return False
        due_seconds = 60.0
        try:
            source = self.sources.source(task.connection_id)
            due_seconds = source.config.poll_seconds
            self._poll(task, source)
        except CannotFetch:
            self.store.finished(task, 3600.0)
        except GuardStopped as error:
            # The run that it left behind waits for an admin; asking again before would only stop again.
            self.store.failed(task, f"{error.slug}: {error.detail}", max(due_seconds, 3600.0))
        except Transient as error:
            delay = backoff_seconds(task.failures + 1, error.retry_after_seconds)
            self.store.failed(task, f"{error.slug}: {error.detail}", min(delay, due_seconds or delay))
        except BssSyncError as error:
            self.store.failed(task, f"{error.slug}: {error.detail}", max(due_seconds, 60.0))
        else:
            self.store.finished(task, due_seconds)
        return True

    def _poll(self, task: PollTask, source: OpenSource) -> None:
        if not source.capabilities.poll:
            if source.capabilities.list:
                self.by_listing(source)
            return
        cursor, more = task.cursor, True
        while more:
            page = source.client.poll(cursor)
            now = self.clock.now()
            changes = [
                change_of(one, origin=Origin.POLL, order=source.order, now=now)
                for one in page.observations
                if one.body is not None or one.version is not None
            ]
            for start in range(0, len(changes), CHUNK):
                chunk = changes[start : start + CHUNK]
                feed(self.inbox, self.wake, task.tenant_id, task.connection_id, Origin.POLL, chunk)
            more = page.more and page.cursor != cursor
            cursor = page.cursor
            self.store.advanced(task, cursor)


def probe(sources: Sources, store: ProbeStore, connection_id: UUID) -> bool:
    """Ask a silent connection's source whether it is alive; the answer is kept in the audit."""
    try:
        seen = sources.source(connection_id).client.check()
    except CannotFetch:
        store.probed(connection_id, alive=False, detail="its connector can only push: ask the reseller")
        return False
    except BssSyncError as error:
        store.probed(connection_id, alive=False, detail=f"{error.slug}: {error.detail}")
        return False
    store.probed(connection_id, alive=True, detail=seen)
    return True
