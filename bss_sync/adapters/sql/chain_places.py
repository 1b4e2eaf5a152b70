"""Places: how the tier above orders the states of a record (docs/decisions/0027-history-travels.md).

A place is a whole number, the version up there. It is the source's version, plus what had to be added so far: 1 for
each state of this tier's own making (a field taken over, a link, an end), a leap where the source counts anew. Between
two states there is always room for what arrives late, for every version between theirs has a place of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from bss_sync.domain.made_quickly import made_quickly
from bss_sync.ports.streams import Batch, Entity, HistoryRow, Settled

PLACE_MAX = 2**63 - 1


@made_quickly
@dataclass(frozen=True, slots=True)
class Place:
    """Of a record's present. ``effective_at`` is None where a row of history tells the same state."""

    version: int
    effective_at: datetime | None = None


@dataclass(slots=True)
class Places:
    """What a batch has placed.

    ``rows`` by the row's number in ``Settled.history``; an absent one is late: its place depends on the state above it.
    """

    rows: dict[int, int] = field(default_factory=dict)
    last: dict[UUID, int] = field(default_factory=dict)
    """Record → the number of the row that tells its present."""
    records: dict[UUID, Place] = field(default_factory=dict)


def face(entity: Entity) -> tuple[Any, ...] | None:
    """What a record shows."""
    mirrored = entity.mirrored
    if mirrored is None:
        return None
    shown = {**mirrored.content, **entity.laid} if entity.laid else mirrored.content
    return shown, mirrored.parent_linked, mirrored.deleted_at, mirrored.ended_at, mirrored.ended_reason


class Known(Protocol):
    """What is known of the records of a batch before it is written (``streams_load.Loaded``).

    ``leap``: where a record that is new begins to count.
    """

    @property
    def batch(self) -> Batch: ...  # noqa: D102
    @property
    def before(self) -> Mapping[UUID, Entity]: ...  # noqa: D102
    @property
    def places(self) -> Mapping[UUID, Place]: ...  # noqa: D102
    @property
    def leap(self) -> int: ...  # noqa: D102


def place(settled: Settled, loaded: Known) -> Places:
    """Places of everything that a batch has decided."""
    places, before, known = Places(), loaded.before, loaded.places
    told: dict[UUID, list[tuple[int, HistoryRow]]] = defaultdict(list)
    for number, row in enumerate(settled.history):
        told[row.record_id].append((number, row))
    for key in settled.changed:
        counting = _Counting(before[key], known.get(key), loaded.leap)
        for number, row in told.get(key, ()):
            version = counting.take(row)
            if version is not None:
                places.rows[number], places.last[key] = version, number
        entity = settled.entities[key]
        places.records[key] = _present(
            entity, before[key], counting, known.get(key), loaded.batch.now, fresh=key in places.last
        )
    return places


class _Counting:
    """The places of one record, counted on from its present one."""

    def __init__(self, before: Entity, known: Place | None, leap: int) -> None:
        mirrored = before.mirrored
        self.last = None if known is None else known.version
        self._version = 0 if mirrored is None else mirrored.version
        self._epoch = 0 if mirrored is None else mirrored.epoch
        self._added = leap if self.last is None else self.last - self._version

    def take(self, row: HistoryRow) -> int | None:
        """The place of a state above the present one; None for a late one."""
        if self.last is not None:
            if row.late and (row.epoch, row.version) < (self._epoch, self._version):
                return None
            if row.epoch > self._epoch:
                # Room for whatever low version of the new count is still to come.
                self._added = self.last + 1
            self._added = max(self._added, self.last + 1 - row.version)
        self._version, self._epoch = row.version, row.epoch
        self.last = min(row.version + self._added, PLACE_MAX)
        return self.last

    def step(self) -> int:
        """The place of a state of our own making."""
        self.last = min((self.last or 0) + 1, PLACE_MAX)
        return self.last


def _present(
    entity: Entity, before: Entity, counting: _Counting, known: Place | None, now: datetime, *, fresh: bool
) -> Place:
    mirrored = entity.mirrored
    assert mirrored is not None, "only a mirrored record has a place"
    if not fresh:
        if known is not None and face(entity) == face(before):
            return known
        return Place(counting.step(), now)
    live = mirrored.deleted_at is None and mirrored.ended_at is None
    assert counting.last is not None, "a fresh state was counted"
    laid = entity.laid
    if not live or not laid or all(mirrored.content.get(name) == value for name, value in laid.items()):
        return Place(counting.last)
    # History tells what the source says; what is shown instead follows it, and is not older than its taking over.
    since = [mirrored.effective_at, *([known.effective_at] if known and known.effective_at else [])]
    if dict(before.laid) != dict(entity.laid):
        since.append(now)
    return Place(counting.step(), max(since))
