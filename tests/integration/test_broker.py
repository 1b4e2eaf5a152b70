"""Wake-ups over real Redis and in one process: quick, few, and never missed for long."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dramatiq
import pytest
import redis
from dramatiq.brokers.stub import StubBroker

from bss_sync.adapters.broker import (
    HINT_MILLISECONDS,
    NAMESPACE,
    HintBroker,
    InProcessWakeUps,
    Job,
    RedisWakeUps,
    in_process_broker,
    redis_broker,
)
from bss_sync.adapters.waker import hints_in_loop
from tests.servers import RedisServer

QUEUE = f"{NAMESPACE}:hints:process"


class Taken:
    """Hints that a worker has taken, with their times."""

    def __init__(self) -> None:
        self.hints: list[tuple[int, float]] = []
        self.more = threading.Condition()

    def note(self, shard: int) -> None:
        with self.more:
            self.hints.append((shard, time.monotonic()))
            self.more.notify_all()

    def wait(self, count: int, seconds: float = 10) -> bool:
        with self.more:
            return self.more.wait_for(lambda: len(self.hints) >= count, timeout=seconds)


@contextmanager
def worker(
    broker: dramatiq.Broker, wake: InProcessWakeUps | RedisWakeUps, hold: Callable[[], object] = lambda: None
) -> Iterator[Taken]:
    taken = Taken()

    def process(*shards: int) -> None:
        wake.taken(Job.PROCESS, *shards)
        for shard in shards:
            taken.note(shard)
        hold()

    decorate = dramatiq.actor(actor_name="process", queue_name="process", broker=broker)
    decorate(process)
    running = dramatiq.Worker(broker, worker_timeout=1_000, worker_threads=2)
    running.start()
    try:
        yield taken
    finally:
        running.stop(timeout=5_000)


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> None:
    if "redis_server" in request.fixturenames:
        redis.Redis.from_url(request.getfixturevalue("redis_server")).flushdb()


def test_a_hint_in_one_process_is_taken_at_once() -> None:
    broker = in_process_broker()
    wake = InProcessWakeUps(broker)
    with worker(broker, wake) as taken:
        time.sleep(0.3)
        sent = time.monotonic()
        wake.process(7)
        assert taken.wait(1)
    assert taken.hints[0][0] == 7
    assert taken.hints[0][1] - sent < 0.1


def test_a_hint_at_rest_goes_through_redis_within_a_few_milliseconds(redis_server: str) -> None:
    wake = RedisWakeUps(redis_server)
    delays = []
    with worker(redis_broker(redis_server), wake) as taken:
        for count in range(1, 6):
            time.sleep(0.3)
            sent = time.monotonic()
            wake.process(count)
            assert taken.wait(count)
            delays.append(taken.hints[-1][1] - sent)
    # 50 ms are promised; three times that holds on a busy machine too.
    assert statistics.median(delays) < 0.15, delays


def test_a_worker_at_rest_asks_redis_a_few_times_a_second(redis_server: str) -> None:
    client = redis.Redis.from_url(redis_server)
    with worker(redis_broker(redis_server), RedisWakeUps(redis_server)):
        time.sleep(0.5)
        before = client.info("stats")["total_commands_processed"]
        time.sleep(2)
        spent = client.info("stats")["total_commands_processed"] - before
    # Five queues, each blocking for a second and then giving its sign of life (a script of two commands).
    assert spent < 80, spent


def test_a_thousand_hints_for_one_shard_are_one(redis_server: str) -> None:
    wake = RedisWakeUps(redis_server)
    for _ in range(1_000):
        wake.process(3)
    wake.process(4)
    assert redis.Redis.from_url(redis_server).llen(QUEUE) == 2


@pytest.mark.parametrize("place", ["one process", "redis"])
def test_a_hint_names_several_shards_and_is_not_sent_while_waiting_ones_name_them_all(
    redis_server: str, place: str
) -> None:
    wake: InProcessWakeUps | RedisWakeUps
    if place == "redis":
        broker: dramatiq.Broker = redis_broker(redis_server)
        wake = RedisWakeUps(redis_server)
    else:
        broker = stub = in_process_broker()
        wake = InProcessWakeUps(stub)
    wake.process(3)
    wake.process(3, 7, 12)
    wake.process(7, 12)
    wake.process()
    assert _waiting(broker) == 2
    with worker(broker, wake) as taken:
        assert taken.wait(4)
        assert sorted(shard for shard, _at in taken.hints) == [3, 3, 7, 12]
        wake.process(12, 3)
        assert taken.wait(6), "what was taken is hinted at anew"


def _waiting(broker: dramatiq.Broker) -> int:
    if isinstance(broker, StubBroker):
        return int(broker.queues["process"].qsize())
    assert isinstance(broker, HintBroker)
    waiting: int = broker.client.llen(QUEUE)
    return waiting


def test_a_hint_that_comes_while_its_work_runs_is_sent_again(redis_server: str) -> None:
    wake, go_on = RedisWakeUps(redis_server), threading.Event()
    with worker(redis_broker(redis_server), wake, go_on.wait) as taken:
        wake.process(3)
        assert taken.wait(1)
        wake.process(3)
        assert taken.wait(2)
        go_on.set()


def test_the_queue_of_a_deployment_without_workers_stays_short(redis_server: str) -> None:
    wake = RedisWakeUps(redis_server)
    for shard in range(1_500):
        wake.process(shard)
    assert redis.Redis.from_url(redis_server).llen(QUEUE) == 1_000


def test_a_hint_whose_taker_died_may_be_sent_again_after_seconds(redis_server: str) -> None:
    RedisWakeUps(redis_server).process(3)
    remaining = redis.Redis.from_url(redis_server).pttl(f"{NAMESPACE}:waiting:process:3")
    assert 0 < int(remaining) <= HINT_MILLISECONDS


def test_sending_a_hint_to_a_dead_redis_neither_raises_nor_waits(redis_process: RedisServer) -> None:
    wake = RedisWakeUps(redis_process.url)
    redis_process.kill()
    started = time.monotonic()
    for shard in range(100):
        wake.process(shard)
    assert time.monotonic() - started < 2


def test_hints_from_an_event_loop_are_the_same_hints(redis_server: str) -> None:
    async def hint() -> None:
        hints = hints_in_loop(wake)
        await hints.process(7, 12)
        await hints.process(3, 7)
        await hints.process(12)
        await hints.close()

    wake = RedisWakeUps(redis_server)
    wake.process(3)
    asyncio.run(hint())
    broker = redis_broker(redis_server)
    assert _waiting(broker) == 2, "what waiting hints name is not sent"
    with worker(broker, wake) as taken:
        assert taken.wait(3)
        assert sorted(shard for shard, _at in taken.hints) == [3, 7, 12]
        asyncio.run(hint())
        assert taken.wait(6), "what was taken is hinted at anew"


def test_hints_from_an_event_loop_to_a_dead_redis_neither_raise_nor_wait(redis_process: RedisServer) -> None:
    async def hint() -> None:
        hints = hints_in_loop(RedisWakeUps(redis_process.url))
        await hints.process(1)
        redis_process.kill()
        started = time.monotonic()
        for shard in range(100):
            await hints.process(shard)
        assert time.monotonic() - started < 2
        redis_process.start()
        for _ in range(50):
            await hints.process(5)
            if client.llen(QUEUE):
                break
            await asyncio.sleep(0.1)
        assert client.llen(QUEUE) == 1, "it is asked again after a while"
        await hints.close()

    client = redis.Redis.from_url(redis_process.url)
    asyncio.run(hint())


@pytest.mark.slow
def test_workers_recover_by_themselves_from_a_restarted_and_a_flushed_redis(redis_process: RedisServer) -> None:
    wake = RedisWakeUps(redis_process.url)

    def hint_until(taken: Taken, count: int) -> bool:
        # As the sweeper does: hint each second until somebody has taken it.
        for _ in range(15):
            wake.process(count)
            if taken.wait(count, seconds=1):
                return True
        return False

    with worker(redis_broker(redis_process.url), wake) as taken:
        assert hint_until(taken, 1)
        redis_process.kill()
        redis_process.start()
        assert hint_until(taken, 2), "after a restart"
        redis.Redis.from_url(redis_process.url).flushall()
        assert hint_until(taken, 3), "after a flush"


def test_what_a_worker_took_and_had_no_thread_for_goes_to_another_when_it_stops(redis_server: str) -> None:
    wake, go_on = RedisWakeUps(redis_server), threading.Event()
    broker = redis_broker(redis_server)
    with worker(broker, wake, lambda: go_on.wait(10)) as taken:
        for shard in range(4):
            wake.process(shard)
        assert taken.wait(2)
        time.sleep(0.2)
        assert _waiting(broker) == 0, "it has taken more than it has threads for"
        threading.Timer(1.5, go_on.set).start()
    begun = {shard for shard, _at in taken.hints}
    assert _waiting(broker) == 4 - len(begun)
    with worker(redis_broker(redis_server), wake) as other:
        assert other.wait(4 - len(begun))
    assert begun | {shard for shard, _at in other.hints} == {0, 1, 2, 3}


def test_a_hint_that_nobody_can_read_ends_no_worker(redis_server: str) -> None:
    redis.Redis.from_url(redis_server).rpush(QUEUE, b"\xff{")
    wake = RedisWakeUps(redis_server)
    with worker(redis_broker(redis_server), wake) as taken:
        wake.process(3)
        assert taken.wait(1)


def test_a_hint_of_another_release_ends_no_worker(redis_server: str) -> None:
    wake = RedisWakeUps(redis_server)
    broker = redis_broker(redis_server)
    with worker(broker, wake) as taken:
        # A job that this release does not know, and arguments that it does not expect: a hint is never worth more.
        for actor, arguments, named in (("later", (1,), {}), ("process", (1,), {"more": 2}), ("process", (), {})):
            options = {"later": {"a": 1}}
            broker.enqueue(dramatiq.Message("process", actor, args=arguments, kwargs=named, options=options))
        for shard in (3, 4, 5):
            wake.process(shard)
        assert taken.wait(3)
    assert sorted(shard for shard, _ in taken.hints) == [3, 4, 5]
    broker.close()
