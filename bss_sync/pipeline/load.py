"""Load: whole listings and files into the inbox, in chunks; the line decides them like anything else.

Each row makes the same message id whenever it is read, so that what is in the inbox already is counted as a duplicate
and costs no second decision. A backfill that lost its process is carried on behind its last page; one that broke off,
and an import, are begun again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from bss_sync.domain.change import Change
from bss_sync.domain.errors import BssSyncError, CannotFetch, DependencyDown, MessageConflict
from bss_sync.pipeline.file_rows import FileRow
from bss_sync.pipeline.gather import CHUNK, feed
from bss_sync.pipeline.observation import change_of
from bss_sync.pipeline.read_pages import listed, name_of, pages_of, read_ahead
from bss_sync.ports.connector import Page, PagedSource, RangedSource
from bss_sync.ports.inbox import InboxStore, Origin
from bss_sync.ports.reconciliation import Run, RunStore
from bss_sync.ports.runtime import Clock, WakeUps
from bss_sync.ports.sources import OpenSource, Sources

REFUSALS_KEPT = 1_000

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was not taken in. ``line`` is the file's; 0 for a listing's entity."""

    line: int
    detail: str


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

    def refuse(self, line: int, detail: str) -> None:
        """Count a refused row, and name it while there are few."""
        self.refused += 1
        if len(self.refusals) < REFUSALS_KEPT:
            self.refusals.append(Refusal(line, detail))

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
    """Loads into one connection's inbox."""

    sources: Sources
    inbox: InboxStore
    runs: RunStore
    wake: WakeUps
    clock: Clock

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
        with closing(source.gate), _Finishing(self.runs, run, loaded), closing(_pages(source, loaded)) as pages:
            for page in pages:
                now = self.clock.now()
                changes = [
                    (0, change_of(one, origin=Origin.BACKFILL, order=source.order, now=now))
                    for one in page.observations
                    if one.body is not None or one.version is not None
                ]
                loaded.read += len(page.observations) - len(changes)
                self._take(loaded, run, Origin.BACKFILL, changes, page.cursor)
                progress(loaded.read)
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
    ) -> Loaded:
        """The rows of a file. Refused rows are named with their lines; the others are taken in."""
        if dry_run:
            return _checked(rows)
        run = self._start(connection_id, "import", {"file": file_name}, requested_by)
        loaded = Loaded(run.id)
        with _Finishing(self.runs, run, loaded):
            for chunk in chunked(rows, CHUNK):
                good = [(row.line, row.change) for row in chunk if row.change is not None]
                for row in chunk:
                    if row.change is None:
                        loaded.read += 1
                        loaded.refuse(row.line, row.refusal or "is refused")
                self._take(loaded, run, Origin.IMPORT, good)
                progress(loaded.read)
        return loaded

    def _start(self, connection_id: UUID, kind: str, options: dict[str, Any], requested_by: str) -> Run:
        before = self.runs.interrupted(connection_id, kind)
        if before is not None:
            options = options | {"resumes": str(before.id)}
        return self.runs.start(connection_id, kind, options, requested_by=requested_by)

    def _take(
        self,
        loaded: Loaded,
        run: Run,
        origin: Origin,
        rows: Sequence[tuple[int, Change]],
        page: str | None = None,
    ) -> None:
        for start in range(0, len(rows), CHUNK):
            self._offer(loaded, run, origin, rows[start : start + CHUNK])
        counts = {name: value for name, value in loaded.as_json().items() if isinstance(value, int)}
        self.runs.progress(run.id, counts | {"page": page})

    def _offer(self, loaded: Loaded, run: Run, origin: Origin, rows: Sequence[tuple[int, Change]]) -> None:
        loaded.read += len(rows)
        while rows:
            try:
                answer = feed(
                    self.inbox, self.wake, run.tenant_id, run.connection_id, origin, [change for _line, change in rows]
                )
            except MessageConflict as conflict:
                # Only the rows that it names are refused; the others are offered again.
                wrong = {problem.field: problem.detail for problem in conflict.fields}
                kept = [pair for place, pair in enumerate(rows) if f"[{place}].id" not in wrong]
                assert len(kept) < len(rows), "a conflict names its rows"
                for place, (line, _change) in enumerate(rows):
                    if f"[{place}].id" in wrong:
                        loaded.refuse(line, wrong[f"[{place}].id"])
                rows = kept
                continue
            loaded.accepted += answer.accepted
            loaded.duplicates += answer.duplicates
            break


def _pages(source: OpenSource, loaded: Loaded) -> Generator[Page]:
    client = source.client
    if isinstance(client, PagedSource) and not isinstance(client, RangedSource):
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


def _checked(rows: Iterable[FileRow]) -> Loaded:
    """The dry run of an import: every row is read and validated, nothing is stored."""
    loaded = Loaded(None, dry_run=True)
    for row in rows:
        loaded.read += 1
        if row.change is None:
            loaded.refuse(row.line, row.refusal or "is refused")
        else:
            loaded.accepted += 1
    return loaded


def chunked(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of up to ``size``."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
