"""Our database inside the embedded PostgreSQL: production's roles, made and migrated by whoever comes first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from bss_sync.adapters import backup
from bss_sync.adapters.embedded import SUPERUSER, EmbeddedPostgres
from bss_sync.adapters.sql.readiness import check_database
from bss_sync.domain.errors import ConfigurationError, StateConflict

DATABASE = "bss_sync"
OWNER = "bss_sync_owner"
LOGIN = "bss_sync_login"
_ADVISORY_LOCK = 7_205_259_404
"""Two processes that come first at once take turns."""


@contextmanager
def running(home: Path) -> Iterator[EmbeddedPostgres]:
    """The home's server, started or adopted; its last user stops it."""
    with EmbeddedPostgres(home) as server:
        yield server


def owner_url(server: EmbeddedPostgres) -> str:
    """The database as the role that owns the tables."""
    return server.url(OWNER, DATABASE)


def login_url(server: EmbeddedPostgres) -> str:
    """The database as the role that the program works under."""
    return server.url(LOGIN, DATABASE)


def create(server: EmbeddedPostgres) -> None:
    """Make the roles and the database where they are missing."""
    with psycopg.connect(_plain(server.url(SUPERUSER, "postgres")), autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(%s)", [_ADVISORY_LOCK])
        found = {row[0] for row in connection.execute("select rolname from pg_roles")}
        for name, attributes in ((OWNER, "login createrole"), (LOGIN, "login noinherit")):
            if name not in found:
                connection.execute(sql.SQL("create role {} {}").format(sql.Identifier(name), sql.SQL(attributes)))
        known = connection.execute("select 1 from pg_database where datname = %s", [DATABASE]).fetchone()
        if known is None:
            connection.execute(
                sql.SQL("create database {} owner {}").format(sql.Identifier(DATABASE), sql.Identifier(OWNER))
            )


def superuser_url(server: EmbeddedPostgres) -> str:
    """The database as the server's superuser, whom no row-level security touches: for backups."""
    return server.url(SUPERUSER, DATABASE)


def restore(server: EmbeddedPostgres, file: Path, *, replace: bool) -> None:
    """Put a backup in the place of our database. What is there stays until the backup is in, whole.

    StateConflict while it is in use, and where it holds connections unless ``replace``.
    """
    create(server)
    new = f"{DATABASE}_restoring"
    with psycopg.connect(_plain(server.url(SUPERUSER, "postgres")), autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(%s)", [_ADVISORY_LOCK])
        if not replace and _holds_connections(server):
            raise StateConflict(
                "This home holds a database with connections.",
                next_step="Take a backup of it, then restore with --replace; or use another BSS_SYNC_HOME.",
            )
        connection.execute(sql.SQL("drop database if exists {}").format(sql.Identifier(new)))
        connection.execute(
            sql.SQL("create database {} owner {} template template0").format(sql.Identifier(new), sql.Identifier(OWNER))
        )
        backup.make_roles(server.url(OWNER, new))
        backup.load(server.url(OWNER, new), file)
        try:
            connection.execute(sql.SQL("drop database {}").format(sql.Identifier(DATABASE)))
        except psycopg.errors.ObjectInUse:
            raise StateConflict(
                f"Other processes use the database of {server.home}.", next_step="Stop them, then restore again."
            ) from None
        connection.execute(
            sql.SQL("alter database {} rename to {}").format(sql.Identifier(new), sql.Identifier(DATABASE))
        )


def _holds_connections(server: EmbeddedPostgres) -> bool:
    with psycopg.connect(_plain(superuser_url(server))) as connection:
        if connection.execute("select to_regclass('connection')").fetchone() == (None,):
            return False
        return connection.execute("select exists (select 1 from connection)").fetchone() == (True,)


def prepare(server: EmbeddedPostgres) -> None:
    """Make what is missing, and bring the schema to this version."""
    create(server)
    if not is_ready(login_url(server)):
        # Alembic is slow to import, and seldom needed.
        from bss_sync.adapters.sql.migrate import upgrade

        upgrade(owner_url(server), login_url(server))


def is_ready(url: str) -> bool:
    """Whether the database stands at this version's schema, and its login role may take the working roles.

    After a dump was restored by hand it may not: a dump holds no roles.
    """
    try:
        check_database(url)
    except ConfigurationError:
        return False
    return True


def _plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://", 1)
