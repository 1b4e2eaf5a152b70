"""Chained tiers: each instance is a reseller's BSS for the next, with its own locks, bill-to and tombstones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pydantic import SecretStr

from bss_sync.adapters.http import RequestsHttpClient
from bss_sync.adapters.sql.admin import connection_states, connections, takeovers
from bss_sync.domain.change import Kind
from bss_sync.domain.tenancy import ConnectionState, Role
from bss_sync.ports.http import HttpResponse
from bss_sync.testing.connector_contract import CHECKS, Check, Subject
from connectors.bss_sync import CONNECTOR
from connectors.bss_sync.config import ChainConfig
from tests.app import add_token, set_state
from tests.servers import PostgresServer
from tests.tiers import ACCOUNT, SUBSCRIPTION, Chain, Tier, chain, tier
from tests.world import PRODUCT

QUANTITY_OF_X = """select s.quantity from subscription s join account a on a.id = s.account_id
                   where a.name = 'Customer X' and s.parent_id is null"""


@pytest.fixture
def tiers(postgres_server: PostgresServer) -> Iterator[Chain]:
    with chain(postgres_server) as one:
        one.tell_story()
        yield one


@pytest.fixture(scope="module")
def level(postgres_server: PostgresServer) -> Iterator[Chain]:
    """For tests that leave every tier's mirror as it is."""
    with chain(postgres_server) as one:
        one.tell_story()
        yield one


def _named(one: Tier, statement: str) -> set[tuple[object, ...]]:
    return {tuple(row) for row in one.rows(statement)}


def test_the_tree_keeps_its_shape_and_grows_by_one_level_per_hop(level: Chain) -> None:
    assert level.sub.account_names() == {"Lite": None, "Customer X": "Lite", "Customer Z": None}
    assert level.resell.account_names() == {
        "Corner Shop": None,
        "Lite": "Corner Shop",
        "Customer X": "Lite",
        "Customer Z": "Corner Shop",
    }
    assert level.cloud.account_names() == {
        "Sub-Reseller": None,
        "Corner Shop": "Sub-Reseller",
        "Lite": "Corner Shop",
        "Customer X": "Lite",
        "Customer Z": "Corner Shop",
    }
    kinds = _named(level.cloud, "select name, kind from account where kind = 'reseller'")
    assert kinds == {("Sub-Reseller", "reseller"), ("Corner Shop", "reseller"), ("Lite", "reseller")}


def test_what_the_tenant_uses_itself_hangs_on_its_account_above(level: Chain) -> None:
    own = "select a.name from subscription s left join account a on a.id = s.account_id where s.quantity = 1"
    holders = own + " and s.parent_id is null"
    assert level.sub.value(holders) is None
    assert level.resell.value(holders) == "Corner Shop"
    assert level.cloud.value(holders) == "Corner Shop"


def test_a_change_at_the_bottom_arrives_at_the_top_once(tiers: Chain) -> None:
    before = [one.value("select count(*) from message") for one in (tiers.resell, tiers.cloud)]
    tiers.shop.reseller.patch(SUBSCRIPTION, "sub-x", {"quantity": 30, "effective_at": "2026-03-01T00:00:00Z"})
    tiers.follow()
    tiers.follow()
    for one, earlier in zip((tiers.resell, tiers.cloud), before, strict=True):
        assert one.value(QUANTITY_OF_X) == 30
        assert one.value("select count(*) from message") == earlier + 1
        (row,) = one.rows(
            """select h.effective_at, m.state, m.passed from history h join message m on m.id = h.message
               where h.state ->> 'quantity' = '30'"""
        )
        assert (row.effective_at.isoformat(), row.state) == ("2026-03-01T00:00:00+00:00", "applied")
        assert one.value("select count(*) from gap") == 0
    passed = tiers.cloud.value("select passed from message where body ->> 'quantity' = '30'")
    assert passed == [str(tiers.sub.app.instance_id), str(tiers.resell.app.instance_id)]


def test_several_changes_between_two_polls_are_one_change_above_and_no_gap(tiers: Chain) -> None:
    for quantity in (31, 32, 33):
        tiers.shop.reseller.patch(SUBSCRIPTION, "sub-x", {"quantity": quantity})
        tiers.sub.follow()
    tiers.follow()
    assert tiers.cloud.value(QUANTITY_OF_X) == 33
    for one in (tiers.resell, tiers.cloud):
        assert one.value("select count(*) from gap") == 0
        assert one.value("select count(*) from fetch_request") == 0


