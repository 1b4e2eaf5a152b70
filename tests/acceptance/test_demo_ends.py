"""However the demo ends, it ends every process that it started and leaves no file."""

from __future__ import annotations

import signal
import subprocess
import time

import psutil
import pytest

from bss_sync.demo import stripe_shop
from bss_sync.demo.narration import Narrator
from bss_sync.demo.stage import NotAsPromised, Stage
from tests import servers
from tests.demo_process import demo_process, left_behind

pytestmark = pytest.mark.slow

CHAPTER_SECONDS_MAX = 90


def read_until(process: subprocess.Popen[str], words: str) -> None:
    """Read the output up to a line that contains ``words``."""
    assert process.stdout is not None
    deadline = time.monotonic() + CHAPTER_SECONDS_MAX
    for line in process.stdout:
        if words in line:
            return
        assert time.monotonic() < deadline, f"{words!r} was not printed in time"
    raise AssertionError(f"the demo ended before {words!r}")


def test_a_demo_whose_reseller_dies_says_so_and_ends_everything() -> None:
    with servers.short_folder() as temporary, demo_process(temporary) as process:
        read_until(process, "The stage")
        read_until(process, "the admin imports the catalogue")
        children = psutil.Process(process.pid).children(recursive=True)
        reseller = next(one for one in children if one.cmdline()[-2:] == ["--role", "reseller"])
        reseller.kill()
        output, _ = process.communicate(timeout=CHAPTER_SECONDS_MAX)
        assert process.returncode == 1
        assert "NOT AS PROMISED: reseller runs" in output
        assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children)
        assert left_behind(temporary) == []


def test_a_demo_that_is_interrupted_ends_everything() -> None:
    with servers.short_folder() as temporary, demo_process(temporary) as process:
        read_until(process, "the admin imports the catalogue")
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 3
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=CHAPTER_SECONDS_MAX)
        assert process.returncode == 130
        assert "nothing is left behind" in output
        assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children)
        assert left_behind(temporary) == []


def test_what_is_not_seen_in_time_is_named_with_what_was_seen() -> None:
    with Stage() as stage, pytest.raises(NotAsPromised) as raised:
        stage.eventually("the answer", 42, lambda: 41, seconds=0.05)
    assert (raised.value.what, raised.value.expected, str(raised.value.seen)[:2]) == ("the answer", 42, "41")


def test_a_chapter_that_cannot_be_run_is_named_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    missing = stripe_shop.missing_packages(("json", "no_such_package_anywhere"))
    assert missing == ["no_such_package_anywhere"]
    narrator = Narrator()
    stripe_shop.not_run(narrator, missing)
    assert "NOT RUN: the Stripe chapter needs no_such_package_anywhere" in capsys.readouterr().out
    assert len(narrator.tally.not_run) == 1
