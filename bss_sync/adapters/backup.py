"""Backups with PostgreSQL's own tools: one file of ``pg_dump``'s custom format, whole or not at all.

The master key is not in it: a stolen backup must not open the secrets that it holds. Redis holds nothing to keep.

A dump names roles and does not hold them. They are made before the restore, by the tables' owner, who may then let the
login role take them. A dump is taken by the owner or a superuser: row-level security is forced, also on the owner, and
a table whose policies hid rows from the one who dumps would be saved empty. That is looked at before.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import make_url

from bss_sync.adapters.embedded_account import bundled_programs
from bss_sync.adapters.sql.readiness import ROLES
from bss_sync.domain.errors import ConfigurationError, DependencyDown, StateConflict

_SYSTEM_FOLDERS = (
    "/usr/lib/postgresql/{major}/bin",
    "/usr/pgsql-{major}/bin",
    "/opt/homebrew/opt/postgresql@{major}/bin",
)
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")
_LINES_SHOWN = 4

# Tables whose rows the present user would not see all of: no bypass, and no policy that shows it every row.
_HIDDEN = """
    select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'public' and c.relkind in ('r', 'p') and c.relrowsecurity
      and (c.relforcerowsecurity or not pg_has_role(current_user, c.relowner, 'usage'))
      and not (select rolsuper or rolbypassrls from pg_roles where rolname = current_user)
      and not exists (select 1 from pg_policy p where p.polrelid = c.oid and p.polpermissive
                        and p.polcmd in ('*', 'r') and pg_get_expr(p.polqual, p.polrelid) = 'true'
                        and exists (select 1 from unnest(p.polroles) r (role)
                                    where r.role = 0 or pg_has_role(current_user, r.role, 'usage')))
    order by 1"""


@dataclass(frozen=True, slots=True)
class Place:
    """A database, as one of its roles: what libpq needs, and the password apart from it."""

    conninfo: str
    password: str | None

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """A connection that commits each statement. DependencyDown."""
        try:
            return psycopg.connect(self.conninfo, password=self.password, autocommit=True, connect_timeout=10)
        except psycopg.OperationalError as error:
            raise DependencyDown(f"PostgreSQL does not answer: {_last(str(error))}") from error

    def environment(self) -> dict[str, str]:
        """For a tool: the password is in no list of processes."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return plain | {"LC_ALL": "C"} | ({} if self.password is None else {"PGPASSWORD": self.password})


def place_of(url: str) -> Place:
    """The place that an SQLAlchemy URL names."""
    parts = make_url(url)
    given: dict[str, object] = {
        "host": parts.host,
        "port": parts.port,
        "user": parts.username,
        "dbname": parts.database,
    }
    given |= {name: value for name, value in parts.query.items() if isinstance(value, str)}
    words = {name: str(value) for name, value in given.items() if value is not None}
    return Place(make_conninfo("", **words), parts.password)


def dump(url: str, file: Path) -> None:
    """Save the database into ``file``, which must not exist, readable for its owner only.

    Everything keeps running meanwhile; the file holds one moment. StateConflict, ConfigurationError, DependencyDown.
    """
    if file.exists():
        raise StateConflict(f"{file} exists", next_step="Name another file: no backup is written over.")
    place = place_of(url)
    with place.connect() as connection:
        if connection.execute("select to_regclass('alembic_version')").fetchone() == (None,):
            raise StateConflict("This database holds nothing of bss_sync.", next_step="Check BSS_SYNC_DATABASE_URL.")
        hidden = [str(row[0]) for row in connection.execute(_HIDDEN)]
        major = connection.info.server_version // 10_000
    if hidden:
        raise ConfigurationError(
            f"The role of BSS_SYNC_DATABASE_OWNER_URL does not see every row of {', '.join(hidden)}.",
            next_step="Name the tables' owner there, or a role with BYPASSRLS.",
        )
    unfinished = file.with_name(f"{file.name}.unfinished")
    try:
        os.close(os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW, 0o600))
        arguments = ["--format=custom", "--enable-row-security", "--no-owner", f"--file={unfinished}"]
        _run(tool("pg_dump", major), [*arguments, f"--dbname={place.conninfo}"], place.environment())
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.rename(file)
    except OSError as error:
        raise ConfigurationError(
            f"{file} cannot be written: {error.strerror}", next_step="Name a file in a folder that you may write."
        ) from None
    finally:
        unfinished.unlink(missing_ok=True)


def make_roles(url: str) -> None:
    """The working roles that a dump names, made by the tables' owner where they are missing."""
    with place_of(url).connect() as connection:
        for role in ROLES:
            if connection.execute("select 1 from pg_roles where rolname = %s", [role]).fetchone() is None:
                try:
                    connection.execute(sql.SQL("create role {} nologin").format(sql.Identifier(role)))
                except psycopg.errors.InsufficientPrivilege:
                    raise ConfigurationError(
                        f"The role {role} is missing, and {connection.info.user} may not create roles.",
                        next_step=f"As an administrator: alter role {connection.info.user} createrole",
                    ) from None


def check_empty(url: str) -> None:
    """StateConflict unless the database holds no table."""
    with place_of(url).connect() as connection:
        row = connection.execute(
            """select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
               where n.nspname = 'public' and c.relkind in ('r', 'p')"""
        ).fetchone()
    if row != (0,):
        raise StateConflict(
            "The database that is to be restored into is not empty.",
            next_step="Create an empty one for its owner, and name it in BSS_SYNC_DATABASE_URL and _OWNER_URL.",
        )


def load(url: str, file: Path) -> None:
    """Restore ``file`` into an empty database, as its owner, in one transaction: all of it or nothing."""
    place = place_of(url)
    with place.connect() as connection:
        major = connection.info.server_version // 10_000
    if not file.is_file():
        raise ConfigurationError(f"{file} is no file", next_step="Name a file that bss-sync db backup has written.")
    arguments = ["--exit-on-error", "--single-transaction", "--no-owner", f"--dbname={place.conninfo}", str(file)]
    _run(tool("pg_restore", major), arguments, place.environment())


def tool(name: str, major: int) -> Path:
    """PostgreSQL's program of the server's own version: of this installation, of the path, of the usual folders.

    ConfigurationError where only other versions are found: a dump by a newer one cannot always be restored.
    """
    found: list[str] = []
    folders = [bundled_programs(), *(Path(one.format(major=major)) for one in _SYSTEM_FOLDERS)]
    on_path = shutil.which(name)
    candidates = [folder / name for folder in folders if folder is not None]
    for candidate in [*candidates, *([Path(on_path)] if on_path else [])]:
        version = _major(candidate)
        if version == major:
            return candidate
        if version is not None:
            found.append(str(version))
    raise ConfigurationError(
        f"The server is PostgreSQL {major}, and {name} was found of version {', '.join(found) or 'none'}.",
        next_step=f"Install the client programs of PostgreSQL {major} (postgresql-client-{major}).",
    )


def _major(program: Path) -> int | None:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30)
    except OSError:
        return None
    version = _VERSION.search(done.stdout)
    return int(version[1]) if version else None


def _run(program: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [str(program), "--no-password", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=dict(environment),
    )
    if done.returncode != 0:
        raise DependencyDown(f"{program.name} failed: {_last(done.stderr)}")


def _last(words: str) -> str:
    return " · ".join(line.strip() for line in words.strip().splitlines()[-_LINES_SHOWN:])
