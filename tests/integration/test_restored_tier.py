"""A tier is restored from a backup: the tier above follows it to the newest state."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import text

from bss_sync.adapters.sql.admin import takeovers
from bss_sync.bootstrap import open_app
from bss_sync.jobs.work import make_work
from connectors.simulator.server import SimulatorServer
from tests.app import SettableClock, serving
from tests.restoring import moved, program, take
from tests.servers import PostgresServer
from tests.tiers import ACCOUNT, SUBSCRIPTION, Tier, tier
from tests.world import PRODUCT, AllWakeUps

QUANTITY = "select quantity from subscription s join account a on a.id = s.account_id where a.name = 'Customer X'"


def test_the_followers_of_a_restored_tier_miss_nothing_and_double_nothing(
    postgres_server: PostgresServer, server_home: Path
) -> None:
    with ExitStack() as stack:
        below_database = stack.enter_context(postgres_server.database())
        below = stack.enter_context(tier(below_database, "Sub-Reseller"))
        above = stack.enter_context(tier(stack.enter_context(postgres_server.database()), "Cloud Resell"))
        shop = stack.enter_context(SimulatorServer())
        for one in (below, above):
            one.sell(PRODUCT)
        below.add("simulator", "shop", "Corner Shop", settings={"base_url": shop.url, "allow_http_private": True})
        above.connect(below, "sub-reseller", "Sub-Reseller")
        bss = shop.reseller
        bss.put(ACCOUNT, "x", {"name": "Customer X"})
        bss.put(SUBSCRIPTION, "sub-x", {"account_id": "x", "product": PRODUCT, "quantity": 25})
        _follow(below, above)
        dump = take(below.app.settings, below_database, server_home / "below.dump")
        for quantity in (28, 29, 30):
            bss.patch(SUBSCRIPTION, "sub-x", {"quantity": quantity})
            _follow(below, above)
        assert above.value(QUANTITY) == 30
        told = above.value("select version from subscription")

        # Fewer writes than were lost.
        bss.patch(SUBSCRIPTION, "sub-x", {"quantity": 31})
        again = _restored(stack, postgres_server, below, above, dump)
        again.reconcile("shop")
        above.follow()
        assert again.value(QUANTITY) == 31
        assert above.value(QUANTITY) == 31
        assert above.value("select version from subscription") > told
        assert above.value("select count(*) from subscription") == 1
        assert above.value("select count(*) from message where state not in ('applied', 'superseded')") == 0
        assert above.reconcile("sub-reseller").differences == []


def _restored(stack: ExitStack, server: PostgresServer, below: Tier, above: Tier, dump: Path) -> Tier:
    """The tier below over what its backup held, and the tier above on its way to it."""
    database = stack.enter_context(server.database(migrated=False))
    program(below.app.settings, database).ok("db", "restore", dump)
    wake = AllWakeUps()
    app = stack.enter_context(open_app(moved(below.app.settings, database), clock=SettableClock(), wake=wake))
    url = stack.enter_context(serving(app))
    above.execute(
        """update connection set settings = settings || jsonb_build_object('base_url', cast(:url as text)),
                  revision = revision + 1 where name = 'sub-reseller'""",
        url=url,
    )
    return Tier(app, make_work(app, wake, turn_seconds=math.inf), url, below.http, below.connections)


SHOWN = """select a.name, s.quantity from subscription s join account a on a.id = s.account_id
    where s.deleted_at is null order by a.name"""
TENANT = "select name from account where parent_id is null"


def test_what_a_tier_made_of_its_own_after_its_backup_is_undone_above(
    postgres_server: PostgresServer, server_home: Path
) -> None:
    """Names and taken fields have no version of a source: only this tier counts them, and its backup counted less."""
    with ExitStack() as stack:
        below_database = stack.enter_context(postgres_server.database())
        below = stack.enter_context(tier(below_database, "Sub-Reseller"))
        above = stack.enter_context(tier(stack.enter_context(postgres_server.database()), "Cloud Resell"))
        shop = stack.enter_context(SimulatorServer())
        for one in (below, above):
            one.sell(PRODUCT)
        below.add("simulator", "shop", "Corner Shop", settings={"base_url": shop.url, "allow_http_private": True})
        above.connect(below, "sub-reseller", "Sub-Reseller")
        _put(shop, "x", 25)
        _follow(below, above)
        dump = take(below.app.settings, below_database, server_home / "below.dump")
        below.execute("update tenant set display_name = 'Corner Shop Ltd' where name = 'shop'")
        _put(shop, "new", 5)
        _follow(below, above)
        for quantity in ("77", "78", "79"):
            for name in ("Customer x", "Customer new"):
                _take(below, name, quantity)
            _follow(below, above)
        assert [tuple(row) for row in above.rows(SHOWN)] == [("Customer new", 79), ("Customer x", 79)]
        assert above.value(TENANT) == "Corner Shop Ltd"

        again = _restored(stack, postgres_server, below, above, dump)
        again.follow()
        # Otherwise than before, and less often.
        _take(again, "Customer x", "11")
        above.follow()
        told = [tuple(row) for row in again.rows(SHOWN)]
        assert told == [("Customer new", 5), ("Customer x", 11)]
        assert [tuple(row) for row in above.rows(SHOWN)] == told
        assert above.value(TENANT) == "Corner Shop"
        assert above.reconcile("sub-reseller").differences == []


def _put(shop: SimulatorServer, name: str, quantity: int) -> None:
    shop.reseller.put(ACCOUNT, name, {"name": f"Customer {name}"})
    shop.reseller.put(SUBSCRIPTION, f"sub-{name}", {"account_id": name, "product": PRODUCT, "quantity": quantity})


def _take(one: Tier, name: str, quantity: str) -> None:
    """The distributor of this tier gives the quantity a value of its own."""
    record = one.record_id(SUBSCRIPTION, name)
    with one.app.database.engine() as connection:
        taken = "select count(*) from takeover where record_id = :id and released_at is null"
        if connection.execute(text(taken), {"id": record}).scalar_one() == 0:
            takeovers.take(connection, SUBSCRIPTION, record, "quantity", reason="agreed", actor="test")
        takeovers.set_value(connection, SUBSCRIPTION, record, "quantity", quantity, actor="test")
    one.process()


def _follow(below: Tier, above: Tier) -> None:
    below.follow()
    above.follow()
