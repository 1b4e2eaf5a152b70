"""Whether a configured database is there, migrated, and open to the login role that was given."""

from __future__ import annotations

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from bss_sync.adapters.sql.database import CONNECT_TIMEOUT_SECONDS
from bss_sync.adapters.sql.revision import Standing, check_migrated, standing
from bss_sync.domain.errors import ConfigurationError, DependencyDown

ROLES = ("bss_sync_engine", "bss_sync_api", "bss_sync_door")
"""The working roles."""


def check_database(url: str) -> None:
    """One plain connection, without a working role: those may not exist yet.

    DependencyDown when the server does not answer, NotMigrated when the schema is another, ConfigurationError when
    the login role may not take the working roles.
    """
    engine = create_engine(make_url(url), connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS})
    try:
        with engine.connect() as connection:
            check_migrated(connection)
            for role in ROLES:
                able = connection.execute(
                    text("select pg_has_role(current_user, :role, 'member')"), {"role": role}
                ).scalar_one()
                if not able:
                    user = connection.execute(text("select current_user")).scalar_one()
                    raise ConfigurationError(
                        f"BSS_SYNC_DATABASE_URL: the role {user} may not act as {role}.",
                        next_step="Set BSS_SYNC_DATABASE_OWNER_URL beside it and run: bss-sync db upgrade",
                    )
    except OperationalError as error:
        raise DependencyDown(f"PostgreSQL does not answer: {_first_line(error)}") from error
    finally:
        engine.dispose()


def _first_line(error: OperationalError) -> str:
    lines = str(error.orig).strip().splitlines()
    return lines[0] if lines else type(error.orig).__name__


def current(url: str) -> Standing:
    """Where a database stands. DependencyDown."""
    engine = create_engine(make_url(url), connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS})
    try:
        with engine.connect() as connection:
            return standing(connection)
    except OperationalError as error:
        raise DependencyDown(f"PostgreSQL does not answer: {_first_line(error)}") from error
    finally:
        engine.dispose()


def place(url: str) -> str:
    """Where a database is, without its password."""
    return make_url(url).render_as_string(hide_password=True)
