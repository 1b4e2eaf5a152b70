"""One data folder of the embedded PostgreSQL and its server: made, configured, started, asked and stopped.

Every method that changes something is called under the home's start.lock (bss_sync/adapters/embedded.py).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bss_sync.adapters.embedded_account import POSTGRES_MAJOR, ServerAccount, server_programs
from bss_sync.domain.errors import ConfigurationError, DependencyDown

SUPERUSER = "postgres"
PORT = 5432
_SOCKET = f".s.PGSQL.{PORT}"
_SOCKET_PATH_BYTES_MAX = 100  # 107 on Linux, 103 on macOS, without the final zero
_START_SECONDS_MAX = 60
_STOP_SECONDS_MAX = 60
_POLL_SECONDS = 0.05

# A laptop's settings. Durability is PostgreSQL's own default, written down because everything rests on it.
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "port": str(PORT),
    "max_connections": "100",
    "shared_buffers": "128MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "max_wal_size": "1GB",
    "logging_collector": "on",
    # One file per weekday, emptied when its day comes again.
    "log_filename": "postgresql-%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_min_messages": "warning",
    # Statements and failed rows may hold personal data: neither is logged.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


def socket_folder_for(folder: Path) -> Path:
    """Beside the data, or, where that is too long for a socket's path, a short one that all its users compute alike."""
    near = folder / "socket"
    if len(os.fsencode(near / f"{_SOCKET}.lock")) <= _SOCKET_PATH_BYTES_MAX:
        return near
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(f"/tmp/bss-sync-{digest}")  # noqa: S108  made 0700; one that another account made is refused


