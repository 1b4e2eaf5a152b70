"""``bss-sync message``: the inbox, held messages, dead letters; deciding them anew, or giving them up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import SomeConnection, example, group
from bss_sync.cli.output import AsJson, Limit
from bss_sync.cli.session import actor, opened

if TYPE_CHECKING:
    from bss_sync.pipeline.replay import Rehearsed

commands = group("message", "The inbox: list, show, replay, discard.")

State = Annotated[
    str | None,
    typer.Option("--state", help="pending, waiting, applied, superseded, out_of_scope, quarantined, dead, discarded."),
]
Entity = Annotated[str | None, typer.Option("--entity", metavar="SOURCE_ID", help="Of the entity with this source id.")]
Below = Annotated[
    str | None, typer.Option("--subtree", metavar="ACCOUNT", help="Of this account and everything below it.")
]
Error = Annotated[str | None, typer.Option("--error", metavar="TEXT", help="Whose reason contains this.")]
Since = Annotated[str | None, typer.Option("--since", metavar="T", help="Received then or later: RFC 3339 or a date.")]
Until = Annotated[
    str | None, typer.Option("--until", metavar="T", help="Received before: RFC 3339, or a date (the end of that day).")
]
Field = Annotated[str | None, typer.Option("--field", metavar="NAME", help="Held for an unknown value of this field.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]
MessageIds = Annotated[list[UUID] | None, typer.Argument(metavar="[ID]...", help="Our ids of the messages.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(commands)


@commands.command(
    "list",
    epilog=example(
        "message list --state quarantined",
        "message list --state dead --connection cloud-resell --error timeout --since 2026-03-01",
        "message list --subtree cloud-resell/lite-1",
    ),
)
def list_messages(
    state: State = None,
    connection: SomeConnection = None,
    subtree: Below = None,
    entity: Entity = None,
    error: Error = None,
    since: Since = None,
    until: Until = None,
    field: Field = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Show messages and what became of them."""
    from bss_sync.adapters.sql.admin import message_selection
    from bss_sync.adapters.sql.reading.reach import EVERYTHING

    with opened() as app, app.database.engine() as sql:
        wanted = _selection(app, sql, (), state, connection, subtree, entity, error, since, until, field)
        page = message_selection.list_selected(sql, EVERYTHING, wanted, limit)
    if as_json:
        output.emit_json(page.as_json())
        return
    output.show_table(
        ["id", "state", "entity", "reason"],
        (
            [item["id"], item["state"], f"{item['connection']}/{item['source_id']}", item["reason"] or item["verdict"]]
            for item in page.items
        ),
        empty="No messages.",
    )
    output.more_hint(page.has_more, limit)


def _selection(
    app: Any,
    sql: Any,
    ids: tuple[UUID, ...],
    state: str | None,
    connection: str | None,
    subtree: str | None,
    entity: str | None,
    error: str | None,
    since: str | None,
    until: str | None,
    field: str | None,
) -> Any:
    """What the options choose."""
    from bss_sync.adapters.sql.admin import connections
    from bss_sync.adapters.sql.admin.message_selection import Selection
    from bss_sync.cli.references import resolve
    from bss_sync.domain.change import Kind
    from bss_sync.domain.moment import parse_moment, parse_since

    return Selection(
        ids=ids,
        state=state,
        connection_id=None if connection is None else connections.find(sql, connection).id,
        below=None if subtree is None else resolve(sql, Kind.ACCOUNT, subtree),
        source_id=entity,
        error=error,
        since=None if since is None else parse_since(since, app.time_zone, field="--since"),
        until=None if until is None else parse_moment(until, app.time_zone, field="--until"),
        field=field,
    )


@commands.command("show")
def show(
    message: Annotated[UUID, typer.Argument(metavar="ID", help="Our id of the message.")], as_json: AsJson = False
) -> None:
    """Show one message with its payload, and why it is held."""
    from bss_sync.adapters.sql.reading.messages import get_message
    from bss_sync.adapters.sql.reading.reach import EVERYTHING

    with opened() as app, app.database.engine() as sql:
        found = get_message(sql, EVERYTHING, message, with_payload=True, with_stack=True)
    if as_json:
        output.emit_json(found)
        return
    shown = {**found, "payload": json.dumps(found["payload"], ensure_ascii=False, indent=2)}
    output.show_facts({name.replace("_", " "): value for name, value in shown.items() if value is not None})
    if found["held"] is not None:
        held = found["held"]
        output.say(
            "", f"Map it: bss-sync connection map {found['connection']} {held['field']} {held['value']!r} CANONICAL"
        )


