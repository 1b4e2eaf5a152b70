"""``bss-sync message story``: what became of one message, from its arrival to the distributor's BSS."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import example
from bss_sync.cli.output import AsJson
from bss_sync.cli.session import opened

Wanted = Annotated[str, typer.Argument(metavar="ID", help="Our id of the message, or CONNECTION/MESSAGE_ID.")]


def register(messages: typer.Typer) -> None:
    """Add the command to the group of messages."""
    messages.command(
        "story",
        epilog=example("message story 01a1ffb0-3bfd-7bed-a242-9743645d54fa", "message story cloud-resell/msg-4711"),
    )(story)


def story(message: Wanted, as_json: AsJson = False) -> None:
    """Tell a message's whole story: received, waited, decided, changed, delivered, confirmed."""
    from bss_sync.adapters.sql.reading.reach import EVERYTHING
    from bss_sync.adapters.sql.reading.story import tell_story

    with opened() as app, app.database.engine() as sql:
        told = tell_story(sql, EVERYTHING, message)
    if as_json:
        output.emit_json(told)
        return
    version = "" if told["version"] is None else f" version {told['version']}"
    output.say(
        f"{told['message_id']} ({told['id']})",
        f"{told['connection']} {told['kind']} {told['source_id']}{version}: {told['state']}",
        "",
        *(line(one) for one in told["steps"]),
    )
    if told["trace"] is not None:
        output.say("", f"trace {told['trace'].split('-')[1]}")


def line(step: dict[str, Any]) -> str:
    """One step: its time to the millisecond in UTC, and its sentence."""
    date, _, time = step["at"].rstrip("Z").partition("T")
    seconds, _, fraction = time.partition(".")
    return f"{date} {seconds}.{fraction[:3].ljust(3, '0')}Z  {step['words']}"
