"""The same scenarios on the line in memory and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from bss_sync.adapters.sql.database import Database
from tests.scenario import Scenario
from tests.scenario_memory import MemoryScenario
from tests.scenario_postgres import postgres_scenario
from tests.servers import PostgresServer

Connect = Callable[..., Scenario]


@pytest.fixture(scope="session")
def rules_database(postgres_server: PostgresServer) -> Iterator[Database]:
    """Pools over a migrated database that scenarios share one after the other, each with a connection of its own."""
    with postgres_server.database() as fresh:
        database = Database(fresh.login_url)
        yield database
        database.dispose()


@pytest.fixture(params=["memory", "postgres"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes a live connection: ``connect(can_fetch=…, accounts_at_once=…)``."""
    with ExitStack() as stack:

        def on_postgres(**settings: bool) -> Scenario:
            database = request.getfixturevalue("rules_database")
            assert isinstance(database, Database)
            return stack.enter_context(postgres_scenario(database, **settings))

        yield on_postgres if request.param == "postgres" else MemoryScenario.connected


@pytest.fixture
def line(connect: Connect) -> Scenario:
    """A live connection to a source that only sends; accounts follow their first paid subscription."""
    return connect()
