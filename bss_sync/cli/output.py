"""What the terminal shows: tables for people, JSON for programs, errors that say what to do.

Everything that prints takes ``--json``; then an error is a problem document too, on stderr.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from bss_sync.domain.errors import (
    BssSyncError,
    CannotFetch,
    ConfigurationError,
    FieldProblem,
    InvalidRequest,
    LeaseLost,
    MessageConflict,
    NotFound,
    NotMigrated,
    RemoteDenied,
    RemoteUnreadable,
    SchemaBusy,
    StateConflict,
    Transient,
)

if TYPE_CHECKING:
    from rich.console import Console
    from typer.exceptions import TyperException

DONE, DIFFERENT, WRONG, IMPOSSIBLE = 0, 1, 2, 3
"""The exit codes (contract: CLI): done, difference or refused, usage or conflict, dependency down or no answer."""

INTERRUPTED = 130
"""As every shell has it for a program that Ctrl-C has ended."""

PROBLEM_BASE = "https://bss-sync.dev/problems/"
"""The beginning of a problem's type, the same as in the HTTP interface's answers."""

WIDTH_PIPED = 200
"""Columns of a table that is not shown on a terminal: nothing should be cut there."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=500, help="At most so many; it is said when there are more.")]

_CODES: tuple[tuple[tuple[type[BssSyncError], ...], int], ...] = (
    ((Transient, LeaseLost, NotMigrated, CannotFetch), IMPOSSIBLE),
    ((ConfigurationError, InvalidRequest, NotFound, StateConflict, MessageConflict), WRONG),
)


def exit_code(error: BssSyncError) -> int:
    """The exit code of an error: the first line of the table that it belongs to, else refused."""
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), DIFFERENT)


def wants_json() -> bool:
    """Whether this command was called with ``--json``; asked where an error comes before the option is parsed."""
    return "--json" in sys.argv


def report(error: BssSyncError) -> None:
    """Print an error to stderr."""
    if wants_json():
        sys.stderr.write(json.dumps(problem(error), ensure_ascii=False) + "\n")
        return
    lines = [f"error: {error.detail}"]
    lines += [f"  {item.field}: {item.detail}" for item in error.fields if item.detail not in error.detail]
    lines.append(f"what to do: {advice(error)}")
    sys.stderr.write("\n".join(lines) + "\n")


def usage_error(error: TyperException) -> InvalidRequest:
    """What is wrong with a command line, for programs."""
    detail = str(getattr(error, "format_message", error.__str__)())
    parameter, context = getattr(error, "param", None), getattr(error, "ctx", None)
    # The longest spelling is the one that says something: --connection, not -c.
    name = max(getattr(parameter, "opts", None) or [""], key=len)
    fields = (FieldProblem(name, detail),) if name else ()
    command = getattr(context, "command_path", None) or "bss-sync"
    return InvalidRequest(detail, fields=fields, next_step=f"Look at: {command} --help")


def report_interrupted(stays: str) -> None:
    """Say that Ctrl-C has ended it, and what ``stays`` of what was done."""
    if wants_json():
        document = {"type": f"{PROBLEM_BASE}interrupted", "title": "interrupted", "detail": f"Interrupted: {stays}"}
        sys.stderr.write(json.dumps(document, ensure_ascii=False) + "\n")
        return
    sys.stderr.write(f"interrupted: {stays}\n")


def report_defect(error: Exception) -> None:
    """Print where a programmer's error happened: files and lines, never the values that were worked on."""
    from bss_sync.telemetry import stack_of

    if wants_json():
        document = {
            "type": f"{PROBLEM_BASE}internal",
            "title": "internal",
            "detail": f"A defect of bss-sync: {type(error).__name__}",
            "next_step": "Report it with these places; bss-sync doctor tells whether data or settings are the cause.",
            "places": stack_of(error).splitlines(),
        }
        sys.stderr.write(json.dumps(document, ensure_ascii=False) + "\n")
        return
    sys.stderr.write(
        f"{stack_of(error)}\nerror: a defect of bss-sync: {type(error).__name__}\n"
        "what to do: report it with the lines above; bss-sync doctor tells whether data or settings are the cause.\n"
    )


