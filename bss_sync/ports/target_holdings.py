"""What the distributor's BSS ought to hold, beside what it lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol
from uuid import UUID

from bss_sync.ports.delivery import Binding, Desired


class TargetListing(Protocol):
    """One comparison of a connection's mirror with the target's listing."""

    def look(self, record_ids: Sequence[UUID]) -> Mapping[UUID, tuple[Binding, Desired]]:
        """What these records of the connection ought to be."""
        ...

    def note(self, record_ids: Sequence[UUID]) -> frozenset[UUID]:
        """Note that the target lists these; returns those that it has listed before."""
        ...

    def unknown(self, references: Sequence[UUID]) -> frozenset[UUID]:
        """Which of these are no record's of any connection."""
        ...

    def unseen(self) -> Iterator[Sequence[tuple[Binding, Desired]]]:
        """Records that ought to be there, were not listed and are not on their way, in chunks."""
        ...


class TargetHoldings(Protocol):
    """What the target ought to hold."""

    def target_listing(self, connection_id: UUID, *, below: str | None = None) -> AbstractContextManager[TargetListing]:
        """Begin a comparison, of the account with the source id ``below`` and all below it where that is given."""
        ...

    def make_due(self, record_ids: Sequence[UUID]) -> None:
        """Deliver these records again."""
        ...
