"""The demo as a process, in an environment where nothing is prepared."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def demo_process(temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """A running demo in an environment that holds nothing of ours but one variable that it has to ignore."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(temporary),
        "TMPDIR": str(temporary),
        "BSS_SYNC_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
    }
    with (temporary / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "bss_sync.cli.main", "demo"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        try:
            yield process
        finally:
            # SIGTERM lets it end its own processes, whatever the test did.
            process.terminate()
            process.communicate(timeout=60)


def left_behind(temporary: Path) -> list[Path]:
    return [path for path in temporary.iterdir() if path.name.startswith("bss-sync-demo-")]
