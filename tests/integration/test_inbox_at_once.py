"""The quick way into the inbox on real PostgreSQL: what it stores, and what it leaves to the closer look."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import text

from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.adapters.sql.inbox_at_once import STORE, InboxAtOnce
from bss_sync.adapters.sql.records import id_array
from bss_sync.bootstrap import App
from bss_sync.domain.change import Action, OrderKind
from bss_sync.domain.errors import DependencyDown
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.domain.tenancy import ConnectionState
from bss_sync.ports.inbox import Accepted, Arrival, Origin
from tests.app import add_connection, set_state, wired
from tests.door_sender import fresh_id
from tests.integration.test_inbox import arrival, change, one, rows
from tests.servers import LOGIN, PostgresServer, short_folder


@pytest.fixture(scope="module")
def app(postgres_server: PostgresServer) -> Iterator[App]:
    with postgres_server.database() as database, short_folder() as home, wired(database, home) as (app, _, _):
        yield app


@pytest.fixture
def source(app: App) -> SourceConnection:
    return known(app)


def known(app: App, state: ConnectionState = ConnectionState.LIVE) -> SourceConnection:
    """A connection whose order is pinned."""
    source, _ = add_connection(app, f"reseller-{fresh_id()}", state=state)
    SqlInbox(app.database).accept([arrival(source, change("first"))])
    return source


def stored(app: App, *sets: Sequence[Arrival]) -> list[list[Accepted | None]]:
    """The answers to sets of arrivals, one after the other."""

    async def run() -> list[list[Accepted | None]]:
        inbox = InboxAtOnce(app.database)
        try:
            return [await inbox.accept(arrivals) for arrivals in sets]
        finally:
            await inbox.close()

    return asyncio.run(run())


def names(app: App, source: SourceConnection) -> list[str]:
    return [row.message_id for row in rows(app, source)]


def test_what_is_new_and_current_is_stored_as_the_closer_look_would(app: App, source: SourceConnection) -> None:
    given: dict[str, Any] = {"source_id": "ü-1", "dropped": ("data.price",), "passed": ("a", "b")}
    shard = source.id.int % 16
    assert stored(app, [arrival(source, change("m-1", "x", **given))]) == [[Accepted(1, 0, shard)]]
    assert SqlInbox(app.database).accept([arrival(source, change("m-2", "x", **given))]) == [Accepted(1, 0, shard)]
    own = {"id", "seq", "message_id", "received_at", "change_xid"}
    quick, closer = (
        {name: value for name, value in row._mapping.items() if name not in own} for row in rows(app, source)[1:]
    )
    assert quick == closer


def test_whatever_needs_a_closer_look_is_left_to_it_and_nothing_of_it_is_stored(
    app: App, source: SourceConnection
) -> None:
    fresh, _ = add_connection(app, f"reseller-{fresh_id()}")
    closed = known(app)
    with app.database.engine() as connection:
        set_state(connection, closed.id, ConnectionState.CLOSED)
    left = [
        arrival(source, change("first")),
        arrival(source, change("first", "another body")),
        arrival(source, change("late"), revision=source.revision - 1),
        arrival(source, change("asked-for"), revision=None),
        arrival(source, change("by-time", order=OrderKind.TIMESTAMP)),
        arrival(source, change("one"), change("two")),
        arrival(source),
        arrival(fresh, change("pins")),
        arrival(closed, change("after"), revision=closed.revision + 1),
    ]
    answers = stored(app, [*left, arrival(source, change("plain"))])[0]
    assert answers == [None] * len(left) + [Accepted(1, 0, source.id.int % 16)]
    assert names(app, source) == ["first", "plain"]
    assert names(app, fresh) == []
    assert names(app, closed) == ["first"]


def test_of_two_with_one_id_in_a_set_the_first_is_stored(app: App, source: SourceConnection) -> None:
    answers = stored(app, [arrival(source, change("twin", "a")), arrival(source, change("twin", "b"))])[0]
    assert [answer is not None for answer in answers] == [True, False]
    assert [row.body for row in rows(app, source)[1:]] == [{"name": "a"}]


def test_a_notification_speaks_no_order(app: App) -> None:
    fresh, _ = add_connection(app, f"reseller-{fresh_id()}")
    notified = change("n-1")
    object.__setattr__(notified, "version", None)
    object.__setattr__(notified, "action", Action.NOTIFIED)
    assert stored(app, [arrival(fresh, notified)])[0] != [None]


def test_a_connection_that_is_not_processing_parks(app: App) -> None:
    paused = known(app, ConnectionState.PAUSED)
    assert stored(app, [arrival(paused, change("m"))]) == [[Accepted(1, 0, None)]]
    assert rows(app, paused)[-1].shard is None


def test_a_connection_under_change_leaves_only_its_own_messages(app: App, source: SourceConnection) -> None:
    busy = known(app)
    with app.database.engine() as connection:
        connection.execute(text("select 1 from connection where id = :id for update"), {"id": busy.id})
        answers = stored(app, [arrival(busy, change("m")), arrival(source, change("m"))])[0]
    assert [answer is not None for answer in answers] == [False, True]
    assert names(app, busy) == ["first"]


def test_the_time_of_the_last_message_is_noted_and_silence_ends(app: App, source: SourceConnection) -> None:
    def seen() -> Any:
        return one(app, source)

    with app.database.engine() as connection:
        connection.execute(text("update connection set silent_since = now() where id = :id"), {"id": source.id})
    stored(app, [arrival(source, change("m-1"))])
    first = seen()
    assert first.silent_since is None
    stored(app, [arrival(source, change("m-2"))])
    assert seen().last_received_at == first.last_received_at, "not on every commit"


def test_a_connection_that_postgresql_ended_is_replaced_by_the_next_set(
    app: App, source: SourceConnection, postgres_server: PostgresServer
) -> None:
    async def run() -> None:
        inbox = InboxAtOnce(app.database)
        assert await inbox.accept([arrival(source, change("before"))]) != [None]
        postgres_server.execute(
            f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{LOGIN}' and state = 'idle'"
        )
        with pytest.raises(DependencyDown):
            await inbox.accept([arrival(source, change("during"))])
        assert await inbox.accept([arrival(source, change("after"))]) != [None]
        await inbox.close()

    asyncio.run(run())
    assert names(app, source) == ["first", "before", "after"]


def test_a_large_set_is_not_compared_each_with_each(app: App, source: SourceConnection) -> None:
    async def plan() -> str:
        connection = await app.database.door_in_loop()
        values = {"rows": "[]", "ids": id_array([source.id]), "expected": 0}
        async with connection:
            lines = await (await connection.execute(b"explain (costs off) " + STORE, values)).fetchall()
        return "\n".join(line for (line,) in lines)

    shown = asyncio.run(plan())
    assert "Hash Cond: ((a.connection = f.connection_id) AND ((a.message_id)::text = f.message_id))" in shown, shown


def test_a_known_tenant_is_the_connection_s_own_whatever_the_arrival_says(app: App, source: SourceConnection) -> None:
    other = known(app)
    told = Arrival(other.tenant_id, source.id, source.revision, Origin.DOOR, [change("m")])
    assert stored(app, [told])[0] != [None]
    assert rows(app, source)[-1].tenant_id == source.tenant_id
