"""Stream stores that pass on what they are asked, and note it or let something happen meanwhile, for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from bss_sync.ports.streams import Batch, Claim, LittleWork, Settled, StreamStore, Written


@dataclass
class Passing:
    """A StreamStore that asks another one."""

    inner: StreamStore

    def claim(self, shard: int, limit: int) -> list[Claim]:
        """See StreamStore."""
        return self.inner.claim(shard, limit)

    def claim_little(self, shards: Sequence[int], limit: int) -> LittleWork:
        """See StreamStore."""
        return self.inner.claim_little(shards, limit)

    def work(self, claims: Sequence[Claim], settle: Callable[[Batch], Settled]) -> tuple[Settled, Written]:
        """See StreamStore."""
        return self.inner.work(claims, settle)

    def rehearse(self, message_ids: Sequence[UUID], settle: Callable[[Batch], Settled]) -> Settled:
        """See StreamStore."""
        return self.inner.rehearse(message_ids, settle)

    def release(self, claims: Sequence[Claim]) -> None:
        """See StreamStore."""
        self.inner.release(claims)


@dataclass
class Counting(Passing):
    """Notes how large its batches are."""

    sizes: list[int] = field(default_factory=list)
    little: list[int] = field(default_factory=list)

    def claim(self, shard: int, limit: int) -> list[Claim]:
        """See StreamStore."""
        claims = super().claim(shard, limit)
        self.sizes += [len(claims)] if claims else []
        return claims

    def claim_little(self, shards: Sequence[int], limit: int) -> LittleWork:
        """See StreamStore."""
        found = super().claim_little(shards, limit)
        self.little += [len(found.claims)] if found.claims else []
        return found


@dataclass
class Meanwhile(Passing):
    """Something happens during its first work."""

    happens: Callable[[], None]
    _happened: bool = False

    def work(self, claims: Sequence[Claim], settle: Callable[[Batch], Settled]) -> tuple[Settled, Written]:
        """See StreamStore."""

        def late(batch: Batch) -> Settled:
            if not self._happened:
                self._happened = True
                self.happens()
            return settle(batch)

        return super().work(claims, late)


@dataclass
class MeanwhileClaiming(Passing):
    """Something happens at its second look for little work."""

    happens: Callable[[], None]
    _looks: int = 0

    def claim_little(self, shards: Sequence[int], limit: int) -> LittleWork:
        """See StreamStore."""
        self._looks += 1
        if self._looks == 2:
            self.happens()
        return super().claim_little(shards, limit)
