"""Several real instances of bss_sync above one another, each with a database and an HTTP server of its own.

    Cloud
    └── Cloud Resell            polls the instance below
        └── Sub-Reseller        likewise; its own resellers are played by a simulator
            └── Corner Shop

Work is done when a test asks for it: ``Tier.follow`` polls the tier below once and decides what it said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from pydantic import SecretStr
from sqlalchemy import Row, text

from bss_sync.adapters.http import RequestsHttpClient
from bss_sync.bootstrap import App, open_app
from bss_sync.domain.change import Kind
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.domain.tenancy import Role
from bss_sync.jobs.reconciling import make_reconciler
from bss_sync.jobs.work import Work, make_work
from bss_sync.pipeline.reconcile import Request, Result
from bss_sync.ports.http import HttpResponse
from connectors.simulator.server import SimulatorServer
from tests.app import SettableClock, add_connection, add_token, serving, settings_for
from tests.servers import Database, PostgresServer, short_folder
from tests.world import PRODUCT, AllWakeUps

ACCOUNT, SUBSCRIPTION = Kind.ACCOUNT, Kind.SUBSCRIPTION


@dataclass
class CountedHttp:
    """The real client; it remembers which path answered how many bytes."""

    inner: RequestsHttpClient = field(default_factory=RequestsHttpClient)
    answers: list[tuple[str, int]] = field(default_factory=list)

    def request(self, method: str, url: str, **given: Any) -> HttpResponse:
        response = self.inner.request(method, url, **given)
        self.answers.append((urlsplit(url).path, len(response.body)))
        return response

    @property
    def received_bytes(self) -> int:
        return sum(number for _path, number in self.answers)

    def paths(self) -> set[str]:
        return {path for path, _number in self.answers}


@dataclass
class Tier:
    """One instance."""

    app: App
    work: Work
    url: str
    http: CountedHttp
    connections: dict[str, SourceConnection] = field(default_factory=dict)

    def rows(self, statement: str, **values: Any) -> Sequence[Row[Any]]:
        with self.app.database.engine() as connection:
            return connection.execute(text(statement), values).all()

    def value(self, statement: str, **values: Any) -> Any:
        (row,) = self.rows(statement, **values)
        return row[0]

    def execute(self, statement: str, **values: Any) -> None:
        with self.app.database.engine() as connection:
            connection.execute(text(statement), values)

    def sell(self, *codes: str) -> None:
        """Products of this tier's catalogue."""
        for code in codes:
            self.execute("insert into product (code, name) values (:code, :code)", code=code)

    def connect(self, below: Tier, name: str, display_name: str, **settings: Any) -> SourceConnection:
        """Mirror the instance below, live, with a token of it that may do nothing else."""
        return self.add(
            "bss_sync",
            name,
            display_name,
            settings={"base_url": below.url, "allow_http_private": True, **settings},
            secrets={"token": SecretStr(add_token(below.app, Role.CHAIN))},
        )

    def add(self, connector: str, name: str, display_name: str, **given: Any) -> SourceConnection:
        """Any live connection."""
        source, _secret = add_connection(self.app, name, connector=connector, display_name=display_name, **given)
        self.connections[name] = source
        return source

    def process(self) -> None:
        """Decide everything that is open, and fetch what that asks for."""
        shards = set(self.rows("select shard from connection"))
        for _round in range(2):
            for (shard,) in shards:
                self.work.process(shard)
            self.work.fetch()

    def follow(self) -> None:
        """Poll what is below now, and decide what it said."""
        self.execute("update connection set poll_due_at = now()")
        self.work.poll()
        self.process()

    def reconcile(self, name: str, **given: Any) -> Result:
        """Compare one connection with the tier below, and decide what that fed."""
        result = make_reconciler(self.app).reconcile(Request(self.connections[name].id, **given))
        self.process()
        return result

    def account_names(self) -> dict[str, str | None]:
        """Each live account's name → its parent's name: the tree's shape, whatever the ids are."""
        rows = self.rows(
            """select a.name, p.name as parent from account a left join account p on p.id = a.parent_id
               where a.deleted_at is null"""
        )
        return {row.name: row.parent for row in rows}

    def record_id(self, kind: Kind, name: str) -> UUID:
        """The record of an account by its name, or the only subscription of that account's name."""
        if kind is ACCOUNT:
            found: UUID = self.value("select id from account where name = :name", name=name)
        else:
            found = self.value(
                "select s.id from subscription s join account a on a.id = s.account_id where a.name = :name", name=name
            )
        return found

    def client(self, role: Role = Role.OPERATOR) -> httpx.Client:
        """A client of its API."""
        return httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {add_token(self.app, role)}"}, timeout=20
        )


@contextmanager
def tier(database: Database, distributor: str, **settings: Any) -> Iterator[Tier]:
    """One instance over ``database``."""
    wake, http = AllWakeUps(), CountedHttp()
    with (
        short_folder() as home,
        open_app(
            settings_for(database, home, distributor_name=distributor, **settings),
            clock=SettableClock(),
            wake=wake,
            http=http,
        ) as app,
        serving(app) as url,
    ):
        yield Tier(app, make_work(app, wake, turn_seconds=math.inf), url, http)


@dataclass
class Chain:
    """The three tiers, connected and live, and the BSS of Corner Shop."""

    cloud: Tier
    resell: Tier
    sub: Tier
    shop: SimulatorServer

    def follow(self) -> None:
        """Bottom to top, once."""
        for one in (self.sub, self.resell, self.cloud):
            one.follow()

    def tell_story(self) -> None:
        """Corner Shop sells to a lite reseller's customer, to a customer of its own, and uses a product itself."""
        bss = self.shop.reseller
        bss.put(ACCOUNT, "lite", {"kind": "reseller", "name": "Lite"})
        bss.put(ACCOUNT, "x", {"name": "Customer X", "parent_id": "lite"})
        bss.put(ACCOUNT, "z", {"name": "Customer Z"})
        bss.put(SUBSCRIPTION, "sub-x", {"account_id": "x", "product": PRODUCT, "quantity": 25})
        bss.put(SUBSCRIPTION, "addon-x", {"account_id": "x", "product": PRODUCT, "parent_id": "sub-x"})
        bss.put(SUBSCRIPTION, "sub-z", {"account_id": "z", "product": PRODUCT, "quantity": 3})
        bss.put(SUBSCRIPTION, "own", {"account_id": None, "product": PRODUCT, "quantity": 1})
        self.follow()


@contextmanager
def chain(server: PostgresServer) -> Iterator[Chain]:
    """Everything on one PostgreSQL, in three databases."""
    with ExitStack() as stack:
        cloud, resell, sub = (
            stack.enter_context(tier(stack.enter_context(server.database()), name))
            for name in ("Cloud", "Cloud Resell", "Sub-Reseller")
        )
        shop = stack.enter_context(SimulatorServer())
        for one in (cloud, resell, sub):
            one.sell(PRODUCT)
        sub.add(
            "simulator",
            "corner-shop",
            "Corner Shop",
            settings={"base_url": shop.url, "allow_http_private": True},
        )
        resell.connect(sub, "sub-reseller", "Sub-Reseller", page_size=3)
        cloud.connect(resell, "cloud-resell", "Cloud Resell", page_size=3)
        yield Chain(cloud, resell, sub, shop)
