"""A daemon that is told to end ends: also while it is still starting, and whichever of its threads was told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bss_sync.cli.early import end_when_told
from bss_sync.settings import PREFIX

_CAUGHT = re.compile(r"^SigCgt:\t([0-9a-f]+)$", re.MULTILINE)


def _listens(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has taken SIGTERM into its own hands, as the system says."""
    found = _CAUGHT.search(Path(f"/proc/{process.pid}/status").read_text())
    return found is not None and bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("command", ["serve", "web", "worker", "scheduler"])
def test_a_daemon_that_is_told_to_end_while_it_starts_ends_with_0(command: str, tmp_path: Path) -> None:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    # Nothing answers there: a daemon that did not listen yet would end with 3.
    given = {"HOME": str(tmp_path), "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    process = subprocess.Popen(
        [sys.executable, "-m", "bss_sync.cli.main", command],
        env={**bare, **{f"{PREFIX}{name}": value for name, value in given.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 20
        while not _listens(process):
            assert process.poll() is None, "it ended before it listened"
            assert time.monotonic() < deadline, "it never listened"
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        said, complaint = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, said, complaint) == (0, b"", b"")


def test_other_commands_end_by_the_signal_as_ever() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert not end_when_told(["bss-sync", "--json", "connection", "list"])
    assert signal.getsignal(signal.SIGTERM) is before


_TELLS_ANOTHER_THREAD = """
import signal, threading, time
from bss_sync.runner import wait_for_signal

def told():
    time.sleep(0.2)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    time.sleep(60)

threading.Thread(target=told, daemon=True).start()
print(wait_for_signal())
"""


def test_a_daemon_ends_whichever_of_its_threads_was_given_the_signal() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TELLS_ANOTHER_THREAD], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{signal.SIGTERM.value}\n", "")
