"""``bss-sync connection``: a reseller's BSS, from its draft to its closing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import ConnectionName, Secrets, Sets, example
from bss_sync.cli.groups import group as make_group
from bss_sync.cli.output import AsJson, Limit
from bss_sync.cli.session import actor, opened, pairs, secrets_of
from bss_sync.domain.tenancy import ConnectionState

if TYPE_CHECKING:
    from uuid import UUID

    from bss_sync.adapters.sql.admin.activation import Finding
    from bss_sync.adapters.sql.admin.connection_states import Moved
    from bss_sync.bootstrap import App
    from bss_sync.settings import Settings

group = make_group("connection", "Resellers' BSSs: connect, check, activate, pause, close.")


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group)


def message_url(settings: Settings, connection_id: UUID | str) -> str:
    """Where the sender posts its messages."""
    return f"{settings.base_url}/v1/connections/{connection_id}/messages"


@group.command(
    "add",
    epilog=example(
        "connection add cloud-resell --connector webhook --display-name 'Cloud Resell'",
        "connection add stripe-eu --connector stripe --secret api_key=- --activate",
    ),
)
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What commands will call it.")],
    connector: Annotated[str, typer.Option("--connector", metavar="K", help="Its kind; see: connector list.")],
    tenant: Annotated[
        str | None, typer.Option("--tenant", metavar="T", help="The reseller it belongs to; default: a new one, NAME.")
    ] = None,
    display_name: Annotated[
        str | None, typer.Option("--display-name", metavar="D", help="The reseller's name to show.")
    ] = None,
    settings: Sets = None,
    secret: Secrets = None,
    activate: Annotated[bool, typer.Option("--activate", help="Check it and go live at once.")] = False,
    as_json: AsJson = False,
) -> None:
    """Connect a reseller's BSS. Prints where it sends its messages, and the signing secret, shown this once."""
    from bss_sync.adapters.sql.admin import connections
    from bss_sync.bootstrap import ownership_document

    values, secrets = pairs(settings or [], "--set"), secrets_of(secret or [])
    with opened() as app:
        new = connections.NewConnection(
            name=name,
            spec=app.connectors.require(connector),
            settings=values,
            secrets=secrets,
            document=ownership_document(app.settings),
            tenant=tenant,
            display_name=display_name,
        )
        with app.database.engine() as sql:
            source, shown = connections.add(sql, app.vault, new, actor=actor())
        url = message_url(app.settings, source.id)
        if as_json:
            output.emit_json({"id": source.id, "name": source.name, "url": url, "secret": shown})
        else:
            output.show_facts({"id": source.id, "name": source.name, "url": url, "secret": shown})
            output.hint("Keep the secret now: it is not shown again.")
        if activate:
            _activate(app, str(source.id), quiet=as_json)
        elif not as_json:
            output.hint(f"Next: bss-sync connection activate {source.name}")


