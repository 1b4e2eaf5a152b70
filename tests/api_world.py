"""The reference scenario in a real database behind real HTTP, for tests of the API: messages make every row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import Connection, text

from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.adapters.sql.streams import SqlStreams
from bss_sync.bootstrap import App, open_app
from bss_sync.domain.change import Action, Change, Kind, stream_id
from bss_sync.domain.moment import parse_moment
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.domain.tenancy import Role
from bss_sync.pipeline import line
from bss_sync.ports.inbox import Arrival, Origin
from tests.app import NotedWakeUps, add_connection, add_token, serving, settings_for
from tests.door_sender import fresh_id
from tests.servers import Database

PRODUCT = "M365-BUS-PREM"
ACCOUNT: Mapping[str, Any] = {
    "parent_id": None,
    "kind": "customer",
    "name": "Cloud Customer X",
    "number": "C-1001",
    "email": "it@customer-x.example",
}
SUBSCRIPTION: Mapping[str, Any] = {
    "account_id": "cust-x",
    "parent_id": None,
    "product": PRODUCT,
    "status": "active",
    "trial": False,
    "start_date": "2026-01-01",
    "end_date": "2026-12-31",
    "activation_date": "2026-01-01",
    "cancellation_date": None,
    "auto_renew": True,
    "billing_cycle": "P1M",
    "term": "P1Y",
    "quantity": "25",
    "characteristics": {"domain": "customer-x.example"},
}


def moment(words: str) -> datetime:
    return parse_moment(words, "UTC", field="test")


class ApiWakeUps(NotedWakeUps):
    """Remembers shards; an approval also wakes deliveries."""

    def deliver(self) -> None:
        """Noted by nobody."""


@dataclass
class ApiWorld:
    """One application behind HTTP with two resellers, and a client for each role."""

    app: App
    wake: ApiWakeUps
    base_url: str
    resell: SourceConnection
    other: SourceConnection
    clients: dict[str, httpx.Client] = field(default_factory=dict)

    def client(self, name: str) -> httpx.Client:
        """admin, operator, auditor, reseller (of ``resell``) or stranger (of ``other``)."""
        if name not in self.clients:
            sources = {"reseller": self.resell, "stranger": self.other}
            role = Role.RESELLER if name in sources else Role(name)
            token = add_token(self.app, role, sources.get(name))
            headers = {"authorization": f"Bearer {token}"}
            self.clients[name] = httpx.Client(base_url=self.base_url, headers=headers, timeout=20)
        return self.clients[name]

    def get(self, path: str, who: str = "auditor", **parameters: Any) -> Any:
        """The JSON answer of a GET that must succeed."""
        response = self.client(who).get(path, params=parameters)
        assert response.status_code == 200, response.text
        return response.json()

    def say(
        self,
        of: Kind,
        source_id: str,
        version: int | None,
        /,
        *,
        source: SourceConnection | None = None,
        action: Action = Action.STATE,
        at: str = "2026-03-01T00:00:00Z",
        effective_at: str | None = None,
        message_id: str | None = None,
        **members: Any,
    ) -> str:
        """Send one message and have it decided; returns its id. ``members`` replace those of the example."""
        source = source or self.resell
        body = {**(ACCOUNT if of is Kind.ACCOUNT else SUBSCRIPTION), **members} if action is Action.STATE else {}
        said = fresh_id("m") if message_id is None else message_id
        change = Change(
            message_id=said,
            kind=of,
            source_id=source_id,
            action=action,
            version=version,
            sent_at=moment(at),
            effective_at=moment(effective_at or at),
            body=body,
            digest=hashlib.sha256(json.dumps([said, body], default=str).encode()).digest(),
        )
        (answer,) = line.accept(
            SqlInbox(self.app.database), [Arrival(source.tenant_id, source.id, None, Origin.DOOR, [change])]
        )
        assert not isinstance(answer, Exception), answer
        self.process()
        return said

    def process(self) -> None:
        """Decide everything that is open."""
        for source in (self.resell, self.other):
            with self.app.database.engine() as connection:
                row = connection.execute(text("select shard from connection where id = :id"), {"id": source.id})
                shard = row.scalar_one()
            while line.process(SqlStreams(self.app.database, lambda _name: False), shard).more:
                pass

    def id_of(self, kind: Kind, source_id: str, source: SourceConnection | None = None) -> UUID:
        return stream_id((source or self.resell).id, kind, source_id)

    def path_of(self, kind: Kind, source_id: str, source: SourceConnection | None = None) -> str:
        """The route of one record."""
        return f"/v1/{kind}s/{self.id_of(kind, source_id, source)}"

    def value(self, statement: str, **values: Any) -> Any:
        with self.app.database.engine() as connection:
            return connection.execute(text(statement), values).scalar_one()

    def execute(self, statement: str, **values: Any) -> None:
        with self.app.database.engine() as connection:
            connection.execute(text(statement), values)

    def audits(self, action: str, record_id: UUID) -> list[dict[str, Any]]:
        """The details of the record's entries with this action, oldest first."""
        with self.app.database.engine() as connection:
            rows = connection.execute(
                text("select detail from audit where action = :action and record_id = :id order by seq"),
                {"action": action, "id": record_id},
            )
            return [row.detail for row in rows]

    def tell_reference_story(self) -> None:
        """The tree of domain.md section 2, a subscription with an add-on, and a second reseller."""
        account, subscription = Kind.ACCOUNT, Kind.SUBSCRIPTION
        self.say(account, "lite-1", 1, kind="reseller", name="Cloud Lite", number=None, email=None)
        self.say(account, "cust-x", 1, parent_id="lite-1")
        self.say(account, "cust-y", 1, parent_id="lite-1", name="Cloud Customer Y", number="C-1002")
        self.say(account, "cust-z", 1, name="Cloud End-Customer Z", number=None)
        self.say(subscription, "sub-x", 1, message_id="first-of-sub-x")
        self.say(subscription, "addon-x", 1, parent_id="sub-x", quantity="1.5")
        self.say(subscription, "sub-y", 1, account_id="cust-y")
        self.say(subscription, "sub-z", 1, account_id="cust-z")
        self.say(subscription, "sub-own", 1, account_id=None)
        self.say(account, "cust-x", 1, source=self.other, name="Stranger's Customer")
        self.say(subscription, "sub-x", 1, source=self.other)


