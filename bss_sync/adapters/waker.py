"""Wakes workers from an event loop: one hint for all that came within a few milliseconds.

No answer and no commit waits for a hint, however slow Redis is. And no thread sends it: it would take the interpreter
from the requests with each journey, and they from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

import structlog

from bss_sync.adapters.broker import RedisHints, RedisWakeUps
from bss_sync.ports.runtime import WakeUps

_log = structlog.get_logger(__name__)

SPACING_SECONDS = 0.01
"""Between two hints: whoever took the first one is still at what it brought, and taking one costs more than an answer.
The next one names every shard that got something meanwhile."""
TIMER_SECONDS = 0.001
"""As exactly as the event loop's timers keep the time."""


class Hints(Protocol):
    """Hints from an event loop."""

    async def process(self, *shards: int) -> None:
        """See WakeUps."""
        ...

    async def close(self) -> None:
        """No more will be sent."""
        ...


class _AtOnce:
    """Hints that leave the process by no network: there is nothing to wait for."""

    def __init__(self, wake: WakeUps) -> None:
        self._wake = wake

    async def process(self, *shards: int) -> None:
        self._wake.process(*shards)

    async def close(self) -> None:
        pass


def hints_in_loop(wake: WakeUps) -> Hints:
    """The same hints as ``wake`` sends, for an event loop."""
    return RedisHints(wake.url) if isinstance(wake, RedisWakeUps) else _AtOnce(wake)


class Waker:
    """Wakes workers; for one event loop. A hint at rest goes out at once, the next one ``spacing_seconds`` after it."""

    def __init__(self, hints: Hints, spacing_seconds: float = SPACING_SECONDS) -> None:
        self._hints = hints
        self._spacing_seconds = spacing_seconds
        self._due: dict[int, float] = {}
        self._told = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = float("inf")
        self._under_way: asyncio.Task[None] | None = None
        self._closing = False

    def note(self, shards: Iterable[int], after_seconds: float = 0.0) -> None:
        """These shards have work, which may be left for so long."""
        due = max(asyncio.get_running_loop().time() + after_seconds, self._told + self._spacing_seconds)
        for shard in shards:
            self._due[shard] = min(due, self._due.get(shard, due))
        self._arm()

    async def close(self, wait_seconds: float) -> None:
        """Send what is left, for at most so long. What is lost here the sweeper finds."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds):
                if self._under_way is not None:
                    await self._under_way
                if self._due:
                    await self._send(sorted(self._due))
        await self._hints.close()

    def _arm(self) -> None:
        """One hint is under way at a time, and one timer is set: to when the first shard is due."""
        if self._under_way is not None or self._closing or not self._due:
            return
        due = min(self._due.values())
        if due >= self._wakes_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at, self._timer = due, asyncio.get_running_loop().call_at(due, self._tell)

    def _tell(self) -> None:
        loop = asyncio.get_running_loop()
        now, self._wakes_at = loop.time(), float("inf")
        shards = sorted(shard for shard, due in self._due.items() if due <= now + TIMER_SECONDS)
        for shard in shards:
            del self._due[shard]
        if not shards:
            self._arm()
            return
        self._told = now
        self._under_way = loop.create_task(self._send(shards))

    async def _send(self, shards: list[int]) -> None:
        try:
            await self._hints.process(*shards)
        except Exception as error:  # noqa: BLE001  a hint is never worth more than a line in the log
            _log.warning("wake.failed", shards=shards, error=type(error).__name__)
        self._under_way = None
        self._arm()
