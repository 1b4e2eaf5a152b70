"""Pages of a listing that were level, as they are known again."""

from __future__ import annotations

from dataclasses import dataclass

from bss_sync.domain.change import Kind


@dataclass(frozen=True, slots=True)
class AnsweredPage:
    """A page of a listing by its bytes, so that it is known again.

    cursor     what was asked for; empty for the first page
    rules      digest of everything that a comparison goes by beside the page and the mirror
    answer     digest of what was answered
    following  the cursor behind it; None: it is the last
    """

    cursor: str
    rules: bytes
    answer: bytes
    following: str | None


@dataclass(frozen=True, slots=True)
class LevelPage:
    """A page that was level when it was compared: ``number`` records of a kind, from ``first`` to ``last``."""

    page: AnsweredPage
    kind: Kind
    first: str
    last: str
    number: int
