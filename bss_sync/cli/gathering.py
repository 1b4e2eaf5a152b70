"""``bss-sync reconcile | backfill | import``: comparing with the source, and taking in what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import ConnectionName, example
from bss_sync.cli.output import AsJson
from bss_sync.cli.session import actor, is_terminal, opened

if TYPE_CHECKING:
    from bss_sync.pipeline.reconcile import Result

DIFFERENCES_SHOWN = 50


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        "reconcile",
        epilog=example("reconcile cloud-resell --dry-run", "reconcile cloud-resell --snapshot export.jsonl"),
    )(reconcile)


def reconcile(
    connection: ConnectionName,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only name the differences; repair nothing.")] = False,
    snapshot: Annotated[
        Path | None,
        typer.Option("--snapshot", metavar="FILE", help="Compare with this listing instead of asking the source."),
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept-source", metavar="ID", help="Accept that the source counts this one anew; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that source, mirror and the distributor's BSS agree, or name each difference and repair it.

    Exit code 1: there were differences, each named. 3: the source could not be listed; the rest was compared.
    """
    from bss_sync.adapters.sql.admin import connections
    from bss_sync.jobs.reconciling import make_reconciler
    from bss_sync.pipeline.reconcile import Request

    with opened() as app:
        with app.database.engine() as sql:
            source = connections.find(sql, connection)
        request = Request(
            connection_id=source.id,
            dry_run=dry_run,
            snapshot=None if snapshot is None else _snapshot(snapshot),
            accept=frozenset(accept or ()),
            requested_by=actor(),
        )
        with progress(f"comparing {source.name}") as advance:
            result = make_reconciler(app).reconcile(request, advance)
    if as_json:
        output.emit_json(result.as_json())
    else:
        _tell(result)
    if result.source_error is not None or result.target_error is not None:
        raise typer.Exit(output.IMPOSSIBLE)
    if result.total:
        raise typer.Exit(output.DIFFERENT)


def _snapshot(file: Path) -> Any:
    raise NotImplementedError(file)


@contextmanager
def progress(words: str) -> Iterator[Callable[[int], None]]:
    """A counter on the terminal; nothing where nobody looks."""
    if not is_terminal():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(words, total=None)
        yield lambda done: bar.update(task, completed=done)


def _tell(result: Result) -> None:
    for one in result.differences[:DIFFERENCES_SHOWN]:
        values = (
            ""
            if one.field is None
            else f" {one.field}: {output.shown(one.expected)} expected, {output.shown(one.found)} found"
        )
        output.say(f"{one.problem:<18}{one.kind} {one.source_id}{values}")
    if result.total > DIFFERENCES_SHOWN:
        output.say(f"… and {result.total - DIFFERENCES_SHOWN} more: bss-sync run show {result.run_id}")
    counts = ", ".join(f"{number} {problem}" for problem, number in sorted(result.counts.items()))
    output.say(f"{result.listed} listed, {result.total} differences" + (f" ({counts})" if counts else ""))
    if result.dry_run and result.total:
        output.say("nothing was repaired: this was a dry run")
    elif result.repaired or result.accepted:
        output.say(f"{result.repaired} taken in for repair, {result.accepted} accepted to count anew")
    for error in (result.source_error, result.target_error):
        if error is not None:
            output.hint(f"error: {error}")