@dataclass(frozen=True, slots=True)
class Cluster:
    """The folder that holds data/, log/ and perhaps socket/, and the account that all of them belong to."""

    account: ServerAccount
    folder: Path
    socket_folder: Path

    @property
    def data(self) -> Path:
        """PostgreSQL's data folder."""
        return self.folder / "data"

    def start_unless_running(self, settings: Mapping[str, str]) -> None:
        """Make the data folder where there is none, start the server where it does not answer, wait until it does.

        ``settings`` take precedence over ours. Raises DependencyDown, ConfigurationError.
        """
        if self._answers():
            return
        programs = server_programs(self.account, self.folder)
        if not (self.data / "PG_VERSION").exists():
            self._create(programs)
        _check_version(self.data)
        _own_folder(self.folder / "log", self.account)
        _own_folder(self.socket_folder, self.account)
        self._configure({**_SETTINGS, **settings})
        self._start(programs)

    def stop(self) -> None:
        """Stop and wait. Sessions are ended; a server that does not end them in time stops at once (the WAL is safe).

        Raises DependencyDown where even that does not help.
        """
        number = _first_line(self.data / "postmaster.pid")
        if number.isdecimal() and _runs_on(int(number), self.data):
            self._stop(number)
        if self.socket_folder.parent != self.folder:
            with suppress(OSError):
                self.socket_folder.rmdir()

    def _stop(self, number: str) -> None:
        programs = server_programs(self.account, self.folder)
        for mode in ("fast", "immediate"):
            wait = ["--wait", "--timeout", str(_STOP_SECONDS_MAX), "--silent", "--mode", mode]
            arguments: list[str | Path] = [programs / "pg_ctl", "stop", "-D", self.data, *wait]
            with suppress(subprocess.TimeoutExpired):
                if self.account.run(arguments, timeout_seconds=_STOP_SECONDS_MAX + 10).returncode == 0:
                    return
        raise DependencyDown(f"The embedded PostgreSQL (process {number}) does not stop; see {self.folder / 'log'}")

    def _answers(self) -> bool:
        """Whether the server accepts connections; one that is starting or stopping is waited for."""
        deadline = time.monotonic() + _START_SECONDS_MAX
        while True:
            try:
                psycopg.connect(
                    host=str(self.socket_folder), port=PORT, user=SUPERUSER, dbname="postgres", connect_timeout=10
                ).close()
            except psycopg.OperationalError as error:
                state = str(error)
            else:
                return True
            # PostgreSQL's own words: a refused connection has no code. A full server is a running one.
            if "too many clients" in state or "reserved for" in state:
                return True
            if not any(words in state for words in ("starting up", "shutting down", "recovery", "not yet accepting")):
                return False
            if time.monotonic() > deadline:
                raise DependencyDown(f"The embedded PostgreSQL is not ready after {_START_SECONDS_MAX} s: {state}")
            time.sleep(_POLL_SECONDS)

    def _create(self, programs: Path) -> None:
        """Make the data folder, whole or not at all: what a kill left half made is removed first."""
        unfinished = self.folder / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        _own_folder(unfinished, self.account)
        access = ["--username", SUPERUSER, "--auth-local", "trust", "--auth-host", "reject", "--encoding", "UTF8"]
        # The built-in locale: sorting does not change under the indexes when the system's libraries do.
        locale = ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"]
        done = self.account.run([programs / "initdb", *access, *locale, "-D", unfinished], timeout_seconds=300)
        if done.returncode != 0:
            raise DependencyDown(f"initdb failed in {unfinished}: {_tail(done.stderr)}")
        with (unfinished / "postgresql.conf").open("a", encoding="utf-8") as configuration:
            configuration.write("\ninclude_if_exists = 'bss_sync.conf'\n")
        unfinished.rename(self.data)

    def _configure(self, settings: Mapping[str, str]) -> None:
        lines = {
            **settings,
            "log_directory": str(self.folder / "log"),
            "unix_socket_directories": str(self.socket_folder),
            "unix_socket_permissions": "0700",
        }
        unfinished = self.data / "bss_sync.conf.new"
        unfinished.unlink(missing_ok=True)
        handle = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write("# Written at every start. Settings of your own: ALTER SYSTEM SET name = value\n")
            file.writelines(f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in lines.items())
        if self.account.switch:
            os.chown(unfinished, self.account.uid, self.account.gid, follow_symlinks=False)
        unfinished.rename(self.data / "bss_sync.conf")

    def _start(self, programs: Path) -> None:
        """Start and wait. A killed server's children hold its memory for a moment yet: tried again."""
        log = self.folder / "log" / "start.log"
        wait: list[str | Path] = ["--wait", "--timeout", str(_START_SECONDS_MAX), "--silent", "--log", log]
        deadline = time.monotonic() + _START_SECONDS_MAX
        while True:
            log.unlink(missing_ok=True)
            self._remove_stale_locks()
            try:
                done = self.account.run(
                    [programs / "pg_ctl", "start", "-D", self.data, *wait], timeout_seconds=_START_SECONDS_MAX + 10
                )
            except subprocess.TimeoutExpired:
                raise DependencyDown(
                    f"The embedded PostgreSQL did not start in {_START_SECONDS_MAX} s ({log})"
                ) from None
            if done.returncode == 0 and self._answers():
                return
            words = log.read_text(encoding="utf-8", errors="replace") if log.exists() else done.stderr
            if "still in use" not in words or time.monotonic() > deadline:
                raise DependencyDown(f"The embedded PostgreSQL does not start: {_tail(words) or done.stderr} ({log})")
            time.sleep(_POLL_SECONDS)

    def _remove_stale_locks(self) -> None:
        """After a crash PostgreSQL takes any living process that has the old number by now for its predecessor."""
        for lock in (self.data / "postmaster.pid", self.socket_folder / f"{_SOCKET}.lock"):
            number = _first_line(lock)
            if number.isdecimal() and not _runs_on(int(number), self.data) and _exists(int(number)):
                lock.unlink(missing_ok=True)


def _own_folder(path: Path, account: ServerAccount) -> None:
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink() or path.lstat().st_uid not in (account.uid, os.geteuid()):
        raise ConfigurationError(f"{path} belongs to another account", next_step=f"Remove {path} and start again.")
    path.chmod(0o700)
    if account.switch:
        os.chown(path, account.uid, account.gid)


def _check_version(data: Path) -> None:
    version = (data / "PG_VERSION").read_text(encoding="ascii").strip()
    if version != str(POSTGRES_MAJOR):
        raise ConfigurationError(
            f"The database in {data} was made by PostgreSQL {version}, and this installation brings {POSTGRES_MAJOR}",
            next_step=f"Dump it with PostgreSQL {version}, move the folder away, start again and restore the dump.",
        )


def _first_line(path: Path) -> str:
    try:
        return (path.read_text(encoding="utf-8", errors="replace").splitlines() or [""])[0].strip()
    except FileNotFoundError:
        return ""


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _runs_on(process: int, data: Path) -> bool:
    """Whether the process is a server of this data folder, by its command line (a zombie has none)."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self").exists():
            return False
        words = subprocess.run(["/bin/ps", "-o", "args=", "-p", str(process)], capture_output=True, check=False).stdout
    return os.fsencode(data) in words


def _tail(text: str) -> str:
    return " · ".join(line.strip() for line in text.strip().splitlines()[-4:])
