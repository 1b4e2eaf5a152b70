"""Circles: a listing that leads back to where it was would be followed for ever. Noticed in constant memory.

One place is remembered, and another one each time that twice as many have been passed (Brent's way of finding a cycle):
whatever the length of the circle, it is walked a few times at most.
"""

from __future__ import annotations

from collections.abc import Hashable


class Circle:
    """Notices a place that is come to again: a cursor says where a listing goes on, so once is enough."""

    def __init__(self) -> None:
        self._kept: Hashable = object()
        self._passed, self._span = 0, 1

    def closes(self, place: Hashable) -> bool:
        """Whether the place has been passed before."""
        if place == self._kept:
            return True
        self._passed += 1
        if self._passed == self._span:
            self._kept, self._passed, self._span = place, 0, 2 * self._span
        return False


class Round:
    """Notices that the same things are listed in the same order again and again.

    One thing may honestly be listed twice, because it moved from page to page. So it counts only when between three
    meetings of one thing just the same others came, both times.
    """

    def __init__(self) -> None:
        self._kept: Hashable = object()
        self._passed, self._span = 0, 1
        self._between = 0
        self._before: int | None = None

    def closes(self, thing: Hashable) -> bool:
        """Whether this thing ends a round that was gone before."""
        if thing == self._kept:
            if self._between == self._before:
                return True
            self._before, self._between = self._between, 0
        else:
            self._between = hash((self._between, thing))
        self._passed += 1
        if self._passed == self._span:
            self._kept, self._passed, self._span = thing, 0, 2 * self._span
            self._between, self._before = 0, None
        return False
