"""``bss-sync tree``: the hierarchy as it is, or as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import SomeConnection, example
from bss_sync.cli.output import AsJson
from bss_sync.cli.session import opened

if TYPE_CHECKING:
    from rich.tree import Tree

    from bss_sync.adapters.sql.reading.tree import Node

AsOfOption = Annotated[
    str | None,
    typer.Option("--as-of", metavar="T", help="In effect then: RFC 3339, or a date (the end of that day)."),
]
RecordedAsOfOption = Annotated[
    str | None, typer.Option("--recorded-as-of", metavar="T", help="As far as it was recorded by then.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "tree",
        epilog=example(
            "tree --connection cloud-resell", "tree --subtree cloud-resell/lite-1", "tree --as-of 2026-03-31"
        ),
    )(tree)


def tree(
    connection: SomeConnection = None,
    subtree: Annotated[
        str | None, typer.Option("--subtree", metavar="ACCOUNT", help="Only this account and everything below it.")
    ] = None,
    as_of: AsOfOption = None,
    recorded_as_of: RecordedAsOfOption = None,
    as_json: AsJson = False,
) -> None:
    """Show who is under whom, and what each holds."""
    from bss_sync.adapters.sql.reading.reach import EVERYTHING
    from bss_sync.adapters.sql.reading.tree import read_tree
    from bss_sync.cli.references import resolve
    from bss_sync.domain.change import Kind
    from bss_sync.domain.moment import parse_as_of

    with opened() as app, app.database.engine() as sql:
        at = parse_as_of(as_of, recorded_as_of, app.time_zone, app.clock.now())
        below = None if subtree is None else resolve(sql, Kind.ACCOUNT, subtree)
        roots = read_tree(sql, EVERYTHING, connection, at, below)
    if as_json:
        output.emit_json({"items": nested(roots)})
        return
    if not roots:
        output.say("No connections yet. Add one: bss-sync connection add NAME --connector webhook")
        return
    console = output.console()
    for root in roots:
        console.print(_drawn(root))


def nested(roots: list[Node]) -> list[dict[str, Any]]:
    """The forest as nested objects, made without recursion: its depth is not limited."""
    from bss_sync.adapters.sql.reading.tree import walk

    forest: list[dict[str, Any]] = []
    made: dict[int, dict[str, Any]] = {}
    holder: dict[int, tuple[int, str]] = {}
    for _, node in walk(roots):
        item: dict[str, Any] = node.as_json()
        for branch in node.branches():
            item[branch] = []
        made[id(node)] = item
        for branch in node.branches():
            for child in getattr(node, branch):
                holder[id(child)] = (id(node), branch)
        if id(node) in holder:
            above, place = holder[id(node)]
            made[above][place].append(item)
        else:
            forest.append(item)
    return forest


def _drawn(root: Node) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    from bss_sync.adapters.sql.reading.tree import walk

    drawn: list[Tree] = []
    for depth, node in walk([root]):
        label = Text(_label(node), overflow="fold")
        if depth == 0:
            drawn = [Tree(label, guide_style="dim")]
        else:
            del drawn[depth:]
            drawn.append(drawn[depth - 1].add(label))
    return drawn[0]


def _label(node: Node) -> str:
    if node.kind == "subscription":
        values = node.values
        marks = [f"{values['quantity']} × {values['product']}", str(values["status"])]
        marks += ["trial"] if values["trial"] else []
    else:
        marks = [] if node.kind == "customer" else [node.kind]
    marks += ["orphaned"] if node.values.get("orphaned") else []
    marks += ["in a ring"] if node.values.get("cycle") else []
    marks += ["ended"] if node.values.get("ended_at") else []
    name = ", ".join(marks) if node.kind == "subscription" else str(node.name)
    details = "" if node.kind == "subscription" or not marks else f" ({', '.join(marks)})"
    source = f" [{node.values['source_id']}]" if "source_id" in node.values else ""
    return f"{name}{details}{source}"
