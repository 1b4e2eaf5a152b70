"""``bss-sync db``: the schema, and the key that seals what it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bss_sync.cli import backups, output
from bss_sync.cli.groups import example, group
from bss_sync.cli.output import AsJson
from bss_sync.cli.session import actor, opened

if TYPE_CHECKING:
    from bss_sync.ports.retention import RetentionStore
    from bss_sync.settings import Settings

commands = group("db", "The database: migrate it, see where it stands.")

RESEAL_ROWS = 100


def register(app: typer.Typer) -> None:
    """Add the group."""
    backups.register(commands)
    app.add_typer(commands)


@commands.command("upgrade")
def upgrade(
    patience: Annotated[
        float, typer.Option("--patience", metavar="SECONDS", min=0, help="How long to try for a lock that others hold.")
    ] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Bring the database to this version's schema, as its owner (BSS_SYNC_DATABASE_OWNER_URL).

    Processes of the version before run on meanwhile. It can be repeated; two at once take turns.
    """
    from bss_sync.settings import load_settings

    settings = load_settings()
    revision = _upgrade(settings, patience)
    if as_json:
        output.emit_json({"revision": revision})
        return
    output.say(f"the database is at revision {revision}")


def _upgrade(settings: Settings, patience_seconds: float) -> str:
    from bss_sync.adapters.sql.migrate import upgrade
    from bss_sync.adapters.sql.revision import head_revision

    if settings.database_url is None:
        # Opening the embedded database migrates it.
        with opened():
            return head_revision()
    assert settings.owner_url is not None, "it falls back to database_url"
    return upgrade(
        settings.owner_url.get_secret_value(),
        settings.database_url.get_secret_value(),
        patience_seconds=patience_seconds,
        tell=output.hint,
    )


@commands.command("status")
def status(as_json: AsJson = False) -> None:
    """Say which database it is and whether it is migrated. Exit code 3: it is not, or it does not answer."""
    from bss_sync.adapters.sql.readiness import current, place
    from bss_sync.adapters.sql.revision import head_revision, is_newer
    from bss_sync.bootstrap import embedded_login
    from bss_sync.settings import load_settings

    settings = load_settings()
    if settings.database_url is None:
        with embedded_login(settings) as url:
            found, where = current(url), f"embedded, in {settings.home}"
    else:
        url = settings.database_url.get_secret_value()
        found, where = current(url), place(url)
    head, revision = head_revision(), found.revision
    migrated = revision == head or is_newer(found)
    if as_json:
        output.emit_json({"database": where, "revision": revision, "head": head, "migrated": migrated})
    else:
        output.show_facts({"database": where, "revision": revision or "none", "this version needs": head})
    if not migrated:
        output.hint("error: the database is not migrated\nwhat to do: Run: bss-sync db upgrade")
        raise typer.Exit(output.IMPOSSIBLE)


@commands.command("prune", epilog=example("db prune --dry-run", "db prune --json"))
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Drop what is older than policy keeps, as the scheduler does every hour; see BSS_SYNC_MESSAGE_DAYS.

    Runs while all works: what is in use just now is left for the next time. Exit code 1: something was.
    """
    from bss_sync.adapters.sql.retention import SqlRetention
    from bss_sync.adapters.sql.upkeep import SqlUpkeep
    from bss_sync.cli.gathering import progress
    from bss_sync.ports.retention import Act

    with opened() as app:
        policy = app.settings.retention
        store = SqlRetention(app.database, policy)
        if dry_run:
            _show_expired(store, as_json=as_json)
            return
        with progress("rows gone through") as advance:
            turns, rows = [], 0
            for turn in store.turns():
                turns.append(turn)
                rows += turn.rows
                advance(rows)
            keys = SqlUpkeep(app.database, policy).prune().message_keys
    told = [turn for turn in turns if turn.rows or turn.act in (Act.MADE, Act.DROPPED, Act.PUT_OFF)]
    if as_json:
        output.emit_json({"dry_run": False, "turns": told, "message_keys": keys})
    else:
        output.show_table(
            ["act", "table", "part", "rows#"],
            ([turn.act, turn.table, turn.part, turn.rows] for turn in told),
            empty="Nothing is too old.",
        )
    if any(turn.act is Act.PUT_OFF for turn in turns):
        output.hint("something was in use just now and is left for the next time")
        raise typer.Exit(output.DIFFERENT)


def _show_expired(store: RetentionStore, *, as_json: bool) -> None:
    expired, stragglers = store.expired(), store.stragglers()
    if as_json:
        output.emit_json({"dry_run": True, "parts": expired, "single_messages": stragglers})
        return
    output.show_table(
        ["table", "part", "before", "rows#", "carried#", "bytes#"],
        ([one.table, one.part, one.before, one.rows, one.carried, one.byte_count] for one in expired),
        empty="No part is too old.",
    )
    if stragglers:
        output.say(f"{stragglers} single messages, settled before there were parts, would be deleted")


@commands.command("reseal")
def reseal(as_json: AsJson = False) -> None:
    """Seal every stored secret with the first key of BSS_SYNC_MASTER_KEY. Runs while all works; can be repeated."""
    from bss_sync.adapters.sql.admin import secrets

    done = 0
    with opened() as app:
        while True:
            with app.database.engine() as sql:
                number = secrets.reseal(
                    sql, app.vault, sealing_key_id=app.vault.sealing_key_id, limit=RESEAL_ROWS, actor=actor()
                )
            if not number:
                break
            done += number
    if as_json:
        output.emit_json({"resealed": done, "key_id": app.vault.sealing_key_id})
        return
    output.say(f"{done} secrets sealed anew with the key {app.vault.sealing_key_id}")
