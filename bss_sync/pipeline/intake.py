"""Intake: the chunks of one load, a few at a time; what became of them is told in the order in which they came.

While PostgreSQL writes one chunk, the next is decided. Subscriptions are taken side by side; a chunk with accounts is
taken alone, because what follows it may belong to them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

from bss_sync.domain.change import Change, Kind
from bss_sync.domain.errors import DependencyDown, MessageConflict
from bss_sync.pipeline.entrance import enter
from bss_sync.pipeline.gather import CHUNK, feed
from bss_sync.ports.inbox import Arrival, InboxStore, Origin
from bss_sync.ports.loading import ChunkStore
from bss_sync.ports.reconciliation import Run
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


class Intake(AbstractContextManager["Intake"]):
    """Takes the chunks of one run."""

    def __init__(
        self,
        inbox: InboxStore,
        chunks: ChunkStore,
        wake: WakeUps,
        run: Run,
        origin: Origin,
        *,
        careful_at: int | None,
    ) -> None:
        """``careful_at``: so many rows were done when the process before was lost; None when none was."""
        self._inbox = inbox
        self._chunks = chunks
        self._wake = wake
        self._run = run
        self._origin = origin
        self._careful_at = careful_at
        self._careful_chunks = 0 if careful_at is None else CAREFUL_CHUNKS
        self._given = 0
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="intake")
        self._under_way: deque[Future[Chunk]] = deque()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is under way is finished; nothing new begins."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def give(self, chunk: Chunk) -> Iterator[Chunk]:
        """Take a chunk; the chunks that are done, in their order. What one raises is raised in its place."""
        alone = chunk.has_accounts
        yield from self._done(0 if alone else AT_ONCE - 1)
        self._under_way.append(self._pool.submit(self._take, chunk, careful=self._is_careful(chunk)))
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
            yield self._under_way.popleft().result()

    def _take(self, chunk: Chunk, *, careful: bool) -> Chunk:
        left = list(chunk.rows) if careful else self._decided(chunk)
        for start in range(0, len(left), CHUNK):
            self._feed(chunk, left[start : start + CHUNK])
        return chunk

    def _decided(self, chunk: Chunk) -> list[tuple[int, Change]]:
        """Take what is new and plain; returns the rows that are for the inbox."""
        if not chunk.rows:
            return []
        run = self._run
        arrival = Arrival(run.tenant_id, run.connection_id, None, self._origin, [change for _, change in chunk.rows])
        try:
            taken = self._chunks.take(arrival, enter)
        except DependencyDown:
            # Two may have stood crosswise; where PostgreSQL is down, the inbox will say so.
            return list(chunk.rows)
        chunk.accepted += taken.accepted
        for shard in taken.shards:
            self._wake.process(shard)
        if taken.deliveries:
            self._wake.deliver()
        if not taken.accepted:
            return list(chunk.rows)
        left = {id(change) for change in taken.left}
        return [(line, change) for line, change in chunk.rows if id(change) in left]

    def _feed(self, chunk: Chunk, rows: Sequence[tuple[int, Change]]) -> None:
        run = self._run
        while rows:
            changes = [change for _line, change in rows]
            try:
                answer = feed(self._inbox, self._wake, run.tenant_id, run.connection_id, self._origin, changes)
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
