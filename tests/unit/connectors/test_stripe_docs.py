"""docs/connectors/stripe.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from bss_sync.ports.connector import ConnectionSettings
from connectors.stripe import CONNECTOR
from connectors.stripe.config import StripeConfig
from connectors.stripe.mapper import STATUSES
from connectors.stripe.webhook import KINDS

PAGE = (Path(__file__).parents[3] / "docs/connectors/stripe.md").read_text()


def row(first_cell: str) -> list[str]:
    """The cells of the table row that begins with exactly this cell."""
    (found,) = [line for line in PAGE.splitlines() if line.startswith(f"| {first_cell} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_every_setting_of_its_own_is_in_the_table_with_its_default() -> None:
    for name, setting in StripeConfig.model_fields.items():
        common = ConnectionSettings.model_fields.get(name)
        if common is None or common.default != setting.default:
            default = "empty" if setting.default == "" else str(setting.default)
            assert row(f"`{name}`")[1].strip("`") == default


def test_exactly_the_events_that_are_read_are_to_be_chosen() -> None:
    assert set(re.findall(r"`(customer\.[a-z_.]+)`", PAGE)) == set(KINDS)


def test_every_status_is_in_the_table_with_what_it_becomes() -> None:
    rows = [
        line.split("|") for line in PAGE.splitlines() if re.match(r"\| `[a-z_]+`(, `[a-z_]+`)* \| `[a-z_]+` \|$", line)
    ]
    documented = {word: cells[2].strip(" `") for cells in rows for word in re.findall(r"`([a-z_]+)`", cells[1])}
    assert documented == {word: status.value for word, status in STATUSES.items()}


def test_every_secret_is_named() -> None:
    assert all(f"`{name}`" in PAGE for name in CONNECTOR.secret_names)
