"""Runs and what they have named, in memory."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any
from uuid import UUID, uuid4

from bss_sync.domain.change import Kind
from bss_sync.domain.errors import DependencyDown
from bss_sync.ports.reconciliation import Cause, Difference
from bss_sync.ports.runs import CARRIED_MAX, Run
from bss_sync.testing.simulation.line import SimulatedLine


@dataclass
class MemoryFindings:
    """``ports.runs.Findings``."""

    named: dict[tuple[object, ...], Difference] = field(default_factory=dict)

    def add(self, differences: Sequence[Difference]) -> None:
        """See Findings."""
        for one in differences:
            self.named.setdefault((one.record_id, one.place, one.problem, one.field), one)

    def counts(self) -> Mapping[str, int]:
        """See Findings."""
        return Counter(str(one.problem) for one in self.named.values())

    def each(self, limit: int | None = None) -> Iterator[Difference]:
        """See Findings."""
        yield from islice(self.named.values(), limit)

    def unsettled(self, record_ids: Sequence[UUID]) -> frozenset[UUID]:
        """See Findings."""
        astray = (Cause.OVERWRITTEN, Cause.NOT_LINKED)
        bent = {one.record_id for one in self.named.values() if one.cause in astray}
        return frozenset(bent) & frozenset(record_ids)

    def renamed(self) -> bool:
        """See Findings."""
        return any(one.cause is Cause.OVERWRITTEN and one.kind is Kind.ACCOUNT for one in self.named.values())

    def forget(self, *, everything: bool) -> None:
        """See Findings."""
        if everything:
            self.named.clear()


@dataclass
class RunTable:
    """The runs of all processes, and which of them has which."""

    line: SimulatedLine
    cursor: Callable[[], str | None]
    """Up to where the source's changes are in the inbox."""
    runs: dict[UUID, Run] = field(default_factory=dict)
    results: dict[UUID, Mapping[str, Any]] = field(default_factory=dict)
    named: dict[UUID, MemoryFindings] = field(default_factory=dict)
    holders: dict[UUID, object] = field(default_factory=dict)

    def let_go_of_all(self, process: object) -> None:
        """A process is gone."""
        self.holders = {run: holder for run, holder in self.holders.items() if holder is not process}


class MemoryRuns:
    """``ports.runs.RunStore`` of one process. Who forgets it has let go of its runs, as when it dies."""

    def __init__(self, table: RunTable) -> None:
        self._table = table
        self._process = object()
        weakref.finalize(self, table.let_go_of_all, self._process)

    def start(
        self,
        connection_id: UUID,
        kind: str,
        options: Mapping[str, Any],
        *,
        requested_by: str,
        run_id: UUID | None = None,
    ) -> Run:
        """See RunStore."""
        identity, now = run_id or uuid4(), self._table.line.now
        options = {**options, "cursor": self._table.cursor()}
        run = Run(identity, connection_id, connection_id, kind, "running", options, {"pass": 1}, requested_by, now)
        self._table.runs[identity] = run
        self._table.holders[identity] = self._process
        return run

    def carry_on(self, connection_id: UUID, kind: str, options: Mapping[str, Any]) -> Run | None:
        """See RunStore."""
        alike = (connection_id, kind, dict(options))
        for run in list(self._table.runs.values()):
            if run.state != "running" or run.id in self._table.holders:
                continue
            asked = {name: value for name, value in run.options.items() if name != "cursor"}
            if (run.connection_id, run.kind, asked) != alike:
                continue
            carried = run.progress.get("carried", 0)
            if carried >= CARRIED_MAX:
                self._table.runs[run.id] = replace(run, state="failed")
                continue
            carried_on = replace(run, progress={**run.progress, "carried": carried + 1})
            self._table.runs[run.id] = carried_on
            self._table.holders[run.id] = self._process
            return carried_on
        return None

    def claim_lost(self) -> Run | None:
        """See RunStore: whoever asks for the same carries it on."""

    def claim_approved(self, connection_id: UUID | None = None) -> Run | None:
        """See RunStore: no admin approves here."""

    def waiting(self, connection_id: UUID, options: Mapping[str, Any], findings: UUID) -> Run | None:
        """See RunStore: a run that was stopped is not asked for here."""

    def progress(self, run_id: UUID, progress: Mapping[str, Any]) -> None:
        """See RunStore."""
        assert progress, "a step has figures"
        run = self._held(run_id)
        assert run.state == "running", "only what runs makes progress"
        self._table.runs[run_id] = replace(run, progress={**run.progress, "carried": 0, **progress})

    def checkpoint(self, connection_id: UUID) -> str | None:
        """See RunStore."""
        whole = [
            (self._table.results[run.id], run.options)
            for run in self._table.runs.values()
            if (run.connection_id, run.kind, run.state) == (connection_id, "reconcile", "done")
            and run.options["subtree"] is None
        ]
        left = [result.get("cursor") or asked["cursor"] for result, asked in whole if result["source_error"] is None]
        return left[-1] if left else None

    def finish(self, run_id: UUID, state: str, result: Mapping[str, Any]) -> None:
        """See RunStore."""
        assert result, "a result has figures"
        self._table.runs[run_id] = replace(self._held(run_id), state=state)
        self._table.results[run_id] = result
        self.let_go(run_id)

    def let_go(self, run_id: UUID) -> None:
        """See RunStore."""
        if self._table.holders.get(run_id) is self._process:
            del self._table.holders[run_id]

    def interrupted(self, connection_id: UUID, kind: str) -> Run | None:
        """See RunStore: a load begins anew."""

    def findings(self, run_id: UUID, connection_id: UUID) -> MemoryFindings:
        """See RunStore."""
        assert run_id != connection_id, "a run is no connection"
        return self._table.named.setdefault(run_id, MemoryFindings())

    def _held(self, run_id: UUID) -> Run:
        if self._table.holders.get(run_id) is not self._process:
            raise DependencyDown("The run was lost; it is carried on.")
        return self._table.runs[run_id]
