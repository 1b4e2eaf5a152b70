"""Many requests, one transaction: what waits while a commit is on its way to the disk goes into the next one.

A ``Batcher`` gives single items in sets to a coroutine. Nothing waits for a timer: an item alone is worked on at once,
and the busier it gets the larger the sets become. ``GroupCommit`` puts the inbox behind three of them, and wakes the
workers when the answers are out. All of it happens in the event loop: a thread would take the interpreter from the
requests with every set, and they from it.

What may wait is bounded (Overloaded), how long it may wait too (DependencyDown): a database that does not answer is
never a request that hangs.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import anyio.to_thread
import structlog
from anyio import CapacityLimiter

from bss_sync.adapters.floods import Floods
from bss_sync.adapters.waker import Waker
from bss_sync.domain.errors import DependencyDown, MessageConflict, Overloaded
from bss_sync.ports.inbox import Accepted, Arrival, InboxStore, Stale

_log = structlog.get_logger(__name__)

Item = TypeVar("Item")
Answered = TypeVar("Answered")

RETRY_AFTER_SECONDS = 2
FLOOD_PAUSE_SECONDS = 0.08
"""Between two commits of floods: who waits for many answers gets them in larger sets."""
FLOOD_WEIGHT_MAX = 500
"""Messages of one such commit: PostgreSQL is at it, and not at the others', for so long."""
FLOOD_WAKE_SECONDS = 0.1
"""Workers take what a flood brings in so long at once: a batch of many costs hardly more than one of few."""
LONG_MESSAGES = 32
"""A request with more messages takes the lane of the long ones: a commit of thousands is nobody else's wait."""
WAKE_SECONDS_MAX = 1.0
"""At the end: what is not told by then the sweeper finds."""
SETS_AT_ONCE = 3
"""Sets of one lane that are on their way: one is made ready while PostgreSQL stores others."""


@dataclass(slots=True)
class _Waiting(Generic[Item, Answered]):
    """One item in the queue, and who waits for its answer."""

    item: Item
    weight: int
    future: asyncio.Future[Answered]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait and how long. Weights are in the caller's unit (messages, names)."""

    at_once: int = 1
    """Sets that are worked on at one time."""
    batch_weight_max: int = 2_000
    waiting_weight_max: int = 20_000
    wait_seconds_max: float = 5.0
    pause_seconds: float = 0.0
    """After each set, so that what comes meanwhile goes into one set and not into many."""


