"""``bss-sync audit``: what was done, by whom; and the proof that nobody has altered it."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import SomeConnection, example, group
from bss_sync.cli.output import AsJson, Limit
from bss_sync.cli.session import opened

LISTED_MAX = 3

commands = group("audit", "The audit trail: list it, verify it.")


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(commands)


@commands.command("list", epilog=example("audit list --action connection.activated", "audit list --since 2026-03-01"))
def list_entries(
    connection: SomeConnection = None,
    action: Annotated[str | None, typer.Option("--action", help="Such as message.applied or field.taken.")] = None,
    actor: Annotated[str | None, typer.Option("--actor", help="Such as cli:root, token:portal or system.")] = None,
    record: Annotated[UUID | None, typer.Option("--record", metavar="ID", help="Of this record (our id).")] = None,
    message: Annotated[UUID | None, typer.Option("--message", metavar="ID", help="Of this message (our id).")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="T", help="Not before: RFC 3339 or a date.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Show entries, oldest first."""
    from bss_sync.adapters.sql.reading.oversight import OversightFilter, list_audit
    from bss_sync.adapters.sql.reading.paging import Paging
    from bss_sync.adapters.sql.reading.reach import EVERYTHING
    from bss_sync.domain.moment import parse_since

    with opened() as app, app.database.engine() as sql:
        wanted = OversightFilter(
            connection=connection,
            record_id=record,
            message=message,
            action=action,
            actor=actor,
            updated_since=None if since is None else parse_since(since, app.time_zone, field="--since"),
        )
        page = list_audit(sql, EVERYTHING, wanted, Paging(limit))
    if as_json:
        output.emit_json(page.as_json())
        return
    output.show_table(
        ["at", "actor", "action", "detail"],
        (
            [output.moment(item["at"]), item["actor"], item["action"], _detail(item["detail"], item["erased"])]
            for item in page.items
        ),
        empty="No entries.",
    )
    output.more_hint(page.has_more, limit)


def _detail(detail: dict[str, object] | None, erased: bool) -> str:
    if erased:
        return "(erased)"
    return ", ".join(f"{name}={_short(value)}" for name, value in (detail or {}).items())


def _short(value: object) -> str:
    """Lists as their length where they are long: --json has all of it."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) if len(value) <= LISTED_MAX else f"{len(value)} items"
    return output.shown(value)


@commands.command("verify")
def verify(as_json: AsJson = False) -> None:
    """Recompute every hash chain. Exit code 1: an entry was altered or removed; it is named."""
    from sqlalchemy import text

    from bss_sync.adapters.sql.audit import verify_chains

    with opened() as app, app.database.engine() as sql:
        chains = verify_chains(sql)
        names = {row.id: row.name for row in sql.execute(text("select id, name from connection"))}
    broken = {chain: entry for chain, entry in chains.items() if entry is not None}
    if as_json:
        found = [{"chain": chain, "connection": names.get(chain), "entry": entry} for chain, entry in broken.items()]
        output.emit_json({"chains": len(chains), "whole": not broken, "broken": found})
    else:
        output.say(f"{len(chains) - len(broken)} of {len(chains)} chains are whole")
        for chain, entry in broken.items():
            output.say(f"BROKEN at entry {entry}: {names.get(chain, 'the distributor')} ({chain})")
    if broken:
        raise typer.Exit(output.DIFFERENT)
