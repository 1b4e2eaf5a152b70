"""Who claims what of the line: leases, fencing, claims made alone, and claimers at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from uuid import UUID

import pytest
from sqlalchemy import text

from bss_sync.adapters.sql.direct import Statements
from bss_sync.adapters.sql.streams import TURN_KEY, SqlStreams
from bss_sync.domain.errors import LeaseLost
from bss_sync.pipeline.line import process
from bss_sync.pipeline.settle import settle
from bss_sync.ports.streams import Batch, Claim, Settled
from tests.scenario import SUBSCRIPTION, subscription_body
from tests.scenario_postgres import PostgresScenario, postgres_scenario
from tests.servers import Database

ALL = 500
MEETING_SECONDS = 1.0
"""How long one waits for the other where a lock keeps them apart."""


@pytest.fixture
def line(database: Database) -> Iterator[PostgresScenario]:
    with postgres_scenario(database) as one:
        yield one


# --- leases and fencing -----------------------------------------------------------------------------------------------


def test_a_leased_stream_is_nobody_elses(line: PostgresScenario) -> None:
    line.pending("s1", "s2")
    assert len(line.streams.claim(line.shard, ALL)) == 2
    assert line.another_worker().claim(line.shard, ALL) == []


def test_a_second_claimer_wins_after_the_lease_and_the_zombie_writes_nothing(line: PostgresScenario) -> None:
    (message,) = line.pending("s1")
    old = line.streams.claim(line.shard, ALL)
    line.expire_leases()
    new = line.another_worker().claim(line.shard, ALL)
    assert [claim.token for claim in new] > [claim.token for claim in old]
    with pytest.raises(LeaseLost):
        line.streams.work(old, settle)
    assert line.mirrored(SUBSCRIPTION) == set()
    assert line.state(message) == "pending"
    line.another_worker().work(new, settle)
    assert line.state(message) == "applied"
    with pytest.raises(LeaseLost):
        line.streams.work(old, settle)
    assert len(line.history(SUBSCRIPTION, "s1")) == 1


def test_a_stream_that_is_claimed_alone_is_nobody_elses(line: PostgresScenario) -> None:
    line.pending("s1")
    line.streams.claim(line.shard, ALL)
    line.expire_leases()
    (alone,) = line.streams.claim(line.shard, ALL)
    assert alone.alone
    assert line.another_worker().claim(line.shard, ALL) == []


def test_of_a_batch_only_the_streams_that_are_still_ours_are_written(line: PostgresScenario) -> None:
    for version in (1, 2):
        for name in ("s1", "s2"):
            body = subscription_body(quantity=str(version))
            line.send(line.change(SUBSCRIPTION, name, version, body), work=version == 1)
    old = line.streams.claim(line.shard, ALL)
    # As a worker of the release before does that takes it, and as a closing does.
    line.execute("update stream set token = token + 1 where id = :id", id=line.record_id(SUBSCRIPTION, "s1"))
    line.streams.work(old, settle)
    assert [line.shown(SUBSCRIPTION, name).version for name in ("s1", "s2")] == [1, 2]
    line.work()
    assert line.shown(SUBSCRIPTION, "s1").version == 2, "what was left out is open as before"


def test_a_batch_that_was_taken_over_is_fenced_whole(line: PostgresScenario) -> None:
    for version in (1, 2):
        for name in ("s1", "s2"):
            body = subscription_body(quantity=str(version))
            line.send(line.change(SUBSCRIPTION, name, version, body), work=version == 1)
    old = line.streams.claim(line.shard, ALL)
    line.expire_leases()
    assert len(line.another_worker().claim(line.shard, ALL)) == 1, "one alone: the other is nobody's for now"
    with pytest.raises(LeaseLost):
        line.streams.work(old, settle)
    assert [line.shown(SUBSCRIPTION, name).version for name in ("s1", "s2")] == [1, 1]


def test_a_stream_that_the_release_before_has_leased_is_left_to_it(line: PostgresScenario) -> None:
    line.pending("s1")
    line.execute(
        """insert into stream (id, tenant_id, connection_id, shard, kind, source_id, lease_until, token, unfinished)
           select stream_id, tenant_id, connection_id, shard, kind, source_id, now() + interval '1 minute', 1, 1
           from message"""
    )
    assert line.streams.claim(line.shard, ALL) == []


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_who_comes_second_to_a_new_stream_writes_nothing_of_it(line: PostgresScenario, when: str) -> None:
    (message,) = line.pending("s1")
    claims = line.streams.claim(line.shard, ALL)

    def first() -> None:
        line.execute(
            """insert into stream (id, tenant_id, connection_id, shard, kind, source_id)
               select stream_id, tenant_id, connection_id, shard, kind, source_id from message"""
        )

    def raced(batch: Batch) -> Settled:
        first()
        return settle(batch)

    if when == "before":
        first()
    with pytest.raises(LeaseLost):
        line.streams.work(claims, raced if when == "meanwhile" else settle)
    assert line.mirrored(SUBSCRIPTION) == set()
    assert line.state(message) == "pending"
    assert line.rows("select from claim") == [], "nobody waits for its lease"
    line.work()
    assert line.state(message) == "applied"


def test_a_worker_that_lost_its_lease_asks_for_more_work_instead_of_failing(line: PostgresScenario) -> None:
    line.pending("s1")

    class Slow(SqlStreams):
        def claim(self, shard: int, limit: int) -> list[Claim]:
            claims = super().claim(shard, limit)
            line.expire_leases()
            line.another_worker().claim(shard, limit)
            return claims

    result = process(Slow(line.database, lambda _connector: False), line.shard)
    assert (result.decided, result.more) == (0, True)


def test_work_whose_process_died_is_claimed_again_after_the_lease(database: Database) -> None:
    with postgres_scenario(database, lease_seconds=0.2) as line:
        (message,) = line.pending("s1")
        line.streams.claim(line.shard, ALL)
        assert process(line.streams, line.shard).decided == 0
        time.sleep(0.3)
        assert process(line.streams, line.shard).decided == 1
        assert line.state(message) == "applied"


# --- claims made alone (what kills: test_killers.py) ------------------------------------------------------------------


def test_streams_whose_claim_ended_without_a_verdict_are_claimed_alone(line: PostgresScenario) -> None:
    line.pending("s1", "s2", "s3")
    assert len(line.streams.claim(line.shard, ALL)) == 3
    line.expire_leases()
    alone = line.streams.claim(line.shard, ALL)
    assert (len(alone), alone[0].alone, alone[0].killer) == (1, True, False)


def test_claims_made_in_company_never_count_towards_a_killer(line: PostgresScenario) -> None:
    names = [f"s{number}" for number in range(4)]
    line.pending(*names)
    for _claim in range(6):
        assert len(line.streams.claim(line.shard, ALL)) == 4
        line.execute("delete from claim")
    line.work()
    assert line.mirrored(SUBSCRIPTION) == set(names)


# --- claimers at once -------------------------------------------------------------------------------------------------


def test_claimers_at_once_never_have_the_same_stream(database: Database) -> None:
    meeting = threading.Barrier(2)

    class Slow(SqlStreams):
        """Meets the other between choosing and claiming, where nothing keeps them apart."""

        def _claim(self, connection: Statements, shard: int, tokens: Mapping[UUID, int | None]) -> list[Claim]:
            with suppress(threading.BrokenBarrierError):
                meeting.wait(MEETING_SECONDS)
            return super()._claim(connection, shard, tokens)

    with postgres_scenario(database) as line:
        line.pending("s1", "s2", "s3")
        streams = Slow(line.database, lambda _connector: False)
        with ThreadPoolExecutor(2) as pool:
            claims = list(pool.map(lambda _turn: streams.claim(line.shard, 10), range(2)))
    assert sorted(len(one) for one in claims) == [0, 3]


def test_little_work_that_another_is_just_choosing_is_not_claimed_twice(database: Database) -> None:
    with postgres_scenario(database) as line:
        line.pending("s1")
        streams = line.another_worker()
        with ThreadPoolExecutor(1) as pool, line.database.engine() as other:
            turn = {"key": TURN_KEY, "shard": line.shard}
            other.execute(text("select pg_advisory_xact_lock(:key, :shard)"), turn)
            other.execute(
                text("""insert into claim (shard, streams, lease_until)
                        select :shard, array_agg(stream_id), now() + interval '1 minute' from message"""),
                {"shard": line.shard},
            )
            late = pool.submit(streams.claim_little, [line.shard], 10)
            assert not wait([late], MEETING_SECONDS / 4).done, "it waits for its turn"
            other.commit()
            assert late.result().claims == []
