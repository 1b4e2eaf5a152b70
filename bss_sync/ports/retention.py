"""Retention: what is too old is dropped, a part of a table at a time, beside the running line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Protocol


class Act(StrEnum):
    """What one turn did."""

    MADE = "made"  # a part for a time to come
    CARRIED = "carried"  # rows that still answer a question, out of a part that is too old
    DROPPED = "dropped"  # a part that was too old, with what was left in it
    DELETED = "deleted"  # single rows that were too old, in a part that stays
    PUT_OFF = "put_off"  # a part is in use just now: the next pass drops it


@dataclass(frozen=True, slots=True)
class Turn:
    """One short transaction of a pass. ``table``: message or history; ``rows``: how many it was about."""

    act: Act
    table: str
    part: str
    rows: int


@dataclass(frozen=True, slots=True)
class Expired:
    """A part that the next pass would drop: its rows, those of them that would be carried, and its bytes."""

    table: str
    part: str
    before: date
    rows: int
    carried: int
    byte_count: int


class RetentionStore(Protocol):
    """Drops by policy. Nobody waits longer than a tenth of a second for any of it."""

    def turns(self) -> Iterator[Turn]:
        """One pass, a transaction per step; it may be left at any step and begun anew. DependencyDown."""
        ...

    def expired(self) -> Sequence[Expired]:
        """The dry run: what a pass would drop now."""
        ...

    def stragglers(self) -> int:
        """The dry run: single messages that a pass would delete, settled before there were parts."""
        ...
