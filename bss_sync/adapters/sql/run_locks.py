"""Who has which long run: an advisory lock per run, held by one session of this process for all of its runs.

A process that is killed loses its session and with it the locks, at once; nobody has to wait for a lease, and a
process that was only stopped keeps what it has. Each step of a run is written by that same session: who has lost it
cannot write any more.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.database import Database, answering
from bss_sync.domain.errors import DependencyDown

_KEY = "hashtextextended('run ' || cast(:run as text), 0)"
_TAKE = text(f"select pg_try_advisory_lock({_KEY})")
_GIVE = text(f"select pg_advisory_unlock({_KEY})")
# A machine that vanished does not close its connection: PostgreSQL finds that out within a minute.
_PREPARE = text(
    """select set_config('tcp_keepalives_idle', '20', false), set_config('tcp_keepalives_interval', '10', false),
              set_config('tcp_keepalives_count', '3', false)"""
)


class RunLocks:
    """The runs of this process. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.RLock()
        self._sessions: list[Connection] = []
        """The one session, while there are runs."""
        self._held: set[UUID] = set()
        # Who forgets these locks has let go of them, whatever it has forgotten besides.
        weakref.finalize(self, _end, self._sessions)

    def take(self, run_id: UUID) -> bool:
        """Whether the run is ours now; False when somebody, also another thread of ours, has it."""
        with self._lock:
            if run_id in self._held:
                return False
            with self._begun() as session:
                taken = bool(session.execute(_TAKE, {"run": run_id}).scalar_one())
            if taken:
                self._held.add(run_id)
            else:
                self._close_idle()
            return taken

    def give(self, run_id: UUID) -> None:
        """Let go of a run, if it is ours."""
        with self._lock:
            if run_id not in self._held:
                return
            self._held.discard(run_id)
            if self._held:
                with self._begun() as session:
                    session.execute(_GIVE, {"run": run_id})
            self._close_idle()

    @contextmanager
    def writing(self, run_id: UUID) -> Iterator[Connection]:
        """A transaction of the session that has the run. DependencyDown when nobody here has it any more."""
        with self._lock:
            if run_id not in self._held:
                raise DependencyDown(f"The run {run_id} was lost with the connection to PostgreSQL; it is carried on.")
            with self._begun() as session:
                yield session

    @contextmanager
    def _begun(self) -> Iterator[Connection]:
        try:
            with answering():
                if not self._sessions:
                    self._sessions.append(self._database.pool("engine").connect())
                    with self._sessions[0].begin():
                        self._sessions[0].execute(_PREPARE)
                with self._sessions[0].begin():
                    yield self._sessions[0]
        except DependencyDown:
            self._drop()
            raise
        except BaseException:
            # Ctrl-C within a statement: SQLAlchemy would go on with another session, which has no lock.
            if self._sessions and self._sessions[0].invalidated:
                self._drop()
            raise

    def _close_idle(self) -> None:
        if not self._held:
            self._drop()

    def _drop(self) -> None:
        self._held.clear()
        _end(self._sessions)


def _end(sessions: list[Connection]) -> None:
    """The session ends, not only its use: a pooled one would hold the locks on."""
    while sessions:
        session = sessions.pop()
        session.invalidate()
        session.close()
