"""An upgrade beside running processes: the release before and this one together on load, and migrations in need."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.chaos.scenarios import eventually
from tests.chaos.upgrade import journey, there_and_back
from tests.command_line import over
from tests.releases import NEXT_REVISION, Release, next_release, this_release
from tests.servers import Database, RedisServer, short_folder

SEED = 5
PATIENCE = 2.0
SHORT = "set local lock_timeout = '1s'"
WIDER = "alter table message add column later text"


@pytest.fixture
def environment(database: Database) -> Iterator[dict[str, str]]:
    """A database at this version's schema, with a key and a home."""
    with short_folder() as home:
        yield over(database, home).environment


@contextmanager
def next_one(*statements: str, marks: str = "") -> Iterator[Release]:
    with short_folder() as folder:
        yield next_release(folder, *statements, marks=marks)


def ask(database: Database, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(database.superuser_url.replace("+psycopg", ""), autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()


def is_asked(database: Database, words: str) -> Callable[[], bool]:
    """Whether a session is at a statement with these words."""
    statement = f"select 1 from pg_stat_activity where state = 'active' and query like '%{words}%' and pid <> "
    return lambda: bool(ask(database, statement + "pg_backend_pid()"))


@pytest.mark.slow
def test_old_and_new_work_side_by_side_there_and_back(previous_release: Release, redis_process: RedisServer) -> None:
    with (
        short_folder() as folder,
        journey(SEED, previous_release, this_release(folder), redis=redis_process, patience=PATIENCE) as one,
    ):
        figures = there_and_back(one, seconds=1.0, short=True)
    assert one.broken == []
    assert figures["messages"] > figures["effects"] > 0


def test_a_program_refuses_an_older_schema_and_says_what_to_run(environment: dict[str, str]) -> None:
    with next_one(SHORT, WIDER) as later:
        for part in ("web", "worker", "scheduler"):
            answer = later.run(
                {**environment, "BSS_SYNC_REDIS_URL": "redis://127.0.0.1:1/0", "BSS_SYNC_BIND": "127.0.0.1:0"}, part
            )
            assert answer.code == 3
            assert f"this version needs {NEXT_REVISION}" in answer.err
            assert "bss-sync db upgrade" in answer.err
        assert later.run(environment, "db", "status").code == 3
        assert later.run(environment, "db", "upgrade").code == 0
        assert later.run(environment, "db", "status").code == 0


def test_a_program_works_on_a_later_schema_until_that_was_contracted(
    environment: dict[str, str], database: Database
) -> None:
    with short_folder() as folder, next_one(SHORT, WIDER) as later:
        this = this_release(folder)
        assert later.run(environment, "db", "upgrade").code == 0
        for command in (("db", "status"), ("db", "upgrade"), ("product", "list")):
            assert this.run(environment, *command).code == 0, command
        assert ask(database, "select version_num from schema_revision") == [(NEXT_REVISION,)]
        database.server.execute("delete from schema_revision", database=database.name)
        database.server.execute("alter table message drop column later", database=database.name)
    marks = f'floor = "{NEXT_REVISION}"'
    with short_folder() as folder, next_one(SHORT, WIDER, marks=marks) as contracting:
        this = this_release(folder)
        ask(database, f"insert into schema_revision values ('{_head(this)}') returning 1")
        assert contracting.run(environment, "db", "upgrade").code == 0
        for command in (("db", "status"), ("db", "upgrade"), ("product", "list")):
            answer = this.run(environment, *command)
            assert answer.code == 3, command
            assert "Run the version that migrated it" in answer.err


def _head(release: Release) -> str:
    from bss_sync.adapters.sql.revision import revisions_in

    return revisions_in(release.folder / "migrations")[1]


def test_two_upgrades_at_once_take_turns(environment: dict[str, str]) -> None:
    with next_one(SHORT, "create table once_only (id int)", "select pg_sleep(1.5)") as later:
        answers = [later.ended(one) for one in [later.start(environment, "db", "upgrade") for _ in range(2)]]
    assert [one.code for one in answers] == [0, 0], answers


def test_an_upgrade_that_is_killed_midway_left_nothing_and_runs_again(
    environment: dict[str, str], database: Database
) -> None:
    with next_one(SHORT, WIDER, "select pg_sleep(30)") as later:
        process = later.start(environment, "db", "upgrade")
        eventually(is_asked(database, "pg_sleep(30)"), "the migration is under way")
        process.kill()
        process.communicate()
        # Its session is found to be an orphan's, and its locks are freed long before its statement would end.
        ended = eventually(lambda: not is_asked(database, "pg_sleep(30)")(), "its session ends", 20)
        assert ended < 15
    wider = "select 1 from information_schema.columns where table_name = 'message' and column_name = 'later'"
    assert ask(database, wider) == []
    with next_one(SHORT, WIDER) as later:
        assert later.run(environment, "db", "upgrade").code == 0
    assert ask(database, wider) == [(1,)]


def test_a_migration_gives_a_lock_up_again_and_again_and_holds_nobody_up(
    environment: dict[str, str], database: Database
) -> None:
    waits: list[float] = []
    ending = threading.Event()

    def read() -> None:
        with psycopg.connect(database.superuser_url.replace("+psycopg", ""), autocommit=True) as connection:
            while not ending.wait(0.02):
                started = time.monotonic()
                connection.execute("select 1 from message limit 1")
                waits.append(time.monotonic() - started)

    reader = threading.Thread(target=read)
    with next_one(SHORT, WIDER) as later, psycopg.connect(database.superuser_url.replace("+psycopg", "")) as holder:
        holder.execute("select 1 from message")
        reader.start()
        try:
            impatient = later.run(environment, "db", "upgrade", "--patience", "0")
            patient = later.start(environment, "db", "upgrade")
            eventually(lambda: sum(took > 0.5 for took in waits) >= 3, "it has tried again")
            holder.rollback()
            answer = later.ended(patient)
        finally:
            ending.set()
            reader.join()
    assert impatient.code == 3
    assert "needs a lock that others hold" in impatient.err
    assert "pg_stat_activity" in impatient.err
    assert answer.code == 0, answer
    assert "trying again" in answer.err
    assert max(waits) < 1.0 + 2.0, "one wait for the lock, and allowance for a busy machine"
