"""Places: the order in which the tier above knows the states of a record."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from bss_sync.adapters.sql.chain_places import PLACE_MAX, Place, Places, place
from bss_sync.domain.change import Kind, OrderKind
from bss_sync.ports.streams import Entity, HistoryRow, Mirrored, Settled

ID = UUID(int=7)
NOW = datetime(2026, 3, 10, tzinfo=UTC)
EARLIER = NOW - timedelta(days=5)


@dataclass
class Known:
    """What is known before a batch."""

    before: dict[UUID, Entity]
    places: dict[UUID, Place] = field(default_factory=dict)
    leap: int = 0
    batch: Any = field(default_factory=lambda: SimpleNamespace(now=NOW))


def _entity(version: int | None, *, epoch: int = 0, quantity: str = "1", **given: Any) -> Entity:
    entity = Entity(ID, UUID(int=1), UUID(int=2), Kind.SUBSCRIPTION, "s", **given)
    if version is None:
        return entity
    content = {"quantity": quantity, "parent_id": None}
    return replace(entity, mirrored=Mirrored(content, version, epoch, OrderKind.SEQUENCE, EARLIER, UUID(int=3)))


def _row(version: int, *, epoch: int = 0, late: bool = False) -> HistoryRow:
    return HistoryRow(ID, epoch, version, EARLIER, {"quantity": "1"}, False, UUID(int=3), late=late)


def _placed(known: Known, after: Entity, *rows: HistoryRow) -> Places:
    settled = Settled(entities={ID: after}, history=list(rows), changed={ID})
    return place(settled, known)


def test_the_place_of_a_source_that_counts_is_its_version() -> None:
    placed = _placed(Known({ID: _entity(None)}), _entity(9), _row(3, late=True), _row(9))
    assert placed.rows == {0: 3, 1: 9}
    assert placed.records == {ID: Place(9)}


def test_what_is_late_is_placed_by_what_stands_above_it() -> None:
    placed = _placed(Known({ID: _entity(5)}, {ID: Place(7)}), _entity(9), _row(4, late=True), _row(9))
    assert placed.rows == {1: 11}


def test_a_state_of_our_own_making_comes_next_and_now() -> None:
    known = Known({ID: _entity(5)}, {ID: Place(5)})
    assert _placed(known, _entity(5, laid={"quantity": "9"})).records == {ID: Place(6, NOW)}


def test_a_taken_value_follows_what_the_source_says_and_is_not_older_than_its_taking() -> None:
    before = _entity(5, laid={"quantity": "9"})
    since = NOW - timedelta(days=1)
    placed = _placed(Known({ID: before}, {ID: Place(6, since)}), _entity(8, laid={"quantity": "9"}), _row(8))
    assert placed.rows == {0: 9}
    assert placed.records == {ID: Place(10, since)}


def test_an_epoch_begins_above_all_that_was_told_and_leaves_room_below() -> None:
    placed = _placed(Known({ID: _entity(500)}, {ID: Place(510)}), _entity(3, epoch=1), _row(3, epoch=1))
    assert placed.rows == {0: 514}


def test_the_same_version_decided_anew_has_another_place() -> None:
    placed = _placed(Known({ID: _entity(5)}, {ID: Place(5)}), _entity(5, quantity="2"), _row(5))
    assert placed.rows == {0: 6}


def test_nothing_new_keeps_its_place() -> None:
    assert _placed(Known({ID: _entity(5)}, {ID: Place(5, EARLIER)}), _entity(5)).records == {ID: Place(5, EARLIER)}


@pytest.mark.parametrize("leap", [0, 65_536])
def test_what_is_new_after_a_restore_leaps(leap: int) -> None:
    assert _placed(Known({ID: _entity(None)}, leap=leap), _entity(3), _row(3)).rows == {0: 3 + leap}


def test_no_place_is_beyond_what_a_number_can_hold() -> None:
    placed = _placed(Known({ID: _entity(5)}, {ID: Place(9)}), _entity(PLACE_MAX), _row(PLACE_MAX))
    assert placed.rows == {0: PLACE_MAX}
