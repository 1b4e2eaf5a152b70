"""Whatever order messages come in, however often, the mirror and its history come out as if they had come in order."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from bss_sync.domain.change import Change, Kind, MessageState, stream_id
from bss_sync.pipeline.line import accept, process
from bss_sync.ports.inbox import Arrival, Origin
from bss_sync.testing.memory import MemoryLine
from tests.property.histories import Source, histories


def _play(changes: list[Change], *, batch: int, at_once: bool = False) -> tuple[MemoryLine, UUID]:
    line = MemoryLine()
    connection_id = line.connect("OURS-1", "OURS-2", accounts_at_once=at_once)
    for start in range(0, len(changes), batch):
        arrival = Arrival(line.tenants[connection_id], connection_id, None, Origin.DOOR, changes[start : start + batch])
        accept(line, [arrival])
        line.run(process)
    return line, connection_id


def _present(line: MemoryLine) -> dict[tuple[Kind, str], Any]:
    return {
        (entity.kind, entity.source_id): (
            None if entity.mirrored.deleted_at or entity.mirrored.ended_at else dict(entity.mirrored.content),
            entity.mirrored.version,
            entity.mirrored.deleted_at,
            None if entity.mirrored.deleted_at else entity.mirrored.ended_reason,
            bool(entity.mirrored.deleted_at or entity.mirrored.ended_at) or entity.mirrored.parent_linked,
        )
        for entity in line.entities.values()
        if entity.mirrored is not None
    }


def _subscription_timeline(line: MemoryLine) -> set[tuple[Any, ...]]:
    return {
        (
            line.entities[row.record_id].source_id,
            row.version,
            row.effective_at,
            row.deleted,
            row.ended_reason,
            None if row.deleted else row.state["quantity"],
        )
        for row in line.history
        if line.entities[row.record_id].kind is Kind.SUBSCRIPTION and row.ended_reason is None
    }


def _shuffled(source: Source, seed: int) -> list[Change]:
    chance = random.Random(seed)
    changes = list(source.log) + [change for change in source.log if chance.random() < 0.3]
    chance.shuffle(changes)
    return changes


@settings(max_examples=150, deadline=None)
@given(histories(), st.integers(0, 10_000), st.integers(1, 6))
def test_any_permutation_with_duplicates_gives_the_mirror_of_the_true_order(
    source: Source, seed: int, batch: int
) -> None:
    straight, _ = _play(source.log, batch=1)
    shuffled, _ = _play(_shuffled(source, seed), batch=batch)
    expected, found = _present(straight), _present(shuffled)
    assert {key: value for key, value in found.items() if key[0] is Kind.SUBSCRIPTION} == {
        key: value for key, value in expected.items() if key[0] is Kind.SUBSCRIPTION
    }
    for key in expected.keys() & found.keys():
        assert found[key] == expected[key]
    for holder in _holders(source):
        assert (Kind.ACCOUNT, holder) in found


def _holders(source: Source) -> set[str]:
    """The accounts that a paid subscription needs, with everything above them."""
    needed: set[str] = set()
    for body in source.subscriptions.values():
        at = body["account_id"] if body["product"] != "FOREIGN" and not body["trial"] else None
        while at is not None:
            needed.add(at)
            at = source.accounts[at]["parent_id"]
    return needed


@settings(max_examples=100, deadline=None)
@given(histories(paid_only=True), st.integers(0, 10_000))
def test_every_paid_state_is_in_history_with_its_own_time_in_whatever_order_it_came(source: Source, seed: int) -> None:
    straight, _ = _play(source.log, batch=1)
    shuffled, _ = _play(_shuffled(source, seed), batch=3)
    assert _subscription_timeline(shuffled) == _subscription_timeline(straight)


@settings(max_examples=100, deadline=None)
@given(histories(), st.integers(0, 10_000), st.booleans())
def test_no_cycle_ever_exists_and_nothing_is_left_waiting(source: Source, seed: int, at_once: bool) -> None:
    line, connection_id = _play(_shuffled(source, seed), batch=1, at_once=at_once)
    parents = {
        entity.id: stream_id(connection_id, Kind.ACCOUNT, entity.mirrored.content["parent_id"])
        for entity in line.mirror(Kind.ACCOUNT).values()
        if entity.mirrored is not None and entity.mirrored.content["parent_id"] is not None
    }
    for start in parents:
        seen, at = set(), start
        while at in parents:
            assert at not in seen
            seen.add(at)
            at = parents[at]
    open_states = {item.message.state for item in line.messages.values()} & {MessageState.PENDING, MessageState.WAITING}
    assert not open_states


@settings(max_examples=100, deadline=None)
@given(histories(), st.integers(0, 10_000))
def test_the_mirror_equals_the_sources_present_for_what_is_bound(source: Source, seed: int) -> None:
    line, _ = _play(_shuffled(source, seed), batch=2)
    for key, entity in line.mirror(Kind.SUBSCRIPTION).items():
        assert entity.mirrored is not None
        present = source.subscriptions.get(key)
        assert (entity.mirrored.deleted_at is None) == (present is not None)
        if present is not None and present["product"] != "FOREIGN":
            assert {name: entity.mirrored.content[name] for name in present} == present
    for key, body in source.subscriptions.items():
        if body["product"] != "FOREIGN" and not body["trial"]:
            assert key in line.mirror(Kind.SUBSCRIPTION)


@settings(max_examples=60, deadline=None)
@given(histories(), st.integers(0, 10_000))
def test_replaying_what_was_applied_or_superseded_changes_nothing(source: Source, seed: int) -> None:
    line, _ = _play(_shuffled(source, seed), batch=2)
    before = _present(line)
    decided = (MessageState.APPLIED, MessageState.SUPERSEDED)
    for item in line.messages.values():
        if item.message.state not in decided:
            continue
        item.message = replace(item.message, state=MessageState.PENDING)
    line.run(process)
    assert _present(line) == before