@contextmanager
def api_world(database: Database, home: Path, **settings: Any) -> Iterator[ApiWorld]:
    """Two resellers, and everything of the reference scenario in the mirror."""
    given = {"distributor_name": "Cloud", "time_zone": "Europe/Berlin", **settings}
    wake = ApiWakeUps()
    with open_app(settings_for(database, home, **given), wake=wake) as app, serving(app) as base_url:
        resell, _ = add_connection(app, "cloud-resell")
        other, _ = add_connection(app, "cloud-other")
        one = ApiWorld(app, wake, base_url, resell, other)
        for source, shown in ((resell, "Cloud Resell"), (other, "Cloud Other")):
            one.execute("update tenant set display_name = :shown where id = :id", shown=shown, id=source.tenant_id)
        one.execute("insert into product (code, name) values (:code, 'Business Premium')", code=PRODUCT)
        one.tell_reference_story()
        try:
            yield one
        finally:
            for client in one.clients.values():
                client.close()


def in_flight(app: App, statement: str, **values: Any) -> _InFlight:
    """A transaction of the engine that has written and has not committed."""
    return _InFlight(app, statement, values)


class _InFlight:
    def __init__(self, app: App, statement: str, values: Mapping[str, Any]) -> None:
        self._connection: Connection = app.database.pool("engine").connect()
        self._transaction = self._connection.begin()
        self._connection.execute(text(statement), dict(values))

    def commit(self) -> None:
        self._transaction.commit()
        self._connection.close()
