"""One installation as an operator would run it: PostgreSQL, Redis, two doors, two workers, two schedulers, a target."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from sqlalchemy import text

from bss_sync.adapters.embedded import EmbeddedPostgres
from bss_sync.adapters.sql.database import SILENT_SECONDS
from bss_sync.bootstrap import open_app
from bss_sync.domain.tenancy import Role
from bss_sync.settings import PREFIX, load_settings
from tests import servers
from tests.app import add_connection, add_token
from tests.chaos.crew import PROGRAM, Crew, Daemon
from tests.chaos.hosts import Hosts
from tests.chaos.load import PRODUCT, Load
from tests.chaos.proxy import Proxy
from tests.command_line import CommandLine
from tests.servers import Database, PostgresServer, RedisServer, short_folder

DURABLE = {**servers._FAST, "synchronous_commit": "on"}
"""A crash of PostgreSQL loses nothing that was written to the system; only a crash of the machine asks for fsync."""
UNGUARDED = {"guard_share": 1.0, "guard_count": 1_000_000}
"""The load ends many subscriptions, and means it."""
DRIFT_SECONDS = 1.0
PLACES = {"worker-1": 0, "scheduler-1": 0, "worker-2": 1, "scheduler-2": 1}
"""Which daemon runs on which host, where there are hosts; the others run beside the servers."""
START_SECONDS_MAX = 60.0


class Postgres:
    """A server of our own that can be cut down and started again."""

    def __init__(self, embedded: EmbeddedPostgres) -> None:
        self._embedded = embedded

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self._embedded._joined().cluster.data

    def stop_immediately(self) -> None:
        """What ``pg_ctl stop -m immediate`` does: every session is cut off, nothing is written any more."""
        self._end(signal.SIGQUIT)

    def kill(self) -> None:
        """SIGKILL of the postmaster; its children notice and end."""
        self._end(signal.SIGKILL)

    def start(self) -> None:
        """Start, recover, and wait until it answers."""
        self._embedded.ensure_running()

    def _end(self, number: int) -> None:
        try:
            process = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
            children = process.children(recursive=True)
        except (FileNotFoundError, psutil.NoSuchProcess):
            return
        process.send_signal(number)
        psutil.wait_procs([process, *children], timeout=20)


@dataclass
class Stack:
    """The whole of it. ``home`` is for the daemons' logs; ``connection`` is the reseller's id."""

    postgres: Postgres
    redis: RedisServer
    database: Database
    crew: Crew
    proxy: Proxy
    target_url: str
    urls: tuple[str, ...]
    connection: str
    secret: str
    token: str
    environment: dict[str, str]
    lease_seconds: float
    hosts: Hosts | None = field(default=None, kw_only=True)

    def load(self, seed: int, prefix: str, **given: Any) -> Load:
        """A load on both doors."""
        return Load(self.urls, self.connection, self.secret, seed, prefix, **given)

    def get(self, path: str, **params: str) -> Any:
        """The API's answer. It is asked again while a door or PostgreSQL is not there."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            for url in self.urls:
                try:
                    answer = httpx.get(
                        f"{url}{path}", params=params, headers={"authorization": f"Bearer {self.token}"}, timeout=20
                    )
                except httpx.TransportError:
                    continue
                if answer.status_code == 200:
                    return answer.json()
                assert answer.status_code == 503, f"GET {path}: {answer.status_code} {answer.text}"
            assert time.monotonic() < deadline, f"GET {path}: nobody answers"
            time.sleep(0.1)

    def items(self, path: str, **params: str) -> list[dict[str, Any]]:
        """A whole list of the API."""
        found: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            page = self.get(path, limit="500", **params, **cursor)
            found += page["items"]
            if len(page["items"]) < 500:
                return found
            cursor = {"cursor": page["next_cursor"]}

    def effects(self) -> list[dict[str, Any]]:
        """The log of the distributor's BSS, asked directly."""
        answer: list[dict[str, Any]] = httpx.get(f"{self.target_url}/effects", timeout=20).json()["effects"]
        return answer

    def cli(self, *arguments: str) -> tuple[int, str]:
        """Run ``bss-sync``: exit code and what it said."""
        answer = CommandLine(self.environment)(*arguments)
        return answer.code, answer.out + answer.err

    def wait_until_ready(self) -> None:
        """Both doors answer, both workers and a scheduler have started."""
        deadline = time.monotonic() + START_SECONDS_MAX
        for url in self.urls:
            while not _is_ready(url):
                assert time.monotonic() < deadline, f"{url} is not ready"
                time.sleep(0.1)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def own_postgres(home: Path, settings: dict[str, str] | None = None) -> Iterator[tuple[Postgres, PostgresServer]]:
    """A server of its own below ``home``."""
    embedded = EmbeddedPostgres(home, settings=settings or DURABLE)
    with embedded:
        yield Postgres(embedded), PostgresServer(18, embedded.socket_folder)


