"""docs/connectors/simulator.md and webhook.md say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel

from bss_sync.ports.connector import ConnectionSettings
from connectors.simulator.config import SimulatorConfig
from connectors.simulator.faults import Fault
from connectors.simulator.routes import ROUTES
from connectors.simulator.webhook import Knobs
from connectors.webhook.config import WebhookConfig

DOCS = Path(__file__).parents[3] / "docs/connectors"
SIMULATOR = (DOCS / "simulator.md").read_text()
WEBHOOK = (DOCS / "webhook.md").read_text()


def table(page: str, heading: str) -> dict[str, str]:
    """First cell to second cell of the table whose head begins with ``heading``."""
    lines = page.split(f"| {heading} | default | |\n|---|---|---|\n")[1].split("\n\n", maxsplit=1)[0].splitlines()
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return {cells[0]: cells[1] for cells in rows if len(cells) == 3}


def defaults(model: type[BaseModel], *, without: type[BaseModel] | None = None) -> dict[str, str]:
    """Each setting's default as the docs write it."""
    words = {"None": "", "PydanticUndefined": "required", "False": "false", "True": "true"}
    own = {
        name: str(field.default)
        for name, field in model.model_fields.items()
        if without is None or name not in without.model_fields
    }
    return {name: words.get(text, text) for name, text in own.items()}


def same(documented: dict[str, str], actual: dict[str, str]) -> bool:
    """Equal but for the words that stand for None."""
    return {
        name: "" if text in ("every", "all", "none", "empty") else text for name, text in documented.items()
    } == actual


def test_every_setting_and_knob_is_documented_with_its_default() -> None:
    assert same(table(SIMULATOR, "setting"), defaults(SimulatorConfig, without=ConnectionSettings))
    assert same(table(WEBHOOK, "setting"), defaults(WebhookConfig, without=ConnectionSettings))
    assert same(table(SIMULATOR, "webhook knob"), defaults(Knobs))
    assert same(table(SIMULATOR, "fault knob"), defaults(Fault))


def test_every_route_is_documented() -> None:
    documented = set(re.findall(r"/[a-z]+(?:-[a-z]+)*(?:/[a-z]+)*", SIMULATOR))
    for route in ROUTES:
        for path in ("/accounts", "/subscriptions") if "accounts" in route.pattern else (route.pattern,):
            assert path.split("/(")[0] in documented, f"{route.method} {path} is not documented"
