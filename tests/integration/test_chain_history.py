"""History travels over a link: every state that a tier recorded is told to the next one, once (decision 0027)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from bss_sync.adapters.sql.admin import closing, connections, takeovers
from tests.servers import PostgresServer
from tests.tiers import ACCOUNT, SUBSCRIPTION, Chain, Tier, chain, tier
from tests.world import PRODUCT

MARCH = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def tiers(postgres_server: PostgresServer) -> Iterator[Chain]:
    with chain(postgres_server) as one:
        one.tell_story()
        yield one


def _day(number: int) -> str:
    return (MARCH + timedelta(days=number)).isoformat()


def _bottom(one: Chain, quantity: int, day: int, **changed: Any) -> None:
    """Corner Shop changes Customer X's subscription, and its own distributor hears of it at once."""
    one.shop.reseller.patch(SUBSCRIPTION, "sub-x", {"quantity": quantity, "effective_at": _day(day), **changed})
    one.sub.follow()


def _subject(one: Tier) -> Any:
    """Customer X's subscription at this tier."""
    return one.value(
        """select s.id from subscription s join account a on a.id = s.account_id
           where a.name = 'Customer X' and s.parent_source_id is null"""
    )


def _held(one: Tier, subject: Any = None, *, since: datetime = MARCH, days: int = 40) -> list[tuple[Any, ...]]:
    """(deleted, status, quantity, end reason) at the end of each day, as history answers it."""
    subject = _subject(one) if subject is None else subject
    rows = one.rows(
        """select n.deleted, n.state ->> 'status' as status, n.state ->> 'quantity' as quantity
           from generate_series(cast(:since as timestamptz), cast(:since as timestamptz) + make_interval(days => :days),
                                '1 day') as d (at)
           left join lateral (select * from history h where h.record_id = :subject and h.effective_at <= d.at
                              order by h.epoch desc, h.version desc, h.id desc limit 1) n on true order by d.at""",
        since=since + timedelta(hours=12),
        days=days,
        subject=subject,
    )
    return [(row.deleted, row.status, None if row.deleted else row.quantity) for row in rows]


def _assert_level(one: Chain) -> None:
    """History answers alike everywhere, every state is there once, and digests find nothing."""
    below = _held(one.sub)
    for upper, name in ((one.resell, "sub-reseller"), (one.cloud, "cloud-resell")):
        assert _held(upper) == below
        twice = upper.rows(
            """select record_id from history where kind = 'subscription'
               group by record_id, version having count(*) > 1"""
        )
        assert twice == []
        result = upper.reconcile(name)
        assert (result.total, result.ranges_listed) == (0, 0), result.differences
        assert upper.rows("select * from message where state not in ('applied', 'superseded')") == []


def test_what_came_and_went_between_two_polls_is_history_at_the_top(tiers: Chain) -> None:
    for day, quantity in ((1, 31), (8, 32), (9, 33)):
        _bottom(tiers, quantity, day)
    tiers.follow()
    assert [row[2] for row in _held(tiers.cloud)][1:11] == ["31"] * 7 + ["32", "33", "33"]
    _assert_level(tiers)


def test_a_state_is_told_once_however_often_is_asked(tiers: Chain) -> None:
    _bottom(tiers, 31, 1)
    _bottom(tiers, 32, 2)
    tiers.follow()
    told = [one.value("select count(*) from message") for one in (tiers.resell, tiers.cloud)]
    for one in (tiers.resell, tiers.cloud):
        one.execute("update connection set poll_cursor = null")
    tiers.follow()
    assert [one.value("select count(*) from message") for one in (tiers.resell, tiers.cloud)] == told
    _assert_level(tiers)


def _late(one: Chain, version: int, quantity: int, day: int) -> None:
    """A message of that version reaches the bottom only now."""
    one.sub.execute(
        """insert into message (id, tenant_id, connection_id, stream_id, shard, origin, message_id, kind, source_id,
               action, order_kind, version, sent_at, effective_at, body, digest)
           select gen_random_uuid(), m.tenant_id, m.connection_id, m.stream_id, c.shard, 'door', :message_id, m.kind,
               m.source_id, 'state', m.order_kind, :version, now(), cast(:at as timestamptz),
               m.body || jsonb_build_object('quantity', cast(:quantity as text)), 'x'
           from message m join connection c on c.id = m.connection_id
           where m.source_id = 'sub-x' order by m.seq desc limit 1""",
        message_id=f"late-{version}",
        version=version,
        at=_day(day),
        quantity=str(quantity),
    )
    one.sub.process()


