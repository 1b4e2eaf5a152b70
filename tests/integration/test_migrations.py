"""Migrations only expand what the release before uses; those that are no single transaction can be run again."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text

from bss_sync.adapters.sql import migrate
from bss_sync.adapters.sql.revision import head_revision, revisions_in
from bss_sync.resources import resource_folder
from tests.command_line import over
from tests.releases import Release, next_release
from tests.servers import Database, PostgresServer, short_folder

_ROLES = "(values ('bss_sync_engine'), ('bss_sync_api'), ('bss_sync_door')) as r (role)"
_TABLES = (
    "pg_class c join pg_namespace n on n.oid = c.relnamespace and n.nspname = 'public' and c.relkind in ('r', 'p')"
)
_COLUMNS = f"{_TABLES} join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
OFFERED = {
    "table": f"select relname from {_TABLES}",
    "column": f"""select format('%s.%s %s %s', relname, attname, format_type(atttypid, atttypmod),
                         case when attnotnull then 'not null' end) from {_COLUMNS}""",
    "default": f"select format('%s.%s', relname, attname) from {_COLUMNS} where atthasdef or attidentity <> ''",
    "right": f"""select format('%s: %s on %s', role, p, relname) from {_TABLES}, {_ROLES},
                        (values ('select'), ('insert'), ('update'), ('delete')) as v (p)
                 where has_table_privilege(role, c.oid, p)""",
    "column's right": f"""select format('%s: %s on %s.%s', role, p, relname, attname) from {_COLUMNS}, {_ROLES},
                                 (values ('select'), ('insert'), ('update')) as v (p)
                          where has_column_privilege(role, c.oid, a.attnum, p)""",
    "function": f"""select format('%s by %s', p.oid::regprocedure, role) from pg_proc p, {_ROLES}
                    where pronamespace = 'public'::regnamespace and has_function_privilege(role, p.oid, 'execute')""",
}
"""What a schema offers to a program, in words."""
_NEEDED = f"""select relname, attname from {_COLUMNS} where attnotnull and not atthasdef and attidentity = ''"""


def facts(database: Database) -> set[str]:
    with psycopg.connect(database.superuser_url.replace("+psycopg", "")) as connection:
        return {
            f"{what} {row[0]}"
            for what, statement in OFFERED.items()
            for row in connection.execute(statement.encode()).fetchall()
        }


def needed(database: Database) -> dict[str, set[str]]:
    """The columns that an insert into a table cannot do without."""
    found: dict[str, set[str]] = {}
    with psycopg.connect(database.superuser_url.replace("+psycopg", "")) as connection:
        for table, column in connection.execute(_NEEDED.encode()).fetchall():
            found.setdefault(table, set()).add(column)
    return found


def contracted(migrations: Path, previous_head: str) -> set[str]:
    """What contractions since have taken away, by their own word: the release before uses it no more."""
    found: set[str] = set()
    for path in (migrations / "versions").glob("*.py"):
        said = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in ("floor", "contracts")
        }
        if "floor" in said:
            assert said["floor"] <= previous_head, f"{path.name}: the release before ends at {previous_head}"
            found |= set(said["contracts"])
    return found


@contextmanager
def at(server: PostgresServer, release: Release) -> Iterator[Database]:
    with server.database(migrated=False) as database, short_folder() as home:
        assert release.run(over(database, home).environment, "db", "upgrade").code == 0
        yield database


def taken_away(before: Database, after: Database, migrations: Path, previous_head: str) -> set[str]:
    """What the release before has and this schema does not offer any more, or demands in addition."""
    gone = facts(before) - facts(after)
    demanded = needed(before)
    later = needed(after)
    more = {f"demand {table}.{name}" for table in demanded for name in later.get(table, set()) - demanded[table]}
    return (gone | more) - contracted(migrations, previous_head)


def test_the_schema_offers_all_that_the_release_before_uses(
    previous_release: Release, postgres_server: PostgresServer, database: Database
) -> None:
    _, previous_head = revisions_in(previous_release.folder / "migrations")
    with at(postgres_server, previous_release) as before:
        assert taken_away(before, database, resource_folder("migrations"), previous_head) == set()


def test_what_a_migration_takes_away_is_seen_unless_it_says_so(
    postgres_server: PostgresServer, database: Database
) -> None:
    statements = (
        "set local lock_timeout = '2s'",
        "alter table account drop column notes",
        "alter table gap rename column missing to lacking",
        "alter table product add column unit text not null",
        "alter table run alter column requested_by type varchar(10)",
        "revoke insert on message from bss_sync_door",
    )
    gone = {
        "column account.notes text ",
        "column gap.missing bigint not null",
        "demand gap.lacking",
        "demand product.unit",
        "column run.requested_by text not null",
        "right bss_sync_door: insert on message",
    }
    with short_folder() as folder:
        marks = f"floor = '{head_revision()}'\ncontracts = ('column account.notes text ',)"
        release = next_release(folder, *statements, marks=marks)
        with at(postgres_server, release) as after:
            found = taken_away(database, after, release.folder / "migrations", head_revision())
    assert found >= gone - {"column account.notes text "}
    assert "column account.notes text " not in found


def test_a_migration_that_is_no_single_transaction_can_be_run_again(empty_database: Database) -> None:
    again = []
    engine = create_engine(empty_database.owner_url)
    with engine.connect() as connection:
        migrate._prepare_tables(connection)
        connection.commit()
        config = migrate._config(connection)
        steps = reversed(list(ScriptDirectory.from_config(config).walk_revisions()))
        for step in steps:
            _step(connection, config, step.revision)
            if "autocommit_block" in Path(step.path).read_text(encoding="utf-8"):
                # Killed after its last statement, before the revision was noted.
                connection.execute(
                    text("update schema_revision set version_num = :before"), {"before": str(step.down_revision)}
                )
                connection.commit()
                _step(connection, config, step.revision)
                again.append(step.revision)
    engine.dispose()
    assert len(again) == len(set(again))


def _step(connection: Connection, config: Config, revision: str) -> None:
    command.upgrade(config, revision)
    connection.commit()
