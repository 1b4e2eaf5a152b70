"""The demo: the reference scenario (domain.md section 2) through real processes over HTTP, told as it happens.

Nothing is faked: ``bss-sync serve`` with its own PostgreSQL, a reseller's BSS and the distributor's BSS are processes;
people act through HTTP and the command line; every line is printed only after it was read back.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from subprocess import TimeoutExpired
from types import FrameType

from bss_sync.demo import distributor, evidence, network, opening, selling, stripe_shop
from bss_sync.demo.narration import Narrator
from bss_sync.demo.stage import NotAsPromised, Stage

__all__ = ["play"]

DONE, NOT_AS_PROMISED, INTERRUPTED = 0, 1, 130


def play(*, keep: bool) -> int:
    """Play it and return the exit code: 0, or 1 with what was expected and what was seen.

    ``keep`` leaves everything running afterwards, until Ctrl-C.
    """
    narrator = Narrator()
    try:
        with _ended_like_by_ctrl_c(), Stage() as stage:
            try:
                _tell(stage, narrator, keep=keep)
            except BrokenPipeError:
                raise
            except NotAsPromised as failed:
                return _failed(stage, narrator, failed)
            except (OSError, HTTPException, TimeoutExpired) as error:
                return _failed(stage, narrator, _unanswered(stage, error))
    except KeyboardInterrupt:
        narrator.gap()
        narrator.say("Ended; nothing is left behind.")
        return DONE if keep else INTERRUPTED
    return DONE


def _failed(stage: Stage, narrator: Narrator, failed: NotAsPromised) -> int:
    narrator.failure(
        f"NOT AS PROMISED: {failed.what}",
        f"  expected: {failed.expected}",
        f"  seen:     {failed.seen}",
        *stage.troubles(),
    )
    return NOT_AS_PROMISED


def _unanswered(stage: Stage, error: Exception) -> NotAsPromised:
    """Why a call failed: a process that has ended, else the error itself."""
    try:
        stage.check_alive()
    except NotAsPromised as ended:
        return ended
    return NotAsPromised("every process answers", "an answer", f"{type(error).__name__}: {error}")


def _tell(stage: Stage, narrator: Narrator, *, keep: bool) -> None:
    world = opening.open_world(stage, narrator)
    selling.first_sales(world)
    selling.changes(world)
    network.troubles(world)
    distributor.locks(world)
    distributor.forbidden(world)
    distributor.allowed(world)
    distributor.behind_the_back(world)
    stripe_shop.on_strange_input(world)
    evidence.prove(world)
    evidence.sum_up(world)
    if keep:
        opening.keep_running(world)


@contextmanager
def _ended_like_by_ctrl_c() -> Iterator[None]:
    """A service manager's or a parent's SIGTERM ends the processes too."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
