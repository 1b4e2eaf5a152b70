"""``bss-sync explain`` and ``bss-sync field``: who owns a field, what wrote it, and taking it over by force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import example, group
from bss_sync.cli.output import AsJson
from bss_sync.cli.references import KindArgument, RecordId, resolve
from bss_sync.cli.session import actor, opened
from bss_sync.domain.change import Kind

commands = group("field", "Take a locked field over by force, or release it: needs a reason, is audited.")

Field = Annotated[str, typer.Argument(metavar="FIELD", help="The mirrored field.")]
Reason = Annotated[str, typer.Option("--reason", metavar="R", help="Why; kept in the audit.")]


def register(app: typer.Typer) -> None:
    """Add the command and the group."""
    app.command(
        "explain",
        epilog=example("explain subscription cloud-resell/sub-4711 quantity", "explain account cloud-resell/cust-x"),
    )(explain)
    app.add_typer(commands)


def explain(
    kind: KindArgument,
    record: RecordId,
    field: Annotated[str | None, typer.Argument(metavar="[FIELD]", help="One field; default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say of each field who owns it, what wrote its present value, and what was refused."""
    from bss_sync.adapters.sql.reading.explain import explain as read
    from bss_sync.adapters.sql.reading.reach import EVERYTHING

    with opened() as app, app.database.engine() as sql:
        found = read(sql, EVERYTHING, kind, resolve(sql, kind, record), field)
    if as_json:
        output.emit_json(found)
        return
    output.say(f"{kind} {found['connection']}/{found['source_id']}, version {found['version']}", "")
    for item in found["fields"]:
        _tell(item)
    for refused in found.get("refused_operations", []):
        output.say(f"refused {output.moment(refused['at'])}: {refused['operation']} by {refused['actor']}")


def _tell(item: dict[str, Any]) -> None:
    output.say(f"{item['field']} = {output.shown(item['value'])}")
    output.say(f"    owned by {item['owner']}{', locked here' if item['locked'] else ''}")
    written = item["written_by"]
    if written and "message" in written:
        output.say(
            f"    written by message {written['message']['message_id'] or written['message']['id']}, "
            f"version {written['version']}, in effect since {output.moment(written['effective_at'])}"
        )
    elif written:
        output.say(f"    written by {written['actor']} at {output.moment(written['at'])}")
    taken = item["taken_over"]
    if taken:
        output.say(
            f"    taken over by {taken['taken_by']} at {output.moment(taken['taken_at'])}: {taken['reason']}",
            f"    the source says {output.shown(taken['source_value'])}",
        )
    for refused in item.get("refused", []):
        output.say(
            f"    refused {output.moment(refused['at'])}: {output.shown(refused['value'])} by {refused['actor']}"
        )
    for violation in item.get("lock_violations", []):
        output.say(
            f"    edited behind our back, found {output.moment(violation['found_at'])}: "
            f"{output.shown(violation['found'])} instead of {output.shown(violation['expected'])}, "
            f"{violation['action']}"
        )


@commands.command(
    "take", epilog=example("field take subscription cloud-resell/sub-4711 quantity --reason 'dispute 88'")
)
def take(kind: KindArgument, record: RecordId, field: Field, reason: Reason, as_json: AsJson = False) -> None:
    """Make the distributor its owner: it keeps its value until it is set, and does not follow the source."""
    from bss_sync.adapters.sql.admin import takeovers

    _act(
        takeovers.take,
        kind,
        record,
        field,
        reason,
        as_json,
        f"taken; set it: bss-sync {kind} set {record} {field}=VALUE",
    )


@commands.command(
    "release", epilog=example("field release subscription cloud-resell/sub-4711 quantity --reason settled")
)
def release(kind: KindArgument, record: RecordId, field: Field, reason: Reason, as_json: AsJson = False) -> None:
    """Give it back to the reseller's BSS: it returns to the latest source value."""
    from bss_sync.adapters.sql.admin import takeovers

    _act(takeovers.release, kind, record, field, reason, as_json, "released; it returns to what the source says")


def _act(act: Callable[..., Any], kind: Kind, record: str, field: str, reason: str, as_json: bool, words: str) -> None:
    with opened() as app:
        with app.database.engine() as sql:
            done = act(sql, kind, resolve(sql, kind, record), field, reason=reason, actor=actor())
        app.wake.process(done.shard)
    if as_json:
        output.emit_json({"id": done.record_id, "kind": kind, "field": field, "value": done.value})
        return
    output.say(f"{field}: {words}")
