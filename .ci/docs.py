"""Writes what docs/ holds of generated pages: the commands, the message schemas, the HTTP interface.

Run by `make docs`. With --check it writes nothing, names what is stale and exits 1; tests/unit/test_docs.py runs that.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import typer

from bss_sync.adapters.clock import SystemClock
from bss_sync.adapters.secrets import KEY_BYTES, KeyVault
from bss_sync.adapters.sql.database import Database
from bss_sync.bootstrap import App, Connectors, SweptWakeUps, make_http
from bss_sync.cli.main import app as program
from bss_sync.domain.tenancy import Tenant, TenantKind
from bss_sync.pipeline.message_model import message_schemas
from bss_sync.settings import Settings
from bss_sync.web.app import create_app

DOCS = Path(__file__).resolve().parents[1] / "docs"

INTRODUCTION = """# Commands

This page is generated from the program: `make docs`. `bss-sync COMMAND --help` says the same.

- Whatever prints takes `--json`. An error is then a problem document on standard error.
- Wherever a connection is named, its name or its id will do. A record is named by our id, by
  `CONNECTION/SOURCE_ID`, or by its source id where only one connection has it.
- `--install-completion` installs the completion for your shell.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a difference was found, or something was refused |
| 2 | wrong usage or setting, nothing of that name, or a conflict |
| 3 | a dependency is down, the database is not migrated, or no answer is possible |
| 130 | interrupted (Ctrl-C) |

What was done before Ctrl-C stays. A replay goes on by itself; when the command is given again, a backfill goes on and a
reconcile begins anew. `bss-sync run list` shows what became of a run.
"""

_MARKUP = re.compile(r"\[/?(?:bold|italic|dim)\]")


def pages() -> dict[Path, str]:
    """Every generated file below docs/ with its content."""
    found = {Path("cli.md"): commands_page(), Path("openapi.json"): _json(interface())}
    for message_type, schema in message_schemas().items():
        found[Path("schemas") / f"{message_type}.json"] = _json(schema)
    return found


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def interface() -> dict[str, Any]:
    """The OpenAPI document of an application that is wired, but asks nobody."""
    nobody = UUID(int=0)
    wired = App(
        settings=Settings.model_construct(),
        database=Database("postgresql+psycopg://localhost/nothing"),
        owner_url="",
        vault=KeyVault([bytes(KEY_BYTES)]),
        clock=SystemClock(),
        connectors=Connectors(),
        http=make_http(),
        wake=SweptWakeUps(),
        instance_id=nobody,
        distributor=Tenant(nobody, "distributor", "Distributor", TenantKind.DISTRIBUTOR),
        time_zone="UTC",
        currency="EUR",
    )
    document: dict[str, Any] = create_app(wired).openapi()
    return document


def commands_page() -> str:
    """docs/cli.md."""
    root = typer.main.get_command(program)
    sections = [INTRODUCTION]
    for path, command in walk(root, ""):
        sections.append("\n".join(_section(path, command)))
    return "\n".join(sections).rstrip() + "\n"


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command and group below ``command``, with the words that call it."""
    for name, below in getattr(command, "commands", {}).items():
        full = f"{path} {name}".strip()
        if not below.hidden:
            yield full, below
            yield from walk(below, full)


def _section(path: str, command: Any) -> Iterator[str]:
    is_group = hasattr(command, "commands")
    level = "##" if " " not in path else "###"
    yield f"{level} bss-sync {path}\n"
    yield _text(command.help)
    if is_group:
        yield ""
        return
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and "--help" not in one.opts]
    usage = " ".join([f"bss-sync {path}", *(_argument(one) for one in arguments), *(["[OPTIONS]"] if options else [])])
    yield f"\n```\n{usage}\n```\n"
    rows = [(f"`{_argument(one)}`".replace("|", "\\|"), _text(one.help)) for one in arguments]
    rows += [(_option(one), _meaning(one)) for one in options]
    if rows:
        yield "| | |\n|---|---|"
        yield from (f"| {left} | {right} |" for left, right in rows)
        yield ""
    examples = [line.strip().removeprefix("$ ") for line in (command.epilog or "").splitlines() if " $ " in line]
    if examples:
        yield "```\n" + "\n".join(examples) + "\n```\n"


def _text(help_text: str | None) -> str:
    """A help text as one paragraph of Markdown."""
    paragraphs = _MARKUP.sub("", help_text or "").strip().split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in paragraphs).replace("|", "\\|")


def _argument(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _option(option: Any) -> str:
    names = ", ".join(option.opts)
    if option.is_flag:
        return f"`{names}`"
    value = str(option.metavar or _placeholder(option.type_descriptor.annotation))
    return f"`{names} {value}`".replace("|", "\\|")


def _placeholder(annotation: Any) -> str:
    """What stands for a value without a name of its own: its words, else its kind."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "|".join(str(one.value) for one in annotation)
    return {int: "NUMBER", float: "NUMBER", Path: "FILE"}.get(annotation, "TEXT")


def _meaning(option: Any) -> str:
    words = _text(option.help)
    default = option.default
    if option.required:
        return f"{words} Required."
    shown = default not in (None, False, (), []) and not callable(default) and "efault" not in words
    return f"{words} Default: {getattr(default, 'value', default)}." if shown else words


def stale(expected: dict[Path, str]) -> list[str]:
    """Names of the files that differ, are missing, or lie in docs/schemas without being a message type's."""
    wrong = []
    for name, content in expected.items():
        file = DOCS / name
        if not file.is_file() or file.read_text(encoding="utf-8") != content:
            wrong.append(str(name))
    return wrong + [str(file.relative_to(DOCS)) for file in _unknown(expected)]


def _unknown(expected: dict[Path, str]) -> list[Path]:
    return [file for file in sorted((DOCS / "schemas").glob("*")) if file.relative_to(DOCS) not in expected]


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check say which are stale."""
    expected = pages()
    if arguments == ["--check"]:
        wrong = stale(expected)
        sys.stdout.writelines(f"stale: docs/{name}; run: make docs\n" for name in wrong)
        return 1 if wrong else 0
    for name, content in expected.items():
        file = DOCS / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    for unknown in _unknown(expected):
        unknown.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
