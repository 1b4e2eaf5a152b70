"""``bss-sync audit``: what was done, by whom; and the proof that nobody has altered it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import SomeConnection, example, group
from bss_sync.cli.output import AsJson, Limit
from bss_sync.cli.session import opened
from bss_sync.domain.errors import FieldProblem, InvalidRequest

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


@commands.command("verify", epilog=example("audit verify --json > heads.json", "audit verify --against heads.json"))
def verify(
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="What an earlier verify --json has printed, kept elsewhere."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every hash chain. Exit code 1: an entry was altered or removed; it is named.

    A chain that ends too early is whole in itself: only a head that was kept elsewhere tells (--against). A restored
    backup has lost what came after it, and the chain names the place; entries that were cut off have no such place.
    """
    from sqlalchemy import text

    from bss_sync.adapters.sql.audit import compare_heads, heads, verify_chains

    kept = [] if against is None else _kept_heads(against)
    with opened() as app, app.database.engine() as sql:
        chains = verify_chains(sql)
        names = {row.id: row.name for row in sql.execute(text("select id, name from connection"))}
        lost = compare_heads(sql, kept)
        now = heads(sql)
    broken = {chain: entry for chain, entry in chains.items() if entry is not None}
    if as_json:
        found = [{"chain": chain, "connection": names.get(chain), "entry": entry} for chain, entry in broken.items()]
        gone = [
            {"chain": one.chain_id, "connection": names.get(one.chain_id), "entry": one.entry, "restored": one.restored}
            for one in lost
        ]
        whole = not broken and not lost
        output.emit_json({"chains": len(chains), "whole": whole, "broken": found, "lost": gone, "heads": now})
    else:
        output.say(f"{len(chains) - len(broken)} of {len(chains)} chains are whole")
        for chain, entry in broken.items():
            output.say(f"BROKEN at entry {entry}: {names.get(chain, 'the distributor')} ({chain})")
        for one in lost:
            cause = "cut off or written anew" if one.restored is None else f"a backup was restored at {one.restored}"
            output.say(f"LOST from entry {one.entry} on, {cause}: {names.get(one.chain_id, 'the distributor')}")
    if broken or lost:
        raise typer.Exit(output.DIFFERENT)


def _kept_heads(file: Path) -> list[tuple[UUID, int, bytes]]:
    """InvalidRequest unless it is what ``audit verify --json`` prints."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["heads"]
        return [(UUID(one["chain"]), int(one["entry"]), bytes.fromhex(one["hash"])) for one in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = FieldProblem("--against", "give what bss-sync audit verify --json has printed")
        raise InvalidRequest(f"{file} holds no heads: {type(error).__name__}.", fields=(problem,)) from None
