"""Load: whole listings and files, in chunks.

    read     a page of the listing, or rows of the file: one thread reads ahead
    take     what nobody has heard of and is plain: stored and decided by the line's rules, one transaction a chunk
    feed     everything else of the chunk: into the inbox; a worker decides it like anything that was sent

Each row makes the same message id whenever it is read, so that what is in the inbox already is counted as a duplicate
and costs no second decision. A backfill that lost its process is carried on behind its last page; one that broke off,
and an import, are begun again.

A process that was lost may have been killed by what it decided. Who goes on lets workers decide what comes next: they
find out which message it was, and quarantine it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from bss_sync.domain.errors import BssSyncError, CannotFetch, DependencyDown
from bss_sync.pipeline.feed import CHUNK
from bss_sync.pipeline.file_rows import FileRow
from bss_sync.pipeline.intake import AT_ONCE, Chunk, Intake, Refusal
from bss_sync.pipeline.observation import change_of
from bss_sync.pipeline.read_pages import listed, name_of, pages_of, read_ahead
from bss_sync.ports.connector import Page, PagedSource, RangedSource
from bss_sync.ports.inbox import InboxStore, Origin
from bss_sync.ports.loading import ChunkStore
from bss_sync.ports.runs import Run, RunStore
from bss_sync.ports.runtime import Clock, WakeUps
from bss_sync.ports.sources import OpenSource, Sources

REFUSALS_KEPT = 1_000
ROWS_AT_ONCE = 1_000
"""Rows of a file that make a chunk."""

Item = TypeVar("Item")


@dataclass
class Loaded:
    """What a load did: rows read = accepted + duplicates + refused."""

    run_id: UUID | None
    dry_run: bool = False
    read: int = 0
    accepted: int = 0
    duplicates: int = 0
    refused: int = 0
    refusals: list[Refusal] = field(default_factory=list)

    page: str | None = None
    """The cursor of the source's listing behind which it goes on."""

    @classmethod
    def of(cls, run: Run) -> Loaded:
        """What a run has done so far, in whichever process."""
        done = {name: run.progress.get(name, 0) for name in ("read", "accepted", "duplicates", "refused")}
        return cls(run.id, page=run.progress.get("page"), **done)

    def refuse(self, refusal: Refusal) -> None:
        """Count a refused row, and name it while there are few."""
        self.refused += 1
        if len(self.refusals) < REFUSALS_KEPT:
            self.refusals.append(refusal)

    def add(self, chunk: Chunk, refused: Callable[[Refusal], None]) -> None:
        """Count a chunk that is done, and tell its refusals."""
        self.read += chunk.read
        self.accepted += chunk.accepted
        self.duplicates += chunk.duplicates
        for one in chunk.refusals:
            self.refuse(one)
            refused(one)

    def as_json(self) -> dict[str, Any]:
        """As it is printed and kept in the run."""
        return {
            "run_id": None if self.run_id is None else str(self.run_id),
            "dry_run": self.dry_run,
            "read": self.read,
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "refused": self.refused,
            "refusals": [{"line": one.line, "detail": one.detail} for one in self.refusals],
        }


