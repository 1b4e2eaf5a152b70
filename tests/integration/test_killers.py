"""Messages that end their process, or that cannot be written: only they are held (goals: reliability 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn
from uuid import UUID

import pytest

from bss_sync.adapters.sql.replays import SqlReplays
from bss_sync.adapters.sql.streams import SOLO_CLAIMS_MAX, SqlStreams
from bss_sync.domain.change import Kind
from bss_sync.pipeline.line import process
from bss_sync.ports.streams import Batch, Claim, Settled, Written
from tests.scenario import subscription_body
from tests.scenario_postgres import PostgresScenario, postgres_scenario
from tests.servers import Database

SUBSCRIPTION = Kind.SUBSCRIPTION
DEATHS_MAX = 1 + SOLO_CLAIMS_MAX
"""Once in a batch with others, then three times alone."""


@pytest.fixture
def line(each_database: Database) -> Iterator[PostgresScenario]:
    with postgres_scenario(each_database) as scenario:
        yield scenario


class _Killed(BaseException):
    """The end of a process: nothing of the product catches it, as nothing catches SIGKILL."""


class _Deadly(dict[str, Any]):
    """A body whose reading ends the process."""

    def __getitem__(self, key: str) -> NoReturn:
        raise _Killed


class _Worker(SqlStreams):
    """The streams of a worker that dies of reading some messages."""

    def __init__(self, line: PostgresScenario, deadly: Sequence[str]) -> None:
        super().__init__(line.database, lambda _connector: False)
        self._deadly = frozenset(deadly)

    def work(self, claims: Sequence[Claim], settle: Callable[[Batch], Settled]) -> tuple[Settled, Written]:
        def poisoned(batch: Batch) -> Settled:
            for key, entity in batch.entities.items():
                opened = tuple(
                    replace(one, body=_Deadly(one.body)) if one.message_id in self._deadly else one
                    for one in entity.open
                )
                batch.entities[key] = replace(entity, open=opened)
            return settle(batch)

        return super().work(claims, poisoned)


def _work_off(line: PostgresScenario, deadly: Sequence[str] = ()) -> int:
    """Work until nothing is left; a process that died is followed by the next after its lease. How many died."""
    worker, deaths = _Worker(line, deadly), 0
    for _ in range(100):
        try:
            if not process(worker, line.shard).more:
                return deaths
        except _Killed:
            deaths += 1
            line.expire_leases()
    raise AssertionError("it never came to rest")


def _versions(line: PostgresScenario, name: str, *versions: int, **bad: dict[str, Any]) -> list[str]:
    """Messages of one entity, not decided yet; ``bad``: members of single versions, as v2={...}."""
    changes = [
        line.change(SUBSCRIPTION, name, version, subscription_body(quantity=str(version), **bad.get(f"v{version}", {})))
        for version in versions
    ]
    line.send(*changes, work=False)
    return [change.message_id for change in changes]


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "between", "last"])
def test_only_the_message_that_kills_is_quarantined_and_the_rest_of_its_entity_proceeds(
    line: PostgresScenario, place: int
) -> None:
    of_killer = _versions(line, "killer", 1, 2, 3)
    innocent = _versions(line, "innocent", 1, 2)
    killer = of_killer.pop(place)
    assert _work_off(line, [killer]) == DEATHS_MAX
    # A higher version that is applied settles what is held below it.
    assert line.verdict(killer)[0::2] == ("quarantined" if place == 2 else "superseded", "process_killer")
    (held,) = line.rows("select detail from audit where action = 'message.quarantined'")
    assert held.detail["reason"] == "process_killer"
    assert {line.state(one) for one in innocent} == {"applied"}
    assert {line.state(one) for one in of_killer} <= {"applied", "superseded"}
    assert line.shown(SUBSCRIPTION, "killer").version == (3 if place < 2 else 2)
    assert line.settled()


def test_each_of_several_killers_of_one_entity_is_found(line: PostgresScenario) -> None:
    messages = _versions(line, "killer", 1, 2, 3, 4)
    deaths = _work_off(line, [messages[1], messages[3]])
    # The claim under which the first was quarantined counts for the second.
    assert deaths <= 2 * DEATHS_MAX
    assert [line.state(one) for one in messages] == ["applied", "superseded", "applied", "quarantined"]
    assert line.settled()


def test_a_replay_gives_a_process_killer_its_turn_again(line: PostgresScenario) -> None:
    (killer,) = _versions(line, "killer", 1)
    _work_off(line, [killer])
    replays = SqlReplays(line.database)
    (stored,) = line.rows("select id from message where message_id = :m", m=killer)
    run_id = replays.begin([UUID(str(stored.id))], actor="test", rate=None, lease_seconds=0)
    assert run_id is not None
    replays.step(run_id, 10, lease_seconds=0)
    assert _work_off(line) == 0
    assert line.state(killer) == "applied"


def test_a_higher_version_overtakes_a_process_killer(line: PostgresScenario) -> None:
    (killer,) = _versions(line, "killer", 1)
    _work_off(line, [killer])
    _versions(line, "killer", 2)
    _work_off(line)
    assert line.shown(SUBSCRIPTION, "killer").version == 2
    assert line.state(killer) == "superseded"


def test_only_the_messages_that_cannot_be_written_are_dead_and_the_rest_of_their_entity_proceeds(
    line: PostgresScenario,
) -> None:
    bad = {"start_date": "2026-02-31"}
    messages = _versions(line, "s1", 1, 2, 3, 4, v3=bad, v4=bad)
    others = _versions(line, "s2", 1)
    assert _work_off(line) == 0
    assert [line.state(one) for one in messages] == ["applied", "applied", "dead", "dead"]
    assert [line.state(one) for one in others] == ["applied"]
    assert line.shown(SUBSCRIPTION, "s1").version == 2
    (row,) = line.rows("select unfinished, solo_claims, lease_until from stream where source_id = 's1'")
    assert (row.unfinished, row.solo_claims, row.lease_until) == (0, 0, None)


def test_what_waits_stays_waiting_while_its_stream_is_taken_message_by_message(line: PostgresScenario) -> None:
    changes = [
        line.change(SUBSCRIPTION, "s1", 1, subscription_body("later")),
        line.change(SUBSCRIPTION, "s1", 2, subscription_body(start_date="2026-02-31")),
        line.change(SUBSCRIPTION, "s1", 3, subscription_body("later")),
    ]
    line.send(*changes, work=False)
    _work_off(line)
    assert [line.state(change.message_id) for change in changes] == ["waiting", "dead", "waiting"]
    assert line.rows("select from gap") == []
