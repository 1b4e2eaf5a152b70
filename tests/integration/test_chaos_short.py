"""The kill suite in small (tests/chaos): the sizes of ``make test``, seconds at three times the promise."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
LOAD = {"pairs": 20, "senders": 2, "pause_seconds": 0.04}


@pytest.fixture
def stack(redis_process: RedisServer) -> Iterator[Stack]:
    with running_stack(SEED, without=("worker-2", "scheduler-2"), redis=redis_process) as one:
        yield one


def _together(stack: Stack, load: Load, *plays: tuple[Callable[[Round], Figures], int]) -> list[str]:
    """Play scenarios that do not spoil each other at the same time; the promises that were not kept."""
    turns = [Round(stack, load, random.Random(SEED), size, PATIENCE) for _, size in plays]
    with ThreadPoolExecutor(len(plays)) as threads:
        futures = [threads.submit(play, turn) for (play, _), turn in zip(plays, turns, strict=True)]
        figures = [future.result() for future in futures]
    assert all(figures)
    return [words for turn in turns for words in turn.broken]


def test_whatever_is_killed_stopped_or_cut_off_each_answered_message_has_one_effect(stack: Stack) -> None:
    load = stack.load(SEED, "e", **LOAD)
    load.start()
    try:
        broken = _together(
            stack,
            load,
            (scenarios.a_message_kills_its_process, 1),
            (scenarios.processes_are_terminated, 5),
        )
        assert not [status for status in load.statuses if status >= 500], load.statuses
        broken += _together(
            stack,
            load,
            (scenarios.a_worker_sleeps_beyond_its_lease, 1),
            (scenarios.redis_is_lost, 1),
            (scenarios.the_network_is_bad, 2),
        )
        broken += _together(stack, load, (scenarios.worker_dies_at_points, 0), (scenarios.postgres_is_restarted, 500))
        load.end()
        found = verify(stack, [load], seconds_max=LEVEL_SECONDS_MAX, held=HELD)
    finally:
        load.abandon()
    assert [*broken, *found.faults] == []
    assert found.effects >= found.entities > 0


def test_a_full_disk_is_503_and_never_a_false_202(small_disk: Path) -> None:
    figures = fill_the_disk(small_disk)
    assert figures["refused"] > 0