def advice(error: BssSyncError) -> str:
    """What the reader can do, in the command line's words where the error speaks to a sender of messages."""
    if isinstance(error, Transient) and not isinstance(error, SchemaBusy | RemoteDenied | RemoteUnreadable):
        return "Check that the named server runs and can be reached, then try again; bss-sync doctor looks closer."
    return error.advice


def problem(error: BssSyncError) -> dict[str, Any]:
    """The error as a problem document (RFC 9457), as the HTTP interface answers it."""
    slug = getattr(error, "problem_slug", error.slug)
    document: dict[str, Any] = {"type": f"{PROBLEM_BASE}{slug}", "title": slug.replace("-", " ")}
    document |= {"detail": error.detail, "next_step": advice(error)}
    if error.fields:
        document["errors"] = [
            {name: value for name, value in dataclasses.asdict(item).items() if value is not None}
            for item in error.fields
        ]
    return document


def emit_json(value: Any) -> None:
    """Print a value as JSON."""
    sys.stdout.write(json.dumps(value, default=plain, ensure_ascii=False, indent=2) + "\n")


def emit_json_list(head: Mapping[str, Any], name: str, items: Iterable[Any]) -> None:
    """Print an object with ``head``'s members and a list ``name``, whose items are written as they come."""
    opening = json.dumps(head, default=plain, ensure_ascii=False, indent=2)
    sys.stdout.write(f"{opening.removesuffix('}').rstrip()},\n  {json.dumps(name)}: [")
    between = ""
    for item in items:
        sys.stdout.write(f"{between}\n    {json.dumps(item, default=plain, ensure_ascii=False)}")
        between = ","
    sys.stdout.write("\n  ]\n}\n" if between else "]\n}\n")


def plain(value: Any) -> Any:
    """A value that JSON does not know, in the contract's spelling."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, UUID | Decimal):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, frozenset | set):
        return sorted(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def console() -> Console:
    """Standard output for people: as wide as the terminal, and wide when it is none."""
    from rich.console import Console

    found = Console(highlight=False, emoji=False, markup=False, soft_wrap=False)
    if not found.is_terminal:
        found.width = WIDTH_PIPED
    return found


def say(*lines: str) -> None:
    """Print lines to a person."""
    for line in lines:
        sys.stdout.write(line + "\n")


def hint(line: str) -> None:
    """Print a remark beside the result, which may be piped."""
    sys.stderr.write(line + "\n")


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print a table; ``empty`` is said when there is no row. The last column takes the rest of the line."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        is_number = name.endswith("#")
        table.add_column(
            name.removesuffix("#"), overflow="fold", justify="right" if is_number else "left", no_wrap=name in _WHOLE
        )
    for row in rows:
        table.add_row(*(Text(shown(value)) for value in row))
    if table.row_count:
        console().print(table)
    else:
        say(empty)


_WHOLE = ("id", "state", "at", "received", "kind")
"""Columns that are never broken: they are copied, or read at a glance."""


def show_facts(facts: Mapping[str, Any]) -> None:
    """Print names and values, one per line."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        lines = shown(value).split("\n")
        say(f"{name.ljust(width)}  {lines[0]}", *(" " * (width + 2) + line for line in lines[1:]))


def shown(value: Any) -> str:
    """A value for a person: nothing as a dash, times to the second in UTC."""
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, default=plain, ensure_ascii=False)
    return str(value)


def moment(text: str | None) -> str:
    """A time of an answer (RFC 3339), shortened to the second for a table."""
    return "-" if text is None else text[:19].replace("T", " ") + "Z"


def counted(number: int, what: str) -> str:
    """A number of things in words: 1 message, 2 messages."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def more_hint(has_more: bool, limit: int) -> None:
    """Say that a list goes on."""
    if has_more:
        hint(f"… more than {limit}; narrow it down, or raise --limit")
