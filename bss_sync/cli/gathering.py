"""``bss-sync reconcile | backfill | import``: comparing with the source, and taking in what it holds."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import ConnectionName, example
from bss_sync.cli.output import AsJson
from bss_sync.cli.session import actor, is_terminal, opened

if TYPE_CHECKING:
    from datetime import datetime

    from bss_sync.bootstrap import App
    from bss_sync.domain.errors import GuardStopped
    from bss_sync.pipeline.file_rows import FileRows
    from bss_sync.pipeline.intake import Refusal
    from bss_sync.pipeline.load import Loaded
    from bss_sync.pipeline.reconcile import Result
    from bss_sync.ports.connector import Observation
    from bss_sync.ports.reconciliation import Difference

REFUSALS_SHOWN = 50


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        "reconcile",
        epilog=example(
            "reconcile cloud-resell --dry-run",
            "reconcile cloud-resell --snapshot export.jsonl",
            "reconcile cloud-resell --subtree lite-1",
        ),
    )(reconcile)
    app.command("backfill", epilog=example("backfill stripe-eu"))(backfill)
    app.command(
        "import", epilog=example("import cloud-resell export.jsonl", "import cloud-resell export.xlsx --dry-run")
    )(import_file)


def reconcile(
    connection: ConnectionName,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only name the differences; repair nothing.")] = False,
    snapshot: Annotated[
        Path | None,
        typer.Option("--snapshot", metavar="FILE", help="Compare with this listing instead of asking the source."),
    ] = None,
    since_last: Annotated[
        bool,
        typer.Option("--since-last", help="Only what has changed there since the last one, where that can be asked."),
    ] = False,
    subtree: Annotated[
        str | None,
        typer.Option("--subtree", metavar="SOURCE_ID", help="Only this account and everything below it."),
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept-source", metavar="ID", help="Accept that the source counts this one anew; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that source, mirror and the distributor's BSS agree, or name each difference and repair it.

    Exit code 1: there were differences, each named, or the guard has stopped it: what it had found is named too. 3: the
    source could not be listed; the rest was compared. Begun again after its process was killed, it goes on where that
    was; after Ctrl-C it may begin anew.
    """
    from bss_sync.adapters.sql.admin import connections
    from bss_sync.collector import settle_memory
    from bss_sync.domain.errors import GuardStopped
    from bss_sync.jobs.reconciling import make_reconciler
    from bss_sync.pipeline.reconcile import Request

    with opened() as app:
        settle_memory()
        with app.database.engine() as sql:
            source = connections.find(sql, connection)
        with _snapshot(snapshot, app.clock.now()) as listing, progress(f"comparing {source.name}") as advance:
            request = Request(
                connection_id=source.id,
                dry_run=dry_run,
                snapshot=listing,
                accept=frozenset(accept or ()),
                requested_by=actor(),
                since_last=since_last,
                subtree=subtree,
            )
            try:
                result = make_reconciler(app).reconcile(request, advance)
            except GuardStopped as error:
                _tell_stopped(app, error, as_json)
                raise
        # One at a time: a hundred thousand of them are never held at once.
        if as_json:
            output.emit_json_list(result.summary(), "differences", (one.as_json() for one in result.findings.each()))
        else:
            _tell(result)
    if result.source_error is not None or result.target_error is not None:
        raise typer.Exit(output.IMPOSSIBLE)
    if result.total:
        raise typer.Exit(output.DIFFERENT)


def backfill(connection: ConnectionName, as_json: AsJson = False) -> None:
    """Take in everything that the source lists. Begun again after a break or Ctrl-C, it takes in what is missing."""
    from bss_sync.adapters.sql.admin import connections
    from bss_sync.collector import settle_memory
    from bss_sync.jobs.reconciling import make_loader

    with opened() as app:
        settle_memory()
        with app.database.engine() as sql:
            source = connections.find(sql, connection)
        with progress(f"reading {source.name}") as advance:
            loaded = make_loader(app).backfill(source.id, requested_by=actor(), progress=advance)
    _tell_loaded(loaded, as_json)


