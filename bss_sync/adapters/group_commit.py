"""Many requests, one transaction: what waits while a commit is on its way to the disk goes into the next one.

A ``Batcher`` takes single items from the event loop and gives them in sets to a blocking function, in threads of its
own. Nothing waits for a timer: an item alone is worked on at once, and the busier it gets the larger the sets become.
``GroupCommit`` puts the inbox behind one, and wakes the workers when the answers are out.

What may wait is bounded (Overloaded), how long it may wait too (DependencyDown): a database that does not answer is
never a request that hangs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import structlog

from bss_sync.adapters.floods import Floods
from bss_sync.domain.errors import DependencyDown, MessageConflict, Overloaded
from bss_sync.ports.inbox import Accepted, Arrival, InboxStore, Stale
from bss_sync.ports.runtime import WakeUps

_log = structlog.get_logger(__name__)

Item = TypeVar("Item")
Answered = TypeVar("Answered")

RETRY_AFTER_SECONDS = 2
TURNS_MAX = 4
"""Turns of the event loop for which a set may still grow before the thread is told of it."""
FLOOD_PAUSE_SECONDS = 0.03
"""Between two commits of floods: who waits for many answers gets them in larger sets."""
FLOOD_WEIGHT_MAX = 500
"""Messages of one such commit: PostgreSQL is at it, and not at the others', for so long."""
FLOOD_WAKE_SECONDS = 0.1
"""Workers take what a flood brings in so long at once: a batch of many costs hardly more than one of few."""
LONG_MESSAGES = 32
"""A request with more messages takes the lane of the long ones: a commit of thousands is nobody else's wait."""


@dataclass(slots=True)
class _Waiting(Generic[Item, Answered]):
    """One item in the queue, and who waits for its answer."""

    item: Item
    weight: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Answered]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait and how long. Weights are in the caller's unit (messages, names)."""

    threads: int = 1
    batch_weight_max: int = 2_000
    waiting_weight_max: int = 20_000
    wait_seconds_max: float = 5.0
    pause_seconds: float = 0.0
    """After each set, so that what comes meanwhile goes into one set and not into many."""


class Batcher(Generic[Item, Answered]):
    """Hands sets of items to ``work``, which answers each one, in order, or raises for all of them.

    When ``work`` raises something that is no DependencyDown for a set, every item is tried alone: one that is poison
    fails alone.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Item]], Sequence[Answered]],
        bounds: Bounds,
        *,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self._name = name
        self._work = work
        self._bounds = bounds
        self._observe = observe
        self._queue: deque[_Waiting[Item, Answered]] = deque()
        self._waiting_weight = 0
        self._submitted = 0
        self._teller: asyncio.AbstractEventLoop | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to work. Items that came before wait until then."""
        for number in range(self._bounds.threads):
            thread = threading.Thread(target=self._run, name=f"{self._name}-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self, wait_seconds: float) -> None:
        """Finish what waits, for at most so long; then nothing is taken any more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        deadline = time.monotonic() + wait_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    async def submit(self, item: Item, weight: int = 1) -> Answered:
        """The answer for one item. Overloaded when too much waits; DependencyDown when no answer comes in time."""
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Item, Answered] = _Waiting(item, weight, loop, loop.create_future())
        with self._changed:
            if self._closing:
                raise DependencyDown("This process is stopping.", retry_after_seconds=RETRY_AFTER_SECONDS)
            if self._waiting_weight + weight > self._bounds.waiting_weight_max and self._queue:
                raise Overloaded("More requests wait here than may wait.", retry_after_seconds=RETRY_AFTER_SECONDS)
            self._queue.append(waiting)
            self._waiting_weight += weight
            self._submitted += 1
            if self._teller is not loop:
                self._teller = loop
                loop.call_soon(self._tell, loop, self._submitted, TURNS_MAX)
        # asyncio's own timeouts are made for any coroutine, and cost several times as much.
        timer = loop.call_later(self._bounds.wait_seconds_max, _give_up, waiting.future)
        try:
            return await waiting.future
        finally:
            timer.cancel()

    def _tell(self, loop: asyncio.AbstractEventLoop, seen: int, turns: int) -> None:
        """Wake the thread once the loop has been through what was ready, and not at the first item of many.

        The two would else take the interpreter from each other with every item, and the first would travel alone.
        """
        with self._changed:
            if self._submitted > seen and turns > 0:
                loop.call_soon(self._tell, loop, self._submitted, turns - 1)
                return
            self._teller = None
            self._changed.notify()

    def _run(self) -> None:
        while True:
            batch = self._take()
            if not batch:
                return
            if self._observe is not None:
                self._observe(len(batch))
            self._settle(batch, self._answers([waiting.item for waiting in batch]))
            if self._bounds.pause_seconds:
                self._pause()

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, self._bounds.pause_seconds)

    def _take(self) -> list[_Waiting[Item, Answered]]:
        """The next set; empty when this is to end. Who has given up waiting is left out."""
        with self._changed:
            while True:
                batch: list[_Waiting[Item, Answered]] = []
                weight = 0
                while self._queue and (not batch or weight + self._queue[0].weight <= self._bounds.batch_weight_max):
                    waiting = self._queue.popleft()
                    self._waiting_weight -= waiting.weight
                    if not waiting.future.done():
                        weight += waiting.weight
                        batch.append(waiting)
                if batch or self._closing:
                    return batch
                self._changed.wait()

    def _answers(self, items: list[Item]) -> Sequence[Answered | Exception]:
        try:
            answers = self._work(items)
            assert len(answers) == len(items), "every item has its answer"
        except DependencyDown as error:
            return [error] * len(items)
        except Exception as error:  # noqa: BLE001  whatever it is, it belongs to those who wait
            if len(items) == 1:
                return [error]
            return [answer for item in items for answer in self._answers([item])]
        return answers

    def _settle(self, batch: list[_Waiting[Item, Answered]], answers: Sequence[Answered | Exception]) -> None:
        """Give the answers out: one call into each event loop, not one per waiter."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Answered], Answered | Exception]]] = {}
        for waiting, answer in zip(batch, answers, strict=True):
            by_loop.setdefault(waiting.loop, []).append((waiting.future, answer))
        for loop, pairs in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_give, pairs)


