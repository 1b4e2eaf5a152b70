"""`bss-sync serve` with nothing configured: one process, its own PostgreSQL, other commands beside it on its home."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from standardwebhooks.webhooks import Webhook

from bss_sync.settings import PREFIX
from tests.command_line import CommandLine
from tests.world import eventually

pytestmark = pytest.mark.slow


@contextmanager
def _serving(home: Path, *, ends: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A serve process, the address that it says it listens on; ``ends``: its exit code after SIGTERM, or before."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    process = subprocess.Popen(
        [sys.executable, "-m", "bss_sync.cli.main", "serve", "--bind", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**bare, "BSS_SYNC_HOME": str(home)},
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), line
        yield process, line.removeprefix("listening on ").strip()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == ends
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        watchdog.cancel()


def _send(address: str, connection: dict[str, str], message_id: str, kind: str, data: dict[str, Any]) -> int:
    now = datetime.now(UTC)
    body = json.dumps({"type": kind, "timestamp": now.isoformat(), "data": data})
    headers = {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(connection["secret"]).sign(message_id, now, body),
    }
    url = f"{address}/v1/connections/{connection['id']}/messages"
    return requests.post(url, data=body, headers=headers, timeout=10).status_code


def test_a_signed_message_reaches_the_mirror_and_a_second_serve_exits_2(server_home: Path) -> None:
    program = CommandLine({"BSS_SYNC_HOME": str(server_home)})
    with _serving(server_home) as (_, address):
        program.ok("product", "add", "M365")
        connection = program.ok(
            "connection", "add", "Cloud Resell", "--connector", "webhook", "--activate", "--json"
        ).json
        customer = {"id": "cust-x", "version": 1, "parent_id": None, "kind": "customer", "name": "X"}
        held = {
            "id": "sub-1", "version": 1, "account_id": "cust-x", "parent_id": None, "product": "M365",
            "status": "active", "trial": False, "start_date": None, "end_date": None, "activation_date": None,
            "cancellation_date": None, "auto_renew": True, "billing_cycle": "P1M", "term": None, "quantity": 25,
            "characteristics": {},
        }  # fmt: skip
        whole = {**customer, "number": None, "email": None}
        assert _send(address, connection, "m1", "account.created", whole) == 202
        assert _send(address, connection, "m2", "subscription.created", held) == 202
        eventually(lambda: "25 × M365, active [sub-1]" in program.ok("tree").out, seconds=15)
        second = program("serve")
        assert second.code == 2
        assert "Another bss-sync serve" in second.err


def test_after_a_kill_the_next_command_works_on_the_same_home(server_home: Path) -> None:
    program = CommandLine({"BSS_SYNC_HOME": str(server_home)})
    program.ok("product", "add", "M365")
    with _serving(server_home, ends=-signal.SIGKILL) as (process, _):
        process.kill()
        process.wait(10)
    assert "M365" in program.ok("product", "list").out
    with _serving(server_home) as (_, address):
        assert requests.get(f"{address}/healthz", timeout=10).status_code == 200