@pytest.mark.parametrize(("hop", "owner"), [("resell", "Sub-Reseller"), ("cloud", "Cloud Resell")])
def test_each_hop_locks_for_its_own_next_tier_and_bills_it(tiers: Chain, hop: str, owner: str) -> None:
    one: Tier = getattr(tiers, hop)
    path = f"/v1/subscriptions/{one.value('select s.id from subscription s where s.quantity = 25')}"
    with one.client() as client:
        shown = client.get(path).json()
        assert shown["bill_to"] == owner
        assert shown["name"] == f"Customer X - {PRODUCT}"
        assert shown["ownership"]["quantity"] == {"owner": owner, "locked": True}
        refused = client.patch(path, json={"quantity": 1})
        assert refused.status_code == 409
        assert refused.json()["errors"][0]["owner"] == owner
        suspended = client.post(f"{path}/operations", json={"operation": "suspend"})
        assert (suspended.status_code, owner in suspended.text) == (403, True)
        assert client.patch(path, json={"price": "9.90", "notes": "ours"}).status_code == 200
    tiers.follow()
    assert tiers.cloud.value("select count(*) from subscription where price is not null") == (hop == "cloud")


def test_a_deletion_is_a_tombstone_on_every_hop_and_orphans_what_it_held(tiers: Chain) -> None:
    tiers.shop.reseller.delete(ACCOUNT, "z")
    tiers.follow()
    for one in (tiers.sub, tiers.resell, tiers.cloud):
        assert one.value("select deleted_at is not null from account where name = 'Customer Z'")
        with one.client() as client:
            orphans = client.get("/v1/subscriptions", params={"state": "orphaned"}).json()["items"]
        assert [item["quantity"] for item in orphans] == [3]
    assert tiers.cloud.reconcile("cloud-resell").total == 0


def test_an_orphan_reaches_a_tier_that_hears_of_both_only_now(tiers: Chain, postgres_server: PostgresServer) -> None:
    tiers.shop.reseller.delete(ACCOUNT, "z")
    tiers.follow()
    with postgres_server.database() as database, tier(database, "Cloud East") as east:
        east.sell(PRODUCT)
        east.connect(tiers.resell, "cloud-resell", "Cloud Resell")
        east.follow()
        assert east.value("select count(*) from subscription") == 4
        assert east.value("select deleted_at is not null from account where name = 'Customer Z'")
        assert east.value("select count(*) from message where state not in ('applied', 'superseded')") == 0


def test_a_field_taken_over_in_the_middle_shows_its_value_above(tiers: Chain) -> None:
    record = tiers.resell.value("select id from subscription where quantity = 25")
    _take(tiers.resell, str(record), "77")
    tiers.resell.process()
    tiers.follow()
    assert tiers.cloud.value(QUANTITY_OF_X) == 77
    with tiers.resell.app.database.engine() as connection:
        takeovers.release(connection, SUBSCRIPTION, record, "quantity", reason="done", actor="test")
    tiers.resell.process()
    tiers.follow()
    assert tiers.cloud.value(QUANTITY_OF_X) == 25


def _take(one: Tier, record: str, quantity: str) -> None:
    one.execute(
        """insert into takeover (id, tenant_id, connection_id, record_id, kind, field, value, reason, taken_by)
           select gen_random_uuid(), tenant_id, connection_id, id, 'subscription', 'quantity',
                  to_jsonb(cast(:quantity as text)), 'r', 'test' from subscription where id = cast(:id as uuid)""",
        quantity=quantity,
        id=record,
    )
    one.execute("update stream set ready_at = now() where id = cast(:id as uuid)", id=record)


def test_what_leaves_scope_in_the_middle_is_terminated_above(tiers: Chain) -> None:
    tiers.sub.sell("LOCAL")
    tiers.shop.reseller.patch(SUBSCRIPTION, "sub-x", {"product": "LOCAL"})
    tiers.follow()
    assert tiers.resell.value("select ended_reason from subscription where quantity = 25") == "left_scope"
    (row,) = tiers.cloud.rows("select * from subscription where quantity = 25")
    assert (row.status, row.product, row.ended_reason) == ("terminated", PRODUCT, None)
    tiers.shop.reseller.patch(SUBSCRIPTION, "sub-x", {"product": PRODUCT, "quantity": 26})
    tiers.follow()
    assert tiers.cloud.value("select status from subscription where quantity = 26") == "active"


