"""The embedded PostgreSQL: a real server for one home folder, without TCP, shared by every process that uses the home.

    home/                      BSS_SYNC_HOME
      serve.lock               held by the one `bss-sync serve` of this home
      postgres/                a link elsewhere where root's home is closed to the server's account
        start.lock             held while somebody starts or stops the server, or joins or leaves
        users/<pid>-<random>   one file per user, locked while it lives: a kill releases it, nothing is counted
        data/  log/  socket/   0700, the server account's: no other account of the machine gets near the server
        programs-<version>/    only where the account cannot reach the installed ones

Joining: take start.lock, add a locked user file, start the server unless it answers. Leaving: take start.lock, remove
the file, stop the server if no other file is locked. After a SIGKILL the server runs on until its next user leaves.
Connections are trusted because only the socket folder's owner (and root) can open the socket.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import sqlalchemy

from bss_sync.adapters.embedded_account import ServerAccount, server_account
from bss_sync.adapters.embedded_cluster import PORT, SUPERUSER, Cluster, socket_folder_for
from bss_sync.adapters.file_lock import open_lock
from bss_sync.domain.errors import ConfigurationError, DependencyDown, StateConflict

__all__ = ["SUPERUSER", "EmbeddedPostgres", "serve_lock"]

_LOCK_WAIT_SECONDS_MAX = 120
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class _Membership:
    """A user that has joined: the cluster, and its own file with the descriptor that holds the lock on it."""

    cluster: Cluster
    file: Path
    descriptor: int


class EmbeddedPostgres:
    """One process's use of the home's server. Not for sharing between threads while joining or leaving.

    ``settings`` are PostgreSQL settings that take precedence over ours when this user is the one who starts it.
    """

    def __init__(self, home: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self._home = home.absolute()
        self._settings = dict(settings or {})
        self._membership: _Membership | None = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Join: start the server when it is down, adopt it when it runs.

        Raises DependencyDown where it does not start, ConfigurationError where the home cannot be used.
        """
        assert self._membership is None, "this user has joined already"
        account = server_account(self._home / "postgres" / "data")
        folder = _server_folder(self._home, account)
        cluster = Cluster(account, folder, socket_folder_for(folder))
        with _locked(folder / "start.lock"):
            membership = _join(cluster, folder / "users")
            try:
                cluster.start_unless_running(self._settings)
            except BaseException:
                _leave(membership)
                raise
            self._membership = membership

    def release(self) -> None:
        """Leave; the last user stops the server and waits until it is down. Leaving twice is nothing."""
        if self._membership is None:
            return
        membership, self._membership = self._membership, None
        cluster = membership.cluster
        with _locked(cluster.folder / "start.lock"):
            _leave(membership)
            if not _has_users(cluster.folder / "users"):
                cluster.stop()

    def ensure_running(self) -> None:
        """Start the server again if it died while we use it. Raises like ``acquire``."""
        cluster = self._joined().cluster
        with _locked(cluster.folder / "start.lock"):
            cluster.start_unless_running(self._settings)

    def url(self, user: str, database: str) -> str:
        """SQLAlchemy's address of a database for a database role, over the server's socket."""
        query = {"host": str(self._joined().cluster.socket_folder), "port": str(PORT)}
        address = sqlalchemy.URL.create("postgresql+psycopg", username=user, database=database, query=query)
        return address.render_as_string(hide_password=False)

    @property
    def home(self) -> Path:
        """The folder that it belongs to."""
        return self._home

    @property
    def socket_folder(self) -> Path:
        """The folder of the server's socket."""
        return self._joined().cluster.socket_folder

    def _joined(self) -> _Membership:
        assert self._membership is not None, "join first"
        return self._membership


@contextmanager
def serve_lock(home: Path) -> Iterator[None]:
    """Held by the one ``serve`` of a home. Raises StateConflict (exit code 2) where another one holds it."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = open_lock(home / "serve.lock")
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise StateConflict(
                f"Another bss-sync serve (process {holder}) runs on {home}",
                next_step="Stop it first, or give this one a home of its own: BSS_SYNC_HOME=FOLDER bss-sync serve",
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode("ascii"), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = open_lock(path)
    try:
        _wait_for_lock(handle, path)
        yield
    finally:
        os.close(handle)


def _wait_for_lock(handle: int, path: Path) -> None:
    # Tried again and again rather than waited for: a stopped holder must not stop us for ever.
    deadline = time.monotonic() + _LOCK_WAIT_SECONDS_MAX
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise DependencyDown(
                    f"Another process has held {path} for {_LOCK_WAIT_SECONDS_MAX} s: it neither starts nor stops"
                ) from None
        time.sleep(_POLL_SECONDS)


def _join(cluster: Cluster, users: Path) -> _Membership:
    users.mkdir(mode=0o700, exist_ok=True)
    file = users / f"{os.getpid()}-{secrets.token_hex(4)}"
    descriptor = open_lock(file)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return _Membership(cluster, file, descriptor)


def _leave(membership: _Membership) -> None:
    membership.file.unlink(missing_ok=True)
    os.close(membership.descriptor)


def _has_users(users: Path) -> bool:
    """Whether a living process holds a user file. What the dead left behind is removed on the way."""
    for file in users.iterdir():
        handle = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        file.unlink(missing_ok=True)
    return False


def _server_folder(home: Path, account: ServerAccount) -> Path:
    """``home/postgres``, reachable for the account, made where it is missing."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = home / "postgres"
    if folder.is_symlink() and not folder.exists():
        raise ConfigurationError(
            f"{folder} points to {folder.readlink()}, which is gone",
            next_step="Restore that folder, or remove the link to begin with an empty database.",
        )
    if not account.switch:
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder.resolve()
    if home.stat().st_uid == os.geteuid() and not account.can_enter(home):
        # The home is ours: the account's group may pass through it, and still not look around.
        os.chown(home, -1, account.gid)
        home.chmod((home.stat().st_mode & 0o707) | 0o010)
    if not folder.exists():
        _make_server_folder(folder, account)
    folder = folder.resolve()
    os.chown(folder, -1, account.gid)
    folder.chmod(0o710)
    if not account.can_enter(folder):
        raise ConfigurationError(
            f"BSS_SYNC_HOME {home} lies below a folder that the account {account.name} cannot enter",
            next_step="Move it to a folder that is open to that account, /var/lib/bss-sync for example.",
        )
    return folder


def _make_server_folder(folder: Path, account: ServerAccount) -> None:
    """Make it, or, below a folder that is closed to the account (root's own, say), a link to one that is not.

    No parent is opened for the account. Two processes may be here at once: the first one's folder is kept.
    """
    if account.can_enter(folder.parent):
        folder.mkdir(mode=0o710, exist_ok=True)
        return
    elsewhere = Path(tempfile.mkdtemp(prefix="bss-sync-", dir="/var/lib"))
    try:
        folder.symlink_to(elsewhere)
    except FileExistsError:
        elsewhere.rmdir()
