"""``bss-sync db backup | restore | restored``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import example
from bss_sync.cli.output import AsJson
from bss_sync.cli.session import opened

if TYPE_CHECKING:
    from bss_sync.bootstrap import App
    from bss_sync.settings import Settings


def register(commands: typer.Typer) -> None:
    """Add the commands to the group ``db``."""
    commands.command("backup", epilog=example("db backup /backups/bss-sync-$(date +%F).dump"))(backup)
    commands.command("restore", epilog=example("db restore /backups/bss-sync-2026-03-01.dump"))(restore)
    commands.command("restored")(restored)


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")], as_json: AsJson = False
) -> None:
    """Save the whole database into a file, while everything runs.

    The master key is not in it: keep it elsewhere, or the backup opens no secret.
    """
    from bss_sync.adapters.backup import dump
    from bss_sync.bootstrap import backup_login
    from bss_sync.settings import load_settings

    with backup_login(load_settings()) as url:
        dump(url, file)
    if as_json:
        output.emit_json({"file": str(file), "bytes": file.stat().st_size})
        return
    output.say(f"{file}: {file.stat().st_size:,} bytes")
    output.hint("The master key is not in it (BSS_SYNC_MASTER_KEY, or master.key in the home): keep it apart from it.")


def restore(
    file: Annotated[Path, typer.Argument(help="What db backup (or pg_dump --format=custom) has written.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Embedded database: in the place of one that holds connections.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a backup back, with every process stopped. Then start them, and reconcile each connection.

    A configured database must be empty; its owner (BSS_SYNC_DATABASE_OWNER_URL) makes the working roles. An embedded
    one is put in the place of what is there. Exit code 1: restored, but a key that sealed stored secrets is not given.
    """
    from bss_sync.adapters.sql.admin.secrets import keys_missing
    from bss_sync.settings import load_settings

    settings = load_settings()
    if settings.database_url is None:
        _restore_embedded(settings, file, replace=replace)
    else:
        _restore_configured(settings, file)
    # Opening puts the rows in order.
    with opened() as app, app.database.engine() as sql:
        missing = keys_missing(sql, app.vault.key_ids)
    _tell(app, file, missing, as_json)


def _restore_embedded(settings: Settings, file: Path, *, replace: bool) -> None:
    from bss_sync.adapters import embedded_database
    from bss_sync.adapters.embedded import serve_lock

    with serve_lock(settings.home), embedded_database.running(settings.home) as server:
        embedded_database.restore(server, file, replace=replace)


def _restore_configured(settings: Settings, file: Path) -> None:
    from bss_sync.adapters import backup
    from bss_sync.adapters.sql.migrate import upgrade

    assert settings.owner_url is not None, "it falls back to database_url"
    assert settings.database_url is not None, "it is configured"
    owner = settings.owner_url.get_secret_value()
    backup.check_empty(owner)
    backup.make_roles(owner)
    backup.load(owner, file)
    upgrade(owner, settings.database_url.get_secret_value())


def _tell(app: App, file: Path, missing: list[str], as_json: bool) -> None:
    if as_json:
        output.emit_json({"file": str(file), "keys_missing": missing})
    else:
        output.say(f"{file} is restored")
        output.hint("Start the processes, then for each connection: bss-sync reconcile NAME")
    if missing:
        output.hint(
            f"error: stored secrets are sealed with the keys {', '.join(missing)}, which are not given\n"
            f"what to do: Restore them in BSS_SYNC_MASTER_KEY, or {app.settings.home}/master.key."
        )
        raise typer.Exit(output.DIFFERENT)


def restored(as_json: AsJson = False) -> None:
    """Say that this database was put back from a copy that looks like the original.

    Needed after the data folder was copied back or the machine was set back to a snapshot. A restored dump and a
    stand-by that took over are noticed without it.
    """
    from bss_sync.adapters.sql import epochs

    with opened() as app:
        with app.database.engine() as sql:
            epochs.declare(sql)
        done = epochs.settle(app.database)
    if as_json:
        output.emit_json({"restored": done is not None})
        return
    output.say("noted: lists begin anew, and what the target holds is looked at again")
    output.hint("For each connection: bss-sync reconcile NAME")