def test_each_catalogue_decides_what_enters_its_tier(tiers: Chain) -> None:
    tiers.resell.sell("RESELL-ONLY")
    tiers.sub.sell("RESELL-ONLY")
    tiers.shop.reseller.put(SUBSCRIPTION, "s", {"account_id": "x", "product": "RESELL-ONLY", "quantity": 9})
    tiers.follow()
    assert tiers.resell.value("select count(*) from subscription where quantity = 9") == 1
    assert tiers.cloud.value("select count(*) from subscription where quantity = 9") == 0
    assert tiers.cloud.value("select reason from message where state = 'out_of_scope' and kind = 'subscription'")


def test_a_mirror_that_was_never_live_is_not_shown_above(tiers: Chain) -> None:
    shadow = tiers.sub.add(
        "simulator",
        "new-shop",
        "New Shop",
        state=ConnectionState.SHADOW,
        settings={"base_url": tiers.shop.url, "allow_http_private": True},
    )
    tiers.follow()
    assert tiers.sub.value("select count(*) from subscription") == 8
    assert tiers.resell.value("select count(*) from subscription") == 4
    assert tiers.resell.reconcile("sub-reseller").total == 0
    with tiers.sub.app.database.engine() as connection:
        set_state(connection, shadow.id, ConnectionState.CHECKING)
    with tiers.sub.app.database.engine() as connection:
        source = connections.find(connection, "new-shop", lock=True)
        connection_states.go_live(connection, source, actor="test")
    tiers.follow()
    assert tiers.resell.value("select count(*) from subscription") == 8
    assert tiers.cloud.value("select count(*) from subscription") == 8


def test_a_renamed_tenant_is_renamed_above(tiers: Chain) -> None:
    tiers.sub.execute("update tenant set display_name = 'Corner Shop Ltd' where name = 'corner-shop'")
    tiers.follow()
    assert "Corner Shop Ltd" in tiers.cloud.account_names()


def test_loops_are_refused_and_nothing_is_mirrored_twice(postgres_server: PostgresServer) -> None:
    with ExitStack() as stack:
        left, right = (
            stack.enter_context(tier(stack.enter_context(postgres_server.database()), name)) for name in ("L", "R")
        )
        for one in (left, right):
            one.sell(PRODUCT)
        left.connect(right, "right", "Right", account_scope="all")
        right.connect(left, "left", "Left", account_scope="all")
        for _round in range(4):
            left.follow()
            right.follow()
        # Each sees the other's tenant, itself, as an account; and refuses it when it comes back.
        assert left.account_names() == {"Left": None}
        assert right.account_names() == {"Right": None}
        for one in (left, right):
            own = str(one.app.instance_id)
            dead = one.rows("select * from message where state = 'dead'")
            assert {row.reason for row in dead} == {"loop"}
            assert all(row.passed[0] == own for row in dead)
            assert all(own not in row.passed for row in one.rows("select passed from account"))
            (entry,) = one.rows("select detail from audit where action = 'message.dead'")
            assert entry.detail["reason"] == "loop"
        for one, name in ((left, "right"), (right, "left")):
            result = one.reconcile(name)
            assert (result.total, result.listed, result.ranges_listed) == (0, 0, 0)


def test_when_all_is_level_only_digests_travel(level: Chain) -> None:
    for one, name, records in ((level.resell, "sub-reseller", 8), (level.cloud, "cloud-resell", 9)):
        one.http.answers.clear()
        result = one.reconcile(name)
        assert (result.total, result.listed, result.ranges_listed) == (0, 0, 0), result.differences
        assert 0 < result.ranges <= records
        assert one.http.paths() == {"/v1/chain/digests"}


@dataclass
class FormerBelow:
    """The way to a tier below of the release before: it has never heard of any form but its own."""

    inner: Any

    def request(self, method: str, url: str, **given: Any) -> HttpResponse:
        params = {name: value for name, value in (given.pop("params", None) or {}).items() if name != "of"}
        response: HttpResponse = self.inner.request(method, url, params=params or None, **given)
        return replace(response, body=response.body.replace(b'"of":"uuid",', b""))


def test_a_tier_below_of_the_release_before_is_level_by_its_own_sums(level: Chain) -> None:
    http = level.cloud.http
    here = http.inner
    http.inner = FormerBelow(here)  # type: ignore[assignment]  # it has all that is asked of it
    try:
        result = level.cloud.reconcile("cloud-resell")
    finally:
        http.inner = here
    assert (result.total, result.listed, result.ranges_listed) == (0, 0, 0)
    assert result.ranges > 0


