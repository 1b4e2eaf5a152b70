"""``bss-sync run``: long runs, and what the guard has stopped."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import SomeConnection, example, group
from bss_sync.cli.output import AsJson, Limit
from bss_sync.cli.session import actor, opened
from bss_sync.domain.errors import FieldProblem, InvalidRequest

KINDS = ("reconcile", "backfill", "import", "replay", "close", "guard")
STATES = ("running", "stopped", "approved", "rejected", "done", "failed")

commands = group("run", "Long runs: list, show, approve, reject.")

RunId = Annotated[UUID, typer.Argument(metavar="ID", help="The run's id.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(commands)


@commands.command("list", epilog=example("run list --state stopped"))
def list_runs(
    state: Annotated[
        str | None, typer.Option("--state", help="running, stopped, approved, rejected, done or failed.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="reconcile, backfill, import, replay, close or guard.")
    ] = None,
    connection: SomeConnection = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Show the runs; those that are stopped wait for an admin's word."""
    from bss_sync.adapters.sql.reading.oversight import OversightFilter
    from bss_sync.adapters.sql.reading.oversight import list_runs as read
    from bss_sync.adapters.sql.reading.paging import Paging
    from bss_sync.adapters.sql.reading.reach import EVERYTHING

    _check("--state", state, STATES)
    _check("--kind", kind, KINDS)
    with opened() as app, app.database.engine() as sql:
        wanted = OversightFilter(connection=connection, state=state, kind=kind)
        page = read(sql, EVERYTHING, wanted, Paging(limit))
    if as_json:
        output.emit_json(page.as_json())
        return
    output.show_table(
        ["id", "kind", "state", "connection"],
        ([item["id"], item["kind"], item["state"], item["connection"]] for item in page.items),
        empty="No runs.",
    )
    output.more_hint(page.has_more, limit)


def _check(option: str, word: str | None, known: tuple[str, ...]) -> None:
    """A word that there is not would find nothing, which reads as if all were well."""
    if word is not None and word not in known:
        detail = f"{option} {word!r}: there is {', '.join(known[:-1])} and {known[-1]}."
        raise InvalidRequest(detail, fields=(FieldProblem(option, "is none of these"),))


@commands.command("show", epilog=example("run show 0197… --differences"))
def show(
    run: RunId,
    differences: Annotated[
        bool, typer.Option("--differences", help="Every difference that it has named, also while it runs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show one run: what was asked for, how far it is, what it found."""
    from bss_sync.adapters.sql.reading.oversight import get_run
    from bss_sync.adapters.sql.reading.reach import EVERYTHING

    with opened() as app, app.database.engine() as sql:
        found = get_run(sql, EVERYTHING, run)
    if differences:
        _show_differences(found, as_json)
        return
    if as_json:
        output.emit_json(found)
        return
    output.show_facts({name.replace("_", " "): _lines(value) for name, value in found.items()})
    if found["state"] == "stopped":
        output.say("", f"It waits: bss-sync run approve {run}, or: bss-sync run reject {run}")


def _show_differences(found: dict[str, Any], as_json: bool) -> None:
    from bss_sync.adapters.sql.findings import SqlFindings
    from bss_sync.cli.gathering import difference_line

    with opened() as app:
        each = SqlFindings(app.database, UUID(found["id"]), UUID(found["connection_id"] or found["id"])).each()
        if as_json:
            output.emit_json_list({"id": found["id"]}, "differences", (one.as_json() for one in each))
        else:
            for one in each:
                output.say(difference_line(one))


def _lines(value: Any) -> Any:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {output.shown(item)}" for name, item in value.items())
    return value


@commands.command("approve")
def approve(run: RunId, as_json: AsJson = False) -> None:
    """Let what the guard has stopped go on."""
    from bss_sync.adapters.sql.admin import runs

    with opened() as app:
        with app.database.engine() as sql:
            decided = runs.approve(sql, run, actor=actor())
        app.wake.deliver()
    _tell(decided, as_json)


@commands.command("reject")
def reject(run: RunId, as_json: AsJson = False) -> None:
    """Let nothing of it happen."""
    from bss_sync.adapters.sql.admin import runs

    with opened() as app, app.database.engine() as sql:
        decided = runs.reject(sql, run, actor=actor())
    _tell(decided, as_json)


def _tell(decided: Any, as_json: bool) -> None:
    if as_json:
        output.emit_json({"id": decided.run_id, "kind": decided.kind, "state": decided.state})
        return
    output.say(f"run {decided.run_id} ({decided.kind}) is {decided.state}")
