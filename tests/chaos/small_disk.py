"""A small disk of our own (a tmpfs), and why there may be none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import short_folder

DISK_MEGABYTES = 256


def why_not() -> str | None:
    """Why it cannot be run here; None when it can."""
    if sys.platform != "linux":
        return "a tmpfs needs Linux"
    if os.geteuid() != 0:
        return "mounting needs root"
    try:
        with short_folder() as folder, small_disk(folder):
            return None
    except OSError as error:
        return f"mounting is not allowed here: {error}"


def _program(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if found is None:
        raise OSError(f"there is no program {name}")
    return found


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount it on ``folder``; OSError where that is not allowed."""
    arguments = [_program("mount"), "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m,mode=0755", "tmpfs", str(folder)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode != 0:
        raise OSError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run([_program("umount"), "--lazy", str(folder)], capture_output=True, check=True, timeout=20)
