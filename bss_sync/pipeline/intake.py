"""Intake: the chunks of one load or poll, a few at a time; what became of them is told in the order they came in.

While PostgreSQL writes one chunk, the next is decided. Subscriptions are taken side by side; a chunk with accounts is
taken alone, because what follows it may belong to them, and so is one that tells of an entity of another under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from uuid import UUID

from bss_sync.domain.change import Change, Kind
from bss_sync.domain.errors import DependencyDown, MessageConflict
from bss_sync.pipeline.entrance import enter, follow
from bss_sync.pipeline.feed import CHUNK, feed
from bss_sync.ports.inbox import Arrival, InboxStore, Origin
from bss_sync.ports.loading import ChunkStore
from bss_sync.ports.runtime import WakeUps

AT_ONCE = 3
"""Chunks under way: PostgreSQL and the rules are both at work, and memory stays small."""
CAREFUL_CHUNKS = AT_ONCE + 1
"""So many chunks behind the last one that is known to be done may have killed the process that went before."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was not taken in. ``line`` is the file's; 0 for a listing's entity."""

    line: int
    detail: str


@dataclass(slots=True)
class Chunk:
    """Some rows of a load, and what became of them. ``read`` counts all, also those that were refused before."""

    read: int
    rows: Sequence[tuple[int, Change]]
    refusals: list[Refusal] = field(default_factory=list)
    cursor: str | None = None
    accepted: int = 0
    duplicates: int = 0

    @property
    def has_accounts(self) -> bool:
        """Whether others may belong to what is in it."""
        return any(change.kind is Kind.ACCOUNT for _line, change in self.rows)

    @property
    def names(self) -> frozenset[Hashable]:
        """The entities that it tells of."""
        return frozenset((change.kind, change.source_id) for _line, change in self.rows)


class Intake(AbstractContextManager["Intake"]):
    """Takes the chunks of one load or poll of a connection."""

    def __init__(
        self,
        inbox: InboxStore,
        chunks: ChunkStore,
        wake: WakeUps,
        whose: tuple[UUID, UUID],
        origin: Origin,
        *,
        careful_at: int | None,
        at_once: int = AT_ONCE,
    ) -> None:
        """``whose``: tenant and connection. ``careful_at``: so many rows were done when the process before was lost;
        None when none was. ``at_once``: so many chunks may be under way; 1: each is taken in its turn, here.
        """
        self._inbox = inbox
        self._chunks = chunks
        self._wake = wake
        self._tenant_id, self._connection_id = whose
        self._origin = origin
        self._careful_at = careful_at
        self._careful_chunks = 0 if careful_at is None else CAREFUL_CHUNKS
        self._given = 0
        self._at_once = at_once
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="intake")
        self._under_way: deque[tuple[frozenset[Hashable], Future[Chunk]]] = deque()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is under way is finished; nothing new begins."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def give(self, chunk: Chunk) -> Iterator[Chunk]:
        """Take a chunk; the chunks that are done, in their order. What one raises is raised in its place."""
        alone = chunk.has_accounts
        names = chunk.names
        # Of one entity, what was told first is decided first.
        waits = alone or any(not names.isdisjoint(others) for others, _future in self._under_way)
        yield from self._done(0 if waits else self._at_once - 1)
        careful = self._is_careful(chunk)
        if self._at_once == 1:
            yield self._take(chunk, careful=careful)
            return
        self._under_way.append((names, self._pool.submit(self._take, chunk, careful=careful)))
        if alone:
            yield from self._done(0)

    def _is_careful(self, chunk: Chunk) -> bool:
        self._given += chunk.read
        if self._careful_at is None or self._given <= self._careful_at or not self._careful_chunks:
            return False
        self._careful_chunks -= 1
        return True

    def rest(self) -> Iterator[Chunk]:
        """Those that are still under way."""
        yield from self._done(0)

    def _done(self, most: int) -> Iterator[Chunk]:
        while len(self._under_way) > most:
            yield self._under_way.popleft()[1].result()

    def _take(self, chunk: Chunk, *, careful: bool) -> Chunk:
        left = list(chunk.rows) if careful else self._decided(chunk)
        for start in range(0, len(left), CHUNK):
            self._feed(chunk, left[start : start + CHUNK])
        return chunk

    def _decided(self, chunk: Chunk) -> list[tuple[int, Change]]:
        """Take what is new and plain; returns the rows that are for the inbox."""
        if not chunk.rows:
            return []
        changes = [change for _line, change in chunk.rows]
        arrival = Arrival(self._tenant_id, self._connection_id, None, self._origin, changes)
        try:
            taken = self._chunks.take(arrival, enter, follow)
        except DependencyDown:
            # Two may have stood crosswise; where PostgreSQL is down, the inbox will say so.
            return list(chunk.rows)
        chunk.accepted += taken.accepted
        for shard in taken.shards:
            self._wake.process(shard)
        if taken.deliveries:
            self._wake.deliver()
        if taken.fetches:
            self._wake.fetch()
        if not taken.accepted:
            return list(chunk.rows)
        left = {id(change) for change in taken.left}
        return [(line, change) for line, change in chunk.rows if id(change) in left]

    def _feed(self, chunk: Chunk, rows: Sequence[tuple[int, Change]]) -> None:
        while rows:
            changes = [change for _line, change in rows]
            try:
                answer = feed(self._inbox, self._wake, self._tenant_id, self._connection_id, self._origin, changes)
            except MessageConflict as conflict:
                # Only the rows that it names are refused; the others are offered again.
                wrong = {problem.field: problem.detail for problem in conflict.fields}
                kept = [pair for place, pair in enumerate(rows) if f"[{place}].id" not in wrong]
                assert len(kept) < len(rows), "a conflict names its rows"
                chunk.refusals += [
                    Refusal(line, wrong[f"[{place}].id"])
                    for place, (line, _change) in enumerate(rows)
                    if f"[{place}].id" in wrong
                ]
                rows = kept
                continue
            chunk.accepted += answer.accepted
            chunk.duplicates += answer.duplicates
            return
