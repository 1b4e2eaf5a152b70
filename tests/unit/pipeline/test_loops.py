"""A message that passed this instance already is refused before anything else is asked of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from bss_sync.domain.change import Action, Change, Kind, MessageState
from bss_sync.pipeline import line
from bss_sync.ports.inbox import Arrival, Origin
from bss_sync.testing.memory import MemoryLine

OURS = "5f0c8f0e-3c1d-4a6e-9a43-7f3f6d1c2b10"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
ACCOUNT = {"name": "Customer X", "number": None, "email": None, "kind": "customer", "parent_id": None}


@pytest.fixture
def memory() -> MemoryLine:
    return MemoryLine()


def _connection(memory: MemoryLine) -> UUID:
    connection_id = memory.connect("M365", accounts_at_once=True)
    memory.rules[connection_id] = replace(memory.rules[connection_id], instance_id=OURS)
    return connection_id


def _say(memory: MemoryLine, connection_id: UUID, version: int, *passed: str) -> None:
    change = Change(
        message_id=f"m-{version}",
        kind=Kind.ACCOUNT,
        source_id="x",
        action=Action.STATE,
        version=version,
        sent_at=NOW,
        effective_at=NOW,
        body=ACCOUNT,
        digest=str(version).encode(),
        passed=passed,
    )
    memory.accept([Arrival(memory.tenants[connection_id], connection_id, None, Origin.POLL, [change])])
    memory.run(line.process)


def test_what_passed_us_is_dead_and_moves_nothing(memory: MemoryLine) -> None:
    connection_id = _connection(memory)
    _say(memory, connection_id, 1, "below")
    _say(memory, connection_id, 2, OURS, "below")
    assert memory.state_of("m-2") is MessageState.DEAD
    mirrored = memory.mirror(Kind.ACCOUNT)["x"].mirrored
    assert mirrored is not None
    assert (mirrored.version, mirrored.passed) == (1, ("below",))


def test_a_jump_between_chained_versions_is_no_gap(memory: MemoryLine) -> None:
    connection_id = _connection(memory)
    for version in (1, 5):
        _say(memory, connection_id, version, "below")
    assert memory.gaps == []
    _say(memory, connection_id, 9)
    assert len(memory.gaps) == 1
