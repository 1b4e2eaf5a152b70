"""What is measured on: a PostgreSQL that syncs, a Redis, one distributor, resellers with a catalogue, real processes."""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
from sqlalchemy import create_engine, text

from bss_sync.adapters.embedded import EmbeddedPostgres
from bss_sync.domain.change import shard_of
from bss_sync.settings import PREFIX
from tests.servers import Database, PostgresServer, RedisServer, short_folder

PRODUCT = "M365"
_ROOT = Path(__file__).parents[1]
_SERVER = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "max_connections": "200",
    "shared_preload_libraries": "",
    "track_io_timing": "off",
}
READY_SECONDS_MAX = 60.0


@dataclass
class Place:
    """One machine's servers."""

    postgres: PostgresServer
    redis: RedisServer
    home: Path
    folder: Path

    @property
    def redis_url(self) -> str:
        """Redis, as the program is told."""
        return self.redis.url


@contextmanager
def place() -> Iterator[Place]:
    """PostgreSQL with fsync on and a Redis, gone afterwards."""
    with short_folder() as home, EmbeddedPostgres(home, settings=_SERVER) as server:
        folder = home / "bench"
        folder.mkdir()
        redis = RedisServer(folder)
        redis.start()
        try:
            yield Place(PostgresServer(18, server.socket_folder), redis, home, folder)
        finally:
            redis.kill()


@dataclass(frozen=True)
class Reseller:
    """A live connection."""

    id: UUID
    tenant_id: UUID
    name: str

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
    resellers: Sequence[Reseller]
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

    @contextmanager
    def process(self, *arguments: str, ready: str) -> Iterator[psutil.Process]:
        """``bss-sync …`` until the end of the block; entered once it has said ``ready``."""
        with running([sys.executable, "-m", "bss_sync.cli.main", *arguments], self.environment, ready) as process:
            yield process


@contextmanager
def installation(at: Place, *, resellers: int = 1, target: bool = False) -> Iterator[Installation]:
    """A migrated database with a catalogue and live connections."""
    with at.postgres.database() as database:
        folder = at.folder / database.name
        folder.mkdir()
        known = [Reseller(uuid4(), uuid4(), f"reseller-{number:04d}") for number in range(resellers)]
        engine = create_engine(database.superuser_url)
        try:
            with engine.begin() as connection:
                distributor = uuid4()
                connection.execute(
                    text(
                        "insert into tenant (id, name, display_name, kind) values (:id, 'cloud', 'Cloud', 'distributor')"
                    ),
                    {"id": distributor},
                )
                connection.execute(text("insert into instance (distributor_id) values (:id)"), {"id": distributor})
                connection.execute(text("insert into product (code, name) values (:code, :code)"), {"code": PRODUCT})
                for one in known:
                    connection.execute(
                        text(
                            "insert into tenant (id, name, display_name, kind) values (:id, :name, :name, 'reseller')"
                        ),
                        {"id": one.tenant_id, "name": one.name},
                    )
                    connection.execute(
                        text("""insert into connection (id, tenant_id, name, connector, state, shard, order_kind)
                                values (:id, :tenant, :name, 'webhook', 'live', :shard, 'sequence')"""),
                        {"id": one.id, "tenant": one.tenant_id, "name": one.name, "shard": one.shard},
                    )
                if target:
                    connection.execute(text("insert into target (connector, settings) values ('simulator', '{}')"))
        finally:
            engine.dispose()
        yield Installation(database, at.redis_url, folder, known)


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
