"""The way to one remote, with its breaker and its retry budget, which all workers share (domain/breaker.py)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from bss_sync.domain.breaker import Breaker, Outcome


@dataclass(frozen=True, slots=True)
class Remote:
    """Whose breaker: a connection's source, or the target (``connection_id`` None, the distributor's tenant)."""

    owner_id: UUID
    tenant_id: UUID
    connection_id: UUID | None


class BreakerStore(Protocol):
    """The breakers. Every method is one short transaction and uses PostgreSQL's clock."""

    def reserve(self, remote: Remote, wanted: int) -> int:
        """Take up to so many retries out of the budget; no other worker has them until ``report`` gives them back."""
        ...

    def report(self, remote: Remote, outcomes: Sequence[Outcome], *, probed: bool, taken: int = 0) -> Breaker:
        """Take into account what calls came to, in their order; ``probed`` gives the right to try back.

        ``taken`` are the retries that were reserved: they go back, and the outcomes pay for those that were made.

        An opening and a closing leave an audit entry.
        """
        ...


class Gate(Protocol):
    """One piece of work's way to a remote: asked before work is claimed, closed when it is done. Thread-safe."""

    def limit(self, usual: int) -> int:
        """How much work may be begun: none while the breaker is open, one piece to try, else ``usual``."""
        ...

    def wait_seconds(self) -> float:
        """How long no call may be begun; 0 when one may."""
        ...

    def retries(self, wanted: int) -> int:
        """How many calls may be repetitions of what has failed before, of so many: nobody else may make these."""
        ...

    def hold(self, retries: int) -> None:
        """So many retries were taken out of the budget for this gate, by the claim of what it is for."""
        ...

    def attempt(self, *, again: bool, end_by: float | None = None) -> AbstractContextManager[None]:
        """The calls of this thread within are for one piece of work; ``again``: they were made before, in vain.

        ``end_by`` (``time.monotonic()``): when it may be another worker's; nothing of these calls arrives afterwards.
        """
        ...

    def close(self) -> None:
        """Tell all workers what the calls came to."""
        ...


class FreeGate:
    """A gate that is always open, for an admin's own look at a remote."""

    def limit(self, usual: int) -> int:
        """See Gate."""
        return usual

    def wait_seconds(self) -> float:
        """See Gate."""
        return 0.0

    def retries(self, wanted: int) -> int:
        """See Gate."""
        return wanted

    def hold(self, retries: int) -> None:
        """See Gate."""

    def attempt(
        self,
        *,
        again: bool,  # noqa: ARG002 - the shape is Gate's
        end_by: float | None = None,  # noqa: ARG002 - the shape is Gate's
    ) -> AbstractContextManager[None]:
        """See Gate."""
        return nullcontext()

    def close(self) -> None:
        """See Gate."""


FREE = FreeGate()