def import_file(
    connection: ConnectionName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines of messages or records, CSV, or XLSX.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only read and check the rows.")] = False,
    refusals: Annotated[
        Path | None,
        typer.Option(
            "--refusals", metavar="FILE", help="Write the line and the reason of every refused row here: CSV."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take in the rows of a file. Refused ones are named with their lines (exit code 1); the others are taken in."""
    from bss_sync.adapters.sql.admin import connections
    from bss_sync.collector import settle_memory
    from bss_sync.jobs.reconciling import make_loader
    from bss_sync.pipeline.file_rows import open_rows

    with opened() as app:
        settle_memory()
        with app.database.engine() as sql:
            source = connections.find(sql, connection)
        with (
            open_rows(file, app.clock.now()) as rows,
            _kept(refusals) as refused,
            progress(f"reading {file.name}", rows) as advance,
        ):
            loaded = make_loader(app).import_rows(
                source.id,
                rows,
                requested_by=actor(),
                file_name=file.name,
                dry_run=dry_run,
                progress=advance,
                refused=refused,
            )
    _tell_loaded(loaded, as_json)


@contextmanager
def _kept(file: Path | None) -> Iterator[Callable[[Refusal], None]]:
    """Writes down every refused row, where that is wanted. InvalidRequest when it cannot be written."""
    from bss_sync.domain.errors import InvalidRequest

    if file is None:
        yield lambda _refusal: None
        return
    try:
        with file.open("w", encoding="utf-8", newline="") as lines:
            writer = csv.writer(lines)
            writer.writerow(("line", "detail"))

            def keep(refusal: Refusal) -> None:
                writer.writerow((refusal.line, refusal.detail))

            yield keep
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be written: {error.strerror or error}.") from None


@contextmanager
def _snapshot(file: Path | None, now: datetime) -> Iterator[Iterator[Observation] | None]:
    if file is None:
        yield None
        return
    from bss_sync.pipeline.file_rows import open_rows, snapshot

    with open_rows(file, now) as rows:
        yield snapshot(rows)


@contextmanager
def progress(words: str, file: FileRows | None = None) -> Iterator[Callable[[int], None]]:
    """A counter on the terminal, and a bar where it is known how much there is; nothing where nobody looks."""
    if not is_terminal():
        yield lambda _done: None
        return
    from rich import progress as bars
    from rich.console import Console

    show = bars.TextColumn
    columns: list[bars.ProgressColumn] = [bars.SpinnerColumn(), show("{task.description}")]
    if file is not None:
        columns += [bars.BarColumn(), show("{task.percentage:>3.0f} %")]
    columns += [show("{task.fields[rows]}"), bars.TimeElapsedColumn()]
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(words, total=None if file is None else file.bytes_in_all, rows=0)
        yield lambda done: bar.update(task, completed=done if file is None else file.bytes_read, rows=done)


def _tell_stopped(app: App, error: GuardStopped, as_json: bool) -> None:
    """What a run had found and done when the guard stopped it."""
    from bss_sync.adapters.sql.findings import SqlFindings
    from bss_sync.adapters.sql.reading.oversight import get_run
    from bss_sync.adapters.sql.reading.reach import EVERYTHING

    assert error.run_id is not None, "a reconciliation that was stopped has left a run"
    with app.database.engine() as sql:
        run = get_run(sql, EVERYTHING, error.run_id)
    each = SqlFindings(app.database, error.run_id, UUID(run["connection_id"])).each()
    if as_json:
        head = {name: value for name, value in run["result"].items() if name != "differences"}
        output.emit_json_list(head, "differences", (one.as_json() for one in each))
        return
    for one in each:
        output.say(difference_line(one))


def _tell(result: Result) -> None:
    if result.resumed:
        output.say(f"run {result.run_id} was carried on where its process had been killed")
    for one in result.findings.each():
        output.say(difference_line(one))
    counts = ", ".join(f"{number} {problem}" for problem, number in sorted(result.counts.items()))
    output.say(f"{result.listed} listed, {result.total} differences" + (f" ({counts})" if counts else ""))
    if result.dry_run and result.total:
        output.say("nothing was repaired: this was a dry run")
    elif result.repaired or result.accepted:
        output.say(f"{result.repaired} taken in for repair, {result.accepted} accepted to count anew")
    for error in (result.source_error, result.target_error):
        if error is not None:
            output.hint(f"error: {error}")


def difference_line(one: Difference) -> str:
    """A difference in words: problem, record, field with both values, cause and age."""
    values = (
        ""
        if one.field is None
        else f" {one.field}: {output.shown(one.expected)} expected, {output.shown(one.found)} found"
    )
    age = "" if one.since is None else f", since {one.since:%Y-%m-%d %H:%M}"
    cause = "" if one.cause is None else f" ({one.cause}{age})"
    return f"{one.problem:<18}{one.kind} {one.source_id}{values}{cause}"


def _tell_loaded(loaded: Loaded, as_json: bool) -> None:
    if as_json:
        output.emit_json(loaded.as_json())
    else:
        for refusal in loaded.refusals[:REFUSALS_SHOWN]:
            output.say(f"line {refusal.line}: {refusal.detail}")
        taken = f"{loaded.accepted} {'would be accepted' if loaded.dry_run else 'accepted'}"
        output.say(f"{loaded.read} read: {taken}, {loaded.duplicates} known already, {loaded.refused} refused")
    if loaded.refused:
        raise typer.Exit(output.DIFFERENT)
