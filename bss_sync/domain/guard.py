"""The blast-radius guard: nothing is ended in bulk by mistake. Pure (domain.md section 7, guarantee 4).

Ends and removals are counted: per run where a run does them, and for live messages per hour. Beyond the count and
beyond the share of a connection's records, the guard stops and asks an admin.
"""

from __future__ import annotations

from dataclasses import dataclass

from bss_sync.domain.subscription import Status

GUARD_SECONDS = 3_600
"""Ends of live messages are counted over this time."""

ENDED_STATUSES = frozenset({Status.TERMINATED, Status.CANCELLED, Status.ABORTED})
"""A subscription that moves into one of these has ended, although its record lives on."""


def exceeds(ends: int, records: int, *, count: int, share: float) -> bool:
    """Whether so many ends, of so many records that lived before them, are over the count and over the share."""
    return ends > count and ends > share * records


@dataclass(frozen=True, slots=True)
class Guard:
    """The guard of one connection as a batch finds it.

    records  live records, with those that have ended within the hour; exact only as far as the share asks for it
    ended    ends within the hour, without what an admin has let through
    stopped  it has stopped already, and nobody has said a word: no end passes
    """

    count: int
    share: float
    records: int
    ended: int
    stopped: bool = False

    def admits(self, ends: int) -> bool:
        """Whether so many ends more may happen."""
        return not self.stopped and not exceeds(self.ended + ends, self.records, count=self.count, share=self.share)
