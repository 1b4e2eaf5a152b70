"""What a reconciliation is asked for, and what it has found and done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from bss_sync.domain.change import Kind
from bss_sync.ports.connector import Observation
from bss_sync.ports.reconciliation import Cause, Difference, Run

DIFFERENCES_KEPT = 10_000
"""Differences that a result names; all are counted."""


@dataclass(frozen=True, slots=True)
class Request:
    """What ``reconcile`` is asked for.

    accept  source ids that may count anew
    run     the run that an admin has approved after the guard had stopped it
    quiet   a routine comparison: it leaves a run behind only when the guard stops it
    since_last  only what has changed at the source since the last reconciliation, where the source tells changes
    subtree  only the account with this source id and everything below it
    """

    connection_id: UUID
    dry_run: bool = False
    snapshot: Iterable[Observation] | None = None
    accept: frozenset[str] = frozenset()
    requested_by: str = "system"
    run: Run | None = None
    target: bool = True
    quiet: bool = False
    since_last: bool = False
    subtree: str | None = None

    def options(self) -> dict[str, Any]:
        """As the run keeps them, for whoever carries it on."""
        return {
            "dry_run": self.dry_run,
            "snapshot": self.snapshot is not None,
            "accept": sorted(self.accept),
            "since_last": self.since_last,
            "subtree": self.subtree,
        }


@dataclass
class Result:
    """What was found and done. ``source_error``: why the source could not be listed to its end (exit code 3)."""

    run_id: UUID | None
    dry_run: bool
    listed: int = 0
    ranges: int = 0
    """Ranges that were compared as a whole; of these ``ranges_listed`` differed. 0 where everything was listed."""
    ranges_listed: int = 0
    repaired: int = 0
    accepted: int = 0
    ends: int = 0
    stopped: bool = False
    cursor: str | None = None
    """Where the source's changes go on after this comparison: the next one can begin there."""
    since: str | None = None
    """The cursor from which changes were compared; None: everything was."""
    source_error: str | None = None
    target_error: str | None = None
    tell_at: float = 0.0
    renamed: bool = False
    """An account is among these: the names of subscriptions are made of accounts' names."""
    unsettled: set[UUID] = field(default_factory=set)
    """Records whose mirror was written past the line: until it is put right, nothing is to be concluded from it."""
    counts: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many differences there are."""
        return self.counts.total()

    def add(self, differences: Iterable[Difference]) -> None:
        """Count them, and name as many as a result may."""
        for difference in differences:
            self.counts[str(difference.problem)] += 1
            if difference.cause is Cause.OVERWRITTEN:
                self.unsettled.add(difference.record_id)
                self.renamed |= difference.kind is Kind.ACCOUNT
            if len(self.differences) < DIFFERENCES_KEPT:
                self.differences.append(difference)

    def as_json(self) -> dict[str, Any]:
        """The result as it is printed and kept in the run."""
        return {
            "run_id": None if self.run_id is None else str(self.run_id),
            "dry_run": self.dry_run,
            "listed": self.listed,
            "ranges": self.ranges,
            "ranges_listed": self.ranges_listed,
            "repaired": self.repaired,
            "accepted": self.accepted,
            "ends": self.ends,
            "cursor": self.cursor,
            "since": self.since,
            "stopped": self.stopped,
            "source_error": self.source_error,
            "target_error": self.target_error,
            "total": self.total,
            "counts": dict(sorted(self.counts.items())),
            "differences": [one.as_json() for one in self.differences],
        }
