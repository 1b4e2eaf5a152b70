"""The steps of a message's story."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One step: when, its word, a sentence, and its facts."""

    at: datetime
    word: str
    words: str
    facts: dict[str, Any]


def step(at: datetime, word: str, words: str, **facts: Any) -> Step:
    """A step; facts that are not known are left out."""
    return Step(at, word, words, {name: value for name, value in facts.items() if value is not None})


def seconds_between(begun_at: datetime, ended_at: datetime | None) -> float | None:
    """Seconds, to the millisecond; None while it lasts."""
    return None if ended_at is None else round((ended_at - begun_at).total_seconds(), 3)