@contextmanager
def running_stack(
    seed: int,
    *,
    lease_seconds: float = 2.0,
    without: Collection[str] = (),
    redis: RedisServer | None = None,
    hosts: Hosts | None = None,
    places: Mapping[str, int] = PLACES,
) -> Iterator[Stack]:
    """Everything started; at the end everything is ended.

    ``without``: daemons that are not started before a scenario wants them. With ``hosts`` the daemons of ``places`` run
    on them, and reach everything over their links.
    """
    with ExitStack() as stack:
        home, own_home = (stack.enter_context(short_folder()) for _ in range(2))
        postgres, server = stack.enter_context(own_postgres(home))
        database = stack.enter_context(server.database())
        if redis is None:
            redis = RedisServer(stack.enter_context(short_folder()))
            redis.start()
            stack.callback(redis.kill)
        target_url = stack.enter_context(_distributor())
        where = urlsplit(target_url)
        assert where.hostname is not None
        assert where.port is not None
        listen = "127.0.0.1" if hosts is None else hosts.address
        proxy = stack.enter_context(Proxy((where.hostname, where.port), seed, listen=listen))
        environment = _environment(database, own_home, redis.url, lease_seconds)
        connection, secret, token = _prepare(environment, database, own_home, proxy.url)
        ports = [_free_port(), _free_port()]
        # The database can only be dropped while the server runs.
        stack.callback(postgres.start)
        daemons = _daemons(environment, own_home, ports, without)
        if hosts is not None:
            _place(daemons, hosts, places, _relayed(stack, hosts, database, redis))
        crew = Crew(daemons)
        stack.callback(crew.end)
        crew.start()
        urls = tuple(f"http://127.0.0.1:{port}" for port in ports)
        one = Stack(
            postgres, redis, database, crew, proxy, target_url, urls, connection, secret, token, environment,
            lease_seconds, hosts=hosts,
        )  # fmt: skip
        one.wait_until_ready()
        yield one


def _relayed(stack: ExitStack, hosts: Hosts, database: Database, redis: RedisServer) -> dict[str, str]:
    """Settings under which PostgreSQL and Redis are reached from the hosts, by relays on the bridge."""
    socket_file = database.server.folder / f".s.PGSQL.{database.server.port}"
    postgres = stack.enter_context(Proxy(socket_file, listen=hosts.address, silent_seconds=SILENT_SECONDS))
    queue = stack.enter_context(Proxy(("127.0.0.1", redis.port), listen=hosts.address))
    return {
        f"{PREFIX}DATABASE_URL": f"postgresql://{servers.LOGIN}@{postgres.address}/{database.name}",
        f"{PREFIX}DATABASE_OWNER_URL": f"postgresql://{servers.OWNER}@{postgres.address}/{database.name}",
        f"{PREFIX}REDIS_URL": f"redis://{queue.address}/0",
    }


def _place(
    daemons: Collection[Daemon], hosts: Hosts, places: Mapping[str, int], environment: Mapping[str, str]
) -> None:
    for daemon in daemons:
        if daemon.name in places:
            daemon.prefix = hosts[places[daemon.name]].prefix
            daemon.environment = {**daemon.environment, **environment}


def _environment(database: Database, home: Path, redis_url: str, lease_seconds: float) -> dict[str, str]:
    given = {
        "home": str(home),
        "database_url": database.login_url,
        "database_owner_url": database.owner_url,
        "redis_url": redis_url,
        "master_key": base64.b64encode(secrets.token_bytes(32)).decode(),
        "lease_seconds": str(lease_seconds),
        "log_level": "warning",
    }
    return {f"{PREFIX}{name.upper()}": value for name, value in given.items()}


def _prepare(environment: dict[str, str], database: Database, home: Path, target_url: str) -> tuple[str, str, str]:
    """A live webhook connection, the catalogue, the target and a token."""
    settings = load_settings(
        home=home,
        database_url=database.login_url,
        database_owner_url=database.owner_url,
        master_key=environment[f"{PREFIX}MASTER_KEY"],
    )
    with open_app(settings) as app:
        source, secret = add_connection(app, "cloud-resell", settings=UNGUARDED)
        with app.database.engine() as sql:
            sql.execute(text("insert into product (code, name) values (:code, :code)"), {"code": PRODUCT})
            sql.execute(
                text(
                    """insert into target (connector, settings, poll_seconds)
                       values ('simulator', cast(:settings as jsonb), :poll)"""
                ),
                {
                    "settings": json.dumps({"base_url": target_url, "allow_http_private": True}),
                    "poll": DRIFT_SECONDS,
                },
            )
        return str(source.id), secret, add_token(app, Role.AUDITOR)


def _daemons(environment: dict[str, str], folder: Path, ports: list[int], without: Collection[str]) -> list[Daemon]:
    doors = [
        Daemon(f"web-{number}", [*PROGRAM, "web", "--bind", f"127.0.0.1:{port}"], environment, folder)
        for number, port in enumerate(ports, start=1)
    ]
    others = [
        Daemon(name, [*PROGRAM, name.partition("-")[0]], environment, folder)
        for name in ("worker-1", "worker-2", "scheduler-1", "scheduler-2")
    ]
    for daemon in others:
        daemon.wanted = daemon.name not in without
    return doors + others


@contextmanager
def _distributor() -> Iterator[str]:
    """The distributor's BSS in a process of its own; its address."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with subprocess.Popen(
        [sys.executable, "-m", "connectors.simulator", "--role", "distributor"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=bare,
        cwd=Path(__file__).parents[2],
    ) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
