"""``bss-sync token``: who may use the HTTP interface."""

from __future__ import annotations

from typing import Annotated

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import example, group
from bss_sync.cli.output import AsJson
from bss_sync.cli.session import actor, opened
from bss_sync.domain.tenancy import Role

commands = group("token", "API tokens: create, list, revoke.")


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(commands)


@commands.command(
    "create",
    epilog=example(
        "token create --role operator --name 'night shift'",
        "token create --role reseller --name portal --connection cloud-resell",
    ),
)
def create(
    role: Annotated[Role, typer.Option("--role", help="What it may do.")],
    name: Annotated[str, typer.Option("--name", metavar="WHO", help="Who or what will use it.")],
    connection: Annotated[
        str | None, typer.Option("--connection", metavar="CONNECTION", help="Whose: a reseller's token needs it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token. Its text is shown this once."""
    from bss_sync.adapters.sql.admin import connections, tokens

    with opened() as app, app.database.engine() as sql:
        source = None if connection is None else connections.find(sql, connection)
        made = tokens.create(sql, role=role, name=name, source=source, actor=actor())
    if as_json:
        output.emit_json({"id": made.id, "token": made.token})
        return
    output.show_facts({"id": made.id, "token": made.token})
    output.hint("Keep the token now: it is not shown again.")


@commands.command("list")
def list_tokens(
    every: Annotated[bool, typer.Option("--all", help="Also those that are revoked.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the tokens in use."""
    from bss_sync.adapters.sql.admin import tokens

    with opened() as app, app.database.engine() as sql:
        found = tokens.list_all(sql, revoked=every)
    if as_json:
        output.emit_json({"items": found})
        return
    output.show_table(
        ["id", "role", "name", "connection", *(["revoked"] if every else [])],
        (
            [token.id, token.role, token.name, token.connection, *([token.revoked_at] if every else [])]
            for token in found
        ),
        empty="No tokens yet. Make one: bss-sync token create --role admin --name WHO",
    )


@commands.command("revoke")
def revoke(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="The token's id, or a name: all of that name.")],
    as_json: AsJson = False,
) -> None:
    """Refuse a token from now on."""
    from bss_sync.adapters.sql.admin import tokens

    with opened() as app, app.database.engine() as sql:
        ended = tokens.revoke(sql, token, actor=actor())
    if as_json:
        output.emit_json({"revoked": [item.id for item in ended]})
        return
    output.say(*(f"revoked {item.id} ({item.role}, {item.name})" for item in ended))
