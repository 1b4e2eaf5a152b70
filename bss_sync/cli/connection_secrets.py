"""``bss-sync connection secret``: what signs messages, and what a connector needs."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated
from uuid import UUID

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import ConnectionName, Secrets, example, group
from bss_sync.cli.output import AsJson
from bss_sync.cli.session import actor, opened, secrets_of
from bss_sync.domain.errors import FieldProblem, InvalidRequest

commands = group("secret", "A connection's secrets: rotate, list, revoke, add.")

_DURATION = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def register(parent: typer.Typer) -> None:
    """Add the group below ``connection``."""
    parent.add_typer(commands)


def parse_duration(text: str) -> timedelta:
    """``30m``, ``24h``, ``7d``, ``90s`` or ``0``. InvalidRequest for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None and text != "0":
        raise InvalidRequest(
            f"{text!r} is no duration.", fields=(FieldProblem("--overlap", "write 30m, 24h, 7d or 0"),)
        )
    return timedelta() if match is None else timedelta(**{_UNITS[match[2]]: int(match[1])})


@commands.command("rotate", epilog=example("connection secret rotate cloud-resell --overlap 48h"))
def rotate(
    connection: ConnectionName,
    overlap: Annotated[str, typer.Option("--overlap", metavar="TIME", help="How long the old one stays good.")] = "24h",
    as_json: AsJson = False,
) -> None:
    """Make a new signing secret, shown this once. The old one stays good meanwhile: no message is refused."""
    from bss_sync.adapters.sql.admin import connections, secrets

    lasting = parse_duration(overlap)
    with opened() as app, app.database.engine() as sql:
        source = connections.find(sql, connection, lock=True)
        shown, secret_id = secrets.rotate(sql, app.vault, source, overlap=lasting, actor=actor())
    if as_json:
        output.emit_json({"id": secret_id, "secret": shown})
        return
    output.show_facts({"id": secret_id, "secret": shown})
    output.hint(f"Keep it now: it is not shown again. The old one stays good for {overlap}.")


@commands.command("list")
def list_secrets(connection: ConnectionName, as_json: AsJson = False) -> None:
    """Show which secrets there are, never what they are."""
    from bss_sync.adapters.sql.admin import connections, secrets

    with opened() as app, app.database.engine() as sql:
        found = secrets.list_all(sql, connections.find(sql, connection).id)
    if as_json:
        output.emit_json({"items": found})
        return
    output.show_table(
        ["id", "name", "scheme", "standing", "expires"],
        ([item.id, item.name, item.scheme, item.standing, item.expires_at] for item in found),
        empty="No secrets.",
    )


@commands.command(
    "revoke", epilog=example("connection secret revoke cloud-resell", "connection secret revoke cloud-resell SECRET_ID")
)
def revoke(
    connection: ConnectionName,
    secret: Annotated[
        UUID | None, typer.Argument(metavar="[SECRET_ID]", help="Which; default: all that are being phased out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """End a secret at once, or end the overlap of a rotation."""
    from bss_sync.adapters.sql.admin import connections, secrets

    with opened() as app, app.database.engine() as sql:
        source = connections.find(sql, connection, lock=True)
        ended = secrets.revoke(sql, source, secret, actor=actor())
    if as_json:
        output.emit_json({"revoked": ended})
        return
    output.say(*(f"revoked {item}" for item in ended))


@commands.command(
    "add",
    epilog=example(
        "connection secret add cloud-resell --public-key whpk_…", "connection secret add stripe-eu --secret api_key=-"
    ),
)
def add(
    connection: ConnectionName,
    public_key: Annotated[
        str | None, typer.Option("--public-key", metavar="whpk_…", help="The sender's Ed25519 key (v1a signatures).")
    ] = None,
    secret: Secrets = None,
    as_json: AsJson = False,
) -> None:
    """Accept a sender's public key, or give the connector a secret that it needs (the older one is replaced)."""
    from bss_sync.adapters.sql.admin import connections, secrets
    from bss_sync.pipeline.verify import parse_public_key

    if (public_key is None) == (not secret):
        raise InvalidRequest(
            "Name what to add.", fields=(FieldProblem("--public-key", "either this, or --secret KEY=-"),)
        )
    values = secrets_of(secret or [])
    with opened() as app, app.database.engine() as sql:
        source = connections.find(sql, connection, lock=True)
        if public_key is not None:
            key = parse_public_key(public_key)
            added = [str(secrets.add_public_key(sql, app.vault, source, key, actor=actor()))]
        else:
            connections.check_secret_names(app.connectors.require(source.connector), values)
            secrets.set_opaque(sql, app.vault, source, values, actor=actor())
            added = sorted(values)
    if as_json:
        output.emit_json({"added": added})
        return
    output.say(f"{source.name}: added {', '.join(added)}")