def _give_up(future: asyncio.Future[Answered]) -> None:
    if not future.done():
        future.set_exception(
            DependencyDown("PostgreSQL did not answer in time.", retry_after_seconds=RETRY_AFTER_SECONDS)
        )


def _give(pairs: Sequence[tuple[asyncio.Future[Answered], Answered | Exception]]) -> None:
    for future, answer in pairs:
        if future.done():
            continue
        if isinstance(answer, Exception) and not isinstance(answer, MessageConflict):
            future.set_exception(answer)
        else:
            future.set_result(answer)  # type: ignore[arg-type]  # a conflict is an answer, not a failure


@dataclass(slots=True)
class Waker:
    """Wakes workers from a thread of its own, so that a slow Redis delays neither an answer nor the next commit."""

    wake: WakeUps
    _due: dict[int, float] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closing: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="waker", daemon=True)
        self._thread.start()

    def close(self, wait_seconds: float) -> None:
        """Send what is left, for at most so long. What is lost here the sweeper finds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(wait_seconds)

    def note(self, shards: Iterable[int], after_seconds: float = 0.0) -> None:
        """These shards have work, which may be left for so long."""
        due = time.monotonic() + after_seconds
        with self._changed:
            for shard in shards:
                self._due[shard] = min(due, self._due.get(shard, due))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (shards := self._take()) and not self._closing:
                    first = min(self._due.values(), default=None)
                    self._changed.wait(None if first is None else max(0.0, first - time.monotonic()))
            if not shards:
                return
            for shard in shards:
                try:
                    self.wake.process(shard)
                except Exception as error:  # noqa: BLE001  a hint is never worth more than a line in the log
                    _log.warning("wake.failed", shard=shard, error=type(error).__name__)

    def _take(self) -> list[int]:
        """What is due now; at the end, everything."""
        now = time.monotonic()
        shards = sorted(shard for shard, due in self._due.items() if due <= now or self._closing)
        for shard in shards:
            del self._due[shard]
        return shards


Answer = Accepted | MessageConflict | Stale
_Lane = Batcher[Arrival, Answer]


class GroupCommit:
    """The inbox for concurrent requests, in three lanes: short ones, long ones, and those of floods.

    A lane's commit is nobody's wait in another one (fair shares, docs/breakers.md).
    """

    def __init__(
        self,
        store: InboxStore,
        wake: WakeUps,
        *,
        bounds: Bounds | None = None,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self._store = store
        self._waker = Waker(wake)
        self._floods = Floods()
        usual = bounds or Bounds()
        self._short = _Lane("group-commit", self._accept, usual, observe=observe)
        self._long = _Lane("group-commit-long", self._accept, usual, observe=observe)
        paced = replace(usual, batch_weight_max=FLOOD_WEIGHT_MAX, pause_seconds=FLOOD_PAUSE_SECONDS)
        self._flood = _Lane("group-commit-flood", self._accept_flood, paced, observe=observe)

    def start(self) -> None:
        """Begin to commit."""
        self._waker.start()
        for lane in (self._short, self._long, self._flood):
            lane.start()

    def close(self, wait_seconds: float) -> None:
        """Commit what waits, wake the workers, stop."""
        deadline = time.monotonic() + wait_seconds
        for lane in (self._short, self._long, self._flood):
            lane.close(max(0.0, deadline - time.monotonic()))
        self._waker.close(1)

    async def accept(self, arrival: Arrival) -> Answer:
        """The inbox's answer for this arrival, after the commit."""
        messages = max(1, len(arrival.changes))
        if self._floods.note(arrival.connection_id, messages):
            lane = self._flood
        else:
            lane = self._long if messages > LONG_MESSAGES else self._short
        return await lane.submit(arrival, messages)

    def _accept(self, arrivals: Sequence[Arrival]) -> Sequence[Answer]:
        return self._stored(arrivals, 0.0)

    def _accept_flood(self, arrivals: Sequence[Arrival]) -> Sequence[Answer]:
        return self._stored(arrivals, FLOOD_WAKE_SECONDS)

    def _stored(self, arrivals: Sequence[Arrival], wake_after_seconds: float) -> Sequence[Answer]:
        answers = self._store.accept(arrivals)
        shards = {answer.shard for answer in answers if isinstance(answer, Accepted) and answer.shard is not None}
        if shards:
            self._waker.note(shards, wake_after_seconds)
        return answers
