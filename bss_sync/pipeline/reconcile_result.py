"""What a reconciliation is asked for, and what it has found and done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from bss_sync.ports.connector import Observation
from bss_sync.ports.reconciliation import Difference
from bss_sync.ports.runs import Findings, Run

SAMPLE = 100
"""Differences that stand in a run's own row; all of them are kept beside it (Findings)."""


class Phase(StrEnum):
    """How far a comparison is; whoever carries it on begins there."""

    LIST = "list"  # the source is being listed
    ABSENT = "absent"  # it was listed to its end: what it lacks is looked for
    LINKS = "links"  # what is gone was dealt with: records without their links are looked for
    TARGET = "target"  # the source is dealt with: the distributor's BSS is compared


@dataclass(frozen=True, slots=True)
class Request:
    """What ``reconcile`` is asked for.

    accept  source ids that may count anew
    run     the run that is carried on, or that an admin has approved after the guard had stopped it
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


_FIGURES = (
    "listed",
    "ranges",
    "ranges_listed",
    "repaired",
    "accepted",
    "ends",
    "cursor",
    "since",
    "source_error",
    "page",
)
"""What a result hands on to whoever carries its run on."""


@dataclass
class Result:
    """What was found and done. ``source_error``: why the source could not be listed to its end (exit code 3)."""

    run_id: UUID | None
    dry_run: bool
    findings: Findings
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
    phase: Phase = Phase.LIST
    page: str | None = None
    """The cursor of the source's listing behind which it goes on."""
    started: datetime | None = None
    """PostgreSQL's time when this comparison began, in whichever process."""
    resumed: bool = False
    attempt: str = ""
    """Names this run and this pass of it: what it feeds twice is one message."""
    tell_at: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)
    sample: Sequence[Difference] = ()

    @property
    def total(self) -> int:
        """How many differences there are."""
        return sum(self.counts.values())

    @property
    def differences(self) -> Sequence[Difference]:
        """The first of them; ``findings.each()`` gives all."""
        return self.sample

    def add(self, differences: Iterable[Difference]) -> None:
        """Keep them, before anything is done about them."""
        named = list(differences)
        if named:
            self.findings.add(named)

    def sum_up(self) -> None:
        """Read what was found, in this process and before."""
        self.counts = dict(self.findings.counts())
        self.sample = list(self.findings.each(SAMPLE))

    def as_progress(self) -> dict[str, Any]:
        """What whoever carries this on has to know."""
        return {
            **{name: getattr(self, name) for name in _FIGURES},
            "phase": str(self.phase),
            "started": None if self.started is None else self.started.isoformat(),
        }

    def go_on(self, run: Run) -> None:
        """Take over what another process has done of a run."""
        self.attempt = f"{run.id}:{run.progress.get('pass', 1)}"
        for name in _FIGURES:
            if run.progress.get(name) is not None:
                setattr(self, name, run.progress[name])
        if "phase" in run.progress:
            self.resumed = True
            self.phase = Phase(run.progress["phase"])
            started = run.progress.get("started")
            self.started = None if started is None else datetime.fromisoformat(started)

    def as_json(self) -> dict[str, Any]:
        """The result as it is kept in the run; ``differences`` are the first of ``total``."""
        return {**self.summary(), "differences": [one.as_json() for one in self.sample]}

    def summary(self) -> dict[str, Any]:
        """The result without its differences."""
        return {
            "run_id": None if self.run_id is None else str(self.run_id),
            "dry_run": self.dry_run,
            "resumed": self.resumed,
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
        }
