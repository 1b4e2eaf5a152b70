"""Runs and what they have named, in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID, uuid4

from bss_sync.domain.change import Kind
from bss_sync.ports.reconciliation import Cause, Difference, Run


@dataclass
class MemoryFindings:
    """``ports.reconciliation.Findings``."""

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
class MemoryRuns:
    """``ports.reconciliation.RunStore``: states only."""

    states: dict[UUID, str] = field(default_factory=dict)

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
        now = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
        identity = run_id or uuid4()
        run = Run(identity, connection_id, connection_id, kind, "running", options, {}, requested_by, now)
        self.states[run.id] = "running"
        return run

    def carry_on(self, connection_id: UUID, kind: str, options: Mapping[str, Any]) -> Run | None:
        """See RunStore: reconciliations begin anew."""

    def claim_lost(self) -> Run | None:
        """See RunStore: reconciliations begin anew."""

    def claim_approved(self, connection_id: UUID | None = None) -> Run | None:
        """See RunStore: there is no admin here."""

    def waiting(self, connection_id: UUID, options: Mapping[str, Any], findings: UUID) -> Run | None:
        """See RunStore: a run that was stopped is not asked for here."""

    def progress(self, run_id: UUID, progress: Mapping[str, Any]) -> None:
        """See RunStore."""
        assert progress, "a step has figures"
        assert self.states[run_id] == "running", "only what runs makes progress"

    def checkpoint(self, connection_id: UUID) -> str | None:
        """See RunStore: everything is compared."""

    def finish(self, run_id: UUID, state: str, result: Mapping[str, Any]) -> None:
        """See RunStore."""
        assert result, "a result has figures"
        self.states[run_id] = state

    def let_go(self, run_id: UUID) -> None:
        """See RunStore."""

    def interrupted(self, connection_id: UUID, kind: str) -> Run | None:
        """See RunStore: reconciliations begin anew."""

    def findings(self, run_id: UUID, connection_id: UUID) -> MemoryFindings:
        """See RunStore."""
        assert run_id != connection_id, "a run is no connection"
        return MemoryFindings()
