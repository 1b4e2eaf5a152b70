"""How a group of commands looks, in one place."""

from __future__ import annotations

from typing import Annotated

import typer

CONTEXT = {"help_option_names": ["-h", "--help"]}

ConnectionName = Annotated[str, typer.Argument(metavar="CONNECTION", help="The connection's name or id.")]
SomeConnection = Annotated[
    str | None, typer.Option("--connection", metavar="CONNECTION", help="Only this connection (name or id).")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the connector; repeatable.")
]
Secrets = Annotated[
    list[str] | None,
    typer.Option("--secret", metavar="KEY=-", help="A secret, read from standard input (or KEY=@FILE); repeatable."),
]


def group(name: str, words: str) -> typer.Typer:
    """A group of commands that shows its help when it is called alone."""
    return typer.Typer(name=name, help=words, no_args_is_help=True, context_settings=CONTEXT, rich_markup_mode="rich")


def example(*lines: str) -> str:
    """The examples below a command's help."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"  $ bss-sync {line}" for line in lines)
