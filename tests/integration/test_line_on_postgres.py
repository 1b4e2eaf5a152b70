"""The line on PostgreSQL: leases, fencing, killers, batches that fail, hot streams, two workers at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from bss_sync.adapters.sql.streams_load import MESSAGES_PER_STREAM
from bss_sync.adapters.sql.upkeep import SqlUpkeep
from bss_sync.domain.change import Change, Kind
from bss_sync.pipeline.line import ProcessResult, process, process_little
from bss_sync.ports.inbox import Origin
from tests.property.histories import Source, account, subscription
from tests.scenario import ACCOUNT, SUBSCRIPTION, account_body, subscription_body
from tests.scenario_memory import MemoryScenario
from tests.scenario_postgres import PostgresScenario, postgres_scenario
from tests.servers import Database

ALL = 500


@pytest.fixture
def line(database: Database) -> Iterator[PostgresScenario]:
    with postgres_scenario(database) as one:
        yield one


# --- batches that cannot be written -----------------------------------------------------------------------------------


def test_a_stream_that_cannot_be_written_is_isolated_and_the_rest_of_its_batch_is_applied(
    line: PostgresScenario,
) -> None:
    good = line.pending("s1", "s2", "s3")
    (bad,) = line.pending("bad", start_date="2026-02-31")
    line.work()
    assert line.verdict(bad)[0] == "dead"
    assert line.rows("select stack from message where message_id = :m", m=bad)[0].stack
    assert {line.state(message) for message in good} == {"applied"}


def test_little_work_that_cannot_be_written_together_is_left_to_who_claims_alone(line: PostgresScenario) -> None:
    line.pending("s1")
    (bad,) = line.pending("bad", start_date="2026-02-31")
    result, behind = process_little(line.streams, [line.shard])
    assert (result.decided, behind) == (0, frozenset({line.shard}))
    line.work()
    assert line.verdict(bad)[0] == "dead"
    assert len(line.mirrored(SUBSCRIPTION)) == 1


def test_the_streams_of_a_failed_batch_are_worked_off_without_a_sweeper(line: PostgresScenario) -> None:
    line.pending(*(f"s{number}" for number in range(20)))
    line.pending("bad", start_date="2026-02-31")
    rounds = 0
    while process(line.streams, line.shard).more:
        rounds += 1
        assert rounds < 60
    assert len(line.mirrored(SUBSCRIPTION)) == 20
    assert line.settled()


def test_what_was_buried_keeps_its_last_good_state(line: PostgresScenario) -> None:
    line.subscription("s1", 1, quantity="1")
    line.subscription("s1", 2, quantity="2", start_date="2026-02-31")
    shown = line.shown(SUBSCRIPTION, "s1")
    assert (shown.version, shown["quantity"]) == (1, "1")
    line.subscription("s1", 3, quantity="3")
    assert line.shown(SUBSCRIPTION, "s1")["quantity"] == "3"


# --- hot streams ------------------------------------------------------------------------------------------------------


def test_a_hot_stream_is_worked_off_in_batches_without_a_sweeper(line: PostgresScenario) -> None:
    count = MESSAGES_PER_STREAM * 2 + 50
    changes = [line.change(SUBSCRIPTION, "hot", n + 1, subscription_body(quantity=str(n))) for n in range(count)]
    random.Random(7).shuffle(changes)
    line.send(*changes, work=False)
    while process(line.streams, line.shard).more:
        pass
    assert line.shown(SUBSCRIPTION, "hot").version == count
    assert len({row.version for row in line.history(SUBSCRIPTION, "hot")}) == count
    assert line.settled()


def test_of_a_crowded_stream_what_is_new_comes_before_what_waits(line: PostgresScenario) -> None:
    number = MESSAGES_PER_STREAM + 20
    bodies = [subscription_body("absent", quantity=str(one)) for one in range(number)]
    line.send(*(line.change(SUBSCRIPTION, "hot", one + 1, bodies[one]) for one in range(number)), work=False)
    for _batch in range(6):
        process(line.streams, line.shard)
    assert set(line.states()) == {"waiting"}
    line.send(line.change(SUBSCRIPTION, "hot", number + 1, subscription_body(quantity="77")), work=False)
    process(line.streams, line.shard)
    assert line.shown(SUBSCRIPTION, "hot")["quantity"] == "77"


def test_many_waiting_messages_never_keep_the_newer_ones_from_being_decided(line: PostgresScenario) -> None:
    count = MESSAGES_PER_STREAM + 20
    changes = [line.change(SUBSCRIPTION, "hot", n + 1, subscription_body("a1", quantity=str(n))) for n in range(count)]
    line.send(*changes)
    assert set(line.states()) == {"waiting"}
    line.subscription("hot", count + 1, quantity="77")
    assert line.shown(SUBSCRIPTION, "hot")["quantity"] == "77"
    line.account("a1")
    assert line.settled()
    assert len({row.version for row in line.history(SUBSCRIPTION, "hot")}) == count + 1
    assert line.shown(SUBSCRIPTION, "hot").version == count + 1


def test_a_paused_connection_has_no_work(line: PostgresScenario) -> None:
    (known,) = line.pending("s1")
    line.work()
    line.send(line.change(SUBSCRIPTION, "s1", 2, subscription_body(quantity="7")), work=False)
    line.execute("update stream set ready_at = now()")
    line.execute("update connection set state = 'paused' where id = :id", id=line.connection_id)
    assert process(line.streams, line.shard).decided == 0
    assert process_little(line.streams, [line.shard]) == (ProcessResult(0, more=False), frozenset())
    line.execute("update connection set state = 'shadow' where id = :id", id=line.connection_id)
    line.work()
    assert line.state(known) == "applied"
    assert line.rows("select from message where state <> 'applied'") == []


def test_two_accounts_that_wait_for_each_other_do_not_wake_each_other_for_ever(line: PostgresScenario) -> None:
    line.account("a", 1, parent="b")
    line.account("b", 1, parent="a")
    line.send(line.change(SUBSCRIPTION, "s1", 1, subscription_body("a")), work=False)
    steps = [process(line.streams, line.shard, limit=1).decided for _step in range(20)]
    assert steps[10:] == [0] * 10, f"it comes to rest: {steps}"
    assert sorted(line.states()) == ["waiting"] * 3


def test_every_decided_message_has_an_audit_entry_that_names_it(line: PostgresScenario) -> None:
    line.subscription("s1", 1)
    line.subscription("s2", 1, product="FOREIGN")
    line.subscription("s3", 1, status="frozen")
    found = line.rows(
        """select m.source_id, a.action from message m join audit a on a.message = m.id
           where m.connection_id = :c order by 1""",
        c=line.connection_id,
    )
    assert [tuple(row) for row in found] == [
        ("s1", "message.applied"),
        ("s2", "message.out_of_scope"),
        ("s3", "message.quarantined"),
    ]


def test_a_tree_of_two_thousand_levels_is_mirrored(line: PostgresScenario) -> None:
    levels = 2_000
    for start in range(0, levels, 500):
        line.send(
            *(
                line.change(ACCOUNT, f"a{level}", 1, account_body(f"a{level - 1}" if level else None))
                for level in range(start, start + 500)
            ),
            work=False,
        )
    line.send(line.change(SUBSCRIPTION, "s1", 1, subscription_body(f"a{levels - 1}")))
    assert len(line.mirrored(ACCOUNT)) == levels
    assert line.shown(SUBSCRIPTION, "s1").account == f"a{levels - 1}"
    top = line.account("a0", 2, f"a{levels - 1}")
    assert line.state(top) == "waiting"


def test_the_write_itself_wakes_what_waited_for_it_without_a_sweeper(line: PostgresScenario) -> None:
    waiting = line.send(line.change(SUBSCRIPTION, "s1", 1, subscription_body("x")), work=False)
    process(line.streams, line.shard)
    child = line.send(line.change(ACCOUNT, "x", 1, account_body("lite")), work=False)
    process(line.streams, line.shard)
    assert (line.state(waiting), line.state(child)) == ("waiting", "waiting")
    line.send(line.change(ACCOUNT, "lite", 1, account_body()), work=False)
    while process(line.streams, line.shard).more:
        pass
    assert line.state(waiting) == "applied"
    assert line.shown(ACCOUNT, "x").parent == "lite"


# --- two workers ------------------------------------------------------------------------------------------------------


def _random_source(seed: int, acts: int) -> Source:
    """A source with many moves of accounts between each other."""
    chance, source = random.Random(seed), Source()
    names = [f"a{number}" for number in range(8)]
    for _act in range(acts):
        name = chance.choice(names)
        if chance.random() < 0.5:
            below = {name}
            while more := {key for key, body in source.accounts.items() if body["parent_id"] in below} - below:
                below |= more
            parent = chance.choice([None, *sorted(set(source.accounts) - below)])
            source.put(ACCOUNT, name, account(f"N{chance.randrange(9)}", parent))
        else:
            key = f"s{chance.randrange(6)}"
            holder = chance.choice([None, *sorted(source.accounts)])
            trial = chance.random() < 0.2
            source.put(
                SUBSCRIPTION, key, subscription(quantity=str(chance.randrange(9)), account_id=holder, trial=trial)
            )
    return source


def _work_at_once(line: PostgresScenario, changes: list[Change], workers: int) -> list[BaseException]:
    failures: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        streams = line.another_worker()
        try:
            while not stop.is_set():
                result = process(streams, line.shard, limit=3)
                if not result.decided:
                    stop.wait(0.01)
        except BaseException as error:  # noqa: BLE001  the test's thread reports it
            failures.append(error)

    threads = [threading.Thread(target=work) for _worker in range(workers)]
    for thread in threads:
        thread.start()
    for start in range(0, len(changes), 3):
        line.send(*changes[start : start + 3], work=False)
    for thread in threads:
        stop.set()
        thread.join(30)
        assert not thread.is_alive(), "a worker is stuck"
    return failures


@pytest.mark.parametrize("seed", range(4))
def test_two_workers_on_one_shard_end_where_one_would(line: PostgresScenario, seed: int) -> None:
    source = _random_source(seed, 70)
    changes = list(source.log)
    random.Random(seed).shuffle(changes)
    assert _work_at_once(line, changes, workers=2) == []
    line.work()
    straight = MemoryScenario.connected()
    for change in source.log:
        straight.send(change)
    assert line.settled()
    for key in straight.mirrored(SUBSCRIPTION):
        assert line.shown(SUBSCRIPTION, key) == straight.shown(SUBSCRIPTION, key)
    assert line.mirrored(SUBSCRIPTION) == straight.mirrored(SUBSCRIPTION)
    for key in line.mirrored(ACCOUNT):
        shown = line.shown(ACCOUNT, key)
        assert dict(shown.values) == source.accounts[key]
        assert shown.parent == source.accounts[key]["parent_id"]
    assert SqlUpkeep(line.database).wake_released() == 0


def test_a_repair_that_two_workers_meet_is_written_once(line: PostgresScenario) -> None:
    change = line.change(Kind.SUBSCRIPTION, "s1", 1, subscription_body())
    line.send(change, origin=Origin.RECONCILE, work=False)
    threads = [threading.Thread(target=process, args=(line.another_worker(), line.shard)) for _worker in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    line.work()
    assert len(line.history(SUBSCRIPTION, "s1")) == 1
