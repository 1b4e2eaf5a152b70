"""``bss-sync account`` and ``bss-sync subscription``: the mirror's records."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import SomeConnection, example, group
from bss_sync.cli.output import AsJson, Limit
from bss_sync.cli.references import RecordId, resolve
from bss_sync.cli.session import actor, opened, pairs
from bss_sync.cli.trees import AsOfOption, RecordedAsOfOption
from bss_sync.domain.change import Json, Kind

if TYPE_CHECKING:
    from uuid import UUID

    from bss_sync.bootstrap import App

_COLUMNS = {
    Kind.ACCOUNT: ("connection", "source_id", "kind", "name"),
    Kind.SUBSCRIPTION: ("connection", "source_id", "status", "quantity", "product"),
}


def register(app: typer.Typer) -> None:
    """Add a group for each kind."""
    for kind in Kind:
        app.add_typer(_group(kind))


def _group(kind: Kind) -> typer.Typer:
    commands = group(str(kind), f"Mirrored {kind}s: list, show, set, history.")
    own = "notes='calls on Mondays'" if kind is Kind.ACCOUNT else 'price=\'{"amount": "18.90", "currency": "EUR"}\''

    @commands.command("list")
    def list_records(
        connection: SomeConnection = None,
        state: Annotated[str | None, typer.Option("--state", help="live, ended, deleted or orphaned.")] = None,
        deleted: Annotated[bool, typer.Option("--include-deleted", help="Also those that were deleted.")] = False,
        as_of: AsOfOption = None,
        recorded_as_of: RecordedAsOfOption = None,
        limit: Limit = 50,
        as_json: AsJson = False,
    ) -> None:
        """List records, now or as of a time."""
        _list(kind, connection, state, deleted, (as_of, recorded_as_of), limit, as_json)

    @commands.command("show", epilog=example(f"{kind} show cloud-resell/4711", f"{kind} show ID --as-of 2026-03-31"))
    def show(
        record: RecordId,
        as_of: AsOfOption = None,
        recorded_as_of: RecordedAsOfOption = None,
        as_json: AsJson = False,
    ) -> None:
        """Show one record, each field with its owner, now or as of a time."""
        _show(kind, record, (as_of, recorded_as_of), as_json)

    @commands.command("set", epilog=example(f"{kind} set cloud-resell/4711 {own}"))
    def set_fields(
        record: RecordId,
        assignments: Annotated[
            list[str], typer.Argument(metavar="FIELD=VALUE...", help="JSON, or a text as it stands; null clears.")
        ],
        as_json: AsJson = False,
    ) -> None:
        """Set the distributor's own fields, or fields that were taken over. A locked one is refused: exit code 1."""
        _set(kind, record, assignments, as_json)

    @commands.command("history")
    def history(record: RecordId, limit: Limit = 50, as_json: AsJson = False) -> None:
        """Show what changed when, by which message."""
        _history(kind, record, limit, as_json)

    return commands


def _list(
    kind: Kind,
    connection: str | None,
    state: str | None,
    deleted: bool,
    times: tuple[str | None, str | None],
    limit: int,
    as_json: bool,
) -> None:
    from bss_sync.adapters.sql.reading.paging import Paging
    from bss_sync.adapters.sql.reading.reach import EVERYTHING
    from bss_sync.adapters.sql.reading.records import RecordFilter, list_records
    from bss_sync.domain.moment import parse_as_of

    with opened() as app, app.database.engine() as sql:
        at = parse_as_of(*times, app.time_zone, app.clock.now())
        wanted = RecordFilter(connection=connection, state=state, include_deleted=deleted)
        page = list_records(sql, EVERYTHING, kind, wanted, Paging(limit), at)
    if as_json:
        output.emit_json(page.as_json())
        return
    columns = _COLUMNS[kind]
    output.show_table(
        [name.replace("_", " ") for name in columns],
        ([item[name] for name in columns] for item in page.items),
        empty=f"No {kind}s.",
    )
    output.more_hint(page.has_more, limit)


