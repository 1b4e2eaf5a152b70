"""``python -m tests.chaos.late_call URL SECONDS``: one write through the product's HTTP client, begun when told to.

Says ``connected`` once a connection is open, waits for a line, sends, says what came of it, and lives on until its
standard input ends: whatever its kernel still has to send, it may.
"""

from __future__ import annotations

import sys
import time

from bss_sync.adapters.http import RequestsHttpClient
from bss_sync.domain.errors import BssSyncError


def main() -> None:
    """The call."""
    url, seconds = sys.argv[1], float(sys.argv[2])
    http = RequestsHttpClient()
    http.request("GET", f"{url}/health", allow_http_private=True)
    _say("connected")
    sys.stdin.readline()
    record = {"kind": "account", "reference": "late", "fields": {}}
    try:
        http.request("POST", f"{url}/records", json=record, allow_http_private=True, end_by=time.monotonic() + seconds)
    except BssSyncError as error:
        _say(type(error).__name__)
    else:
        _say("answered")
    sys.stdin.read()


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