def test_only_ranges_that_differ_are_listed_and_what_differs_is_repaired(tiers: Chain) -> None:
    tiers.shop.reseller.patch(SUBSCRIPTION, "sub-x", {"quantity": 60})
    tiers.sub.follow()
    dry = tiers.resell.reconcile("sub-reseller", dry_run=True)
    assert [(one.problem, one.field) for one in dry.differences] == [("stale", "quantity")]
    assert (dry.ranges_listed, tiers.resell.value(QUANTITY_OF_X)) == (1, 25)
    assert tiers.resell.reconcile("sub-reseller").repaired == 1
    assert tiers.resell.value(QUANTITY_OF_X) == 60
    again = tiers.resell.reconcile("sub-reseller")
    assert (again.total, again.ranges_listed) == (0, 0)


def test_what_the_tier_below_never_had_is_extra_and_ended(tiers: Chain) -> None:
    # As after a restored backup below: the record is gone there without a tombstone.
    record = tiers.sub.value("select id from subscription where quantity = 3")
    for table in ("history", "message"):
        column = "record_id" if table == "history" else "stream_id"
        tiers.sub.execute(f"delete from {table} where {column} = :id", id=record)
    tiers.sub.execute("delete from subscription where id = :id", id=record)
    tiers.sub.execute("delete from stream where id = :id", id=record)
    result = tiers.resell.reconcile("sub-reseller")
    assert [(str(one.problem), one.source_id) for one in result.differences] == [("extra", str(record))]
    assert result.ranges_listed == 1
    assert tiers.resell.value("select deleted_at is not null from subscription where quantity = 3")


def test_by_setting_every_row_is_compared(level: Chain) -> None:
    choose = "update connection set settings = settings || jsonb_build_object('compare', cast(:how as text))"
    level.cloud.execute(choose, how="rows")
    level.cloud.http.answers.clear()
    result = level.cloud.reconcile("cloud-resell")
    assert (result.total, result.listed, result.ranges) == (0, 9, 0)
    assert level.cloud.http.paths() == {"/v1/chain/records/account", "/v1/chain/records/subscription"}
    level.cloud.execute(choose, how="digests")


def test_a_chain_token_may_follow_and_nothing_else(level: Chain) -> None:
    with level.resell.client(Role.CHAIN) as client:
        assert client.get("/v1/chain").json()["distributor"] == "Cloud Resell"
        assert client.get("/v1/subscriptions").status_code == 403
        assert client.get("/v1/audit").status_code == 403
        wrong = client.get("/v1/chain/records/account", params={"range": "xyz"})
        assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "range")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_contract_of_connectors(check: Check, level: Chain) -> None:
    def change() -> tuple[Kind, str]:
        level.sub.execute("update tenant set display_name = display_name || '.' where kind = 'reseller'")
        return ACCOUNT, str(level.sub.value("select id from tenant where kind = 'reseller'"))

    check(
        Subject(
            spec=CONNECTOR,
            package="connectors.bss_sync",
            config=ChainConfig(base_url=level.sub.url, allow_http_private=True, page_size=2),
            http=RequestsHttpClient(),
            secrets={"token": SecretStr(add_token(level.sub.app, Role.CHAIN))},
            change=change,
        )
    )


def test_a_hop_that_is_down_is_caught_up_with(tiers: Chain) -> None:
    url = tiers.cloud.value("select settings ->> 'base_url' from connection")
    down = """update connection set settings = settings || jsonb_build_object('base_url', cast(:url as text))"""
    tiers.cloud.execute(down, url="http://127.0.0.1:9")
    tiers.shop.reseller.patch(SUBSCRIPTION, "sub-x", {"quantity": 41})
    tiers.follow()
    assert (tiers.resell.value(QUANTITY_OF_X), tiers.cloud.value(QUANTITY_OF_X)) == (41, 25)
    assert tiers.cloud.value("select poll_failures from connection") == 1
    tiers.cloud.execute(down, url=url)
    tiers.follow()
    assert tiers.cloud.value(QUANTITY_OF_X) == 41


def test_a_revoked_token_stops_the_hop_and_says_so(tiers: Chain) -> None:
    tiers.resell.execute("update api_token set revoked_at = now() where role = 'chain'")
    tiers.follow()
    assert "remote-denied" in tiers.cloud.value("select poll_error from connection")
    assert add_token(tiers.resell.app, Role.CHAIN)