class Batcher(Generic[Item, Answered]):
    """Hands sets of items to ``work``, which answers each one, in order, or raises for all of them. For one event loop.

    When ``work`` raises something that is no DependencyDown for a set, every item is tried alone: one that is poison
    fails alone.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Answered]]],
        bounds: Bounds,
        *,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self._work = work
        self._bounds = bounds
        self._observe = observe
        self._queue: deque[_Waiting[Item, Answered]] = deque()
        self._waiting_weight = 0
        self._starting = False
        self._running: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._deadlines: deque[tuple[float, asyncio.Future[Answered]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def close(self, wait_seconds: float) -> None:
        """Finish what waits, for at most so long; then nothing is taken any more."""
        self._closing.set()
        deadline = time.monotonic() + wait_seconds
        while (self._queue or self._running) and (left := deadline - time.monotonic()) > 0:
            self._start()
            if self._running:
                await asyncio.wait(self._running, timeout=left)
        self._queue.clear()
        for task in self._running:
            task.cancel()

    def put(self, item: Item, weight: int = 1) -> asyncio.Future[Answered]:
        """The answer to be for one item: DependencyDown when none comes in time. Overloaded when too much waits."""
        if self._closing.is_set():
            raise DependencyDown("This process is stopping.", retry_after_seconds=RETRY_AFTER_SECONDS)
        if self._waiting_weight + weight > self._bounds.waiting_weight_max and self._queue:
            raise Overloaded("More requests wait here than may wait.", retry_after_seconds=RETRY_AFTER_SECONDS)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answered] = loop.create_future()
        self._queue.append(_Waiting(item, weight, future))
        self._waiting_weight += weight
        if not self._starting and len(self._running) < self._bounds.at_once:
            # Not before the loop has been through what is ready: the first item of many would travel alone.
            self._starting = True
            loop.call_soon(self._start)
        self._deadlines.append((loop.time() + self._bounds.wait_seconds_max, future))
        if self._timer is None:
            self._timer = loop.call_at(self._deadlines[0][0], self._give_up)
        return future

    def _give_up(self) -> None:
        """End the waiting of those whose time is over. One timer for all: each has the same time."""
        loop = asyncio.get_running_loop()
        while self._deadlines and (self._deadlines[0][0] <= loop.time() or self._deadlines[0][1].done()):
            _, future = self._deadlines.popleft()
            if not future.done():
                late = DependencyDown("PostgreSQL did not answer in time.", retry_after_seconds=RETRY_AFTER_SECONDS)
                future.set_exception(late)
        self._timer = loop.call_at(self._deadlines[0][0], self._give_up) if self._deadlines else None

    def _start(self) -> None:
        self._starting = False
        while len(self._running) < self._bounds.at_once and (batch := self._take()):
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    async def _run(self, batch: list[_Waiting[Item, Answered]]) -> None:
        if self._observe is not None:
            self._observe(len(batch))
        answers = await self._answers([waiting.item for waiting in batch])
        for waiting, answer in zip(batch, answers, strict=True):
            _give(waiting.future, answer)
        while self._deadlines and self._deadlines[0][1].done():
            self._deadlines.popleft()
        if self._bounds.pause_seconds:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._bounds.pause_seconds):
                    await self._closing.wait()

    def _take(self) -> list[_Waiting[Item, Answered]]:
        """The next set; empty when nothing waits. Who has given up waiting is left out."""
        batch: list[_Waiting[Item, Answered]] = []
        weight = 0
        while self._queue and (not batch or weight + self._queue[0].weight <= self._bounds.batch_weight_max):
            waiting = self._queue.popleft()
            self._waiting_weight -= waiting.weight
            if not waiting.future.done():
                weight += waiting.weight
                batch.append(waiting)
        return batch

    async def _answers(self, items: list[Item]) -> Sequence[Answered | Exception]:
        try:
            answers = await self._work(items)
            assert len(answers) == len(items), "every item has its answer"
        except DependencyDown as error:
            return [error] * len(items)
        except Exception as error:  # noqa: BLE001  whatever it is, it belongs to those who wait
            if len(items) == 1:
                return [error]
            return [answer for item in items for answer in await self._answers([item])]
        return answers


def _give(future: asyncio.Future[Answered], answer: Answered | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception) and not isinstance(answer, MessageConflict):
        future.set_exception(answer)
    else:
        future.set_result(answer)  # type: ignore[arg-type]  # a conflict is an answer, not a failure


Answer = Accepted | MessageConflict | Stale
_Lane = Batcher[Arrival, Answer]
AtOnce = Callable[[Sequence[Arrival]], Awaitable[Sequence[Accepted | None]]]
"""Stores what needs no closer look, in the event loop; None for every arrival that does."""


class GroupCommit:
    """The inbox for concurrent requests, in three lanes: short ones, long ones, and those of floods.

    A lane's commit is nobody's wait in another one (fair shares, docs/breakers.md).
    """

    def __init__(
        self,
        store: InboxStore,
        at_once: AtOnce,
        waker: Waker,
        *,
        bounds: Bounds | None = None,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self._store = store
        self._at_once = at_once
        self._waker = waker
        self._floods = Floods()
        usual = bounds or Bounds(at_once=SETS_AT_ONCE)
        paced = replace(usual, at_once=1, batch_weight_max=FLOOD_WEIGHT_MAX, pause_seconds=FLOOD_PAUSE_SECONDS)
        self._short = _Lane(self._accept, usual, observe=observe)
        self._long = _Lane(self._accept, usual, observe=observe)
        self._flood = _Lane(self._accept_flood, paced, observe=observe)
        # A thread for every set that may be on its way, so that no lane waits for another one's.
        self._threads = CapacityLimiter(2 * usual.at_once + paced.at_once)

    async def close(self, wait_seconds: float) -> None:
        """Commit what waits, wake the workers, stop."""
        await asyncio.gather(*(lane.close(wait_seconds) for lane in (self._short, self._long, self._flood)))
        await self._waker.close(WAKE_SECONDS_MAX)

    def put(self, arrival: Arrival) -> asyncio.Future[Answer]:
        """The inbox's answer for this arrival, after the commit; see ``Batcher.put``."""
        messages = max(1, len(arrival.changes))
        if self._floods.note(arrival.connection_id, messages):
            lane = self._flood
        else:
            lane = self._long if messages > LONG_MESSAGES else self._short
        return lane.put(arrival, messages)

    async def _accept(self, arrivals: Sequence[Arrival]) -> Sequence[Answer]:
        return await self._stored(arrivals, 0.0)

    async def _accept_flood(self, arrivals: Sequence[Arrival]) -> Sequence[Answer]:
        return await self._stored(arrivals, FLOOD_WAKE_SECONDS)

    async def _stored(self, arrivals: Sequence[Arrival], wake_after_seconds: float) -> Sequence[Answer]:
        found: list[Answer | None] = list(await self._stored_at_once(arrivals))
        left = [index for index, answer in enumerate(found) if answer is None]
        if left:
            # In a thread: it waits for PostgreSQL more than once, and makes thousands of rows of a long request.
            closer = await anyio.to_thread.run_sync(
                self._store.accept, [arrivals[index] for index in left], limiter=self._threads, abandon_on_cancel=True
            )
            for index, answer in zip(left, closer, strict=True):
                found[index] = answer
        answers = [answer for answer in found if answer is not None]
        shards = {answer.shard for answer in answers if isinstance(answer, Accepted) and answer.shard is not None}
        if shards:
            self._waker.note(shards, wake_after_seconds)
        return answers

    async def _stored_at_once(self, arrivals: Sequence[Arrival]) -> Sequence[Accepted | None]:
        try:
            return await self._at_once(arrivals)
        except Exception as error:  # noqa: BLE001  whatever it is, the closer look finds out, and says so
            _log.debug("inbox.looked_at_closely", error=type(error).__name__)
            return [None] * len(arrivals)
