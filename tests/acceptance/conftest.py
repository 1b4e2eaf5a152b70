"""The same scenarios on the line in memory and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.scenario import Scenario
from tests.scenario_memory import MemoryScenario
from tests.scenario_postgres import postgres_scenario
from tests.servers import PostgresServer

Connect = Callable[..., Scenario]


@pytest.fixture(params=["memory", "postgres"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes a live connection: ``connect(can_fetch=…, accounts_at_once=…)``."""
    with ExitStack() as stack:

        def on_postgres(**settings: bool) -> Scenario:
            server = request.getfixturevalue("postgres_server")
            assert isinstance(server, PostgresServer)
            database = stack.enter_context(server.database())
            return stack.enter_context(postgres_scenario(database, **settings))

        yield on_postgres if request.param == "postgres" else MemoryScenario.connected


@pytest.fixture
def line(connect: Connect) -> Scenario:
    """A live connection to a source that only sends; accounts follow their first paid subscription."""
    return connect()
