"""The pools: one per database role, so that what a process may do is decided when it connects.

engine  any tenant, by an explicit policy; the only one that may write mirrored columns
api     one tenant, or the distributor's reach, set for each transaction; no right to write mirrored columns
door    what the webhook door needs before a tenant is known
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import set_json_loads
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from bss_sync.adapters.sql.direct import Direct, Statements
from bss_sync.domain import quick_json
from bss_sync.domain.errors import DependencyDown

DOOR = "bss_sync_door"
CONNECT_TIMEOUT_SECONDS = 5
STATEMENT_TIMEOUT_SECONDS = 60
IDLE_TRANSACTION_SECONDS = 10
"""What a worker whose host is cut off has locked is free after so long. No transaction of ours waits for a remote."""
SILENT_SECONDS = 10
"""Either end gives up a connection whose other end has said nothing for so long, not even to its kernel's question."""
POOL_WAIT_SECONDS = 5.0
REST_SECONDS = 1.0
"""A connection of the line that was used within so long, and has heard nothing since, is not asked whether it lives."""
_LINE = "line"
OVERFLOW = 4
"""Connections beyond the pool's size, for a short time."""


class Database:
    """Pools over one PostgreSQL. ``url`` is an SQLAlchemy URL of a login role that may take the working roles."""

    def __init__(self, url: str, *, pool_size: int = 8, wait_seconds: float = POOL_WAIT_SECONDS) -> None:
        self.url = url
        self._pool_size = pool_size
        self._wait_seconds = wait_seconds
        self._engines: dict[str, Engine] = {}
        self.before_statement: Callable[[], None] = _at_once
        """Called before each statement of a ``line``; it may take its time."""
        self.before_commit: Callable[[], None] = _at_once
        """Called before a ``line`` commits."""

    def pool(self, role: str) -> Engine:
        """The pool whose connections act as ``bss_sync_<role>`` (engine, api or door)."""
        if role not in self._engines:
            self._engines[role] = _make_pool(self.url, role, self._pool_size, self._wait_seconds, ping_always=True)
        return self._engines[role]

    def _line_pool(self) -> Engine:
        """The engine's too, of connections that go from batch to batch without being asked whether they are alive."""
        if _LINE not in self._engines:
            made = _make_pool(self.url, "engine", self._pool_size, self._wait_seconds, ping_always=False)
            self._engines[_LINE] = made
        return self._engines[_LINE]

    @contextmanager
    def engine(self) -> Iterator[Connection]:
        """One transaction as the engine: commits at the end, rolls back on any error."""
        with answering(), self.pool("engine").begin() as connection:
            yield connection

    @contextmanager
    def line(self, *, gives_way: bool = True) -> Iterator[Direct]:
        """One transaction as the engine, by the driver itself: for what every message waits for.

        ``gives_way``: its statements may be held up by ``before_statement``. Not those that hold what others wait for.
        """
        with answering():
            pooled = self._line_pool().raw_connection()
            raw = pooled.driver_connection
            assert isinstance(raw, psycopg.Connection), "psycopg 3 is the driver"
            try:
                with raw.pipeline() as pipeline:
                    yield Direct(raw, pipeline, self.before_statement if gives_way else _at_once)
                    self.before_commit()
                    raw.commit()
            finally:
                if raw.closed:
                    pooled.invalidate()
                pooled.close()

    @contextmanager
    def engine_at_once(self) -> Iterator[Connection]:
        """As the engine, each statement a transaction of its own: no BEGIN and no COMMIT travel.

        For what one statement does, again and again.
        """
        with answering(), self.pool("engine").connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def door(self) -> Iterator[Connection]:
        """One transaction as the door."""
        with answering(), self.pool("door").begin() as connection:
            yield connection

    async def door_in_loop(self) -> psycopg.AsyncConnection[Any]:
        """A connection of one's own as the door, for an event loop: each statement a transaction of its own.

        For sets of rows, which are never compared each with each. DependencyDown when PostgreSQL does not answer.
        """
        url = make_url(self.url)
        _, named = url.get_dialect()().create_connect_args(url)
        with answering():
            connection = await psycopg.AsyncConnection.connect(**{**named, **_connect_arguments(DOOR)}, autocommit=True)
            await connection.execute("set enable_nestloop = off")
            with suppress(psycopg.errors.UndefinedFunction):
                # As ``_note_epoch`` does for the pools.
                await connection.execute(_EPOCH)
        return connection

    @contextmanager
    def api(self, tenant_id: UUID | None) -> Iterator[Connection]:
        """One transaction as the API: ``tenant_id`` sees its own rows; None: the distributor's people see all."""
        with answering(), self.pool("api").begin() as connection:
            connection.execute(
                text("select set_config('bss_sync.reach', :reach, true), set_config('bss_sync.tenant', :tenant, true)"),
                {
                    "reach": "distributor" if tenant_id is None else "tenant",
                    "tenant": "" if tenant_id is None else str(tenant_id),
                },
            )
            yield connection

    def dispose(self) -> None:
        """Close every pool. A connection that a thread still uses is closed when it is given back."""
        for engine in self._engines.values():
            event.listen(engine.pool, "checkin", _close_late)
            engine.dispose()
        self._engines.clear()