@group.command("list")
def list_connections(
    state: Annotated[ConnectionState | None, typer.Option("--state", help="Only those in this state.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Show the connections with their health."""
    from bss_sync.adapters.sql.reading.connections import list_connections as read
    from bss_sync.adapters.sql.reading.paging import Paging
    from bss_sync.adapters.sql.reading.reach import EVERYTHING

    with opened() as app, app.database.engine() as sql:
        page = read(sql, EVERYTHING, state, Paging(limit))
    if as_json:
        output.emit_json(page.as_json())
        return
    output.show_table(
        ["name", "state", "connector", "last received", "health"],
        ([item["name"], item["state"], item["connector"], _received(item), _health(item)] for item in page.items),
        empty="No connections yet. Add one: bss-sync connection add NAME --connector webhook",
    )
    output.more_hint(page.has_more, limit)


def _received(item: dict[str, Any]) -> str:
    return output.moment(item["health"]["last_received_at"])


def _health(item: dict[str, Any]) -> str:
    """What wants attention, in few words."""
    health = item["health"]
    words = [f"{health[name]} {name}" for name in ("pending", "waiting", "quarantined", "dead") if health[name]]
    words += [f"{health['deliveries_stuck']} deliveries stuck"] if health.get("deliveries_stuck") else []
    words += ["silent"] if health["silent_since"] else []
    words += ["poll fails"] if health.get("poll_error") else []
    words += ["breaker open"] if health["breaker"]["state"] != "closed" else []
    return ", ".join(words) or "ok"


@group.command("show")
def show(connection: ConnectionName, as_json: AsJson = False) -> None:
    """Show one connection: address, settings, health, mapped values."""
    from bss_sync.adapters.sql.admin import connections, value_maps
    from bss_sync.adapters.sql.reading.connections import get_connection
    from bss_sync.adapters.sql.reading.reach import EVERYTHING

    with opened() as app, app.database.engine() as sql:
        source = connections.find(sql, connection)
        found = get_connection(sql, EVERYTHING, str(source.id))
        found["url"] = message_url(app.settings, source.id)
        if app.connectors.require(source.connector).capabilities.hooks:
            found["hooks_url"] = found["url"].removesuffix("messages") + "hooks"
        found["policy_version"] = connections.policy_version(sql, source)
        found["value_maps"] = value_maps.list_all(sql, source.id)
    if as_json:
        output.emit_json(found)
        return
    facts = {name: value for name, value in found.items() if name not in ("settings", "health", "value_maps")}
    facts["settings"] = "\n".join(f"{name} = {output.shown(value)}" for name, value in found["settings"].items())
    health = {name: value for name, value in found["health"].items() if name != "breaker"}
    facts["health"] = "\n".join(
        f"{name.replace('_', ' ')}: {output.shown(value)}" for name, value in health.items() if value
    )
    breaker = {name: value for name, value in found["health"]["breaker"].items() if value}
    facts["breaker"] = "\n".join(f"{name.replace('_', ' ')}: {output.shown(value)}" for name, value in breaker.items())
    facts["value maps"] = "\n".join(
        f"{item.field}: {item.source_value} is {item.canonical}" for item in found["value_maps"]
    )
    output.show_facts({name.replace("_", " "): value for name, value in facts.items()})


@group.command(
    "set",
    epilog=example(
        "connection set cloud-resell --set silence_seconds=3600",
        "connection set cloud-resell guard_count=50",
        "connection set cloud-resell priority=7",
    ),
)
def change(
    connection: ConnectionName,
    assignments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings; an empty value is the default again."),
    ] = None,
    settings: Sets = None,
    display_name: Annotated[
        str | None, typer.Option("--display-name", metavar="D", help="The reseller's name to show.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change settings; what is not named stays. priority (1 to 10) is its weight where connections share a batch."""
    from bss_sync.adapters.sql.admin import connections

    values = pairs([*(assignments or []), *(settings or [])], "--set")
    with opened() as app, app.database.engine() as sql:
        source = connections.find(sql, connection, lock=True)
        spec = app.connectors.require(source.connector)
        connections.change(sql, source, spec, settings=values, display_name=display_name, actor=actor())
        after = connections.find(sql, str(source.id))
    if as_json:
        output.emit_json({"id": after.id, "name": after.name, "settings": after.settings, "revision": after.revision})
        return
    output.say(f"{after.name} changed (revision {after.revision})")


@group.command("check")
def check(connection: ConnectionName, as_json: AsJson = False) -> None:
    """Check what it needs to go live; change nothing. Exit code 1: something is missing."""
    from bss_sync.adapters.clients import Clients
    from bss_sync.adapters.sql.admin import activation

    with opened() as app:
        clients = Clients(app.database, app.vault, app.connectors, app.http)
        findings = activation.check(app.database, clients, connection)
    if as_json:
        output.emit_json({"ready": not _missing(findings), "checks": findings})
    else:
        _tell(findings)
    if _missing(findings):
        raise typer.Exit(output.DIFFERENT)


@group.command("activate")
def activate(connection: ConnectionName, as_json: AsJson = False) -> None:
    """Check it and go live, or name what is missing (exit code 1) and leave it as it was."""
    with opened() as app:
        _activate(app, connection, quiet=as_json, as_json=as_json)


def _activate(app: App, connection: str, *, quiet: bool, as_json: bool = False) -> None:
    from bss_sync.adapters.clients import Clients
    from bss_sync.adapters.sql.admin import activation

    clients = Clients(app.database, app.vault, app.connectors, app.http)
    moved, findings = activation.activate(app.database, clients, connection, actor=actor())
    _wake(app, moved)
    missing = _missing(findings)
    if as_json:
        output.emit_json({"state": moved.state, "checks": findings, "released": moved.released})
    elif not quiet:
        _tell(findings)
        output.say(f"state: {moved.state}")
    if missing:
        if quiet and not as_json:
            output.hint(f"error: not activated: {', '.join(finding.check for finding in missing)}")
        raise typer.Exit(output.DIFFERENT)


def _wake(app: App, moved: Moved) -> None:
    if moved.shard is not None:
        app.wake.process(moved.shard)
    if moved.deliveries:
        app.wake.deliver()


def _missing(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.ok is False]


_MARKS = {True: "ok", None: "note", False: "MISSING"}


def _tell(findings: Sequence[Finding]) -> None:
    for finding in findings:
        output.say(f"{_MARKS[finding.ok]:<8}{finding.check}: {finding.detail}")
        if finding.ok is not True and finding.next_step:
            output.say(f"        {finding.next_step}")


@group.command("shadow")
def shadow(connection: ConnectionName, as_json: AsJson = False) -> None:
    """Write the mirror and compare; deliver nothing, order nothing, invoice nothing."""
    from bss_sync.adapters.sql.admin import connection_states

    _move(connection, connection_states.shadow, as_json)


@group.command("pause")
def pause(connection: ConnectionName, as_json: AsJson = False) -> None:
    """Stop processing, polling and delivering. Messages are still accepted, and kept."""
    from bss_sync.adapters.sql.admin import connection_states

    _move(connection, connection_states.pause, as_json)


@group.command("resume")
def resume(connection: ConnectionName, as_json: AsJson = False) -> None:
    """Go on in the state that it was paused in."""
    from bss_sync.adapters.sql.admin import connection_states

    _move(connection, connection_states.resume, as_json)


def _move(connection: str, move: Callable[..., Moved], as_json: bool) -> None:
    from bss_sync.adapters.sql.admin import connections

    with opened() as app:
        with app.database.engine() as sql:
            source = connections.find(sql, connection, lock=True)
            moved = move(sql, source, actor=actor())
        _wake(app, moved)
    if as_json:
        output.emit_json({"id": source.id, "name": source.name, "state": moved.state, "released": moved.released})
        return
    released = f"; {output.counted(moved.released, 'message')} that waited will be decided" if moved.released else ""
    output.say(f"{source.name}: {source.state} → {moved.state}{released}")


@group.command("close", epilog=example("connection close cloud-resell --on 2026-12-31"))
def close(
    connection: ConnectionName,
    on: Annotated[str, typer.Option("--on", metavar="DATE", help="Its last day, YYYY-MM-DD; today means now.")],
    as_json: AsJson = False,
) -> None:
    """End what is live with the end of a day, under the guard, and keep the history. It cannot be undone.

    Over the guard's limit it waits for an admin's yes (exit code 1): bss-sync run approve ID.
    """
    from datetime import date

    from bss_sync.adapters.sql.admin import closing, connections
    from bss_sync.domain.errors import FieldProblem, GuardStopped, InvalidRequest

    try:
        day = date.fromisoformat(on)
    except ValueError:
        raise InvalidRequest(f"{on!r} is no date.", fields=(FieldProblem("--on", "write YYYY-MM-DD"),)) from None
    with opened() as app:
        with app.database.engine() as sql:
            source = connections.find(sql, connection, lock=True)
            asked = closing.request(sql, source, day, actor=actor())
        app.wake.deliver()
    if asked.state == "stopped":
        raise GuardStopped(
            f"Closing {source.name} would end {asked.accounts} accounts and {asked.subscriptions} subscriptions.",
            next_step=f"Look at it: bss-sync run show {asked.run_id}, then: bss-sync run approve {asked.run_id}",
        )
    if as_json:
        output.emit_json({"run": asked.run_id, "state": asked.state, "on": asked.on, "records": asked.records})
    elif asked.state == "done":
        output.say(f"{source.name} is closed; {asked.accounts} accounts and {asked.subscriptions} subscriptions ended")
    else:
        output.say(f"{source.name} closes with the end of {asked.on} (run {asked.run_id})")


@group.command(
    "map",
    epilog=example(
        "connection map cloud-resell status aktiv active", "connection map cloud-resell billing_cycle monthly P1M"
    ),
)
def map_value(
    connection: ConnectionName,
    field: Annotated[str, typer.Argument(metavar="FIELD", help="status, kind, billing_cycle or term.")],
    source_value: Annotated[str, typer.Argument(metavar="SOURCE_VALUE", help="The source's own word.")],
    canonical: Annotated[str, typer.Argument(metavar="CANONICAL", help="What it means here.")],
    as_json: AsJson = False,
) -> None:
    """Say once what a source's word means; messages that were held for it are decided now."""
    from bss_sync.adapters.sql.admin import connections, value_maps

    with opened() as app:
        with app.database.engine() as sql:
            source = connections.find(sql, connection, lock=True)
            released = value_maps.map_value(sql, source, field, source_value, canonical, actor=actor())
        if released.shard is not None:
            app.wake.process(released.shard)
    if as_json:
        output.emit_json(
            {"field": field, "source_value": source_value, "canonical": canonical, "released": released.messages}
        )
        return
    held = output.counted(released.messages, "message")
    output.say(f"{field} {source_value!r} of {source.name} means {canonical}; {held} released")
