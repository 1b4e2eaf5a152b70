"""The hierarchy: a forest at every moment, whatever order the messages come in (domain.md section 2)."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID


def would_close_cycle(child: UUID, parent: UUID, parent_of: Callable[[UUID], UUID | None]) -> bool:
    """Whether hanging ``child`` below ``parent`` would close a cycle: whether ``child`` is ``parent`` or above it.

    ``parent_of`` gives the present parent, None at the top. The present links are a forest, so the walk ends.
    """
    at: UUID | None = parent
    while at is not None:
        if at == child:
            return True
        at = parent_of(at)
    return False
