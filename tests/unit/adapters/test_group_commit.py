"""The batcher: sets grow with the load, what may wait is bounded, a poison item fails alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

from bss_sync.adapters.group_commit import Batcher, Bounds
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
