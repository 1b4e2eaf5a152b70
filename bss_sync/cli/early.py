"""Imported before everything that takes long to load: a daemon that is told to end while it starts ends like any other.

Without this a SIGTERM of the first half second would end the process by the signal, which a service manager reports as
a failure. Raised as SystemExit it leaves by the same doors as a later one: what was opened so far is closed.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

DAEMONS = frozenset({"serve", "web", "worker", "scheduler"})


def end_when_told(arguments: Sequence[str]) -> bool:
    """Have SIGTERM end this process with 0 when ``arguments`` (``sys.argv``) name a daemon, until it listens itself."""
    command = next((one for one in arguments[1:] if not one.startswith("-")), None)
    if command not in DAEMONS or threading.current_thread() is not threading.main_thread():
        return False
    signal.signal(signal.SIGTERM, _end)
    return True


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


end_when_told(sys.argv)