@dataclass
class Loader:
    """Loads into one connection's inbox. ``at_once``: so many chunks are under way; 1: each is taken in its turn."""

    sources: Sources
    inbox: InboxStore
    chunks: ChunkStore
    runs: RunStore
    wake: WakeUps
    clock: Clock
    at_once: int = AT_ONCE

    def backfill(
        self,
        connection_id: UUID,
        *,
        requested_by: str,
        progress: Callable[[int], None] = lambda _read: None,
        run: Run | None = None,
    ) -> Loaded:
        """The source's whole listing. CannotFetch when it has none; Transient when it breaks off: begin again.

        ``run``: one that lost its process and is ours now; else one that is lost is looked for.
        """
        run = run or self.runs.carry_on(connection_id, "backfill", {})
        try:
            source = self.sources.source(connection_id)
            if not source.capabilities.list:
                raise CannotFetch(f"{source.connection.name} cannot be listed.")
        except BssSyncError as error:
            if run is not None:
                self.runs.finish(run.id, "failed", {"error": error.detail})
            raise
        run = run or self._start(connection_id, "backfill", {}, requested_by)
        loaded = Loaded.of(run)
        with (
            closing(source.gate),
            _Finishing(self.runs, run, loaded),
            closing(_pages(source, loaded)) as pages,
            self._intake(run, Origin.BACKFILL, _careful_at(run, source, loaded)) as intake,
        ):
            for page in pages:
                now = self.clock.now()
                changes = [
                    (0, change_of(one, origin=Origin.BACKFILL, order=source.order, now=now))
                    for one in page.observations
                    if one.body is not None or one.version is not None
                ]
                chunk = Chunk(len(page.observations), changes, cursor=page.cursor)
                self._note(loaded, run, intake.give(chunk), progress)
            self._note(loaded, run, intake.rest(), progress)
        return loaded

    def import_rows(
        self,
        connection_id: UUID,
        rows: Iterable[FileRow],
        *,
        requested_by: str,
        file_name: str = "",
        dry_run: bool = False,
        progress: Callable[[int], None] = lambda _read: None,
        refused: Callable[[Refusal], None] = lambda _refusal: None,
    ) -> Loaded:
        """The rows of a file. Refused rows are named with their lines; the others are taken in."""
        if dry_run:
            return _checked(rows, progress, refused)
        before = self.runs.interrupted(connection_id, "import")
        run = self._start(connection_id, "import", {"file": file_name}, requested_by)
        loaded = Loaded(run.id)
        with _Finishing(self.runs, run, loaded), self._intake(run, Origin.IMPORT, _rows_read(before)) as intake:
            for part in chunked(rows, ROWS_AT_ONCE):
                good = [(row.line, row.change) for row in part if row.change is not None]
                chunk = Chunk(len(part), good, _refusals(part))
                self._note(loaded, run, intake.give(chunk), progress, refused)
            self._note(loaded, run, intake.rest(), progress, refused)
        return loaded

    def _start(self, connection_id: UUID, kind: str, options: dict[str, Any], requested_by: str) -> Run:
        before = self.runs.interrupted(connection_id, kind)
        if before is not None:
            options = options | {"resumes": str(before.id)}
        return self.runs.start(connection_id, kind, options, requested_by=requested_by)

    def _intake(self, run: Run, origin: Origin, careful_at: int | None) -> Intake:
        whose = run.tenant_id, run.connection_id
        return Intake(self.inbox, self.chunks, self.wake, whose, origin, careful_at=careful_at, at_once=self.at_once)

    def _note(
        self,
        loaded: Loaded,
        run: Run,
        done: Iterable[Chunk],
        progress: Callable[[int], None],
        refused: Callable[[Refusal], None] = lambda _refusal: None,
    ) -> None:
        """Count what is done, and keep how far the run is: whoever carries it on goes on there."""
        for chunk in done:
            loaded.add(chunk, refused)
            counts = {name: value for name, value in loaded.as_json().items() if isinstance(value, int)}
            self.runs.progress(run.id, counts | {"page": chunk.cursor})
            progress(loaded.read)


def _rows_read(before: Run | None) -> int | None:
    """How far the last import was that did not come to its end."""
    return None if before is None else int(before.progress.get("read", 0))


def _can_go_on(source: OpenSource) -> bool:
    """Whether its listing can be gone on with behind a page."""
    return isinstance(source.client, PagedSource) and not isinstance(source.client, RangedSource)


def _careful_at(run: Run, source: OpenSource, loaded: Loaded) -> int | None:
    """Behind how many rows of this process the one before was lost; None when none was."""
    if not run.progress.get("carried"):
        return None
    return 0 if _can_go_on(source) else loaded.read


def _pages(source: OpenSource, loaded: Loaded) -> Generator[Page]:
    client = source.client
    if isinstance(client, PagedSource) and _can_go_on(source):
        with closing(read_ahead(pages_of(client.list_page, loaded.page, each_once=True))) as pages:
            yield from pages
        return
    # It cannot be gone on with; what was taken in before is known again.
    loaded.read = loaded.accepted = loaded.duplicates = 0
    for chunk in chunked(listed(client.list_all(), name_of), CHUNK):
        yield Page(chunk, None, more=True)


class _Finishing:
    """Ends the run with its result, however the load ends; one that was lost with PostgreSQL is carried on instead."""

    def __init__(self, runs: RunStore, run: Run, loaded: Loaded) -> None:
        self._runs, self._run, self._loaded = runs, run, loaded

    def __enter__(self) -> None:
        """The run is running."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        result = self._loaded.as_json()
        if kind is not None:
            result["error"] = error.detail if isinstance(error, BssSyncError) else kind.__name__
        # An interruption in the middle of a statement takes the run's session with it: the run is carried on.
        with nullcontext() if kind is None else suppress(DependencyDown):
            self._runs.finish(self._run.id, "done" if kind is None else "failed", result)


def _checked(rows: Iterable[FileRow], progress: Callable[[int], None], refused: Callable[[Refusal], None]) -> Loaded:
    """The dry run of an import: every row is read and validated, nothing is stored."""
    loaded = Loaded(None, dry_run=True)
    for part in chunked(rows, ROWS_AT_ONCE):
        wrong = _refusals(part)
        loaded.add(Chunk(len(part), (), wrong, accepted=len(part) - len(wrong)), refused)
        progress(loaded.read)
    return loaded


def _refusals(part: Sequence[FileRow]) -> list[Refusal]:
    return [Refusal(row.line, row.refusal or "is refused") for row in part if row.change is None]


def chunked(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of up to ``size``."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
