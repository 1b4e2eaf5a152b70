"""The kill suite in small (tests/chaos): the sizes of ``make test``, seconds at three times the promise."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.chaos import scenarios
from tests.chaos.full_disk import fill_the_disk
from tests.chaos.load import Load
from tests.chaos.scenarios import HELD, Figures, Round
from tests.chaos.stack import Stack, running_stack
from tests.chaos.verdict import verify
from tests.servers import RedisServer

pytestmark = pytest.mark.slow

SEED = 7
PATIENCE = 3.0
LEVEL_SECONDS_MAX = 60.0


@pytest.fixture
def stack(redis_process: RedisServer) -> Iterator[Stack]:
    with running_stack(SEED, without=("worker-2", "scheduler-2"), redis=redis_process) as one:
        yield one


@dataclass
class _Course:
    """Scenarios one after the other, beside another course."""

    stack: Stack
    load: Load
    broken: list[str] = field(default_factory=list)

    def play(self, scenario: Callable[[Round], Figures], size: int) -> None:
        turn = Round(self.stack, self.load, random.Random(SEED), size, PATIENCE)
        assert scenario(turn), "it says what it measured"
        self.broken += turn.broken

    def of_one_worker(self) -> None:
        """All that is done to worker-1."""
        self.play(scenarios.a_message_kills_its_process, 1)
        self.play(scenarios.a_worker_sleeps_beyond_its_lease, 1)
        self.play(scenarios.worker_dies_at_points, 0)

    def of_the_rest(self) -> None:
        """SIGTERM first, while nothing else may make a 5xx; then the network and PostgreSQL."""
        self.play(scenarios.processes_are_terminated, 5)
        self.broken += [
            f"a {status} while nothing but processes ended" for status in self.load.statuses if status >= 500
        ]
        self.play(scenarios.the_network_is_bad, 1)
        self.play(scenarios.postgres_is_restarted, 500)

    def of_redis(self) -> None:
        """Its seconds are promised of workers that run: nobody stops or kills the only one meanwhile."""
        self.play(scenarios.redis_is_lost, 1)


def test_whatever_is_killed_stopped_or_cut_off_each_answered_message_has_one_effect(stack: Stack) -> None:
    load = stack.load(SEED, "e", pairs=24, senders=4, pause_seconds=0.03)
    load.start()
    try:
        course = _Course(stack, load)
        with ThreadPoolExecutor(2) as threads:
            for future in [threads.submit(course.of_one_worker), threads.submit(course.of_the_rest)]:
                future.result()
        course.of_redis()
        load.end()
        found = verify(stack, [load], seconds_max=LEVEL_SECONDS_MAX, held=HELD)
    finally:
        load.abandon()
    assert [*course.broken, *found.faults] == []
    assert found.effects >= found.entities > 0


def test_a_full_disk_is_503_and_never_a_false_202(small_disk: Path) -> None:
    figures = fill_the_disk(small_disk)
    assert figures["refused"] > 0
