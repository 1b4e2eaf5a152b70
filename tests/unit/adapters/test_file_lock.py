"""A lane has so many places, waits for one no longer than it may, and loses none of them to the dead."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from bss_sync.adapters.file_lock import Lane

_HOLDS = """
import sys, time
from pathlib import Path
from bss_sync.adapters.file_lock import Lane
with Lane(Path(sys.argv[1]), 1).entered(0):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lane_has_so_many_places(tmp_path: Path) -> None:
    lane = Lane(tmp_path, at_once=2)
    with ExitStack() as stack:
        assert [stack.enter_context(lane.entered(0)) for _ in range(3)] == [True, True, False]
    with lane.entered(0) as again:
        assert again


def test_nobody_waits_longer_for_a_place_than_he_may(tmp_path: Path) -> None:
    lane = Lane(tmp_path, at_once=1)
    begun = time.monotonic()
    with lane.entered(0), lane.entered(0.05) as second:
        assert not second
    assert 0.05 <= time.monotonic() - begun < 1


def test_where_no_file_can_be_made_nobody_waits() -> None:
    begun = time.monotonic()
    with Lane(Path("/proc/no such folder")).entered(60) as held:
        assert not held
    assert time.monotonic() - begun < 5


def test_the_place_of_a_killed_process_is_free_again(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with Lane(tmp_path, 1).entered(0) as beside:
            assert not beside
        process.kill()
        process.wait()
    with Lane(tmp_path, 1).entered(5) as held:
        assert held