def test_a_state_that_came_late_to_the_bottom_stands_in_its_place_at_the_top(tiers: Chain) -> None:
    first = tiers.sub.value("select version from stream where source_id = 'sub-x'")
    _bottom(tiers, 40, 20, version=first + 4)
    tiers.follow()
    for version, quantity, day in ((first + 2, 38, 10), (first + 1, 37, 5), (first + 3, 39, 15)):
        _late(tiers, version, quantity, day)
        tiers.follow()
    assert tiers.cloud.value("select quantity from subscription where id = :id", id=_subject(tiers.cloud)) == 40
    quantities = [row[2] for row in _held(tiers.cloud)]
    assert [quantities[day] for day in (5, 9, 10, 14, 15, 19, 20)] == ["37", "37", "38", "38", "39", "39", "40"]
    assert tiers.cloud.value("select count(*) from history where late") == 3
    _assert_level(tiers)


def test_late_states_find_their_place_beside_states_of_the_tiers_own_making(tiers: Chain) -> None:
    first = tiers.sub.value("select version from stream where source_id = 'sub-x'")
    record = _subject(tiers.sub)
    _take(tiers.sub, record, "77")
    tiers.follow()
    _bottom(tiers, 51, 20, version=first + 2)
    _late(tiers, first + 1, 50, 10)
    tiers.follow()
    assert tiers.cloud.value("select quantity from subscription where id = :id", id=_subject(tiers.cloud)) == 77
    for one in (tiers.resell, tiers.cloud):
        places = one.rows(
            "select version, state ->> 'quantity' as quantity from history where record_id = :id order by version",
            id=_subject(one),
        )
        assert [row.quantity for row in places][-4:] == ["77", "50", "51", "77"]
        assert len({row.version for row in places}) == len(places)


def _take(one: Tier, record: UUID, quantity: str) -> None:
    one.execute(
        """insert into takeover (id, tenant_id, connection_id, record_id, kind, field, value, reason, taken_by)
           select gen_random_uuid(), tenant_id, connection_id, id, 'subscription', 'quantity',
                  to_jsonb(cast(:quantity as text)), 'r', 'test' from subscription where id = cast(:id as uuid)""",
        quantity=quantity,
        id=record,
    )
    one.execute("update stream set ready_at = now() where id = cast(:id as uuid)", id=record)
    one.process()


def test_a_taken_field_is_above_what_it_is_here_and_when(tiers: Chain) -> None:
    started = datetime.now(UTC)
    record = _subject(tiers.resell)
    _take(tiers.resell, record, "99")
    _bottom(tiers, 26, 3)
    tiers.follow()
    cloud = _subject(tiers.cloud)
    assert tiers.cloud.value("select quantity from subscription where id = :id", id=cloud) == 99
    # Before it was taken the source's word holds, also where that came later.
    then = [row[2] for row in _held(tiers.cloud, cloud, days=10)]
    assert then[3] == "26"
    since = tiers.cloud.value(
        "select min(effective_at) from history where record_id = :id and state ->> 'quantity' = '99'", id=cloud
    )
    assert since >= started - timedelta(seconds=1)
    with tiers.resell.app.database.engine() as connection:
        takeovers.release(connection, SUBSCRIPTION, record, "quantity", reason="done", actor="test")
    tiers.resell.process()
    tiers.follow()
    assert tiers.cloud.value("select quantity from subscription where id = :id", id=cloud) == 26
    assert tiers.cloud.reconcile("cloud-resell").total == 0


def test_a_deletion_and_a_return_between_two_polls_are_both_known_at_the_top(tiers: Chain) -> None:
    bss = tiers.shop.reseller
    bss.delete(SUBSCRIPTION, "sub-z")
    tiers.sub.follow()
    bss.put(SUBSCRIPTION, "sub-z", {"account_id": "z", "product": PRODUCT, "quantity": 4})
    tiers.sub.follow()
    tiers.follow()
    for one in (tiers.sub, tiers.resell, tiers.cloud):
        (row,) = one.rows("select id, deleted_at from subscription where quantity = 4")
        assert row.deleted_at is None
        states = one.rows("select deleted from history where record_id = :id order by version", id=row.id)
        assert [state.deleted for state in states] == [False, True, False]


