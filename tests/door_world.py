"""The webhook door over real HTTP and real PostgreSQL, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from sqlalchemy import text

from bss_sync.bootstrap import App
from tests.app import NotedWakeUps, SettableClock, add_connection, serving, wired
from tests.door_sender import Sender, fresh_id
from tests.servers import PostgresServer, short_folder


@dataclass
class DoorWorld:
    """One application behind HTTP that the tests of a module share, each with connections of its own."""

    app: App
    clock: SettableClock
    wake: NotedWakeUps
    client: httpx.Client

    def sender(self, **given: Any) -> Sender:
        """A sender with a connection of its own."""
        source, secret = add_connection(self.app, f"reseller-{fresh_id()}", **given)
        return Sender(self.client, source.name, secret)

    def one(self, statement: str, **values: Any) -> Any:
        """One row."""
        with self.app.database.engine() as connection:
            return connection.execute(text(statement), values).one()

    def count(self, sender: Sender) -> int:
        """Messages of this sender in the inbox."""
        return int(
            self.one(
                "select count(*) from message m join connection c on c.id = m.connection_id where c.name = :name",
                name=sender.connection,
            )[0]
        )


@contextmanager
def door_world(server: PostgresServer) -> Iterator[DoorWorld]:
    """The application behind HTTP, over a database of its own."""
    with (
        server.database() as database,
        short_folder() as home,
        wired(database, home) as (app, clock, wake),
        serving(app) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield DoorWorld(app, clock, wake, client)
