"""A tier is restored from a backup: the tier above follows it to the newest state."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

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
        restored_database = stack.enter_context(postgres_server.database(migrated=False))
        program(below.app.settings, restored_database).ok("db", "restore", dump)
        wake = AllWakeUps()
        app = stack.enter_context(
            open_app(moved(below.app.settings, restored_database), clock=SettableClock(), wake=wake)
        )
        url = stack.enter_context(serving(app))
        again = Tier(app, make_work(app, wake), url, below.http, below.connections)
        above.execute(
            """update connection set settings = settings || jsonb_build_object('base_url', cast(:url as text)),
                      revision = revision + 1 where name = 'sub-reseller'""",
            url=url,
        )
        again.reconcile("shop")
        above.follow()
        assert again.value(QUANTITY) == 31
        assert above.value(QUANTITY) == 31
        assert above.value("select version from subscription") > told
        assert above.value("select count(*) from subscription") == 1
        assert above.value("select count(*) from message where state not in ('applied', 'superseded')") == 0
        assert above.reconcile("sub-reseller").differences == []


def _follow(below: Tier, above: Tier) -> None:
    below.follow()
    above.follow()
