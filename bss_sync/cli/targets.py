"""``bss-sync target``: the distributor's own BSS; none means that the mirror is it."""

from __future__ import annotations

from typing import Annotated

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import Secrets, Sets, example, group
from bss_sync.cli.output import AsJson
from bss_sync.cli.session import actor, opened, pairs, secrets_of
from bss_sync.domain.errors import InvalidRequest

NO_TARGET = "none"

commands = group("target", "The distributor's own BSS; without one, the mirror is it.")


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(commands)


@commands.command(
    "set",
    epilog=example(
        "target set --connector simulator --set base_url=https://bss.example.com --secret api_key=-",
        "target set --connector none",
    ),
)
def set_target(
    connector: Annotated[
        str, typer.Option("--connector", metavar="K", help=f"Its kind; {NO_TARGET}: the mirror is the BSS again.")
    ],
    settings: Sets = None,
    secret: Secrets = None,
    drift: Annotated[
        str | None, typer.Option("--drift", metavar="repair|report", help="What happens to edits behind our back.")
    ] = None,
    poll_seconds: Annotated[
        float | None, typer.Option("--poll-seconds", min=1, help="Seconds between looks for such edits.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set it, or change it: settings that are not named stay. Every live record is delivered to it."""
    from bss_sync.adapters.sql.admin import targets

    values, secrets = pairs(settings or [], "--set"), secrets_of(secret or [])
    if drift is not None and drift not in tuple(targets.DriftPolicy):
        raise InvalidRequest(f"--drift {drift!r}: write repair or report.")
    with opened() as app:
        if connector == NO_TARGET:
            with app.database.engine() as sql:
                targets.remove(sql, actor=actor())
            due = 0
        else:
            policy = None if drift is None else targets.DriftPolicy(drift)
            new = targets.NewTarget(app.connectors.require(connector), values, secrets, policy, poll_seconds)
            with app.database.engine() as sql:
                due = targets.set_target(sql, app.vault, new, actor=actor())
            app.wake.deliver()
    if as_json:
        output.emit_json({"connector": None if connector == NO_TARGET else connector, "deliveries": due})
    elif connector == NO_TARGET:
        output.say("no target: the mirror is the distributor's BSS")
    else:
        output.say(f"the target is {connector}; {due} records are to be delivered", "Next: bss-sync target test")


@commands.command("show")
def show(as_json: AsJson = False) -> None:
    """Show it, with the state of its deliveries."""
    from bss_sync.adapters.sql.admin import targets

    with opened() as app, app.database.engine() as sql:
        found = targets.show(sql)
    if as_json:
        output.emit_json(found)
        return
    if found is None:
        output.say("No target is set: the mirror is the distributor's BSS.")
        return
    output.show_facts(
        {
            "connector": found.connector,
            "settings": "\n".join(f"{name} = {output.shown(value)}" for name, value in found.settings.items()),
            "drift": found.drift_policy,
            "poll seconds": found.poll_seconds,
            "poll error": found.poll_error,
            "deliveries": ", ".join(f"{number} {state}" for state, number in found.deliveries.items()),
            "updated at": found.updated_at,
        }
    )


@commands.command("test")
def try_out(as_json: AsJson = False) -> None:
    """Make one cheap call to it. Exit code 1 when it refuses or cannot be reached; else what was held back goes on."""
    from bss_sync.adapters.clients import Clients
    from bss_sync.adapters.sql.admin import activation, breakers, targets

    with opened() as app:
        found = activation.target_finding(Clients(app.database, app.vault, app.connectors, app.http))
        due = 0
        if found.ok:
            with app.database.engine() as sql:
                is_set = targets.show(sql) is not None
                due = breakers.release_target(sql, actor=actor()) if is_set else 0
            if due:
                app.wake.deliver()
    if as_json:
        output.emit_json(found)
    else:
        output.say(f"{'ok' if found.ok else 'FAILED'}: {found.detail}", *([found.next_step] if found.next_step else []))
    if due:
        output.hint(f"{due} deliveries were held back and are tried again now")
    if not found.ok:
        raise typer.Exit(output.DIFFERENT)