def _make_pool(url: str, role: str, size: int, wait_seconds: float, *, ping_always: bool) -> Engine:
    engine = create_engine(
        make_url(url),
        pool_size=size,
        max_overflow=OVERFLOW,
        pool_pre_ping=ping_always,
        pool_timeout=wait_seconds,
        # The one that was used last is used next: few sessions keep plans, and those are the ones that are asked.
        pool_use_lifo=True,
        connect_args=_connect_arguments(f"bss_sync_{role}"),
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        assert isinstance(connection, psycopg.Connection), "psycopg 3 is the driver"
        connection.prepare_threshold = 3
        set_json_loads(quick_json.loads, connection)
        _note_epoch(connection)

    if not ping_always:
        _ping_after_rest(engine)
    return engine


_PLANNED_ANEW = "-c plan_cache_mode=force_custom_plan "
"""A plan that was made and kept while a table was empty makes a flood, or a first load, quadratic."""

_PLANNED_ONCE = "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off "
"""What the door asks is the same whatever the values are: rows by their keys, and the foreign key of each message. No
such plan reads a whole table, so that one that was made while a table was empty is good for a full one too."""


def _connect_arguments(role: str) -> dict[str, Any]:
    return {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "options": f"-c role={role} -c timezone=UTC -c statement_timeout={STATEMENT_TIMEOUT_SECONDS}s "
        # Every statement is short, and what it reads lies in memory or on a disk without a head: looking a row up
        # costs about as much as reading the next one, and compiling costs more than it brings.
        f"-c jit=off -c random_page_cost=1.1 {_PLANNED_ONCE if role == DOOR else _PLANNED_ANEW}"
        f"-c idle_in_transaction_session_timeout={IDLE_TRANSACTION_SECONDS}s "
        # Over a Unix socket the server leaves these out.
        f"-c tcp_keepalives_idle={SILENT_SECONDS // 2} -c tcp_keepalives_interval={SILENT_SECONDS // 4} "
        f"-c tcp_keepalives_count=2 -c tcp_user_timeout={SILENT_SECONDS}s",
        "keepalives_idle": SILENT_SECONDS // 2,
        "keepalives_interval": SILENT_SECONDS // 4,
        "keepalives_count": 2,
        "tcp_user_timeout": SILENT_SECONDS * 1000,
    }


def _ping_after_rest(engine: Engine) -> None:
    """Look whether a connection is alive when it is used again, but not from one batch to the next."""

    @event.listens_for(engine, "checkin")
    def _note(_connection: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _ping(connection: Any, record: Any, _proxy: Any) -> None:
        rested = time.monotonic() - record.info.get("used_at", float("-inf")) >= REST_SECONDS
        if not rested and not _has_word(connection):
            return
        try:
            connection.autocommit = True
            connection.execute("")
            connection.autocommit = False
        except psycopg.Error as error:
            raise InvalidatePoolError from error


def _close_late(connection: Any, _record: Any) -> None:
    """Nobody looks into a pool again that was disposed of."""
    if connection is not None:
        connection.close()


def _has_word(connection: psycopg.Connection[Any]) -> bool:
    """Whether a server that was asked nothing has said something: that it ends, or nothing more for ever."""
    if connection.closed:
        return True
    look = select.poll()
    look.register(connection.fileno(), select.POLLIN)
    return bool(look.poll(0))


def _at_once() -> None:
    """Nobody is to be waited for."""


def driver(connection: Statements) -> psycopg.Connection[Any]:
    """The driver's own connection below, in the same transaction: for statements that every message waits for."""
    if isinstance(connection, Direct):
        return connection.driver
    assert isinstance(connection, Connection), "there are two ways to PostgreSQL"
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection), "psycopg 3 is the driver"
    return raw


_EPOCH = "select open_list_epoch(0)"


def _note_epoch(connection: psycopg.Connection[Any]) -> None:
    """A server that was restarted or replaced is noticed before anything is written to it (epochs.py)."""
    try:
        connection.execute(_EPOCH)
    except psycopg.errors.UndefinedFunction:
        # Not migrated yet: whoever asks for more than this is told.
        connection.rollback()
    else:
        connection.commit()


_UNABLE = frozenset({"0A000", "25006", "53100", "53200", "53300", "57014", "55P03"})
"""A table has got a column since this session prepared its statement (the rollback forgets it), read-only after a
failover, disk or memory full, too many connections, statement or lock timeout."""


@contextmanager
def answering() -> Iterator[None]:
    """Turn what may pass by itself into DependencyDown; every other database error is a defect and passes on.

    Passing: a lost or refused connection, a shutdown, a deadlock, a timeout, a full disk, a read-only stand-by; and a
    pool of which every connection is at work.
    """
    try:
        yield
    except PoolTimeout as error:
        raise DependencyDown("Every connection to PostgreSQL that this process may have is at work.") from error
    except (OperationalError, InterfaceError) as error:
        raise DependencyDown(f"PostgreSQL cannot serve this now: {type(error.orig).__name__}") from error
    except psycopg.Error as error:
        # From the driver itself (``driver``).
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) or error.sqlstate in _UNABLE:
            raise DependencyDown(f"PostgreSQL cannot serve this now: {type(error).__name__}") from error
        raise
    except DBAPIError as error:
        if error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _UNABLE:
            raise DependencyDown(f"PostgreSQL cannot serve this now: {type(error.orig).__name__}") from error
        raise
