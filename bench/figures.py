"""What a benchmark measured: rounds of our figure beside those of its reference, taken by turns on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Series:
    """The rounds of one figure, in the order in which they were measured."""

    name: str
    unit: str
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle round."""
        return median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest round."""
        return min(self.rounds), max(self.rounds)


@dataclass(frozen=True, slots=True)
class Goal:
    """What goals.md asks for. ``at_least`` tells whether more is better."""

    words: str
    value: float
    at_least: bool = True

    def is_met_by(self, value: float) -> bool:
        """Whether a figure reaches the goal."""
        return value >= self.value if self.at_least else value <= self.value


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report. With a reference the figure that counts is the ratio, round by round; else our own."""

    name: str
    what: str
    ours: Series
    goal: Goal | None = None
    reference: Series | None = None
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Our figure over the reference's, for each round; empty without a reference."""
        if self.reference is None:
            return ()
        return tuple(own / other for own, other in zip(self.ours.rounds, self.reference.rounds, strict=True))

    @property
    def figure(self) -> float:
        """The median that is held against the goal."""
        return median(self.ratios) if self.ratios else self.ours.median

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or ``shown`` where nothing is asked."""
        if self.goal is None:
            return "shown"
        return "met" if self.goal.is_met_by(self.figure) else "missed"

    def document(self) -> dict[str, Any]:
        """For the JSON report."""
        return {
            "name": self.name,
            "what": self.what,
            "ours": asdict(self.ours) | {"median": self.ours.median},
            "reference": None if self.reference is None else asdict(self.reference) | {"median": self.reference.median},
            "ratios": list(self.ratios),
            "figure": self.figure,
            "goal": None if self.goal is None else asdict(self.goal),
            "verdict": self.verdict,
            "notes": list(self.notes),
            "details": self.details,
        }


def series(name: str, unit: str, rounds: Sequence[float]) -> Series:
    """A series of at least one round."""
    assert rounds, f"{name} has no rounds"
    return Series(name, unit, tuple(rounds))
