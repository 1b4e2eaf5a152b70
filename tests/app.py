"""A wired application for tests: real PostgreSQL, a clock that can be set, wake-ups that are noted; and real HTTP."""

from __future__ import annotations

import base64
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.admin import connections, tokens
from bss_sync.bootstrap import App, open_app
from bss_sync.domain.ownership import default_document
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.domain.tenancy import ConnectionState, Role
from bss_sync.settings import Settings, load_settings
from bss_sync.web.server import make_server, run_server
from tests.servers import Database

ACTOR = "test"


class SettableClock:
    """The system's time plus ``offset``."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def set(self, moment: datetime) -> None:
        self.offset = moment - datetime.now(UTC)


@dataclass
class NotedWakeUps:
    """Remembers what was woken. ``broken`` behaves like a Redis that is gone."""

    shards: list[int] = field(default_factory=list)
    broken: bool = False
    noted: threading.Event = field(default_factory=threading.Event)

    def process(self, *shards: int) -> None:
        self.shards += shards
        self.noted.set()
        if self.broken:
            raise ConnectionError("no Redis")

    def deliver(self) -> None:
        raise AssertionError("the door delivers nothing")

    def fetch(self) -> None:
        raise AssertionError("the door fetches nothing")


def settings_for(database: Database, home: Path, **overrides: Any) -> Settings:
    """Settings of a process over ``database``."""
    return load_settings(
        home=home,
        database_url=database.login_url,
        database_owner_url=database.owner_url,
        master_key=base64.b64encode(secrets.token_bytes(32)).decode(),
        **overrides,
    )


@contextmanager
def wired(database: Database, home: Path, **overrides: Any) -> Iterator[tuple[App, SettableClock, NotedWakeUps]]:
    """An application with its clock and its wake-ups."""
    clock, wake = SettableClock(), NotedWakeUps()
    with open_app(settings_for(database, home, **overrides), clock=clock, wake=wake) as app:
        yield app, clock, wake


@contextmanager
def serving(app: App) -> Iterator[str]:
    """The application behind real HTTP in a thread; its base address."""
    ports: list[int] = []
    listening = threading.Event()

    def tell(port: int) -> None:
        ports.append(port)
        listening.set()

    server = make_server(app, "127.0.0.1:0", tell)
    thread = threading.Thread(target=run_server, args=(server,), name="web")
    thread.start()
    try:
        assert listening.wait(20), "the server did not start"
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        server.stop()
        thread.join(40)
        assert not thread.is_alive(), "the server did not drain"


def add_connection(
    app: App,
    name: str = "cloud-resell",
    *,
    state: ConnectionState = ConnectionState.LIVE,
    connector: str = "webhook",
    **given: Any,
) -> tuple[SourceConnection, str]:
    """A connection in ``state``, and its signing secret."""
    new = connections.NewConnection(
        name=name,
        spec=app.connectors.require(connector),
        settings=given.get("settings", {}),
        secrets=given.get("secrets", {}),
        document=default_document(),
        display_name=given.get("display_name"),
    )
    with app.database.engine() as connection:
        source, secret = connections.add(connection, app.vault, new, actor=ACTOR)
        set_state(connection, source.id, state)
    with app.database.engine() as connection:
        return connections.find(connection, name), secret


def set_state(connection: Connection, connection_id: UUID, state: ConnectionState) -> None:
    """Put a connection into a state, with nothing of what a move does otherwise."""
    connection.execute(
        text(
            """update connection set state = :state, revision = revision + 1,
                      live_since = case when :state = 'live' then coalesce(live_since, now()) else live_since end
               where id = :id"""
        ),
        {"state": state, "id": connection_id},
    )


def add_token(app: App, role: Role, source: SourceConnection | None = None) -> str:
    """A token of the API."""
    with app.database.engine() as connection:
        return tokens.create(connection, role=role, name=f"test {role}", source=source, actor=ACTOR).token
