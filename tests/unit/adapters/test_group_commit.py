"""The batcher: sets grow with the load, what may wait is bounded, a poison item fails alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

from bss_sync.adapters.group_commit import Batcher, Bounds, Waker
from bss_sync.domain.errors import DependencyDown, Overloaded


class Doubling:
    """Doubles numbers and notes each set; -1 is poison, -2 a database that is down. Waits while ``gate`` is shut."""

    def __init__(self) -> None:
        self.sets: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.gate.wait(10)
        self.sets.append(list(items))
        if -1 in items:
            raise ValueError("poison")
        if -2 in items:
            raise DependencyDown("gone")
        return [item * 2 for item in items]


async def _submitted(batcher: Batcher[int, int], items: Sequence[int]) -> list[int | BaseException]:
    return await asyncio.gather(*(batcher.submit(item) for item in items), return_exceptions=True)


def test_what_waits_during_one_set_goes_into_the_next() -> None:
    work = Doubling()
    work.gate.clear()
    batcher = Batcher("test", work, Bounds())
    batcher.start()

    async def run() -> list[int | BaseException]:
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.05)
        others = asyncio.create_task(_submitted(batcher, [2, 3, 4]))
        await asyncio.sleep(0.05)
        work.gate.set()
        return [await first, *await others]

    assert asyncio.run(run()) == [2, 4, 6, 8]
    batcher.close(5)
    assert work.sets == [[1], [2, 3, 4]]


def test_a_set_is_no_heavier_than_its_bound() -> None:
    work = Doubling()
    batcher = Batcher("test", work, Bounds(batch_weight_max=2))

    async def run() -> list[int | BaseException]:
        waiting = asyncio.create_task(_submitted(batcher, [1, 2, 3, 4, 5]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        batcher.start()
        return await waiting

    assert asyncio.run(run()) == [2, 4, 6, 8, 10]
    batcher.close(5)
    assert work.sets == [[1, 2], [3, 4], [5]]


def test_a_poison_item_fails_alone_and_a_database_that_is_down_fails_all() -> None:
    work = Doubling()
    batcher = Batcher("test", work, Bounds())
    batcher.start()
    answers = asyncio.run(_submitted(batcher, [1, -1, 3]))
    assert [answers[0], answers[2]] == [2, 6]
    assert isinstance(answers[1], ValueError)
    down = asyncio.run(_submitted(batcher, [-2]))
    assert isinstance(down[0], DependencyDown)
    batcher.close(5)


def test_too_much_waiting_is_overloaded() -> None:
    work = Doubling()
    work.gate.clear()
    batcher = Batcher("test", work, Bounds(waiting_weight_max=3))
    batcher.start()

    async def run() -> list[int | BaseException]:
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.05)
        others = asyncio.create_task(_submitted(batcher, [1, 2, 3, 4]))
        await asyncio.sleep(0.05)
        work.gate.set()
        return [await first, *await others]

    answers = asyncio.run(run())
    assert answers[:4] == [0, 2, 4, 6]
    assert isinstance(answers[4], Overloaded)
    assert answers[4].retry_after_seconds is not None
    batcher.close(5)


def test_nobody_waits_longer_than_the_bound() -> None:
    work = Doubling()
    work.gate.clear()
    batcher = Batcher("test", work, Bounds(wait_seconds_max=0.1))
    batcher.start()
    started = time.monotonic()
    answers = asyncio.run(_submitted(batcher, [1, 2]))
    assert all(isinstance(answer, DependencyDown) for answer in answers)
    assert time.monotonic() - started < 2
    work.gate.set()
    batcher.close(5)


def test_closing_finishes_what_waits_and_takes_nothing_more() -> None:
    work = Doubling()
    batcher = Batcher("test", work, Bounds())
    batcher.start()

    async def run() -> tuple[int, int | BaseException]:
        waiting = asyncio.create_task(batcher.submit(21))
        await asyncio.sleep(0)
        await asyncio.to_thread(batcher.close, 5)
        return await waiting, (await asyncio.gather(batcher.submit(1), return_exceptions=True))[0]

    answer, refused = asyncio.run(run())
    assert answer == 42
    assert isinstance(refused, DependencyDown)


def test_a_lane_that_pauses_takes_what_came_meanwhile_in_one_set() -> None:
    work = Doubling()
    batcher = Batcher("test", work, Bounds(pause_seconds=0.2))
    batcher.start()

    async def run() -> None:
        await batcher.submit(1)
        begun = time.monotonic()
        await asyncio.gather(*(batcher.submit(item) for item in (2, 3)), _later(batcher, 4))
        assert time.monotonic() - begun >= 0.1

    asyncio.run(run())
    begun = time.monotonic()
    batcher.close(5)
    assert time.monotonic() - begun < 0.15, "a pause is over when it closes"
    assert [sorted(one) for one in work.sets] == [[1], [2, 3, 4]]


async def _later(batcher: Batcher[int, int], item: int) -> int:
    await asyncio.sleep(0.05)
    return await batcher.submit(item)


class Woken:
    """Notes the shards that workers are woken for, and when."""

    def __init__(self) -> None:
        self.shards: list[tuple[int, float]] = []

    def process(self, shard: int) -> None:
        self.shards.append((shard, time.monotonic()))

    def deliver(self) -> None:
        raise AssertionError("the door knows of no deliveries")

    def fetch(self) -> None:
        raise AssertionError("the door knows of no fetches")


def test_a_hint_that_may_wait_waits_and_one_that_may_not_takes_it_along() -> None:
    woken = Woken()
    waker = Waker(woken)
    waker.start()
    begun = time.monotonic()
    waker.note({1, 2}, 0.2)
    waker.note({3})
    time.sleep(0.1)
    assert [shard for shard, _at in woken.shards] == [3]
    waker.note({2})
    time.sleep(0.05)
    assert [shard for shard, _at in woken.shards] == [3, 2]
    time.sleep(0.2)
    assert [shard for shard, _at in woken.shards] == [3, 2, 1], "once each"
    assert woken.shards[-1][1] - begun >= 0.2
    waker.note({4}, 60)
    waker.close(5)
    assert woken.shards[-1][0] == 4, "at the end nothing is held back"
