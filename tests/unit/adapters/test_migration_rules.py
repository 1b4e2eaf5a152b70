"""What every migration after the first keeps to, so that it runs beside the release before (decision 0028).

What may not go or tighten is looked at in a real catalogue (tests/integration/test_migrations.py); here is what only
the text tells.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from bss_sync.resources import resource_folder

LOCK_MILLISECONDS_MAX = 5_000
_VERSIONS = resource_folder("migrations") / "versions"
_FIRST = "2026_11_21_0001_first_schema"
_TIMEOUT = re.compile(r"lock_timeout = '(\d+)(ms|s)'")
_INDEX = re.compile(
    r"create (?:unique )?index (?!concurrently)(?:if not exists )?\S+\s+on (?!only)(\w+)", re.IGNORECASE
)
_LOCKING = re.compile(r"\b(?:(?:alter|lock|create|drop) table|(?:create|drop) (?:trigger|policy))\b", re.IGNORECASE)
"""Statements that keep others out; an index that is built concurrently does not, and waits as ``db upgrade`` says."""
_TABLE = re.compile(r"create table (\w+)", re.IGNORECASE)


def _text(migration: Path) -> str:
    """The migration with the SQL that lies beside it."""
    beside = migration.with_suffix(".sql")
    return migration.read_text(encoding="utf-8") + (beside.read_text(encoding="utf-8") if beside.exists() else "")


LATER = sorted(path for path in _VERSIONS.glob("*.py") if path.stem != _FIRST)
RELEASED_TABLES = frozenset(_TABLE.findall(_text(_VERSIONS / f"{_FIRST}.py")))


def faults(text: str) -> list[str]:
    """What a migration does not keep to."""
    found = []
    waits = [int(number) * (1 if unit == "ms" else 1_000) for number, unit in _TIMEOUT.findall(text)]
    if not waits and _LOCKING.search(text):
        found.append("it sets no lock_timeout: set local lock_timeout = '2s'")
    if any(not 0 < wait <= LOCK_MILLISECONDS_MAX for wait in waits):
        found.append(f"a lock_timeout is 0, which waits for ever, or above {LOCK_MILLISECONDS_MAX} ms")
    found += [
        f"an index on {table}, which may be large, is not built concurrently (op.get_context().autocommit_block())"
        for table in _INDEX.findall(text)
        if table in RELEASED_TABLES
    ]
    return found


@pytest.mark.parametrize("migration", LATER, ids=lambda path: path.stem)
def test_a_migration_gives_its_locks_up_and_builds_indexes_beside_writers(migration: Path) -> None:
    assert faults(_text(migration)) == []


@pytest.mark.parametrize("migration", LATER, ids=lambda path: path.stem)
def test_a_contraction_names_an_earlier_revision_as_its_floor(migration: Path) -> None:
    assigned = {
        node.targets[0].id: node.value
        for node in ast.parse(migration.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    if "floor" in assigned or "contracts" in assigned:
        floor = ast.literal_eval(assigned["floor"])
        assert ast.literal_eval(assigned["contracts"]), "it names what it takes away"
        assert any(path.stem.startswith(floor) for path in _VERSIONS.glob("*.py"))
        assert not migration.stem.startswith(floor)


@pytest.mark.parametrize(
    "text",
    [
        "alter table message add column later text",
        "set local lock_timeout = '0s'; alter table message add column later text",
        "set local lock_timeout = '60s'; alter table message add column later text",
        "set local lock_timeout = '2s'; create index message_later on message (later)",
        "set local lock_timeout = '2s'; CREATE UNIQUE INDEX IF NOT EXISTS x ON history (id)",
    ],
)
def test_what_would_hold_others_up_is_seen(text: str) -> None:
    assert len(faults(text)) == 1
