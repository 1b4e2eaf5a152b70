"""The waker: a hint at once, the next one after a while with all that came meanwhile; nobody waits for it.

On the event loop that the door has: its timers are not quite asyncio's.
"""

from __future__ import annotations

import asyncio
import time

import uvloop

from bss_sync.adapters.waker import Waker
from tests.unit.adapters.hinted import Hinted


def test_a_hint_that_may_wait_waits_and_one_that_may_not_takes_it_along() -> None:
    async def run() -> None:
        hints = Hinted()
        waker = Waker(hints)
        begun = time.monotonic()
        waker.note({1, 2}, 0.2)
        waker.note({3})
        await asyncio.sleep(0.1)
        assert hints.told() == [(3,)]
        waker.note({2})
        await asyncio.sleep(0.05)
        assert hints.told() == [(3,), (2,)]
        await asyncio.sleep(0.2)
        assert hints.told() == [(3,), (2,), (1,)], "once each"
        assert hints.hints[-1][1] - begun >= 0.19
        waker.note({4}, 60)
        await waker.close(5)
        assert hints.told()[-1] == (4,), "at the end nothing is held back"
        assert hints.closed

    uvloop.run(run())


def test_a_hint_goes_out_at_once_and_the_next_one_after_a_while_with_all_that_came_meanwhile() -> None:
    async def run() -> None:
        hints = Hinted()
        waker = Waker(hints, spacing_seconds=0.2)
        begun = time.monotonic()
        waker.note({1})
        await asyncio.sleep(0.05)
        waker.note({1})
        waker.note({2})
        waker.note({1})
        await asyncio.sleep(0.4)
        await waker.close(5)
        assert hints.told() == [(1,), (1, 2)]
        assert hints.hints[0][1] - begun < 0.05
        assert hints.hints[1][1] - hints.hints[0][1] >= 0.19

    uvloop.run(run())


def test_while_redis_is_slow_one_hint_is_under_way_and_the_next_one_names_all_that_came_meanwhile() -> None:
    async def run() -> None:
        hints = Hinted()
        waker = Waker(hints, spacing_seconds=0.01)
        hints.gate.clear()
        for shard in range(5):
            waker.note({shard})
            await asyncio.sleep(0.02)
        assert hints.told() == [(0,)]
        hints.gate.set()
        await asyncio.sleep(0.05)
        assert hints.told() == [(0,), (1, 2, 3, 4)]
        await waker.close(5)

    uvloop.run(run())


def test_a_hint_that_fails_holds_up_no_other_one() -> None:
    async def run() -> None:
        hints = Hinted(broken=True)
        waker = Waker(hints, spacing_seconds=0.01)
        for shard in (1, 2):
            waker.note({shard})
            await asyncio.sleep(0.05)
        assert hints.told() == [(1,), (2,)]
        await waker.close(5)

    uvloop.run(run())


def test_at_the_end_nobody_waits_long_for_a_redis_that_does_not_answer() -> None:
    async def run() -> None:
        hints = Hinted()
        waker = Waker(hints)
        hints.gate.clear()
        waker.note({1})
        await asyncio.sleep(0.05)
        waker.note({2})
        begun = time.monotonic()
        await waker.close(0.2)
        assert 0.15 < time.monotonic() - begun < 2
        assert hints.told() == [(1,)]
        assert hints.closed

    uvloop.run(run())