def test_a_new_tier_hears_of_the_whole_past(tiers: Chain, postgres_server: PostgresServer) -> None:
    for day, quantity in ((1, 31), (8, 32), (9, 33)):
        _bottom(tiers, quantity, day)
    tiers.shop.reseller.delete(ACCOUNT, "z")
    tiers.follow()
    with postgres_server.database() as database, tier(database, "Cloud East") as east:
        east.sell(PRODUCT)
        source = east.connect(tiers.resell, "cloud-resell", "Cloud Resell", page_size=2)
        east.follow()
        east.process()
        assert _held(east) == _held(tiers.resell)
        assert source.id is not None
        assert east.account_names() == tiers.cloud.account_names()
        assert east.reconcile("cloud-resell").total == 0


def test_what_history_has_forgotten_is_still_told_as_it_is(tiers: Chain, postgres_server: PostgresServer) -> None:
    tiers.shop.reseller.delete(ACCOUNT, "z")
    tiers.follow()
    tiers.resell.execute("delete from history")
    with postgres_server.database() as database, tier(database, "Cloud East") as east:
        east.sell(PRODUCT)
        east.connect(tiers.resell, "cloud-resell", "Cloud Resell", page_size=3)
        east.follow()
        assert east.account_names() == tiers.cloud.account_names()
        assert east.value("select count(*) from subscription") == tiers.cloud.value("select count(*) from subscription")
        assert east.value("select deleted_at is not null from account where name = 'Customer Z'")
        assert east.reconcile("cloud-resell").total == 0


def test_a_closed_connection_below_ends_above_and_keeps_its_past(tiers: Chain) -> None:
    _bottom(tiers, 31, 1)
    tiers.sub.execute("update connection set settings = settings || '{\"guard_count\": 1000}'")
    tiers.resell.execute("update connection set settings = settings || '{\"guard_count\": 1000}'")
    tiers.cloud.execute("update connection set settings = settings || '{\"guard_count\": 1000}'")
    with tiers.sub.app.database.engine() as connection:
        source = connections.find(connection, "corner-shop", lock=True)
        closing.request(connection, source, datetime.now(UTC).date(), actor="test")
    tiers.follow()
    for one in (tiers.resell, tiers.cloud):
        assert {row.status for row in one.rows("select status from subscription")} == {"terminated"}
        assert [row[2] for row in _held(one)][2] == "31"
    assert tiers.cloud.reconcile("cloud-resell").total == 0


def test_a_source_that_counts_anew_below_does_not_count_anew_above(tiers: Chain) -> None:
    for quantity in (31, 32, 33, 34):
        _bottom(tiers, quantity, quantity - 30)
    tiers.follow()
    before = tiers.cloud.value("select version from subscription where id = :id", id=_subject(tiers.cloud))
    stream = tiers.sub.value("select id from stream where source_id = 'sub-x'")
    tiers.sub.execute(
        "update stream set version = null, epoch = epoch + 1, epoch_at = now(), digest = null where id = :id", id=stream
    )
    tiers.sub.execute(
        """insert into message (id, tenant_id, connection_id, stream_id, shard, origin, message_id, kind, source_id,
               action, order_kind, version, sent_at, effective_at, body, digest)
           select gen_random_uuid(), m.tenant_id, m.connection_id, m.stream_id, c.shard, 'reconcile', 'anew', m.kind,
               m.source_id, 'state', m.order_kind, 1, now(), now(), m.body || '{"quantity": "60"}', 'x'
           from message m join connection c on c.id = m.connection_id
           where m.source_id = 'sub-x' order by m.seq desc limit 1"""
    )
    tiers.sub.process()
    tiers.follow()
    assert tiers.sub.value("select version from subscription where id = :id", id=stream) == 1
    (row,) = tiers.cloud.rows("select version, quantity from subscription where id = :id", id=_subject(tiers.cloud))
    assert row.quantity == 60
    assert row.version > before
    assert tiers.cloud.reconcile("cloud-resell").total == 0
