"""What the door answers when something under it is gone: never a false 2xx, never a hang (goals, reliability)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from sqlalchemy import create_engine, text

from bss_sync.adapters.embedded import SUPERUSER, EmbeddedPostgres
from bss_sync.bootstrap import App
from tests import servers
from tests.app import add_connection, serving, wired
from tests.at_once import Call, at_once
from tests.door_sender import Sender, account, fresh_id, slug
from tests.servers import PostgresServer, short_folder

ANSWER_SECONDS_MAX = 12.0


@dataclass
class Stoppable:
    """An application over a PostgreSQL of its own, which the test may stop."""

    app: App
    sender: Sender
    postgres: EmbeddedPostgres
    owner_url: str

    def stop(self) -> None:
        self.postgres._joined().cluster.stop()

    def start(self) -> None:
        self.postgres.ensure_running()

    def processes(self) -> list[psutil.Process]:
        """The server's own processes."""
        data = self.postgres._joined().cluster.data
        parent = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
        return [parent, *parent.children(recursive=True)]

    def execute(self, *statements: str) -> None:
        """As the owner of the tables."""
        engine = create_engine(self.owner_url)
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
        engine.dispose()

    def stored(self) -> list[str]:
        with self.app.database.engine() as connection:
            return list(connection.execute(text("select message_id from message order by seq")).scalars())


@pytest.fixture(scope="module")
def stoppable() -> Iterator[Stoppable]:
    with (
        short_folder() as home,
        EmbeddedPostgres(home, settings=servers._FAST) as postgres,
        PostgresServer(18, postgres.socket_folder).database() as database,
        short_folder() as own_home,
        wired(database, own_home) as (app, _, _),
        serving(app) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        source, secret = add_connection(app)
        yield Stoppable(app, Sender(client, source.name, secret), postgres, database.owner_url)


def _is_503(answer: httpx.Response) -> None:
    assert (answer.status_code, slug(answer)) == (503, "dependency-down")
    assert int(answer.headers["retry-after"]) >= 1


def test_a_stopped_postgresql_is_503_and_a_started_one_202(stoppable: Stoppable) -> None:
    sender = stoppable.sender
    assert sender.send(account(), "before").status_code == 202
    stoppable.stop()
    try:
        started = time.monotonic()
        _is_503(sender.send(account(), "during"))
        _is_503(Sender(sender.client, "never asked for", sender.secret).send(account()))
        assert time.monotonic() - started < ANSWER_SECONDS_MAX
        assert sender.client.get("/healthz").status_code == 200
        answer = sender.client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "not ready")
        assert "bss_sync_database_up 0.0" in sender.client.get("/metrics").text
    finally:
        stoppable.start()
    assert sender.send(account(), "during").status_code == 202
    assert sender.client.get("/readyz").status_code == 200
    assert stoppable.stored()[-2:] == ["before", "during"]


def _message(sender: Sender, name: str) -> Call:
    return lambda own: sender.through(own).send(account(), name)


def test_a_postgresql_that_hangs_is_503_in_bounded_time(stoppable: Stoppable) -> None:
    sender = stoppable.sender
    assert sender.send(account()).status_code == 202
    names = ["h-1", "h-2", "h-3", "h-4"]
    stopped = stoppable.processes()
    for process in stopped:
        process.suspend()
    try:
        started = time.monotonic()
        for answer in at_once(sender.client, [_message(sender, name) for name in names]):
            _is_503(answer)
        assert time.monotonic() - started < ANSWER_SECONDS_MAX
    finally:
        for process in reversed(stopped):
            process.resume()
    answers = [sender.send(account(), name) for name in names]
    assert {answer.status_code for answer in answers} == {202}
    assert len([name for name in stoppable.stored() if name.startswith("h-")]) == 4


def test_a_full_disk_is_503_and_nothing_is_stored_until_it_has_room(stoppable: Stoppable) -> None:
    # PostgreSQL's own error of a full disk, raised where the row would be written.
    stoppable.execute(
        "create function no_room() returns trigger language plpgsql as $$ begin "
        "raise exception 'could not extend file: No space left on device' using errcode = 'disk_full'; end $$",
        "create trigger no_room before insert on message for each row execute function no_room()",
    )
    try:
        _is_503(stoppable.sender.send(account(), "full"))
    finally:
        stoppable.execute("drop trigger no_room on message", "drop function no_room")
    assert "full" not in stoppable.stored()
    assert stoppable.sender.send(account(), "full").json() == {"accepted": 1, "duplicates": 0}


def test_connections_that_postgresql_ended_are_replaced(stoppable: Stoppable) -> None:
    sender = stoppable.sender
    for _ in range(3):
        with psycopg.connect(
            host=str(stoppable.postgres.socket_folder), user=SUPERUSER, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (servers.LOGIN,)
            )
        name = fresh_id()
        answers = [sender.send(account(), name).status_code for _ in range(2)]
        assert answers[-1] == 202
        assert set(answers) <= {202, 503}


_PROGRAM = """
import sys
from pathlib import Path
from bss_sync.bootstrap import open_app
from bss_sync.settings import load_settings
from bss_sync.telemetry import configure_logging
from bss_sync.web.server import run_web

configure_logging(form="json")
settings = load_settings(home=Path(sys.argv[1]), database_url=sys.argv[2], master_key=sys.argv[3])
with open_app(settings) as app:
    run_web(app, "127.0.0.1:0", lambda port: print(port, flush=True))
print("closed", flush=True)
"""


def test_sigterm_under_load_answers_what_has_begun_and_ends_with_0(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as database, short_folder() as home, wired(database, home) as (app, _, _):
        source, secret = add_connection(app)
        assert app.settings.master_key is not None
        key = app.settings.master_key.get_secret_value()
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(home), database.login_url, key],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            env={name: value for name, value in os.environ.items() if not name.startswith("BSS_SYNC_")},
        )
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        statuses, accepted = _load_until_terminated(process, url, source.name, secret)
        assert process.wait(30) == 0
        assert process.stdout.read().strip() == b"closed"
        process.stdout.close()
        with app.database.engine() as connection:
            stored = set(connection.execute(text("select message_id from message")).scalars())
    assert set(statuses) == {202}
    assert len(accepted) >= 20
    assert accepted <= stored


def _load_until_terminated(
    process: subprocess.Popen[bytes], url: str, connection: str, secret: str
) -> tuple[list[int], set[str]]:
    """Eight senders until the server takes no more; SIGTERM when it is well under way."""
    statuses: list[int] = []
    accepted: set[str] = set()
    enough = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            sender = Sender(client, connection, secret)
            while True:
                name = fresh_id()
                try:
                    answer = sender.send(account(), name)
                except httpx.TransportError:
                    return
                statuses.append(answer.status_code)
                if answer.status_code == 202:
                    accepted.add(name)
                if len(statuses) > 100:
                    enough.set()

    with ThreadPoolExecutor(8) as threads:
        senders = [threads.submit(send) for _ in range(8)]
        assert enough.wait(20)
        process.send_signal(signal.SIGTERM)
        for sender in senders:
            sender.result(40)
    return statuses, accepted
