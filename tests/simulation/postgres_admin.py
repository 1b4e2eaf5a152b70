"""An admin's acts on PostgreSQL: the product's own."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from bss_sync.adapters.sql.admin import connection_states, connections, runs, takeovers, value_maps
from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.replays import SqlReplays
from bss_sync.domain.change import stream_id
from bss_sync.domain.tenancy import ConnectionState
from tests.simulation.core import Name

ACTOR = "test"
_STOPPED = "select id from run where connection_id = :c and kind = 'guard' and state = 'stopped'"


class PostgresAdmin:
    """``admin.Admin`` over the product's acts."""

    def __init__(self, database: Database, connection_id: UUID) -> None:
        self._database, self._connection_id = database, connection_id
        self._replays = SqlReplays(database)
        self._run: UUID | None = None

    def map_status(self, source_value: str, canonical: str) -> None:
        """See Admin."""
        with self._database.engine() as connection:
            source = connections.find(connection, str(self._connection_id))
            value_maps.map_value(connection, source, "status", source_value, canonical, actor=ACTOR)

    def take(self, name: Name, field: str, value: str) -> None:
        """See Admin."""
        record_id = stream_id(self._connection_id, *name)
        with self._database.engine() as connection:
            takeovers.take(connection, name[0], record_id, field, reason="agreed by telephone", actor=ACTOR)
            takeovers.set_value(connection, name[0], record_id, field, value, actor=ACTOR)

    def give_back(self, name: Name, field: str) -> None:
        """See Admin."""
        record_id = stream_id(self._connection_id, *name)
        with self._database.engine() as connection:
            takeovers.release(connection, name[0], record_id, field, reason="done", actor=ACTOR)

    def begin_replay(self, ids: Sequence[UUID]) -> bool:
        """See Admin."""
        self._run = self._replays.begin(ids, actor=ACTOR, rate=None, lease_seconds=60)
        return self._run is not None

    def carry_replay(self, limit: int) -> bool:
        """See Admin."""
        step = None if self._run is None else self._replays.step(self._run, limit, lease_seconds=60)
        if step is None or step.finished:
            self._run = None
        return step is not None

    def discard(self, ids: Sequence[UUID]) -> None:
        """See Admin."""
        self._replays.discard(ids, "not wanted", actor=ACTOR)

    def move(self, state: ConnectionState) -> None:
        """See Admin. Live is reached as an activation reaches it, once its checks are passed."""
        with self._database.engine() as connection:
            source = connections.find(connection, str(self._connection_id), lock=True)
            if source.state is ConnectionState.PAUSED:
                connection_states.resume(connection, source, actor=ACTOR)
                source = connection_states.refreshed(connection, source)
            if state is ConnectionState.PAUSED:
                connection_states.pause(connection, source, actor=ACTOR)
            elif state is ConnectionState.SHADOW and source.state is not state:
                connection_states.shadow(connection, source, actor=ACTOR)
            elif state is ConnectionState.LIVE and source.state is not state:
                connection_states.begin_checks(connection, source)
                connection_states.go_live(connection, connection_states.refreshed(connection, source), actor=ACTOR)

    def answer_guard(self, *, yes: bool) -> bool:
        """See Admin."""
        with self._database.engine() as connection:
            stopped = connection.execute(text(_STOPPED), {"c": self._connection_id}).scalars().all()
            for run_id in stopped:
                (runs.approve if yes else runs.reject)(connection, run_id, actor=ACTOR)
        return bool(stopped)

    def forget(self) -> None:
        """See Admin."""
        with self._database.engine() as connection:
            for statement in (
                "delete from message_key where connection_id = :c",
                "update connection set poll_cursor = null where id = :c",
            ):
                connection.execute(text(statement), {"c": self._connection_id})
