"""docs/ says what the code says: settings, errors, commands, connectors, metrics, messages; links lead somewhere."""

from __future__ import annotations

import ast
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import bss_sync
from bss_sync.cli.main import app as program
from bss_sync.domain.change import MessageState
from bss_sync.domain.errors import BssSyncError
from bss_sync.domain.subscription import Status
from bss_sync.domain.tenancy import Role
from bss_sync.pipeline.message_model import MESSAGE_TYPES
from bss_sync.ports.connector import Capabilities, ConnectionSettings
from bss_sync.ports.reconciliation import Problem
from bss_sync.settings import PREFIX, Settings
from bss_sync.telemetry import Metrics
from bss_sync.web.gauges import _GAUGES as GAUGES
from bss_sync.web.problem import _SLUG_BY_STATUS as SLUG_BY_STATUS
from bss_sync.web.problem import status_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])
METRIC_KINDS = {"Counter": "_total", "Gauge": "", "Histogram": "", "Summary": "", "GaugeMetricFamily": ""}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def rows(text: str, *, under: str = "") -> list[list[str]]:
    """The cells of every table row that begins with a code word; ``under`` names the heading to look below."""
    if under:
        text = text.split(f"\n{under}\n", maxsplit=1)[1].split("\n## ", maxsplit=1)[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]


def first_cells(text: str, *, under: str = "") -> set[str]:
    return {code for cells in rows(text, under=under) for code in re.findall(r"`([^`]+)`", cells[0])}


def errors(below: type[BssSyncError] = BssSyncError) -> Iterator[type[BssSyncError]]:
    """The error tree, wherever its leaves are declared."""
    yield below
    for kind in below.__subclasses__():
        yield from errors(kind)


