"""Wake-ups over Dramatiq: in this process, or through Redis. A hint may be lost at any time; work never is.

Dramatiq carries hints only ("shards 7 and 12 have work"): what there is to do stands in PostgreSQL, and the sweeper
hints anew at what is stranded. So nothing is ever retried, delayed or kept here, a hint that is still waiting is not
sent twice, and a broken Redis is logged once and otherwise of no consequence.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any
from uuid import UUID

import redis
import redis.asyncio as asyncio_redis
import structlog
from dramatiq import Broker, Message
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed, DecodeError
from redis.asyncio.retry import Retry as AsyncioRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

_log = structlog.get_logger(__name__)

NAMESPACE = "bss_sync"
HINT_MILLISECONDS = 5_000
"""A hint that nobody has taken for so long may be sent again: its taker was killed, or all are busy."""
QUEUE_LENGTH_MAX = 1_000
"""Beyond this no worker is alive; more hints would only fill Redis."""
CONNECT_SECONDS = 1.0
BLOCK_SECONDS = 1.0
FULL_SECONDS = 0.01
"""Who has as many hints as it may take ahead looks after so long whether one is done."""
READ_SECONDS = BLOCK_SECONDS + 4.0
"""A worker's connection is given up when Redis says nothing for so long after its blocking ended."""
REST_SECONDS = 1.0
"""After Redis did not answer, the door does not ask again for so long."""


class Job(StrEnum):
    """What a worker can be woken for. Each has a queue of its own, so that no kind of work hides another."""

    PROCESS = "process"  # decide the messages of some shards
    DELIVER = "deliver"  # bring the distributor's external BSS to the mirror's state
    FETCH = "fetch"  # ask sources for single entities
    POLL = "poll"  # ask sources for changes, and the external BSS for edits
    PROBE = "probe"  # look whether a silent source is alive


def in_process_broker() -> StubBroker:
    """The broker inside one process: immediate, kept in memory."""
    broker = StubBroker(middleware=[])
    _declare(broker)
    return broker


def redis_broker(url: str) -> HintBroker:
    """The broker between processes. Nothing is connected before the first hint."""
    broker = HintBroker(_client(url, timeout=READ_SECONDS))
    _declare(broker)
    return broker


def _declare(broker: Broker) -> None:
    for job in Job:
        broker.declare_queue(job)


def _client(url: str, *, timeout: float) -> redis.Redis:
    # Without redis-py's own retries: the sweeper is the retry.
    once = Retry(NoBackoff(), 0)
    return redis.Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=timeout, retry=once)


class HintBroker(Broker):
    """Dramatiq over one list of Redis per queue: who takes a hint takes it out, and there is nothing to give back.

    (The stock broker keeps what was taken until it is acknowledged, in three journeys where this one has one, and looks
    for the remains of dead workers; its consumer sleeps between looks, up to a second.) There are no delayed messages.
    """

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(middleware=[])
        self.client = client

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue."""
        self.queues.setdefault(queue_name, _queue(queue_name))

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Append a hint. ``delay`` is for brokers that keep messages."""
        assert delay is None, "a hint is for now"
        self.client.rpush(self.queues[message.queue_name], message.encode())
        return message

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 30_000) -> Consumer:
        """Take the hints of a queue; ``timeout`` are the milliseconds that it blocks for, at most BLOCK_SECONDS."""
        return _HintConsumer(self.client, self.queues[queue_name], prefetch, min(timeout / 1_000, BLOCK_SECONDS))

    def flush(self, queue_name: str) -> None:
        """Forget the hints of a queue."""
        self.client.delete(self.queues[queue_name])

    def flush_all(self) -> None:
        """Forget every hint."""
        for queue_name in self.queues:
            self.flush(queue_name)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


class _HintConsumer(Consumer):
    """Takes hints, but no more than ``prefetch`` ahead of its threads: what else waits is taken by another worker."""

    def __init__(self, client: redis.Redis, queue: str, prefetch: int, block_seconds: float) -> None:
        self._client, self._queue, self._prefetch, self._block_seconds = client, queue, prefetch, block_seconds
        self._lock = threading.Lock()
        self._at_work = 0

    def __next__(self) -> MessageProxy | None:
        if self._at_work >= self._prefetch:
            time.sleep(FULL_SECONDS)
            return None
        try:
            found: Any = self._client.blpop([self._queue], self._block_seconds)
        except redis.RedisError as error:
            closed: Any = ConnectionClosed
            raise closed(error) from None
        if found is None:
            return None
        try:
            message = MessageProxy(Message.decode(found[1]))
        except DecodeError:
            _log.warning("hint.unreadable", queue=self._queue, length=len(found[1]))
            return None
        with self._lock:
            self._at_work += 1
        return message

    def ack(self, message: MessageProxy) -> None:  # noqa: ARG002  Dramatiq says which one
        """A hint is done."""
        with self._lock:
            self._at_work -= 1

    nack = ack

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """What this worker has no time for any more, another takes."""
        for message in messages:
            try:
                self._client.rpush(self._queue, message.encode())
            except redis.RedisError as error:
                _log.debug("broker.hint_lost", error=type(error).__name__)


