"""Our database inside the embedded PostgreSQL: production's roles, made and migrated by whoever comes first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from bss_sync.adapters.embedded import SUPERUSER, EmbeddedPostgres
from bss_sync.adapters.sql.revision import check_migrated
from bss_sync.domain.errors import NotMigrated

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


def prepare(server: EmbeddedPostgres) -> None:
    """Make what is missing, and bring the schema to this version."""
    create(server)
    if not is_migrated(owner_url(server)):
        # Alembic is slow to import, and seldom needed.
        from bss_sync.adapters.sql.migrate import upgrade

        upgrade(owner_url(server), login_url(server))


def is_migrated(url: str) -> bool:
    """Whether the database stands at this version's schema."""
    from sqlalchemy import create_engine

    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            check_migrated(connection)
    except NotMigrated:
        return False
    finally:
        engine.dispose()
    return True


def _plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://", 1)
