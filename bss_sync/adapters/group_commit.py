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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import structlog

from bss_sync.domain.errors import DependencyDown, MessageConflict, Overloaded
from bss_sync.ports.inbox import Accepted, Arrival, InboxStore, Stale
from bss_sync.ports.runtime import WakeUps

_log = structlog.get_logger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")

RETRY_AFTER_SECONDS = 2
LONG_MESSAGES = 32
"""A request with more messages takes the lane of the long ones: a commit of thousands is nobody else's wait."""


@dataclass(slots=True)
class _Waiting(Generic[Item, Answer]):
    """One item in the queue, and who waits for its answer."""

    item: Item
    weight: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Answer]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait and how long. Weights are in the caller's unit (messages, names)."""

    threads: int = 1
    batch_weight_max: int = 2_000
    waiting_weight_max: int = 20_000
    wait_seconds_max: float = 5.0


class Batcher(Generic[Item, Answer]):
    """Hands sets of items to ``work``, which answers each one, in order, or raises for all of them.

    When ``work`` raises something that is no DependencyDown for a set, every item is tried alone: one that is poison
    fails alone.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Item]], Sequence[Answer]],
        bounds: Bounds,
        *,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self._name = name
        self._work = work
        self._bounds = bounds
        self._observe = observe
        self._queue: deque[_Waiting[Item, Answer]] = deque()
        self._waiting_weight = 0
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

    async def submit(self, item: Item, weight: int = 1) -> Answer:
        """The answer for one item. Overloaded when too much waits; DependencyDown when no answer comes in time."""
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Item, Answer] = _Waiting(item, weight, loop, loop.create_future())
        with self._changed:
            if self._closing:
                raise DependencyDown("This process is stopping.", retry_after_seconds=RETRY_AFTER_SECONDS)
            if self._waiting_weight + weight > self._bounds.waiting_weight_max and self._queue:
                raise Overloaded("More requests wait here than may wait.", retry_after_seconds=RETRY_AFTER_SECONDS)
            self._queue.append(waiting)
            self._waiting_weight += weight
            self._changed.notify()
        try:
            return await asyncio.wait_for(waiting.future, self._bounds.wait_seconds_max)
        except TimeoutError:
            raise DependencyDown(
                "PostgreSQL did not answer in time.", retry_after_seconds=RETRY_AFTER_SECONDS
            ) from None

    def _run(self) -> None:
        while True:
            batch = self._take()
            if not batch:
                return
            if self._observe is not None:
                self._observe(len(batch))
            self._settle(batch, self._answers([waiting.item for waiting in batch]))

    def _take(self) -> list[_Waiting[Item, Answer]]:
        """The next set; empty when this is to end. Who has given up waiting is left out."""
        with self._changed:
            while True:
                batch: list[_Waiting[Item, Answer]] = []
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

    def _answers(self, items: list[Item]) -> Sequence[Answer | Exception]:
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

    def _settle(self, batch: list[_Waiting[Item, Answer]], answers: Sequence[Answer | Exception]) -> None:
        """Give the answers out: one call into each event loop, not one per waiter."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Answer], Answer | Exception]]] = {}
        for waiting, answer in zip(batch, answers, strict=True):
            by_loop.setdefault(waiting.loop, []).append((waiting.future, answer))
        for loop, pairs in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_give, pairs)


def _give(pairs: Sequence[tuple[asyncio.Future[Answer], Answer | Exception]]) -> None:
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
    _shards: set[int] = field(default_factory=set)
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

    def note(self, shards: set[int]) -> None:
        """These shards have work."""
        with self._changed:
            self._shards |= shards
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._shards and not self._closing:
                    self._changed.wait()
                shards, self._shards = self._shards, set()
            if not shards:
                return
            for shard in sorted(shards):
                try:
                    self.wake.process(shard)
                except Exception as error:  # noqa: BLE001  a hint is never worth more than a line in the log
                    _log.warning("wake.failed", shard=shard, error=type(error).__name__)


class GroupCommit:
    """The inbox for concurrent requests: one lane for short ones, one for long ones (fair shares, docs/breakers.md)."""

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
        self._short, self._long = (
            Batcher[Arrival, Accepted | MessageConflict | Stale](
                name, self._accept, bounds or Bounds(), observe=observe
            )
            for name in ("group-commit", "group-commit-long")
        )

    def start(self) -> None:
        """Begin to commit."""
        self._waker.start()
        self._short.start()
        self._long.start()

    def close(self, wait_seconds: float) -> None:
        """Commit what waits, wake the workers, stop."""
        deadline = time.monotonic() + wait_seconds
        self._short.close(wait_seconds)
        self._long.close(max(0.0, deadline - time.monotonic()))
        self._waker.close(1)

    async def accept(self, arrival: Arrival) -> Accepted | MessageConflict | Stale:
        """The inbox's answer for this arrival, after the commit."""
        lane = self._long if len(arrival.changes) > LONG_MESSAGES else self._short
        return await lane.submit(arrival, max(1, len(arrival.changes)))

    def _accept(self, arrivals: Sequence[Arrival]) -> Sequence[Accepted | MessageConflict | Stale]:
        answers = self._store.accept(arrivals)
        shards = {answer.shard for answer in answers if isinstance(answer, Accepted) and answer.shard is not None}
        if shards:
            self._waker.note(shards)
        return answers
