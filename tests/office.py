"""An office: an application with one connection whose admin acts are tried on a real database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from bss_sync.adapters.clients import Clients
from bss_sync.adapters.sql.admin import (
    activation,
    connection_states,
    connections,
    products,
)
from bss_sync.bootstrap import App
from bss_sync.domain.change import Kind, stream_id
from bss_sync.domain.ownership import default_document
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.jobs.work import make_work
from bss_sync.runner import Parts
from tests.app import ACTOR, wired
from tests.servers import Database

PRODUCT = "M365"


@dataclass
class Office:
    """An application with one connection in the state draft."""

    app: App
    source: SourceConnection
    secret: str

    def rows(self, statement: str, **values: Any) -> list[Any]:
        with self.app.database.engine() as sql:
            return list(sql.execute(text(statement), values).all())

    def execute(self, statement: str, **values: Any) -> None:
        with self.app.database.engine() as sql:
            sql.execute(text(statement), values)

    def state(self) -> str:
        return str(self.rows("select state from connection where id = :id", id=self.source.id)[0].state)

    def now(self) -> SourceConnection:
        with self.app.database.engine() as sql:
            return connections.find(sql, self.source.name)

    def actions(self) -> list[str]:
        return [row.action for row in self.rows("select action from audit order by at, chain_id, seq")]

    def message(self, source_id: str = "sub-1", **changes: Any) -> UUID:
        """A parked message as the door stores it."""
        body = {
            "account_id": None, "parent_id": None, "product": PRODUCT, "status": "active", "trial": False,
            "start_date": None, "end_date": None, "activation_date": None, "cancellation_date": None,
            "auto_renew": True, "billing_cycle": "P1M", "term": None, "quantity": "5", "characteristics": {},
        } | changes  # fmt: skip
        message_id = uuid4()
        with self.app.database.engine() as sql:
            sql.execute(
                text(
                    """insert into message (id, tenant_id, connection_id, stream_id, shard, message_id, kind, source_id,
                           action, order_kind, version, sent_at, effective_at, body, digest)
                       select :id, c.tenant_id, c.id, :stream, case when c.state in ('shadow', 'live') then c.shard end,
                           :key, 'subscription', :source_id, 'state', 'sequence', 1, now(), now(),
                           cast(:body as jsonb), '\\x00' from connection c where c.id = :connection"""
                ),
                {
                    "id": message_id,
                    "stream": self.record(source_id),
                    "key": str(message_id),
                    "source_id": source_id,
                    "body": json.dumps(body),
                    "connection": self.source.id,
                },
            )
        return message_id

    def record(self, source_id: str) -> UUID:
        return stream_id(self.source.id, Kind.SUBSCRIPTION, source_id)

    def process(self) -> None:
        work = make_work(self.app, Parts(None).wake)
        for shard in range(16):
            work.process(shard)

    def activate(self) -> tuple[connection_states.Moved, list[activation.Finding]]:
        clients = Clients(self.app.database, self.app.vault, self.app.connectors, self.app.http)
        return activation.activate(self.app.database, clients, self.source.name, actor=ACTOR)

    def add_product(self, code: str = PRODUCT) -> products.Added:
        with self.app.database.engine() as sql:
            return products.add(sql, [products.NewProduct(code, code)], actor=ACTOR)

    def live(self, number: int = 1) -> None:
        """Live, with so many subscriptions in the mirror."""
        self.add_product()
        for index in range(number):
            self.message(f"sub-{index + 1}")
        self.activate()
        self.process()


def new_connection(
    app: App, name: str = "cloud-resell", connector: str = "webhook", **given: Any
) -> connections.NewConnection:
    spec = app.connectors.require(connector)
    return connections.NewConnection(
        name, spec, given.pop("settings", {}), given.pop("secrets", {}), default_document(), **given
    )


@contextmanager
def office_of(database: Database, home: Path) -> Iterator[Office]:
    """An office whose connection is a draft."""
    with wired(database, home) as (app, _clock, _wake):
        with app.database.engine() as sql:
            source, secret = connections.add(sql, app.vault, new_connection(app), actor=ACTOR)
        yield Office(app, source, secret)
