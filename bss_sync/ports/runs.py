"""Long runs (reconciliations, loads): how far each is, which process has it, and what it has named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from bss_sync.ports.reconciliation import Difference

CARRIED_MAX = 5
"""A run that was lost so often without a step forward is not carried on any more: it may be what kills its process."""


@dataclass(frozen=True, slots=True)
class Run:
    """One long run. ``progress`` says where whoever carries it on goes on."""

    id: UUID
    tenant_id: UUID
    connection_id: UUID
    kind: str
    state: str
    options: Mapping[str, Any]
    progress: Mapping[str, Any]
    requested_by: str
    created_at: datetime

    @property
    def approved(self) -> bool:
        """An admin has let its ends past the guard."""
        return bool(self.progress.get("approved"))


class Findings(Protocol):
    """The differences that one run has named. They are kept as they are found, and never held here all at once."""

    def add(self, differences: Sequence[Difference]) -> None:
        """Keep these, before anything is done about them. One that the run has named before stays as it was."""
        ...

    def counts(self) -> Mapping[str, int]:
        """How many there are, by problem."""
        ...

    def each(self, limit: int | None = None) -> Iterator[Difference]:
        """The first ``limit``, or all of them, in the order in which they were found."""
        ...

    def unsettled(self, record_ids: Sequence[UUID]) -> frozenset[UUID]:
        """Those of these whose mirror was written past the line or lacks a link: nothing is to be concluded from it."""
        ...

    def renamed(self) -> bool:
        """An account is among the unsettled: the names of subscriptions are made of accounts' names."""
        ...

    def forget(self, *, everything: bool) -> None:
        """What only carrying on needs is not needed any more; with ``everything``, the differences neither."""
        ...


class RunStore(Protocol):
    """Long runs: their progress survives their process. Each method is one transaction.

    Whoever starts, carries on or claims a run has it until it is finished or let go, or until its process or its
    connection to PostgreSQL is gone: then it is lost, and another may carry it on at once. Two never have the same.
    """

    def start(
        self,
        connection_id: UUID,
        kind: str,
        options: Mapping[str, Any],
        *,
        requested_by: str,
        run_id: UUID | None = None,
    ) -> Run:
        """A new run in the state running. NotFound when there is no such connection.

        Lost ones of its kind and connection that nobody can carry on (a file is needed) are failed. The options keep
        the ``cursor`` up to which the source's changes are in the inbox.
        """
        ...

    def carry_on(self, connection_id: UUID, kind: str, options: Mapping[str, Any]) -> Run | None:
        """A lost run that was asked for the same; None when there is none."""
        ...

    def claim_lost(self) -> Run | None:
        """A lost reconciliation or backfill of any connection, unless a file is needed for it.

        One that was lost again and again without a step forward is failed.
        """
        ...

    def claim_approved(self, connection_id: UUID | None = None) -> Run | None:
        """A reconcile run that the guard stopped and an admin approved; it is running then, and begins anew.

        With a connection: one that compared a snapshot, which has to be given again. Without: any that did not.
        """
        ...

    def waiting(self, connection_id: UUID, options: Mapping[str, Any], findings: UUID) -> Run | None:
        """A run that was asked for the same and waits for an admin over the same ends as ``findings`` has named."""
        ...

    def progress(self, run_id: UUID, progress: Mapping[str, Any]) -> None:
        """How far it is. DependencyDown when it is not ours any more."""
        ...

    def checkpoint(self, connection_id: UUID) -> str | None:
        """The cursor behind which the last whole reconciliation left nothing; None when there was none."""
        ...

    def finish(self, run_id: UUID, state: str, result: Mapping[str, Any]) -> None:
        """done, stopped (the guard), or failed; with an audit entry ``run.<state>``."""
        ...

    def let_go(self, run_id: UUID) -> None:
        """Another may carry it on."""
        ...

    def interrupted(self, connection_id: UUID, kind: str) -> Run | None:
        """The last run of that kind when it failed or was lost."""
        ...

    def findings(self, run_id: UUID, connection_id: UUID) -> Findings:
        """What the run has found, also of one that is not kept yet."""
        ...
