"""A list of what changed since a time begins at that time, and misses nothing that was under way then."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import Connection, text

from bss_sync.adapters.sql import epochs
from bss_sync.adapters.sql.floors import floor_of, note_floor
from bss_sync.adapters.sql.upkeep import SqlUpkeep
from bss_sync.domain.moment import rfc3339
from bss_sync.pipeline.sweep import Sweeper
from tests.api_world import ApiWorld, api_world
from tests.large_mirror import QuietWakeUps
from tests.servers import Database, PostgresServer, short_folder

# The line writes the time of its transaction's beginning, the audit that of the moment.
_CHANGE = "update account set updated_at = {}, change_xid = pg_current_xact_id() where id = %s"
CHANGES = (_CHANGE.format("now()"), _CHANGE.format("clock_timestamp()"))


@pytest.fixture
def world(postgres_server: PostgresServer, database: Database) -> Iterator[ApiWorld]:
    with short_folder() as home, api_world(database, home) as one:
        yield one


@contextmanager
def _session(database: Database) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database.superuser_url.replace("+psycopg", "")) as connection:
        yield connection


def _floors(world: ApiWorld) -> int:
    with world.app.database.engine() as connection:
        return int(connection.execute(text("select count(*) from list_floor")).scalar_one())


def _note(world: ApiWorld) -> None:
    with world.app.database.engine() as connection:
        note_floor(connection, apart_seconds=0)


def _at(world: ApiWorld, question: str) -> datetime:
    with world.app.database.engine() as connection:
        found: datetime = connection.execute(text(f"select {question}")).scalar_one()
    return found


def _floor(world: ApiWorld, moment: datetime) -> int:
    with world.app.database.engine() as connection:
        return floor_of(connection, moment)


@dataclass
class _Writers:
    """Sessions that each change records of their own, in transactions that overlap as chance has it."""

    world: ApiWorld
    sessions: list[psycopg.Connection]
    records: list[UUID]
    chance: random.Random
    moments: list[datetime] = field(default_factory=list)

    def step(self) -> None:
        number = self.chance.randrange(len(self.sessions))
        match self.chance.choice(["begin", "change", "change", "commit", "note", "moment"]):
            case "begin":
                self.sessions[number].execute("select now()")
            case "change":
                own = self.records[number :: len(self.sessions)]
                self.sessions[number].execute(self.chance.choice(CHANGES), [self.chance.choice(own)])
            case "commit":
                self.sessions[number].commit()
            case "note":
                _note(self.world)
            case "moment":
                self.moments.append(_at(self.world, "clock_timestamp()"))


def _listed(world: ApiWorld, **wanted: Any) -> dict[str, str]:
    items = world.get("/v1/accounts", limit=500, **wanted)["items"]
    return {item["id"]: item["updated_at"] for item in items}


@pytest.mark.parametrize("seed", range(12))
def test_a_list_since_a_time_is_the_whole_list_without_what_is_older(
    world: ApiWorld, database: Database, seed: int
) -> None:
    with ExitStack() as stack:
        sessions = [stack.enter_context(_session(database)) for _ in range(4)]
        records = [UUID(one) for one in sorted(_listed(world))]
        assert len(records) >= len(sessions), "each has a record of its own"
        writers = _Writers(world, sessions, records, random.Random(seed))
        for _ in range(120):
            writers.step()
        for session in sessions:
            session.commit()
    everything = _listed(world)
    began = 0
    for moment in writers.moments:
        shown = rfc3339(moment)
        assert _listed(world, updated_since=shown) == {one: at for one, at in everything.items() if at >= shown}
        began += _floor(world, moment) > 0
    assert began, "some of them began at a floor"


def test_a_list_begins_where_what_was_under_way_at_that_time_begins(world: ApiWorld, database: Database) -> None:
    with _session(database) as session:
        mine = session.execute("select pg_current_xact_id()::text::bigint").fetchone()
        assert mine is not None
        _note(world)
        while_under_way = _at(world, "clock_timestamp()")
    _note(world)
    ended = _at(world, "clock_timestamp()")
    assert _floor(world, while_under_way) <= mine[0] < _floor(world, ended)
    assert _floor(world, ended) > 0
    assert _floor(world, datetime.fromisoformat("2020-01-01T00:00:00+00:00")) == 0


def test_floors_from_before_a_restored_backup_are_not_used(world: ApiWorld) -> None:
    _note(world)
    moment = _at(world, "clock_timestamp()")
    assert _floor(world, moment) > 0
    with world.app.database.engine() as connection:
        epochs.declare(connection)
    epochs.settle(world.app.database)
    world.app.database.dispose()
    assert _floor(world, moment) == 0
    _note(world)
    assert _floor(world, _at(world, "clock_timestamp()")) > 0


def _store(connection: Connection, noted_at: str) -> None:
    connection.execute(
        text(f"insert into list_floor (noted_at, xid, epoch) select {noted_at}, '5', max(number) from list_epoch")
    )


def test_a_clock_that_was_set_back_notes_nothing_until_it_is_where_it_was(world: ApiWorld) -> None:
    with world.app.database.engine() as connection:
        _store(connection, "now() + interval '10 minutes'")
    before = _floors(world)
    _note(world)
    assert _floors(world) == before


def test_the_sweep_notes_a_floor(world: ApiWorld) -> None:
    before = _floors(world)
    Sweeper(SqlUpkeep(world.app.database), QuietWakeUps()).tick()
    assert _floors(world) == before + 1


def test_floors_are_noted_half_a_minute_apart_by_whichever_scheduler(world: ApiWorld) -> None:
    before = _floors(world)
    for _ in range(3):
        with world.app.database.engine() as connection:
            note_floor(connection)
    assert _floors(world) == before + 1


def test_floors_of_over_five_weeks_ago_are_kept_by_the_hour(world: ApiWorld) -> None:
    with world.app.database.engine() as connection:
        for minute in range(0, 120, 10):
            _store(connection, f"date_trunc('hour', now()) - interval '35 days 12 hours' + interval '{minute} minutes'")
    before = _floors(world)
    _note(world)
    assert _floors(world) == before + 1 - 10
