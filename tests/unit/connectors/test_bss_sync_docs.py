"""docs/connectors/bss_sync.md says what the code does."""

from __future__ import annotations

from bss_sync.ports.connector import ConnectionSettings
from connectors.bss_sync import CONNECTOR
from connectors.bss_sync.config import ChainConfig
from tests.unit.connectors.test_simulator_docs import DOCS, table

PAGE = (DOCS / "bss_sync.md").read_text(encoding="utf-8")


def test_every_setting_of_its_own_is_in_the_table_with_its_default() -> None:
    own = {}
    for name, setting in ChainConfig.model_fields.items():
        common = ConnectionSettings.model_fields.get(name)
        if common is None or common.default != setting.default:
            own[name] = "required" if setting.is_required() else str(setting.default)
    assert table(PAGE, "setting") == own


def test_every_secret_is_named() -> None:
    assert all(f"`{name}`" in PAGE for name in CONNECTOR.secret_names)
