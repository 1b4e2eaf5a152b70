"""``bss-sync db``: the schema, and the key that seals what it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import group
from bss_sync.cli.output import AsJson
from bss_sync.cli.session import actor, opened

if TYPE_CHECKING:
    from bss_sync.settings import Settings

commands = group("db", "The database: migrate it, see where it stands.")

RESEAL_ROWS = 100


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(commands)


@commands.command("upgrade")
def upgrade(as_json: AsJson = False) -> None:
    """Bring the database to this version's schema, as its owner (BSS_SYNC_DATABASE_OWNER_URL)."""
    from bss_sync.settings import load_settings

    settings = load_settings()
    revision = _upgrade(settings)
    if as_json:
        output.emit_json({"revision": revision})
        return
    output.say(f"the database is at revision {revision}")


def _upgrade(settings: Settings) -> str:
    from bss_sync.adapters.sql.migrate import upgrade
    from bss_sync.adapters.sql.revision import head_revision

    if settings.database_url is None:
        # Opening the embedded database migrates it.
        with opened():
            return head_revision()
    assert settings.owner_url is not None, "it falls back to database_url"
    return upgrade(settings.owner_url.get_secret_value(), settings.database_url.get_secret_value())


@commands.command("status")
def status(as_json: AsJson = False) -> None:
    """Say which database it is and whether it is migrated. Exit code 3: it is not, or it does not answer."""
    from bss_sync.adapters.sql.readiness import current, place
    from bss_sync.adapters.sql.revision import head_revision
    from bss_sync.bootstrap import embedded_login
    from bss_sync.settings import load_settings

    settings = load_settings()
    if settings.database_url is None:
        with embedded_login(settings) as url:
            revision, where = current(url), f"embedded, in {settings.home}"
    else:
        url = settings.database_url.get_secret_value()
        revision, where = current(url), place(url)
    head = head_revision()
    if as_json:
        output.emit_json({"database": where, "revision": revision, "head": head, "migrated": revision == head})
    else:
        output.show_facts({"database": where, "revision": revision or "none", "this version needs": head})
    if revision != head:
        output.hint("error: the database is not migrated\nwhat to do: Run: bss-sync db upgrade")
        raise typer.Exit(output.IMPOSSIBLE)


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
