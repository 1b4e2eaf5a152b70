"""domain.md section 3: what was staged may be dropped; a later entry then waits and fetches. On PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bss_sync.adapters.sql.replays import SqlReplays
from bss_sync.adapters.sql.upkeep import SqlUpkeep
from bss_sync.domain.change import Json
from bss_sync.ports.inbox import Origin
from tests.scenario import ACCOUNT, SUBSCRIPTION, WAIT_SECONDS, Asked, account_body
from tests.scenario_postgres import PostgresScenario, postgres_scenario
from tests.servers import Database


@pytest.fixture
def line(database: Database) -> Iterator[PostgresScenario]:
    with postgres_scenario(database, can_fetch=True) as one:
        yield one


def _prune(line: PostgresScenario) -> None:
    line.execute("update staging set staged_at = now() - interval '401 days'")
    SqlUpkeep(line.database).prune()


def _discard(line: PostgresScenario) -> None:
    ids = [row.id for row in line.rows("select id from message")]
    SqlReplays(line.database).discard(ids, "not wanted", actor="test")


@pytest.mark.parametrize("forget", [_prune, _discard])
def test_an_account_that_was_staged_and_forgotten_enters_when_the_source_is_asked(
    line: PostgresScenario, forget: Callable[[PostgresScenario], None]
) -> None:
    line.account("x", 1)
    forget(line)
    assert line.rows("select 1 from staging") == []
    waiting = line.subscription("s1", 1, "x")
    assert line.state(waiting) == "waiting"
    line.pass_time(WAIT_SECONDS + 1)
    assert line.fetches() == {Asked(ACCOUNT, "x")}
    line.answer(ACCOUNT, "x", 1, account_body())
    assert line.state(waiting) == "applied"
    assert line.shown(SUBSCRIPTION, "s1").account == "x"


def test_nobody_but_whoever_was_asked_brings_back_what_was_given_up(line: PostgresScenario) -> None:
    line.subscription("s1", 1, product="LATER")
    _discard(line)
    line.offer("LATER")
    line.subscription("s1", 1, product="LATER")
    assert line.mirrored(SUBSCRIPTION) == set()
    line.answer(SUBSCRIPTION, "s1", 1, _body(line), origin=Origin.RECONCILE)
    assert line.mirrored(SUBSCRIPTION) == {"s1"}


def test_what_came_late_does_not_keep_out_what_was_given_up_when_the_source_is_asked(line: PostgresScenario) -> None:
    line.account("x", 3)
    _discard(line)
    line.account("x", 2, parent="nobody")
    waiting = line.subscription("s1", 1, "x")
    assert line.state(waiting) == "waiting"
    line.answer(ACCOUNT, "x", 3, account_body())
    assert line.state(waiting) == "applied"
    assert line.shown(ACCOUNT, "x").version == 3


def _body(line: PostgresScenario) -> dict[str, Json]:
    (row, *_) = line.rows("select body from message where source_id = 's1' order by seq")
    return dict(row.body)