def _show(kind: Kind, reference: str, times: tuple[str | None, str | None], as_json: bool) -> None:
    from bss_sync.adapters.sql.reading.reach import EVERYTHING
    from bss_sync.adapters.sql.reading.records import get_record
    from bss_sync.domain.moment import parse_as_of

    with opened() as app, app.database.engine() as sql:
        at = parse_as_of(*times, app.time_zone, app.clock.now())
        found = get_record(sql, EVERYTHING, kind, resolve(sql, kind, reference), at)
    if as_json:
        output.emit_json(found)
        return
    ownership = found["ownership"]
    output.show_facts({name: value for name, value in found.items() if name != "ownership" and name not in ownership})
    output.say("")
    output.show_table(
        ["field", "value", "owner"],
        (
            [name, found[name], f"{owner['owner']}{', locked' if owner['locked'] else ''}"]
            for name, owner in ownership.items()
        ),
        empty="",
    )


def parse_value(text: str) -> Json:
    """A value as it was typed: JSON with exact numbers, else the text itself."""
    try:
        return json.loads(text, parse_float=Decimal)
    except ValueError:
        return text


def _set(kind: Kind, reference: str, assignments: list[str], as_json: bool) -> None:
    from bss_sync.adapters.sql.editing import Refused, edit_fields
    from bss_sync.adapters.sql.reading.reach import EVERYTHING
    from bss_sync.adapters.sql.reading.records import get_record

    changes = {name: parse_value(value) for name, value in pairs(assignments, "FIELD=VALUE").items()}
    with opened() as app:
        with app.database.engine() as sql:
            record_id = resolve(sql, kind, reference)
            done = edit_fields(sql, EVERYTHING, actor(), kind, record_id, _texts(kind, changes), may_edit_taken=True)
        if isinstance(done, Refused):
            raise done.error
        if done.wake_shard is not None:
            app.wake.process(done.wake_shard)
        if as_json:
            with app.database.engine() as sql:
                output.emit_json(get_record(sql, EVERYTHING, kind, record_id))
            return
    output.say(f"changed: {', '.join(done.fields)}" if done.fields else "no change: the values are the same")
    if done.wake_shard is not None:
        output.hint("A taken field shows its new value as soon as a worker has laid it out.")


_TEXT_FIELDS = frozenset({"notes", "responsible_user", "bill_to_contact", "name", "number"})


def _texts(kind: Kind, changes: dict[str, Json]) -> dict[str, Json]:
    """What was typed for a field of text is text, also when it looks like a number."""
    del kind
    return {
        name: str(value) if name in _TEXT_FIELDS and isinstance(value, int | Decimal) else value
        for name, value in changes.items()
    }


def _history(kind: Kind, reference: str, limit: int, as_json: bool) -> None:
    with opened() as app:
        items, has_more, cursor = _changes(app, kind, reference, limit)
    if as_json:
        output.emit_json({"items": items, "next_cursor": cursor, "has_more": has_more})
        return
    output.show_table(
        ["effective", "recorded", "version", "message", "changes"],
        (
            [
                output.moment(item["effective_at"])[:16],
                output.moment(item["recorded_at"])[:16],
                item["version"],
                (item["message"] or {}).get("message_id"),
                _told(item),
            ]
            for item in items
        ),
        empty="No history.",
    )
    output.more_hint(has_more, limit)


def _changes(app: App, kind: Kind, reference: str, limit: int) -> tuple[list[dict[str, Any]], bool, str]:
    from bss_sync.adapters.sql.reading.changes import list_changes
    from bss_sync.adapters.sql.reading.paging import Paging
    from bss_sync.adapters.sql.reading.reach import EVERYTHING

    with app.database.engine() as sql:
        record_id: UUID = resolve(sql, kind, reference)
        page = list_changes(sql, EVERYTHING, kind, record_id, Paging(limit))
    return page.items, page.has_more, page.next_cursor


def _told(item: dict[str, Any]) -> str:
    marks = [word for word, holds in (("deleted", item["deleted"]), ("came late", item["late"])) if holds]
    marks += [f"ended: {item['ended_reason']}"] if item["ended_reason"] else []
    lines = [
        f"{name}: {output.shown(change['to'])}"
        if change["from"] is None
        else f"{name}: {output.shown(change['from'])} → {output.shown(change['to'])}"
        for name, change in item["changes"].items()
    ]
    return "\n".join([", ".join(marks), *lines] if marks else lines)
