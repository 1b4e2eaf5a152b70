"""The disk is full: PostgreSQL on a small tmpfs, which needs the right to mount."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx

from tests.app import add_connection, serving, wired
from tests.chaos.stack import DURABLE, own_postgres
from tests.door_sender import Sender, account, fresh_id
from tests.servers import short_folder

REFUSED_MIN = 5
AGAIN_SECONDS = 0.5


def fill_the_disk(home: Path) -> dict[str, int]:
    """Fill the disk of ``home``, send, make room, send again. AssertionError names the promise that was broken."""
    settings = {**DURABLE, "max_wal_size": "32MB", "min_wal_size": "32MB", "wal_recycle": "off"}
    with ExitStack() as stack:
        _, server = stack.enter_context(own_postgres(home, settings))
        database = stack.enter_context(server.database())
        app, _, _ = stack.enter_context(wired(database, stack.enter_context(short_folder())))
        url = stack.enter_context(serving(app))
        client = stack.enter_context(httpx.Client(base_url=url, timeout=30))
        source, secret = add_connection(app)
        sender = Sender(client, source.name, secret)
        assert sender.send(account(), "before").status_code == 202
        stuffing = home / "stuffing"
        accepted, refused = _send_while_full(sender, stuffing)
        # A server that gave up for want of room restarts by itself; then everything is taken.
        answers = [_insist(sender, name) for name in refused]
        assert {answer.status_code for answer in answers} == {202}, [answer.text for answer in answers]
        with app.database.engine() as sql:
            stored = {row[0] for row in sql.exec_driver_sql("select message_id from message")}
        lost = {*accepted, *refused, "before"} - stored
        assert not lost, f"answered with 202 and lost: {sorted(lost)}"
        return {"accepted_while_full": len(accepted), "refused": len(refused)}


def _send_while_full(sender: Sender, stuffing: Path) -> tuple[list[str], list[str]]:
    """Leave no byte free, and send until some were refused; then make room again."""
    accepted: list[str] = []
    refused: list[str] = []
    # Without a buffer: what had no room in it would be written, and refused, again when the file is closed.
    with stuffing.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 65_536)
    try:
        while len(refused) < REFUSED_MIN:
            assert len(accepted) < 5_000, "the disk does not get full"
            name = fresh_id("full")
            answer = sender.send(_large(name), name)
            assert answer.status_code in (202, 503), answer.text
            (accepted if answer.status_code == 202 else refused).append(name)
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1
    finally:
        stuffing.unlink()
    return accepted, refused


def _large(name: str) -> dict[str, object]:
    return account(name, 1, name=f"{name} {'x' * 200}")


def _insist(sender: Sender, name: str) -> httpx.Response:
    answer = sender.send(_large(name), name)
    for _ in range(60):
        if answer.status_code == 202:
            break
        time.sleep(AGAIN_SECONDS)
        answer = sender.send(_large(name), name)
    return answer