@commands.command(
    "replay",
    epilog=example(
        "message replay 01a1ffb0-3bfd-7bed-a242-9743645d54fa",
        "message replay --state dead --connection cloud-resell --since 2026-03-01 --dry-run",
        "message replay --state quarantined --field status --rate 50",
    ),
)
def replay(
    ids: MessageIds = None,
    state: State = None,
    connection: SomeConnection = None,
    subtree: Below = None,
    entity: Entity = None,
    error: Error = None,
    since: Since = None,
    until: Until = None,
    field: Field = None,
    rate: Annotated[float | None, typer.Option("--rate", metavar="N", help="At most N messages a second.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Decide messages anew by today's rules. What was applied or superseded stays; no version ever goes back.

    It is a run: when this command is killed, the workers carry it on.
    """
    from bss_sync.adapters.sql.admin.message_selection import chosen_ids, gone_from
    from bss_sync.adapters.sql.reading.reach import EVERYTHING
    from bss_sync.cli.gathering import progress
    from bss_sync.jobs.reconciling import make_replayer
    from bss_sync.pipeline.replay import REHEARSED_MAX, check_rate

    check_rate(rate)
    with opened() as app:
        with app.database.engine() as sql:
            wanted = _selection(
                app, sql, tuple(ids or ()), state, connection, subtree, entity, error, since, until, field
            )
            chosen, gone = chosen_ids(sql, EVERYTHING, wanted), gone_from(sql, wanted)
        replayer = make_replayer(app)
        planned = replayer.plan(chosen if dry_run else chosen[:REHEARSED_MAX])
        run_id = None if dry_run else replayer.begin(chosen, actor=actor(), rate=rate)
        if run_id is not None:
            with progress(f"replaying {len(chosen)} messages") as advance:
                replayer.carry(run_id, rate=rate, progress=advance)
    if gone is not None:
        output.hint(f"what was settled before {gone.isoformat()} is no longer kept, by policy, and so not among these")
    _show_replay(planned, chosen=len(chosen), run_id=run_id, as_json=as_json)


def _show_replay(planned: Sequence[Rehearsed], *, chosen: int, run_id: UUID | None, as_json: bool) -> None:
    """``run_id``: None for a dry run."""
    changing = [one for one in planned if one.changes]
    if as_json:
        told = [one.as_json() for one in planned]
        dry_run = run_id is None
        output.emit_json(
            {"dry_run": dry_run, "run_id": run_id, "chosen": chosen, "messages": told, "changes": len(changing)}
        )
        return
    output.show_table(
        ["id", "state", "becomes", "entity", "why"],
        (
            [one.message.id, one.message.state, one.becomes, one.message.source_id, one.reason or one.verdict]
            for one in changing
        ),
        empty="No change: what was applied or superseded stays as it is, and what is held is held again.",
    )
    verb = "would be" if run_id is None else "are"
    output.hint(f"{len(planned)} of {chosen} messages looked at; {len(changing)} {verb} decided otherwise")
    if run_id is not None:
        output.hint(f"run {run_id}")


@commands.command(
    "discard", epilog=example("message discard 01a1ffb0-3bfd-7bed-a242-9743645d54fa --reason 'sent by mistake'")
)
def discard(
    reason: Annotated[str, typer.Option("--reason", metavar="R", help="Why; kept in the audit.")],
    ids: MessageIds = None,
    state: State = None,
    connection: SomeConnection = None,
    subtree: Below = None,
    entity: Entity = None,
    error: Error = None,
    since: Since = None,
    until: Until = None,
    field: Field = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Give open or held messages up. What was decided for good stays."""
    from bss_sync.adapters.sql.admin.message_selection import chosen_ids
    from bss_sync.adapters.sql.reading.reach import EVERYTHING
    from bss_sync.jobs.reconciling import make_replayer
    from bss_sync.pipeline.replay import check_reason

    check_reason(reason)
    with opened() as app:
        with app.database.engine() as sql:
            wanted = _selection(
                app, sql, tuple(ids or ()), state, connection, subtree, entity, error, since, until, field
            )
            chosen = chosen_ids(sql, EVERYTHING, wanted)
        number = len(chosen) if dry_run else make_replayer(app).discard(chosen, reason, actor=actor())
    if as_json:
        output.emit_json({"dry_run": dry_run, "chosen": len(chosen), "discarded": 0 if dry_run else number})
        return
    output.say(f"{number} messages {'are chosen; nothing was done' if dry_run else 'discarded'}")
