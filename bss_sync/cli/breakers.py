"""``bss-sync connection breaker`` and ``bss-sync target breaker``: whether a remote is called, and why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import ConnectionName, example
from bss_sync.cli.output import AsJson
from bss_sync.cli.session import actor, opened

if TYPE_CHECKING:
    from bss_sync.adapters.sql.admin.breakers import Reset

WantsReset = Annotated[bool, typer.Option("--reset", help="Close it now, and try again what had failed.")]


def register(connections: typer.Typer, targets: typer.Typer) -> None:
    """Add the command to both groups."""
    connections.command(
        "breaker", epilog=example("connection breaker cloud-resell", "connection breaker cloud-resell --reset")
    )(source_breaker)
    targets.command("breaker", epilog=example("target breaker", "target breaker --reset"))(target_breaker)


def source_breaker(connection: ConnectionName, reset: WantsReset = False, as_json: AsJson = False) -> None:
    """Show whether its source is called, until when not and why. Workers share the breaker."""
    from bss_sync.adapters.sql.admin import breakers, connections
    from bss_sync.adapters.sql.reading.breakers import show_breakers

    done: Reset | None = None
    with opened() as app:
        with app.database.engine() as sql:
            source = connections.find(sql, connection)
            if reset:
                done = breakers.reset_source(sql, source, actor=actor())
            shown = show_breakers(sql, [source.id])[source.id]
        if reset:
            app.wake.fetch()
    _show(source.name, shown, done, as_json)


def target_breaker(reset: WantsReset = False, as_json: AsJson = False) -> None:
    """Show whether the distributor's BSS is called, until when not and why. Workers share the breaker."""
    from bss_sync.adapters.sql.admin import breakers
    from bss_sync.adapters.sql.reading.breakers import show_breakers

    done: Reset | None = None
    with opened() as app:
        with app.database.engine() as sql:
            owner = breakers.target_owner(sql)
            if reset:
                done = breakers.reset_target(sql, actor=actor())
            shown = show_breakers(sql, [owner])[owner]
        if reset:
            app.wake.deliver()
    _show("the target", shown, done, as_json)


def _show(name: str, shown: dict[str, Any], done: Reset | None, as_json: bool) -> None:
    if as_json:
        output.emit_json(shown if done is None else shown | {"before": done.before, "due": done.due})
        return
    if done is not None:
        output.say(f"{name}: the breaker was {done.before} and is closed; {done.due} failed before and are due now")
        return
    output.show_facts({key.replace("_", " "): value for key, value in shown.items()})
