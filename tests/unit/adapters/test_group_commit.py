"""The batcher: sets grow with the load, what may wait is bounded, a poison item fails alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from uuid import UUID

from bss_sync.adapters.group_commit import Batcher, Bounds, GroupCommit
from bss_sync.adapters.waker import Waker
from bss_sync.domain.errors import DependencyDown, MessageConflict, Overloaded
from bss_sync.ports.inbox import Accepted, Arrival, Origin, Stale
from tests.unit.adapters.hinted import Hinted


class Doubling:
    """Doubles numbers and notes each set; -1 is poison, -2 a database that is down. Waits while ``gate`` is shut."""

    def __init__(self) -> None:
        self.sets: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.sets.append(list(items))
        await self.gate.wait()
        if -1 in items:
            raise ValueError("poison")
        if -2 in items:
            raise DependencyDown("gone")
        return [item * 2 for item in items]


async def _put(batcher: Batcher[int, int], item: int) -> int:
    return await batcher.put(item)


async def _submitted(batcher: Batcher[int, int], items: Sequence[int]) -> list[int | BaseException]:
    return await asyncio.gather(*(_put(batcher, item) for item in items), return_exceptions=True)


def test_what_waits_during_one_set_goes_into_the_next() -> None:
    async def run() -> None:
        work = Doubling()
        work.gate.clear()
        batcher = Batcher(work, Bounds())
        first = batcher.put(1)
        await asyncio.sleep(0.01)
        others = asyncio.create_task(_submitted(batcher, [2, 3, 4]))
        await asyncio.sleep(0.01)
        assert work.sets == [[1]]
        work.gate.set()
        assert [await first, *await others] == [2, 4, 6, 8]
        assert work.sets == [[1], [2, 3, 4]]

    asyncio.run(run())


def test_as_many_sets_are_under_way_as_may_be() -> None:
    async def run() -> None:
        work = Doubling()
        work.gate.clear()
        batcher = Batcher(work, Bounds(at_once=2))
        waiting = []
        for item in (1, 2, 3, 4):
            waiting.append(batcher.put(item))
            await asyncio.sleep(0.01)
        assert work.sets == [[1], [2]]
        work.gate.set()
        assert await asyncio.gather(*waiting) == [2, 4, 6, 8]
        assert work.sets == [[1], [2], [3, 4]]

    asyncio.run(run())


def test_a_set_is_no_heavier_than_its_bound() -> None:
    async def run() -> None:
        work = Doubling()
        batcher = Batcher(work, Bounds(batch_weight_max=2))
        assert await _submitted(batcher, [1, 2, 3, 4, 5]) == [2, 4, 6, 8, 10]
        assert work.sets == [[1, 2], [3, 4], [5]]

    asyncio.run(run())


def test_a_poison_item_fails_alone_and_a_database_that_is_down_fails_all() -> None:
    async def run() -> None:
        batcher = Batcher(Doubling(), Bounds())
        answers = await _submitted(batcher, [1, -1, 3])
        assert [answers[0], answers[2]] == [2, 6]
        assert isinstance(answers[1], ValueError)
        down = await _submitted(batcher, [1, -2])
        assert [type(answer) for answer in down] == [DependencyDown, DependencyDown]

    asyncio.run(run())


def test_too_much_waiting_is_overloaded() -> None:
    async def run() -> None:
        work = Doubling()
        work.gate.clear()
        batcher = Batcher(work, Bounds(waiting_weight_max=3))
        first = batcher.put(0)
        await asyncio.sleep(0.01)
        others = asyncio.create_task(_submitted(batcher, [1, 2, 3, 4]))
        await asyncio.sleep(0.01)
        work.gate.set()
        answers = [await first, *await others]
        assert answers[:4] == [0, 2, 4, 6]
        assert isinstance(answers[4], Overloaded)
        assert answers[4].retry_after_seconds is not None

    asyncio.run(run())


def test_nobody_waits_longer_than_the_bound() -> None:
    async def run() -> None:
        work = Doubling()
        work.gate.clear()
        batcher = Batcher(work, Bounds(wait_seconds_max=0.1))
        started = time.monotonic()
        answers = await _submitted(batcher, [1, 2])
        assert all(isinstance(answer, DependencyDown) for answer in answers)
        assert time.monotonic() - started < 2
        # Whoever has given up is not worked on any more.
        late = batcher.put(3)
        await asyncio.sleep(0.01)
        work.gate.set()
        assert await late == 6

    asyncio.run(run())


def test_closing_finishes_what_waits_and_takes_nothing_more() -> None:
    async def run() -> None:
        batcher = Batcher(Doubling(), Bounds())
        waiting = batcher.put(21)
        await asyncio.sleep(0)
        await batcher.close(5)
        assert await waiting == 42
        refused = await _submitted(batcher, [1])
        assert isinstance(refused[0], DependencyDown)

    asyncio.run(run())


def test_closing_waits_no_longer_than_it_may() -> None:
    async def run() -> None:
        work = Doubling()
        work.gate.clear()
        batcher = Batcher(work, Bounds(wait_seconds_max=0.3))
        waiting = asyncio.create_task(_submitted(batcher, [1]))
        await asyncio.sleep(0.01)
        begun = time.monotonic()
        await batcher.close(0.1)
        assert time.monotonic() - begun < 0.25
        assert isinstance((await waiting)[0], DependencyDown)

    asyncio.run(run())


def test_a_lane_that_pauses_takes_what_came_meanwhile_in_one_set() -> None:
    async def run() -> None:
        work = Doubling()
        batcher = Batcher(work, Bounds(pause_seconds=0.2))
        await batcher.put(1)
        begun = time.monotonic()
        await asyncio.gather(*(batcher.put(item) for item in (2, 3)), _later(batcher, 4))
        assert time.monotonic() - begun >= 0.1
        begun = time.monotonic()
        await batcher.close(5)
        assert time.monotonic() - begun < 0.15, "a pause is over when it closes"
        assert [sorted(one) for one in work.sets] == [[1], [2, 3, 4]]

    asyncio.run(run())


async def _later(batcher: Batcher[int, int], item: int) -> int:
    await asyncio.sleep(0.05)
    return await batcher.put(item)


class Closely:
    """The closer look: it finds that all was stored before, and waits for nobody."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def accept(self, arrivals: Sequence[Arrival]) -> list[Accepted | MessageConflict | Stale]:
        self.seen.append([str(arrival.trace) for arrival in arrivals])
        return [Accepted(0, 1, None) for _ in arrivals]


def test_what_is_not_stored_at_once_is_looked_at_closely() -> None:
    async def at_once(arrivals: Sequence[Arrival]) -> list[Accepted | None]:
        if any(arrival.trace == "broken" for arrival in arrivals):
            raise ConnectionError("nobody knows what was stored")
        return [Accepted(1, 0, 7) if arrival.trace == "plain" else None for arrival in arrivals]

    async def run() -> None:
        closely, hints = Closely(), Hinted()
        commit = GroupCommit(closely, at_once, Waker(hints))
        answers = [commit.put(_arrival(trace)) for trace in ("plain", "known", "plain")]
        assert await asyncio.gather(*answers) == [Accepted(1, 0, 7), Accepted(0, 1, None), Accepted(1, 0, 7)]
        answers = [commit.put(_arrival(trace)) for trace in ("plain", "broken")]
        assert await asyncio.gather(*answers) == [Accepted(0, 1, None)] * 2
        await commit.close(5)
        assert closely.seen == [["known"], ["plain", "broken"]]
        assert hints.told() == [(7,)]

    asyncio.run(run())


def _arrival(trace: str) -> Arrival:
    return Arrival(UUID(int=1), UUID(int=2), 1, Origin.DOOR, (), trace)
