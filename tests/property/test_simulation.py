"""Whole lives of a connection, played from seeds with everything that may go wrong; a failure names its seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bss_sync.adapters.sql.database import Database
from tests.servers import PostgresServer
from tests.simulation.__main__ import play
from tests.simulation.postgres_core import PostgresCore, install_clock
from tests.simulation.sabotage import PROTECTIONS
from tests.simulation.world import World, seeded

IN_MEMORY = 300
ON_POSTGRES = 20
NOTICED_WITHIN = 500
"""Schedules in which a missing protection shows; docs/testing.md has the figures."""


@pytest.fixture(scope="module")
def simulated_database(postgres_server: PostgresServer) -> Iterator[Database]:
    """A migrated database whose clock is the world's."""
    with postgres_server.database() as server:
        install_clock(server)
        database = Database(server.login_url, pool_size=12)
        try:
            yield database
        finally:
            database.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_every_promise_holds_in_seeded_schedules_in_memory(part: int) -> None:
    share = IN_MEMORY // 3
    for seed in range(part * share, (part + 1) * share):
        _world, broken = play(seed)
        assert broken is None, f"python -m tests.simulation --replay {seed}: {broken}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(ON_POSTGRES))
def test_every_promise_holds_in_seeded_schedules_on_postgresql(simulated_database: Database, seed: int) -> None:
    with seeded(seed):
        World(
            seed, lambda codes, profile: PostgresCore(simulated_database, codes, profile), tag=f"-{seed}", short=True
        ).run()


@pytest.mark.parametrize("protection", sorted(PROTECTIONS))
def test_the_line_without_one_of_its_protections_is_found_out_soon(protection: str) -> None:
    assert any(play(seed, without=protection)[1] is not None for seed in range(NOTICED_WITHIN))


def test_a_seed_gives_the_same_schedule_again() -> None:
    assert play(7)[0].trace == play(7)[0].trace