def import_every_module() -> None:
    for module in pkgutil.walk_packages(bss_sync.__path__, "bss_sync."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def own_errors() -> dict[str, type[BssSyncError]]:
    import_every_module()
    return {kind.slug: kind for kind in errors() if kind.__module__.startswith("bss_sync.")}


def commands(command: Any, path: str = "bss-sync") -> Iterator[tuple[str, Any]]:
    for name, below in getattr(command, "commands", {}).items():
        yield f"{path} {name}", below
        yield from commands(below, f"{path} {name}")


def metrics() -> set[str]:
    """The names as Prometheus shows them: of the processes, of the whole, and what else the source writes out."""
    declared = [*Metrics().registry.collect(), *(gauge for _, gauges in GAUGES for gauge in gauges([]))]
    found = {one.name + ("_total" if one.type == "counter" else "") for one in declared}
    for file in (ROOT / "bss_sync").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        kinds = prometheus_names(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds:
                name = node.args[0]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    found.add(name.value + METRIC_KINDS[node.func.id])
    return found


def prometheus_names(tree: ast.AST) -> set[str]:
    """The kinds of metrics that a module imports; collections has a Counter too."""
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prometheus_client")
        for alias in node.names
        if alias.name in METRIC_KINDS
    }


def headings(text: str) -> set[str]:
    """The anchors of a page, as they are made of its headings."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_every_setting_is_in_the_table_of_settings_and_nothing_else_is() -> None:
    assert first_cells(page("settings.md")) == {PREFIX + name.upper() for name in Settings.model_fields}


def test_settings_named_anywhere_exist() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for file in PAGES:
        named = set(re.findall(r"BSS_SYNC_[A-Z_]*[A-Z]", file.read_text(encoding="utf-8")))
        assert named <= known, f"{file.name} names {named - known}"


def test_every_setting_of_connections_is_in_the_connector_guide_with_its_default() -> None:
    table = {
        cells[0].strip("`"): cells[1].strip("`")
        for cells in rows(page("connectors/README.md"), under="## Settings that every connection has")
    }
    defaults = {name: field.default for name, field in ConnectionSettings.model_fields.items()}
    words = {name: str(value).lower() if isinstance(value, bool) else f"{value}" for name, value in defaults.items()}

    assert table == words


def test_every_error_is_documented_and_nothing_else_is() -> None:
    text = page("errors.md")
    table = {cells[0].strip("`"): cells for cells in rows(text, under="## The error tree")}
    kinds = own_errors()

    assert set(table) == set(kinds)
    for slug, cells in table.items():
        assert cells[1].strip("`") == kinds[slug].__name__, slug
    added = first_cells(text, under="## What HTTP adds")
    raised_with_a_slug = {"unknown-type"}
    assert added == (set(SLUG_BY_STATUS.values()) | raised_with_a_slug) - set(kinds)


def test_an_errors_status_and_exit_code_are_those_of_the_code() -> None:
    from bss_sync.cli.output import exit_code

    made = {
        "unknown-value": ("status", "x"),
        "operation-refused": ("refused",),
        "remote-refused": ("refused",),
    }
    named: dict[str, dict[str, Any]] = {
        "operation-refused": {"owner": "Cloud Resell"},
        "remote-refused": {"status": 404},
    }
    kinds = own_errors()
    for cells in rows(page("errors.md"), under="## The error tree"):
        slug = cells[0].strip("`")
        error = kinds[slug](*made.get(slug, ("what happened",)), **named.get(slug, {}))
        assert cells[3] == str(exit_code(error)), slug
        if cells[2] == "-":
            assert status_of(error) == 500, slug
        else:
            assert cells[2] == str(status_of(error)), slug


def test_every_answer_of_the_door_that_is_documented_has_its_slug() -> None:
    known = set(SLUG_BY_STATUS.values()) | {"unknown-type"} | set(own_errors())
    answers = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in page("messages.md").splitlines()
        if re.match(r"\| [2-5][0-9]{2} \|", line)
    ]

    assert {cells[1] for cells in answers if cells[1]} <= known
    assert {"202", "400", "401", "409", "413", "415", "422", "429", "503"} <= {cells[0] for cells in answers}


def test_every_command_is_documented_with_every_option() -> None:
    text = page("cli.md")
    for path, command in commands(typer.main.get_command(program)):
        assert re.search(rf"^##+ {re.escape(path)}$", text, flags=re.MULTILINE), f"{path} is not documented"
        section = text.split(f" {path}\n", maxsplit=1)[1].split("\n## ", maxsplit=1)[0].split("\n### ", maxsplit=1)[0]
        for option in command.params:
            for name in option.opts:
                assert not name.startswith("--") or name == "--help" or f"`{name}" in section, f"{path} {name}"


def test_commands_that_pages_name_exist() -> None:
    root = typer.main.get_command(program)
    known = {path for path, _ in commands(root)}
    groups = {path for path, command in commands(root) if hasattr(command, "commands")}
    for file in PAGES:
        for called in re.findall(r"bss-sync((?: [a-z]+){1,3})", file.read_text(encoding="utf-8")):
            words = called.split()
            if f"bss-sync {words[0]}" not in known:
                continue  # prose: "bss-sync is the program"
            path = f"bss-sync {words[0]}"
            for word in words[1:]:
                if path not in groups:
                    break
                path = f"{path} {word}"
                assert path in known, f"{file.name}: {path} is no command"


def test_every_connector_has_a_page_and_every_page_a_connector() -> None:
    installed = {point.name for point in importlib.metadata.entry_points(group="bss_sync.connectors")}
    pages = {file.stem for file in (DOCS / "connectors").glob("*.md")} - {"README"}

    assert pages == installed
    for name in installed:
        assert f"]({name}.md)" in page("connectors/README.md"), f"the guide does not name {name}"


def test_every_capability_is_in_the_connector_guide() -> None:
    assert first_cells(page("connectors/README.md"), under="## Capabilities") >= set(Capabilities.__slots__)


def test_every_metric_is_documented_and_nothing_else_is() -> None:
    assert metrics(), "the source declares metrics"
    assert first_cells(page("metrics.md")) == metrics()


def test_every_message_type_has_a_row_an_example_and_a_schema() -> None:
    text = page("messages.md")
    for name in MESSAGE_TYPES:
        assert name in first_cells(text), f"{name} has no row"
        assert (DOCS / "schemas" / f"{name}.json").is_file()
        kind = name.split(".")[0]
        assert f'"type": "{name}"' in text or f'"type": "{kind}.updated"' in text, f"{name} has no example"
    for status in Status:
        assert f"`{status}`" in text, f"the status {status} is not documented"


def test_examples_of_messages_are_messages_of_the_contract() -> None:
    import json

    blocks = re.findall(r"```json\n(.*?)```", page("messages.md"), flags=re.DOTALL)
    found = 0
    for block in blocks:
        at, decoder = 0, json.JSONDecoder()
        while at < len(block.rstrip()):
            value, at = decoder.raw_decode(block, at)
            at += len(block[at:]) - len(block[at:].lstrip())
            for message in value if isinstance(value, list) else [value]:
                if message.get("type") in MESSAGE_TYPES:
                    MESSAGE_TYPES[message["type"]].validator.validate_json(json.dumps(message["data"]))
                    found += 1

    assert found >= len(MESSAGE_TYPES)


def test_every_state_of_a_message_and_every_role_is_documented_and_nothing_else_is() -> None:
    assert first_cells(page("messages.md"), under="## What becomes of it") == set(MessageState)
    assert first_cells(page("security.md"), under="## Roles of API tokens") == set(Role)


def test_every_difference_of_a_reconcile_is_in_the_runbook() -> None:
    assert set(Problem) <= first_cells(page("runbook.md"), under="## Reconcile and the guard")


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(file: Path) -> None:
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (file.parent / name).resolve() if name else file
        assert there.exists(), f"{target} leads nowhere"
        assert there.is_relative_to(ROOT.resolve()), f"{target} leads out of the project"
        if anchor:
            assert anchor in headings(there.read_text(encoding="utf-8")), f"{target}: no such heading"


def test_every_page_of_docs_can_be_reached_from_the_readme() -> None:
    reached, open_pages = set(), [ROOT / "README.md"]
    while open_pages:
        file = open_pages.pop()
        if file in reached:
            continue
        reached.add(file)
        for target in re.findall(r"\]\(([^)\s#]+)", file.read_text(encoding="utf-8")):
            there = (file.parent / target).resolve()
            if there.is_dir():
                open_pages += sorted(there.glob("*.md"))
            elif there.suffix == ".md" and there.is_file():
                open_pages.append(there)

    assert {file.resolve() for file in DOCS.rglob("*.md")} <= {file.resolve() for file in reached}


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_page_names_a_path_of_this_machine(file: Path) -> None:
    text = file.read_text(encoding="utf-8")

    assert str(ROOT) not in text
    assert str(Path.home()) + "/" not in text
    assert not re.search(r"(?<![\w./-])/(work|home|root|Users)/", text)


def test_tests_that_the_table_of_protections_names_exist() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", page("testing.md")))

    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_decisions_are_numbered_once_and_have_their_parts() -> None:
    files = sorted((DOCS / "decisions").glob("*.md"))
    numbers = [file.name[:4] for file in files]

    assert len(set(numbers)) == len(numbers)
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert text.startswith(f"# {file.name[:4]}: ")
        assert [part for part in ("Context", "Decision", "Consequences") if f"\n## {part}\n" not in text] == [], (
            file.name
        )
