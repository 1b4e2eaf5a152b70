"""A part of the tree in a listing that cannot be asked for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from uuid import UUID

from bss_sync.domain.change import Kind, stream_id
from bss_sync.ports.connector import Observation
from bss_sync.ports.reconciliation import Held, Listing


class Subtree:
    """Which of what is listed belongs below one account: by the mirror's tree, or by the listing where that differs.

    The source cannot list a part of itself, so everything is read; only what differs from the mirror is looked at.
    Accounts are listed before subscriptions, in any order among themselves: one below an account that is not known to
    be inside yet is kept until that is known.
    """

    def __init__(self, listing: Listing, connection_id: UUID, root: str) -> None:
        self._listing = listing
        self._connection_id = connection_id
        self._fresh = {root}
        self._kept: dict[str, list[tuple[Observation, Held]]] = {}
        listing.below(root)

    def has(self, held: Held) -> bool:
        """Whether the mirror has it inside."""
        return held.stream_id in self._listing.inside([held.stream_id])

    def of(self, pairs: Sequence[tuple[Observation, Held]]) -> Iterator[tuple[Observation, Held]]:
        """Those of these that are inside, and those kept before that are inside by them."""
        above = {one.source_id: self._above(one) for one, _held in pairs}
        known = [stream_id(self._connection_id, Kind.ACCOUNT, name) for name in above.values() if name is not None]
        inside = self._listing.inside([*(held.stream_id for _one, held in pairs), *known])
        for one, held in pairs:
            name = above[one.source_id]
            by_listing = name is not None and (
                name in self._fresh or stream_id(self._connection_id, Kind.ACCOUNT, name) in inside
            )
            if held.stream_id in inside or by_listing or self._is_root(one):
                yield from self._enter(one, held)
            elif name is not None and one.kind is Kind.ACCOUNT:
                self._kept.setdefault(name, []).append((one, held))

    def _is_root(self, one: Observation) -> bool:
        return one.kind is Kind.ACCOUNT and one.source_id in self._fresh

    def _enter(self, one: Observation, held: Held) -> Iterator[tuple[Observation, Held]]:
        opened = [(one, held)]
        while opened:
            seen, its = opened.pop()
            yield seen, its
            if seen.kind is Kind.ACCOUNT:
                self._fresh.add(seen.source_id)
                opened += self._kept.pop(seen.source_id, [])

    def _above(self, one: Observation) -> str | None:
        if one.body is None:
            return None
        name = one.body["parent_id"] if one.kind is Kind.ACCOUNT else one.body["account_id"]
        return None if name is None else str(name)
