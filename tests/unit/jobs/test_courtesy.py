"""What a backlog leaves to those who have little to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bss_sync.adapters.file_lock import Lane
from bss_sync.jobs.courtesy import LOOK_SECONDS, REST_SECONDS_MAX, STAND_BACK_SECONDS_MAX, Courtesy

_NO_LANE = Lane(Path("/proc/no folder can be made here"))


class _Others:
    def __init__(self) -> None:
        self.near, self.asked = True, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.near


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_backlog_rests_as_long_as_it_worked_while_others_are_about() -> None:
    others = _Others()
    assert Courtesy(others, _NO_LANE).rest_seconds(0.2) == 0.2
    assert Courtesy(others, _NO_LANE).rest_seconds(20) == REST_SECONDS_MAX
    others.near = False
    assert Courtesy(others, _NO_LANE).rest_seconds(0.2) == 0


def test_a_backlog_asks_before_its_first_batch_and_then_not_at_every_one() -> None:
    others, clock = _Others(), _Clock()
    courtesy = Courtesy(others, _NO_LANE, clock)
    assert courtesy.needed()
    assert courtesy.needed()
    assert others.asked == 1
    clock.now += LOOK_SECONDS
    others.near = False
    assert not courtesy.needed()
    assert others.asked == 2


@contextmanager
def _for_a_moment(within: AbstractContextManager[object]) -> Iterator[threading.Event]:
    """Another thread is in ``within``, and leaves it after a moment, which the event says."""
    inside, done = threading.Event(), threading.Event()

    def work() -> None:
        with within:
            inside.set()
            time.sleep(0.03)
            done.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(5)
    yield done
    thread.join(5)


def test_who_stands_back_waits_for_the_little_work_of_another_thread() -> None:
    courtesy = Courtesy(_Others(), _NO_LANE)
    with _for_a_moment(courtesy.going_first()) as done:
        courtesy.give_way()
        assert not done.is_set(), "who has no backlog waits for nobody"
        with courtesy.standing_back():
            courtesy.give_way()
        assert done.is_set()


def test_nobody_stands_back_for_long() -> None:
    courtesy = Courtesy(_Others(), _NO_LANE)
    with courtesy.going_first(), courtesy.standing_back():
        begun = time.monotonic()
        courtesy.give_way()
        courtesy.give_way()
    assert STAND_BACK_SECONDS_MAX <= time.monotonic() - begun < STAND_BACK_SECONDS_MAX + 1


def test_batches_of_floods_take_turns_on_a_machine_whatever_process_they_are_in(tmp_path: Path) -> None:
    here, there = (Courtesy(_Others(), Lane(tmp_path, at_once=1)) for _process in range(2))
    with _for_a_moment(there.standing_back()) as done, here.standing_back():
        assert done.is_set()
