"""Brings a database to the schema that this version of bss_sync works with, and tells where it stands."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from bss_sync.adapters.sql.readiness import ROLES
from bss_sync.adapters.sql.revision import head_revision
from bss_sync.domain.errors import DependencyDown
from bss_sync.resources import resource_folder

_ADVISORY_LOCK = 7_205_259_403
"""Two processes that migrate at once take turns."""


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(resource_folder("migrations")))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def upgrade(owner_url: str, login_url: str | None = None) -> str:
    """Migrate as the owner and let the login role of ``login_url`` take the three working roles. Returns the revision.

    DependencyDown when the server does not answer.
    """
    engine = create_engine(owner_url)
    try:
        with engine.connect() as connection:
            connection.execute(text("select pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
            connection.commit()
            command.upgrade(_config(connection), "head")
            # Every process looks at it before it takes a working role.
            connection.execute(text("grant select on alembic_version to public"))
            connection.commit()
            if login_url is not None:
                _grant_roles(connection, make_url(login_url).username)
            connection.execute(text("select pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK})
            connection.commit()
    except OperationalError as error:
        raise DependencyDown(f"PostgreSQL does not answer: {error.orig}") from error
    finally:
        engine.dispose()
    return head_revision()


def _grant_roles(connection: Connection, login: str | None) -> None:
    owner = connection.execute(text("select current_user")).scalar_one()
    if login is None or login == owner:
        return
    quoted = connection.dialect.identifier_preparer.quote(login)
    for role in ROLES:
        connection.exec_driver_sql(f"grant {role} to {quoted}")
    connection.commit()
