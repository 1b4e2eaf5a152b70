"""Wake-ups over Dramatiq: in this process, or through Redis. A hint may be lost at any time; work never is.

Dramatiq carries hints only ("shards 7 and 12 have work"): what there is to do stands in PostgreSQL, and the sweeper
hints anew at what is stranded. So nothing is ever retried, delayed or kept here, a hint that is still waiting is not
sent twice, and a broken Redis is logged once and otherwise of no consequence.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum
from typing import Any
from uuid import UUID

import redis
import structlog
from dramatiq import Broker, Message
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed
from redis.backoff import NoBackoff
from redis.retry import Retry

_log = structlog.get_logger(__name__)

NAMESPACE = "bss_sync"
HINT_MILLISECONDS = 5_000
"""A hint that nobody has taken for so long may be sent again: its taker was killed, or all are busy."""
QUEUE_LENGTH_MAX = 1_000
"""Beyond this no worker is alive; more hints would only fill Redis."""
CONNECT_SECONDS = 1.0
BLOCK_SECONDS = 1
READ_SECONDS = BLOCK_SECONDS + 4.0
"""A worker's connection is given up when Redis says nothing for so long after its blocking ended."""
REST_SECONDS = 1.0
"""After Redis did not answer, the door does not ask again for so long."""


class Job(StrEnum):
    """What a worker can be woken for. Each has a queue of its own, so that no kind of work hides another."""

    PROCESS = "process"  # decide the messages of one shard
    DELIVER = "deliver"  # bring the distributor's external BSS to the mirror's state
    FETCH = "fetch"  # ask sources for single entities
    POLL = "poll"  # ask sources for changes, and the external BSS for edits
    PROBE = "probe"  # look whether a silent source is alive


def in_process_broker() -> StubBroker:
    """The broker inside one process: immediate, kept in memory."""
    broker = StubBroker(middleware=[])
    _declare(broker)
    return broker


def redis_broker(url: str) -> RedisBroker:
    """The broker between processes. Nothing is connected before the first hint."""
    broker = BlockingRedisBroker(client=_client(url, timeout=READ_SECONDS))
    _declare(broker)
    return broker


def _declare(broker: Broker) -> None:
    for job in Job:
        broker.declare_queue(job)


def _client(url: str, *, timeout: float) -> redis.Redis:
    # Without redis-py's own retries: the sweeper is the retry.
    once = Retry(NoBackoff(), 0)
    return redis.Redis.from_url(url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=timeout, retry=once)


class BlockingRedisBroker(RedisBroker):
    """Dramatiq's Redis broker, but its consumers block in Redis: a hint at rest is taken at once, and idling is free.

    (The stock consumer sleeps between looks, up to a second.) There are no delayed messages and no retries.
    """

    def __init__(self, *, client: redis.Redis) -> None:
        begin: Any = super().__init__  # without annotations in dramatiq
        begin(middleware=[], namespace=NAMESPACE, client=client)

    @property
    def consumer_class(self) -> type[Consumer]:
        """The consumer that blocks."""
        return _BlockingConsumer

    def declare_queue(self, queue_name: str) -> None:
        """Declare a queue without the companion for delayed messages, which nobody uses."""
        if queue_name not in self.queues:
            self.emit_before("declare_queue", queue_name)
            self.queues.add(queue_name)
            self.emit_after("declare_queue", queue_name)


