"""Files that are locked: what dies gives its lock back, whatever it dies of."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_LOOK_SECONDS = 0.005


def open_lock(path: Path) -> int:
    """Open the file, made where it is missing.

    A service under its own account and root's commands use one home: what root makes belongs to the folder's owner.
    """
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(handle, owner.st_uid, owner.st_gid)
    except OSError:
        os.close(handle)
        raise
    return handle


@dataclass(frozen=True, slots=True)
class Lane:
    """At most so many at one time, of all processes of this machine that share the folder. Waited for, but not long."""

    folder: Path
    at_once: int = max(1, (os.cpu_count() or 1) // 2)

    @contextmanager
    def entered(self, seconds_max: float) -> Iterator[bool]:
        """Whether one of the places is ours within; after so long, or where no file can be made, without one."""
        deadline = time.monotonic() + seconds_max
        handle = None
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while (handle := self._free_place()) is None and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                os.close(handle)

    def _free_place(self) -> int | None:
        for number in range(self.at_once):
            handle = open_lock(self.folder / f"lane-{number}.lock")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(handle)
                if not isinstance(error, BlockingIOError):
                    raise  # a file system that knows no locks: one file left open for every batch otherwise
            else:
                return handle
        return None
