"""Brings a database to the schema that this version of bss_sync works with, beside processes of the version before.

A migration that waits for a table's lock holds up everybody who comes after it. So it waits for short, gives up, lets
the others through and tries again, for as long as its caller is patient.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from bss_sync.adapters.sql.readiness import ROLES
from bss_sync.adapters.sql.revision import FLOOR_TABLE, REVISION_TABLE, head_revision, is_newer, standing
from bss_sync.domain.errors import DependencyDown, SchemaBusy
from bss_sync.resources import resource_folder

_ADVISORY_LOCK = 7_205_259_403
"""Two processes that migrate at once take turns."""
TURN_LOOK_SECONDS = 0.2
LOCK_SECONDS = 2
"""The longest wait for a lock, where a migration names none: nobody is held up longer by our waiting."""
REST_SECONDS = 1.0
PATIENCE_SECONDS = 300.0
ORPHAN_SECONDS = 2
"""PostgreSQL looks this often whether a migrating process still lives; a dead one's locks are freed."""
_LOCK_NOT_HAD = frozenset({"55P03", "40P01"})
"""SQLSTATEs: lock_not_available, deadlock_detected."""


def upgrade(
    owner_url: str,
    login_url: str | None = None,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    tell: Callable[[str], None] = lambda _words: None,
) -> str:
    """Migrate as the owner and let the login role of ``login_url`` take the three working roles. Returns the revision.

    Each migration is whole or not at all; what was begun is gone on with by the next call. A database that a later
    version has migrated is left as it is. ``tell`` hears, in words, what is waited for.

    DependencyDown when the server does not answer; SchemaBusy when a lock was not to be had in ``patience_seconds``;
    NotMigrated when the database was contracted beyond this version.
    """
    engine = create_engine(owner_url)
    try:
        with engine.connect() as connection:
            _take_turn(connection, tell)
            if not is_newer(standing(connection)):
                connection.rollback()
                _climb(connection, time.monotonic() + patience_seconds, tell)
            connection.rollback()
            if login_url is not None:
                _grant_roles(connection, make_url(login_url).username)
            reached = standing(connection).revision
            connection.execute(text("select pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK})
            connection.commit()
    except OperationalError as error:
        raise DependencyDown(f"PostgreSQL does not answer: {error.orig}") from error
    finally:
        engine.dispose()
    return reached or head_revision()


def _take_turn(connection: Connection, tell: Callable[[str], None]) -> None:
    """Wait until nobody else migrates: by looking, for an index that is built concurrently waits for all who wait."""
    connection.execute(text(f"set client_connection_check_interval = '{ORPHAN_SECONDS}s'"))
    connection.commit()
    told = False
    while not connection.execute(text("select pg_try_advisory_lock(:key)"), {"key": _ADVISORY_LOCK}).scalar_one():
        connection.rollback()
        if not told:
            tell("another process migrates this database; waiting for it")
            told = True
        time.sleep(TURN_LOOK_SECONDS)
    connection.commit()


def _climb(connection: Connection, deadline: float, tell: Callable[[str], None]) -> None:
    """Apply what is missing, one transaction each; again from where it stands whenever a lock was not to be had."""
    while True:
        try:
            connection.execute(text(f"set lock_timeout = '{LOCK_SECONDS}s'"))
            _prepare_tables(connection)
            connection.commit()
            command.upgrade(_config(connection), "head")
        except OperationalError as error:
            connection.rollback()
            if getattr(error.orig, "sqlstate", None) not in _LOCK_NOT_HAD:
                raise
            where = standing(connection).revision or "none"
            connection.rollback()
            words = f"the database is at revision {where}; the next migration needs a lock that others hold"
            if time.monotonic() > deadline:
                raise SchemaBusy(f"Gave up: {words}.") from error
            tell(f"{words}; trying again")
            time.sleep(REST_SECONDS)
        else:
            connection.commit()
            return


def _prepare_tables(connection: Connection) -> None:
    """The two tables in which a database says where it stands (see revision.py). Everybody may read them."""
    for table in (FLOOR_TABLE, REVISION_TABLE):
        if connection.execute(text("select to_regclass(:name)"), {"name": table}).scalar() is None:
            connection.execute(
                text(f"create table {table} (version_num varchar(32) constraint {table}_pkc primary key)")
            )
            connection.execute(text(f"grant select on {table} to public"))
    connection.execute(
        text(
            """insert into schema_revision select version_num from alembic_version
               where not exists (select from schema_revision)"""
        )
    )


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(resource_folder("migrations")))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = REVISION_TABLE
    config.attributes["on_version_apply"] = _raise_floor
    return config


def _raise_floor(*, ctx: Any, step: Any, **_: Any) -> None:
    """Alembic's callback within the transaction of each migration: the first schema and contractions set the floor."""
    script = step.up_revision
    floor = script.revision if script.down_revision is None else getattr(script.module, "floor", None)
    if floor is not None:
        ctx.connection.execute(text("delete from alembic_version"))
        ctx.connection.execute(text("insert into alembic_version values (:floor)"), {"floor": floor})


def _grant_roles(connection: Connection, login: str | None) -> None:
    owner = connection.execute(text("select current_user")).scalar_one()
    if login is None or login == owner:
        return
    quoted = connection.dialect.identifier_preparer.quote(login)
    for role in ROLES:
        connection.exec_driver_sql(f"grant {role} to {quoted}")
    connection.commit()
