"""What is measured on: a PostgreSQL that syncs, a Redis, an installation with its resellers, real processes."""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import redis
from sqlalchemy import create_engine, text

from bss_sync.adapters.broker import RedisWakeUps
from bss_sync.adapters.embedded import SUPERUSER, EmbeddedPostgres
from bss_sync.bootstrap import open_app
from bss_sync.domain.change import shard_of
from bss_sync.settings import PREFIX, load_settings
from tests.app import add_connection
from tests.servers import Database, PostgresServer, RedisServer, short_folder

PRODUCT = "M365"
_ROOT = Path(__file__).parents[1]
# A quarter of the machine's memory, as PostgreSQL's documentation has it for a server of its own.
_SERVER = {
    "shared_buffers": f"{psutil.virtual_memory().total // 4 >> 20}MB",
    "max_wal_size": "8GB",
    "max_connections": "200",
    "shared_preload_libraries": "",
    "track_io_timing": "off",
}
READY_SECONDS_MAX = 60.0
# Nobody listens there: what is measured ends at the outbox, and the breaker keeps the worker from calling.
_TARGET = """
    insert into target (connector, settings)
    values ('simulator', '{"base_url": "http://127.0.0.1:9", "allow_http_private": true}')"""


@dataclass
class Place:
    """One machine's servers."""

    postgres: PostgresServer
    redis: RedisServer
    home: Path
    folder: Path
    redis_database: int = 0

    @property
    def redis_url(self) -> str:
        """Redis, as the program is told."""
        return f"{self.redis.url.removesuffix('/0')}/{self.redis_database}"

    @property
    def beside(self) -> Place:
        """The same servers for a second installation that lives at the same time: its hints are its own."""
        return replace(self, redis_database=self.redis_database + 1)

    def postgres_setting(self, name: str) -> str:
        """As the server says: its version, or a setting."""
        engine = create_engine(self.postgres.url(SUPERUSER, "postgres"))
        try:
            with engine.connect() as connection:
                return str(connection.execute(text("select current_setting(:name)"), {"name": name}).scalar_one())
        finally:
            engine.dispose()

    def redis_version(self) -> str:
        """As the server says."""
        with redis.Redis.from_url(self.redis_url) as client:
            return str(client.info("server")["redis_version"])


@contextmanager
def place() -> Iterator[Place]:
    """PostgreSQL with fsync on and a Redis, gone afterwards."""
    with short_folder() as home, EmbeddedPostgres(home, settings=_SERVER) as server:
        folder = home / "bench"
        folder.mkdir()
        queue = RedisServer(folder)
        queue.start()
        try:
            yield Place(PostgresServer(18, server.socket_folder), queue, home, folder)
        finally:
            queue.kill()


@dataclass(frozen=True)
class Reseller:
    """A live connection. ``key`` signs its messages."""

    id: UUID
    tenant_id: UUID
    key: bytes

    @property
    def shard(self) -> int:
        """Where its work is grouped."""
        return shard_of(self.id)


@dataclass
class Installation:
    """One database of ours with its resellers, and the environment of its processes."""

    database: Database
    redis_url: str
    folder: Path
    resellers: list[Reseller] = field(default_factory=list)
    key: str = field(default_factory=lambda: base64.b64encode(secrets.token_bytes(32)).decode())

    @property
    def environment(self) -> dict[str, str]:
        """Settings for ``bss-sync``."""
        return {
            "BSS_SYNC_HOME": str(self.folder),
            "BSS_SYNC_DATABASE_URL": self.database.login_url,
            "BSS_SYNC_DATABASE_OWNER_URL": self.database.owner_url,
            "BSS_SYNC_REDIS_URL": self.redis_url,
            "BSS_SYNC_MASTER_KEY": self.key,
            "BSS_SYNC_LOG_LEVEL": "warning",
        }

    def ask(self, statement: str, **values: Any) -> Any:
        """One value, as superuser."""
        engine = create_engine(self.database.superuser_url)
        try:
            with engine.connect() as connection:
                return connection.execute(text(statement), values).scalar()
        finally:
            engine.dispose()

    def analyze(self) -> None:
        """Gather statistics, as autovacuum would have within the minute."""
        engine = create_engine(self.database.superuser_url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.execute(text("vacuum analyze"))
        finally:
            engine.dispose()

    def wake(self) -> None:
        """Hint that every shard with a reseller has work."""
        hints = RedisWakeUps(self.redis_url)
        for shard in sorted({one.shard for one in self.resellers}):
            hints.process(shard)

    def log_statements(self) -> None:
        """Have the server log every statement of sessions that begin from now on."""
        name = self.database.name
        self.database.server.execute(f"alter database {name} set log_statement = 'all'")

    @contextmanager
    def process(self, *arguments: str, ready: str) -> Iterator[psutil.Process]:
        """``bss-sync …`` until the end of the block; entered once it has said ``ready``."""
        with running([sys.executable, "-m", "bss_sync.cli.main", *arguments], self.environment, ready) as process:
            yield process


@contextmanager
def installation(at: Place, *, resellers: int = 1, target: bool = False) -> Iterator[Installation]:
    """A migrated database with a catalogue and live connections, made as the commands make them."""
    with at.postgres.database() as database:
        folder = at.folder / database.name
        folder.mkdir()
        here = Installation(database, at.redis_url, folder)
        settings = load_settings(
            home=folder,
            database_url=database.login_url,
            database_owner_url=database.owner_url,
            redis_url=at.redis_url,
            master_key=here.key,
        )
        with open_app(settings) as app:
            for number in range(resellers):
                source, secret = add_connection(app, f"reseller-{number:04d}")
                key = base64.b64decode(secret.partition("_")[2])
                here.resellers.append(Reseller(source.id, source.tenant_id, key))
            with app.database.engine() as connection:
                connection.execute(text("insert into product (code, name) values (:code, :code)"), {"code": PRODUCT})
                if target:
                    connection.execute(text(_TARGET))
        yield here


@contextmanager
def running(command: Sequence[str], environment: dict[str, str], ready: str) -> Iterator[psutil.Process]:
    """A process until the end of the block; entered once a line of its standard output begins with ``ready``."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with subprocess.Popen(
        command,
        cwd=_ROOT,
        env={**bare, **environment, "PYTHONPATH": str(_ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None, "it was asked for"
            deadline = time.monotonic() + READY_SECONDS_MAX
            while not (line := child.stdout.readline()).startswith(ready):
                assert line, f"{command} ended with {child.wait()} before it was ready"
                assert time.monotonic() < deadline, f"{command} is not ready"
            yield psutil.Process(child.pid)
        finally:
            child.terminate()
            try:
                child.wait(timeout=35)
            except subprocess.TimeoutExpired:
                child.kill()
