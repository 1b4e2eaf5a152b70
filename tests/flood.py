"""A flood and those beside it: real processes, signed messages over HTTP, and how long each takes to be visible.

``python -m tests.flood`` sends a flood's prepared requests (file and threads as arguments): a process of its own, so
that it takes no time from who measures.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
from standardwebhooks.webhooks import Webhook

from bss_sync.adapters.embedded import SUPERUSER
from bss_sync.bootstrap import open_app
from bss_sync.domain.change import Kind, stream_id
from bss_sync.settings import PREFIX, load_settings
from tests.app import add_connection
from tests.chaos.crew import PROGRAM, Crew, Daemon
from tests.chaos.stack import _environment, _free_port, _is_ready
from tests.servers import Database, RedisServer

LOOK_SECONDS = 0.002
START_SECONDS_MAX = 60.0


@dataclass(frozen=True)
class Sender:
    """One reseller's connection."""

    id: UUID
    secret: str
    shard: int

    def request(self, webhook_id: str, document: object) -> tuple[str, bytes, dict[str, str]]:
        """Path, body and headers of a signed request."""
        body = json.dumps(document)
        now = datetime.now(UTC)
        headers = {
            "content-type": "application/json",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(self.secret).sign(webhook_id, now, body),
        }
        return f"/v1/connections/{self.id}/messages", body.encode(), headers


def account(source_id: str, version: int = 1) -> dict[str, object]:
    """A message about an account."""
    data = {"id": source_id, "version": version, "parent_id": None, "kind": "customer", "name": f"Account {source_id}"}
    return {
        "type": "account.updated",
        "timestamp": "2026-03-02T10:14:00Z",
        "data": {**data, "number": None, "email": None},
    }


@dataclass
class Town:
    """An installation: one door, workers, a scheduler, and resellers of which the first floods."""

    url: str
    database: Database
    senders: Sequence[Sender]
    folder: Path
    shards: list[int] = field(default_factory=list)

    def query(self, statement: str, **values: object) -> int:
        """One number."""
        with self.connect() as connection:
            row = connection.execute(statement.encode(), values).fetchone()
        assert row is not None
        return int(row[0])

    def connect(self) -> psycopg.Connection:
        """A session that sees everything."""
        server = self.database.server
        return psycopg.connect(
            host=str(server.folder), port=server.port, user=SUPERUSER, dbname=self.database.name, autocommit=True
        )

    def pending(self, sender: Sender) -> int:
        """How many messages of a sender wait."""
        return self.query(
            "select count(*) from message where state = 'pending' and connection_id = %(id)s", id=sender.id
        )

    @contextmanager
    def flooding(self, name: str, requests: int, each: int, threads: int) -> Iterator[subprocess.Popen[bytes]]:
        """The first sender floods, from a process of its own."""
        flood, lines = self.senders[0], []
        for number in range(requests):
            names = [f"{name}-{number * each + index}" for index in range(each)]
            messages = [{"id": f"m-{one}", **account(one)} for one in names]
            if each == 1:
                document: object = account(names[0])
            else:
                document = messages
            path, body, headers = flood.request(f"r-{name}-{number}", document)
            lines.append(json.dumps([path, body.decode(), headers]))
        file = self.folder / f"{name}.jsonl"
        file.write_text("\n".join(lines))
        command = [sys.executable, "-m", "tests.flood", self.url, str(file), str(threads)]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def latencies(
        self, name: str, *, number: int | None = None, until: Callable[[], bool] | None = None, pause: float = 0.02
    ) -> tuple[list[float], list[float]]:
        """Seconds until each message was answered, and from then until visible; the others in turn, one at a time."""
        host = urlsplit(self.url)
        answered, visible = [], []
        others = self.senders[1:]
        with (
            closing(http.client.HTTPConnection(host.hostname or "", host.port, timeout=30)) as door,
            self.connect() as connection,
        ):
            index = 0
            while (number is None or index < number) and not (until is not None and until()):
                sender = others[index % len(others)]
                source_id = f"{name}-{index}"
                path, body, headers = sender.request(f"m-{source_id}", account(source_id))
                begun = time.perf_counter()
                door.request("POST", path, body, headers)
                answer = door.getresponse()
                answer.read()
                assert answer.status == 202, answer.status
                accepted = time.perf_counter()
                record = stream_id(sender.id, Kind.ACCOUNT, source_id)
                while connection.execute("select 1 from account where id = %s", [record]).fetchone() is None:
                    assert time.perf_counter() - accepted < START_SECONDS_MAX, f"{source_id} is not visible"
                    time.sleep(LOOK_SECONDS)
                answered.append(accepted - begun)
                visible.append(time.perf_counter() - accepted)
                index += 1
                time.sleep(pause)
        return answered, visible


def over(one: Town, sending: subprocess.Popen[bytes]) -> Callable[[], bool]:
    """Whether the first sender's flood has been sent and worked off; looked at four times a second."""
    state = {"at": 0.0, "over": False}

    def is_over() -> bool:
        if time.monotonic() - state["at"] > 0.25:
            state["at"] = time.monotonic()
            state["over"] = sending.poll() is not None and one.pending(one.senders[0]) == 0
        return bool(state["over"])

    return is_over


def p95(seconds: Sequence[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(seconds, n=20)[-1]


@contextmanager
def town(
    database: Database, redis: RedisServer, folder: Path, *, resellers: int, workers: int, one_shard: bool
) -> Iterator[Town]:
    """Everything started; at the end everything is ended."""
    environment = _environment(database, folder, redis.url, 30)
    with open_app(
        load_settings(
            home=folder,
            database_url=database.login_url,
            database_owner_url=database.owner_url,
            master_key=environment[f"{PREFIX}MASTER_KEY"],
        )
    ) as app:
        senders = []
        for index in range(resellers):
            source, secret = add_connection(app, f"reseller-{index}", settings={"account_scope": "all"})
            with app.database.engine() as sql:
                shard = 3 if one_shard else index % 16
                sql.exec_driver_sql("update connection set shard = %s where id = %s", (shard, source.id))
            senders.append(Sender(source.id, secret, shard))
    port = _free_port()
    daemons = [Daemon("web", [*PROGRAM, "web", "--bind", f"127.0.0.1:{port}"], environment, folder)]
    daemons += [Daemon(f"worker-{n}", [*PROGRAM, "worker"], environment, folder) for n in range(workers)]
    daemons += [Daemon("scheduler", [*PROGRAM, "scheduler"], environment, folder)]
    crew = Crew(daemons)
    with ExitStack() as stack:
        stack.callback(crew.end)
        crew.start()
        one = Town(f"http://127.0.0.1:{port}", database, senders, folder)
        deadline = time.monotonic() + START_SECONDS_MAX
        while not _is_ready(one.url):
            assert time.monotonic() < deadline, "the door is not ready"
            time.sleep(0.1)
        yield one


def _send_all(url: str, file: Path, threads: int) -> None:
    host = urlsplit(url)
    lines = iter(file.read_text().splitlines())
    lock = threading.Lock()

    def run() -> None:
        door = http.client.HTTPConnection(host.hostname or "", host.port, timeout=30)
        while True:
            with lock:
                line = next(lines, None)
            if line is None:
                return
            path, body, headers = json.loads(line)
            while True:
                door.request("POST", path, body.encode(), headers)
                answer = door.getresponse()
                answer.read()
                if answer.status == 202:
                    break
                time.sleep(0.2)

    runners = [threading.Thread(target=run) for _ in range(threads)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()


if __name__ == "__main__":
    _send_all(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