class _BrokerWakeUps(ABC):
    """Sends hints and leaves out those that are still waiting. Never raises."""

    def process(self, *shards: int) -> None:
        """See WakeUps."""
        if shards:
            self.hint(Job.PROCESS, *shards)

    def deliver(self) -> None:
        """See WakeUps."""
        self.hint(Job.DELIVER)

    def fetch(self) -> None:
        """See WakeUps."""
        self.hint(Job.FETCH)

    def poll(self) -> None:
        """There are sources, or the external BSS, to ask for changes."""
        self.hint(Job.POLL)

    def probe(self, connection_id: UUID) -> None:
        """This connection is silent."""
        self.hint(Job.PROBE, str(connection_id))

    @abstractmethod
    def hint(self, job: Job, *places: int | str) -> None:
        """Send one hint at these places (none: the job has but one) unless waiting ones name them all."""

    @abstractmethod
    def taken(self, job: Job, *places: int | str) -> None:
        """A worker has taken a hint at these and looks for work from now on: the next one is sent again."""


class InProcessWakeUps(_BrokerWakeUps):
    """Hints within one process."""

    def __init__(self, broker: StubBroker) -> None:
        self.broker = broker
        self._waiting: set[str] = set()
        self._lock = threading.Lock()

    def hint(self, job: Job, *places: int | str) -> None:
        """See above."""
        names = set(_names(job, places))
        with self._lock:
            if names <= self._waiting:
                return
            self._waiting |= names
        self.broker.enqueue(_message(job, places))

    def taken(self, job: Job, *places: int | str) -> None:
        """See above."""
        with self._lock:
            self._waiting.difference_update(_names(job, places))


# One journey: the hint is appended unless a waiting one names every place already.
_UNLESS_WAITING = """
local queue, fresh = KEYS[#KEYS], false
if redis.call('llen', queue) >= tonumber(ARGV[2]) then return end
for place = 1, #KEYS - 1 do
    if redis.call('set', KEYS[place], '1', 'NX', 'PX', ARGV[1]) then fresh = true end
end
if fresh then redis.call('rpush', queue, ARGV[3]) end
"""


class RedisWakeUps(_BrokerWakeUps):
    """Hints between processes."""

    def __init__(self, url: str) -> None:
        self.url = url
        # A client of its own: the workers' blocks, the door's must not.
        self._redis = _client(url, timeout=CONNECT_SECONDS)
        self._unless_waiting = self._redis.register_script(_UNLESS_WAITING)
        self._rest = _Rest()

    def hint(self, job: Job, *places: int | str) -> None:
        """See above."""
        if not self._rest.is_on:
            with self._rest.asking():
                self._unless_waiting(*_unless_waiting(job, places))

    def taken(self, job: Job, *places: int | str) -> None:
        """See above."""
        with self._rest.asking():
            self._redis.delete(*_names(job, places))


class RedisHints:
    """``RedisWakeUps.process`` for an event loop, which goes on meanwhile. Never raises."""

    def __init__(self, url: str) -> None:
        self._redis = asyncio_redis.Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=CONNECT_SECONDS,
            retry=AsyncioRetry(NoBackoff(), 0),
        )
        self._unless_waiting = self._redis.register_script(_UNLESS_WAITING)
        self._rest = _Rest()

    async def process(self, *shards: int) -> None:
        """See WakeUps."""
        if not self._rest.is_on:
            with self._rest.asking():
                await self._unless_waiting(*_unless_waiting(Job.PROCESS, shards))

    async def close(self) -> None:
        """Close the connection."""
        await self._redis.aclose()


class _Rest:
    """After Redis did not answer it is not asked again for ``REST_SECONDS``; that is said once."""

    def __init__(self) -> None:
        self._until = 0.0
        self._down = False

    @property
    def is_on(self) -> bool:
        """Whether Redis is not asked just now."""
        return time.monotonic() < self._until

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Redis is asked here: whether it answers begins the rest or ends it."""
        try:
            yield
        except (redis.RedisError, OSError) as error:
            self._until = time.monotonic() + REST_SECONDS
            if not self._down:
                self._down = True
                said = type(error).__name__
                _log.warning("redis.does_not_answer", error=said, consequence="the sweeper finds the work")
        else:
            if self._down:
                self._down = False
                _log.info("redis.answers_again")


def _unless_waiting(job: Job, places: Sequence[int | str]) -> tuple[list[str], list[int | bytes]]:
    """Keys and arguments of the script."""
    return [*_names(job, places), _queue(job)], [HINT_MILLISECONDS, QUEUE_LENGTH_MAX, _message(job, places).encode()]


def _queue(job: str) -> str:
    return f"{NAMESPACE}:hints:{job}"


def _names(job: Job, places: Sequence[int | str]) -> list[str]:
    return [f"{NAMESPACE}:waiting:{job}:{place}" for place in places] or [f"{NAMESPACE}:waiting:{job}"]


def _message(job: Job, places: Sequence[int | str]) -> Message[None]:
    return Message(queue_name=str(job), actor_name=str(job), args=tuple(places), kwargs={}, options={})
