"""One thread per piece of work, and no hint lost."""

from __future__ import annotations

import threading

from bss_sync.jobs.turns import Turns


def test_a_hint_during_the_work_makes_it_run_once_more() -> None:
    turns, runs = Turns(), []
    inside, go_on = threading.Event(), threading.Event()

    def work() -> None:
        runs.append(threading.get_ident())
        inside.set()
        assert go_on.wait(5)

    thread = threading.Thread(target=turns.take, args=("shard", work))
    thread.start()
    assert inside.wait(5)
    for _ in range(10):
        assert not turns.take("shard", work), "another thread is at it"
    go_on.set()
    thread.join(5)
    assert len(runs) == 2
    assert len(set(runs)) == 1


def test_other_work_is_not_held_up() -> None:
    turns, done = Turns(), []

    def outer() -> None:
        turns.take("b", lambda: done.append("b"))

    turns.take("a", outer)
    assert done == ["b"]


def test_work_that_failed_can_be_taken_again() -> None:
    turns, done = Turns(), []

    def fail() -> None:
        raise ValueError("no")

    try:
        turns.take("a", fail)
    except ValueError:
        done.append("failed")
    assert turns.take("a", lambda: done.append("again"))
    assert done == ["failed", "again"]


def test_after_the_stop_nothing_begins() -> None:
    turns, done = Turns(), []
    turns.stop()
    turns.take("a", lambda: done.append("a"))
    assert done == []