class _BlockingConsumer(_RedisConsumer):
    """Waits for the queue's list to have an element, then fetches as usual."""

    broker: BlockingRedisBroker

    def __next__(self) -> MessageProxy | None:
        try:
            if not self.message_cache and not self._wait():
                return None
            # Never sleeps: there is something, or another worker was quicker and the next wait blocks again.
            self.timeout, self.misses = 0, 0
            fetch: Any = super().__next__  # without annotations in dramatiq
            message: MessageProxy | None = fetch()
        except redis.RedisError as error:
            closed: Any = ConnectionClosed
            raise closed(error) from None
        return message

    def _wait(self) -> bool:
        """True once there is a message to fetch; the fetch after a vain wait is this worker's heartbeat."""
        if self.outstanding_message_count >= self.prefetch:
            time.sleep(0.01)
            return False
        key = f"{self.broker.namespace}:{self.queue_name}"
        # Moving the head to the head waits for an element and leaves everything as it was.
        self.broker.client.blmove(key, key, BLOCK_SECONDS, "LEFT", "LEFT")
        return True

    def ack(self, message: MessageProxy) -> None:
        """A hint is done whether or not Redis hears of it: its worker must not wait for that."""
        self._forget(super().ack, message)

    def nack(self, message: MessageProxy) -> None:
        """Likewise."""
        self._forget(super().nack, message)

    def _forget(self, settle: Any, message: MessageProxy) -> None:
        try:
            settle(message)
        except (ConnectionClosed, redis.RedisError) as error:
            _log.debug("broker.ack_lost", error=type(error).__name__)


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
        """Send one hint at these places (none: the job has but one), but for those that a waiting hint names."""

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
        asked = set(_names(job, places))
        with self._lock:
            fresh = asked - self._waiting
            self._waiting |= fresh
        if fresh:
            self.broker.enqueue(_message(job, [place for place in places if _name(job, place) in fresh]))

    def taken(self, job: Job, *places: int | str) -> None:
        """See above."""
        with self._lock:
            self._waiting.difference_update(_names(job, places))


_THAT_DO_NOT_WAIT = """
local fresh = {}
if redis.call('llen', KEYS[#KEYS]) >= tonumber(ARGV[2]) then return fresh end
for place = 1, #KEYS - 1 do
    if redis.call('set', KEYS[place], '1', 'NX', 'PX', ARGV[1]) then fresh[#fresh + 1] = place end
end
return fresh
"""


class RedisWakeUps(_BrokerWakeUps):
    """Hints between processes."""

    def __init__(self, url: str) -> None:
        # A client of its own: the workers' blocks, the door's must not.
        self._redis = _client(url, timeout=CONNECT_SECONDS)
        self._that_do_not_wait = self._redis.register_script(_THAT_DO_NOT_WAIT)
        self._sender = BlockingRedisBroker(client=self._redis)
        self._rest_until = 0.0
        self._down = False

    def hint(self, job: Job, *places: int | str) -> None:
        """See above."""
        if time.monotonic() < self._rest_until:
            return
        try:
            keys = [*_names(job, places), f"{NAMESPACE}:{job}"]
            fresh = self._that_do_not_wait(keys=keys, args=[HINT_MILLISECONDS, QUEUE_LENGTH_MAX])
            if fresh:
                self._sender.enqueue(_message(job, [places[number - 1] for number in fresh] if places else ()))
        except (redis.RedisError, OSError) as error:
            self._rest(error)
        else:
            if self._down:
                self._down = False
                _log.info("redis.answers_again")

    def taken(self, job: Job, *places: int | str) -> None:
        """See above."""
        try:
            self._redis.delete(*_names(job, places))
        except (redis.RedisError, OSError) as error:
            self._rest(error)

    def _rest(self, error: Exception) -> None:
        self._rest_until = time.monotonic() + REST_SECONDS
        if not self._down:
            self._down = True
            _log.warning("redis.does_not_answer", error=type(error).__name__, consequence="the sweeper finds the work")


def _names(job: Job, places: Sequence[int | str]) -> list[str]:
    return [_name(job, place) for place in places] or [f"{NAMESPACE}:hint:{job}"]


def _name(job: Job, place: int | str) -> str:
    return f"{NAMESPACE}:hint:{job}:{place}"


def _message(job: Job, places: Sequence[int | str]) -> Message[None]:
    return Message(queue_name=str(job), actor_name=str(job), args=tuple(places), kwargs={}, options={})
