"""Hints that are noted instead of sent."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field


@dataclass
class Hinted:
    """Notes the shards that workers are woken for, and when. Waits while ``gate`` is shut; ``broken`` raises."""

    hints: list[tuple[tuple[int, ...], float]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    broken: bool = False
    closed: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    def told(self) -> list[tuple[int, ...]]:
        """Which shards each hint named."""
        return [shards for shards, _at in self.hints]

    async def process(self, *shards: int) -> None:
        """Note a hint."""
        self.hints.append((shards, time.monotonic()))
        await self.gate.wait()
        if self.broken:
            raise ConnectionError("no Redis")

    async def close(self) -> None:
        """Note that no more will come."""
        self.closed = True
