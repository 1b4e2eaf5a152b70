"""A chain in need: circles, a restored tier below, tokens, catalogues, moves. Each comes to the right end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise

import pytest
from sqlalchemy import create_engine, text

from bss_sync.adapters.sql import epochs
from bss_sync.adapters.sql.admin import connection_states, connections
from bss_sync.adapters.sql.ranges import sums
from bss_sync.ports.connector import RangeForm
from tests.scale_chain import differ, filled, measure
from tests.servers import PostgresServer
from tests.tiers import ACCOUNT, SUBSCRIPTION, Chain, Tier, chain, tier
from tests.world import PRODUCT

ROWS = """(cast('0d9cc8c1-4f8b-5c0e-9a53-2f6f1f0f9a11' as uuid), cast(1 as bigint), false),
    ('7be7a9a5-3df4-4f43-8bb4-b13a6d3a9ed0', 1772446500000000, true)"""
KNOWN_SUMS = {RangeForm.UUID: "8885641889807100650", RangeForm.TEXT: "-8194654347170923074"}


@pytest.fixture
def tiers(postgres_server: PostgresServer) -> Iterator[Chain]:
    with chain(postgres_server) as one:
        one.tell_story()
        yield one


def _quantities(one: Tier) -> list[int]:
    rows = one.rows("select quantity from subscription where deleted_at is null and status = 'active'")
    return sorted(int(row.quantity) for row in rows)


def _restored(one: Tier) -> None:
    """The database is not the one that it was."""
    with one.app.database.engine() as connection:
        epochs.declare(connection)
    epochs.settle(one.app.database)


def test_a_circle_of_three_is_refused_and_nothing_goes_round_twice(postgres_server: PostgresServer) -> None:
    with ExitStack() as stack:
        ring = [
            stack.enter_context(tier(stack.enter_context(postgres_server.database()), name)) for name in ("A", "B", "C")
        ]
        for one in ring:
            one.sell(PRODUCT)
        for below, one in pairwise([*ring, ring[0]]):
            one.connect(below, "below", f"Below of {below.url}", account_scope="all")
        told: list[list[int]] = []
        for _round in range(8):
            for one in ring:
                one.follow()
            told.append([one.value("select count(*) from message") for one in ring])
        # What each begins passes the two others and is refused where it began.
        assert told[-1] == told[-3]
        for one in ring:
            own = str(one.app.instance_id)
            dead = one.rows("select reason, passed from message where state = 'dead'")
            assert {row.reason for row in dead} == {"loop"}
            assert all(row.passed[0] == own for row in dead)
            assert all(own not in row.passed for row in one.rows("select passed from account"))
            assert one.value("select count(*) from account") == 2
            assert one.reconcile("below").total == 0


def test_a_tier_below_that_begins_its_list_anew_is_read_anew_and_compared(tiers: Chain) -> None:
    # What a restore leaves behind: a cursor that means nothing there any more, and a record that is gone there.
    record = tiers.sub.value("select id from subscription where quantity = 3")
    for table, column in (("history", "record_id"), ("message", "stream_id"), ("subscription", "id"), ("stream", "id")):
        tiers.sub.execute(f"delete from {table} where {column} = :id", id=record)
    _restored(tiers.sub)
    told = tiers.resell.value("select count(*) from message")
    asked = len(tiers.resell.http.answers)
    tiers.resell.follow()
    assert "/v1/chain/digests" in {path for path, _bytes in tiers.resell.http.answers[asked:]}
    repaired = "select count(*) from message where origin = 'reconcile' and action = 'deleted'"
    assert tiers.resell.value(repaired) == 1
    # All else was told before, and is known again by its ids; but for the tenant, whose count leaps.
    assert tiers.resell.value("select count(*) from message where origin = 'poll'") == told + 1
    assert tiers.resell.value("select deleted_at is not null from subscription where quantity = 3")
    tiers.follow()
    assert _quantities(tiers.cloud) == [1, 1, 25]


def test_a_tier_below_that_counts_on_after_a_restore_is_never_behind(tiers: Chain) -> None:
    for quantity in (31, 32):
        tiers.shop.reseller.patch(SUBSCRIPTION, "sub-x", {"quantity": quantity})
        tiers.follow()
    # The backup is from before both; the source tells them again.
    subject = tiers.sub.value("select id from subscription where quantity = 32")
    tiers.sub.execute("delete from history where record_id = :id and version > 1", id=subject)
    tiers.sub.execute(
        """update subscription set version = 1, chain_version = 1, quantity = 25,
               source = source || '{"quantity": "25"}' where id = :id""",
        id=subject,
    )
    tiers.sub.execute("update stream set version = 1 where id = :id", id=subject)
    _restored(tiers.sub)
    tiers.shop.reseller.patch(SUBSCRIPTION, "sub-x", {"quantity": 33})
    tiers.follow()
    assert 33 in _quantities(tiers.cloud)
    assert tiers.cloud.value("select version from subscription where quantity = 33") > 2**16
    assert tiers.cloud.rows("select * from message where state in ('quarantined', 'dead', 'waiting')") == []


def test_a_trial_enters_every_tier_when_it_is_paid(tiers: Chain) -> None:
    bss = tiers.shop.reseller
    bss.put(SUBSCRIPTION, "try", {"account_id": "z", "product": PRODUCT, "quantity": 7, "trial": True})
    tiers.follow()
    assert 7 not in _quantities(tiers.sub) + _quantities(tiers.resell) + _quantities(tiers.cloud)
    bss.patch(SUBSCRIPTION, "try", {"trial": False})
    tiers.follow()
    for one in (tiers.sub, tiers.resell, tiers.cloud):
        assert 7 in _quantities(one)
        assert one.value("select count(*) from history where state ->> 'quantity' = '7'") == 1


def test_a_move_to_another_account_and_below_another_reseller_is_followed(tiers: Chain) -> None:
    tiers.shop.reseller.patch(SUBSCRIPTION, "sub-z", {"account_id": "x"})
    tiers.shop.reseller.patch(ACCOUNT, "x", {"parent_id": None})
    tiers.follow()
    for one in (tiers.resell, tiers.cloud):
        holder = "select a.name from subscription s join account a on a.id = s.account_id where s.quantity = 3"
        assert one.value(holder) == "Customer X"
        assert one.account_names()["Customer X"] == "Corner Shop"
    assert tiers.cloud.reconcile("cloud-resell").total == 0


def test_a_product_that_the_top_takes_up_later_enters_with_its_past(tiers: Chain) -> None:
    for one in (tiers.sub, tiers.resell):
        one.sell("LATER")
    bss = tiers.shop.reseller
    bss.put(SUBSCRIPTION, "later", {"account_id": "x", "product": "LATER", "quantity": 8})
    tiers.follow()
    bss.patch(SUBSCRIPTION, "later", {"quantity": 9})
    tiers.follow()
    assert 9 in _quantities(tiers.resell)
    assert 9 not in _quantities(tiers.cloud)
    assert tiers.cloud.reconcile("cloud-resell").total == 0
    tiers.cloud.sell("LATER")
    tiers.cloud.execute("update stream set ready_at = now()")
    tiers.cloud.process()
    assert 9 in _quantities(tiers.cloud)


def test_a_paused_middle_loses_nothing(tiers: Chain) -> None:
    with tiers.resell.app.database.engine() as connection:
        connection_states.pause(connection, connections.find(connection, "sub-reseller", lock=True), actor="test")
    for quantity in (31, 32):
        tiers.shop.reseller.patch(SUBSCRIPTION, "sub-x", {"quantity": quantity})
        tiers.follow()
    assert 25 in _quantities(tiers.cloud)
    with tiers.resell.app.database.engine() as connection:
        connection_states.resume(connection, connections.find(connection, "sub-reseller", lock=True), actor="test")
    tiers.follow()
    assert 32 in _quantities(tiers.cloud)
    assert tiers.cloud.value("select count(*) from history where state ->> 'quantity' = '31'") == 1


def test_a_few_differences_cost_their_ranges_and_not_the_whole(postgres_server: PostgresServer) -> None:
    with filled(postgres_server, 3_000) as (below, above):
        level = measure(above)
        assert (level.differences, level.ranges_listed) == (0, 0)
        assert level.received_bytes < 150_000
        differ(below)
        unlike = measure(above)
        assert unlike.ranges_listed <= 10
        # The quantity of each.
        assert unlike.differences == 10
        assert unlike.received_bytes < level.received_bytes + 100_000


def test_both_versions_of_postgresql_sum_alike(each_postgres_server: PostgresServer) -> None:
    with each_postgres_server.database(migrated=False) as database:
        engine = create_engine(database.owner_url)
        with engine.connect() as connection:
            for form, known in KNOWN_SUMS.items():
                aggregate = sums("id::text", "version", "deleted", form)
                statement = f"select {aggregate} from (values {ROWS}) as r (id, version, deleted)"
                assert connection.execute(text(statement)).scalar_one() == known
        engine.dispose()
