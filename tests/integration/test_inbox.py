"""The inbox's store (ports/inbox.py) on real PostgreSQL, as two processes see it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from bss_sync.adapters.sql.audit import verify_chains
from bss_sync.adapters.sql.database import OVERFLOW, Database
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.adapters.sql.inbox_at_once import InboxAtOnce
from bss_sync.bootstrap import App
from bss_sync.domain.change import Action, Change, Kind, OrderKind, stream_id
from bss_sync.domain.errors import DependencyDown, MessageConflict
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.domain.tenancy import ConnectionState
from bss_sync.ports.inbox import Accepted, Arrival, InboxStore, Origin, Stale
from tests.app import add_connection, set_state, wired
from tests.door_sender import fresh_id
from tests.servers import PostgresServer, short_folder

NOW = datetime(2026, 3, 2, 10, 15, tzinfo=UTC)


@pytest.fixture(scope="module")
def app(postgres_server: PostgresServer) -> Iterator[App]:
    with postgres_server.database() as database, short_folder() as home, wired(database, home) as (app, _, _):
        yield app


class AtOnceFirst:
    """As the door stores: in one statement what needs no closer look, then the rest."""

    def __init__(self, app: App) -> None:
        self.app = app

    def accept(self, arrivals: Sequence[Arrival]) -> list[Accepted | MessageConflict | Stale]:
        at_once = asyncio.run(self._at_once(arrivals))
        left = [one for one, answer in zip(arrivals, at_once, strict=True) if answer is None]
        closer = iter(SqlInbox(self.app.database).accept(left) if left else [])
        return [answer or next(closer) for answer in at_once]

    async def _at_once(self, arrivals: Sequence[Arrival]) -> list[Accepted | None]:
        inbox = InboxAtOnce(self.app.database)
        try:
            return await inbox.accept(arrivals)
        finally:
            await inbox.close()


@pytest.fixture(params=[False, True], ids=["closely", "at-once-first"])
def inbox(app: App, request: pytest.FixtureRequest) -> InboxStore:
    return AtOnceFirst(app) if request.param else SqlInbox(app.database)


@pytest.fixture
def source(app: App) -> SourceConnection:
    return add_connection(app, f"reseller-{fresh_id()}")[0]


def change(message_id: str, content: str = "a", *, order: OrderKind = OrderKind.SEQUENCE, **members: Any) -> Change:
    return Change(
        message_id=message_id,
        kind=Kind.ACCOUNT,
        source_id=members.pop("source_id", "c-1"),
        action=Action.STATE,
        version=1,
        sent_at=NOW,
        effective_at=NOW,
        body={"name": content},
        digest=hashlib.sha256(content.encode()).digest(),
        order=order,
        **members,
    )


def arrival(source: SourceConnection, *changes: Change, revision: int | None = -1) -> Arrival:
    known = source.revision if revision == -1 else revision
    return Arrival(source.tenant_id, source.id, known, Origin.DOOR, changes)


def rows(app: App, source: SourceConnection) -> list[Any]:
    with app.database.engine() as connection:
        return list(
            connection.execute(
                text("select * from message where connection_id = :id order by seq"), {"id": source.id}
            ).all()
        )


def one(app: App, source: SourceConnection) -> Any:
    with app.database.engine() as connection:
        return connection.execute(text("select * from connection where id = :id"), {"id": source.id}).one()


def test_what_is_accepted_is_there_as_it_was_sent(app: App, inbox: InboxStore, source: SourceConnection) -> None:
    sent = change("m-1", 'ünïcode 🌍 \\ " \n', dropped=("data.price", "x"))
    assert inbox.accept([arrival(source, sent)]) == [Accepted(1, 0, source.id.int % 16)]
    row = rows(app, source)[0]
    assert (row.tenant_id, row.stream_id) == (source.tenant_id, stream_id(source.id, Kind.ACCOUNT, "c-1"))
    assert (row.body, row.dropped, bytes(row.digest)) == (
        {"name": 'ünïcode 🌍 \\ " \n'},
        ["data.price", "x"],
        sent.digest,
    )
    assert (row.sent_at, row.effective_at, row.origin, row.state) == (NOW, NOW, "door", "pending")
    assert row.id.version == 7


def test_seq_follows_the_order_in_which_an_array_was_sent(
    app: App, inbox: InboxStore, source: SourceConnection
) -> None:
    names = [f"m-{number}" for number in (5, 3, 9, 1, 7)]
    inbox.accept([arrival(source, *(change(name) for name in names))])
    assert [row.message_id for row in rows(app, source)] == names


def test_each_arrival_of_one_call_has_its_own_answer(app: App, source: SourceConnection) -> None:
    inbox = SqlInbox(app.database)
    other, _ = add_connection(app, f"reseller-{fresh_id()}")
    draft, _ = add_connection(app, f"reseller-{fresh_id()}", state=ConnectionState.DRAFT)
    inbox.accept([arrival(source, change("known"))])
    answers = inbox.accept(
        [
            arrival(source, change("new"), change("known")),
            arrival(source, change("known", "other"), change("lost")),
            arrival(other, change("known"), change("known")),
            arrival(source, change("new")),
            arrival(source, change("late"), revision=source.revision - 1),
            arrival(draft, change("parked")),
            arrival(source),
        ]
    )
    shard = source.id.int % 16
    assert answers[0] == Accepted(1, 1, shard)
    assert isinstance(answers[1], MessageConflict)
    assert [item.field for item in answers[1].fields] == ["[0].id"]
    assert answers[2:] == [
        Accepted(1, 1, other.id.int % 16),
        Accepted(0, 1, None),
        Stale(),
        Accepted(1, 0, None),
        Accepted(0, 0, None),
    ]
    assert [row.message_id for row in rows(app, source)] == ["known", "new"]
    assert [row.shard for row in rows(app, draft)] == [None]


def test_a_conflict_leaves_no_key_behind_and_is_recorded_in_a_sound_chain(
    app: App, inbox: InboxStore, source: SourceConnection
) -> None:
    inbox.accept([arrival(source, change("taken"))])
    for _ in range(2):
        assert isinstance(inbox.accept([arrival(source, change("free"), change("taken", "other"))])[0], MessageConflict)
    with app.database.engine() as connection:
        entries = connection.execute(
            text("select detail from audit where connection_id = :id and action = 'message.conflict'"),
            {"id": source.id},
        ).all()
        assert len(entries) == 2
        assert verify_chains(connection)[source.id] is None
    assert inbox.accept([arrival(source, change("free"))]) == [Accepted(1, 0, source.id.int % 16)]


def test_two_arrivals_of_one_call_that_contradict_each_other(
    app: App, inbox: InboxStore, source: SourceConnection
) -> None:
    answers = inbox.accept([arrival(source, change("same", "a")), arrival(source, change("same", "b"))])
    assert answers[0] == Accepted(1, 0, source.id.int % 16)
    assert isinstance(answers[1], MessageConflict)
    # The stored one decides, also when the first of the call contradicts it.
    answers = inbox.accept([arrival(source, change("same", "b")), arrival(source, change("same", "a"))])
    assert isinstance(answers[0], MessageConflict)
    assert answers[1] == Accepted(0, 1, None)


def test_two_processes_with_overlapping_arrays_never_wait_for_each_other_crosswise(
    app: App, source: SourceConnection
) -> None:
    names = [f"m-{number:03d}" for number in range(60)]
    databases = [Database(app.database.url, pool_size=2) for _ in range(2)]
    inboxes = [SqlInbox(database) for database in databases]

    def send(number: int) -> list[Any]:
        order = names if number % 2 else list(reversed(names))
        return inboxes[number % 2].accept([arrival(source, *(change(name) for name in order))])

    with ThreadPoolExecutor(4) as threads:
        answers = [answer for result in threads.map(send, range(16)) for answer in result]
    for database in databases:
        database.dispose()
    accepted = [answer for answer in answers if isinstance(answer, Accepted)]
    assert len(accepted) >= 1
    assert sum(answer.accepted for answer in accepted) == len(names)
    assert all(isinstance(answer, Accepted | Stale) for answer in answers)
    assert sorted(row.message_id for row in rows(app, source)) == names


def test_two_processes_with_one_id_and_two_bodies_keep_exactly_one(app: App, source: SourceConnection) -> None:
    inbox = SqlInbox(app.database)
    inbox.accept([arrival(source, change("pins the order"))])

    def send(number: int) -> Any:
        return SqlInbox(app.database).accept([arrival(source, change("contested", f"body {number % 2}"))])[0]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(send, range(40)))
    kept = rows(app, source)[1].body["name"]
    for number, answer in enumerate(answers):
        if isinstance(answer, Stale):
            continue
        assert isinstance(answer, Accepted) == (f"body {number % 2}" == kept)
    assert sum(answer.accepted for answer in answers if isinstance(answer, Accepted)) == 1


def test_the_first_message_pins_the_order_and_another_kind_is_stale(
    app: App, inbox: InboxStore, source: SourceConnection
) -> None:
    answers = inbox.accept(
        [
            arrival(source, change("by-time", order=OrderKind.TIMESTAMP)),
            arrival(source, change("by-number", order=OrderKind.SEQUENCE)),
        ]
    )
    assert answers == [Accepted(1, 0, source.id.int % 16), Stale()]
    assert one(app, source).order_kind == "timestamp"


def test_a_closed_or_unknown_connection_takes_nothing(app: App, inbox: InboxStore, source: SourceConnection) -> None:
    with app.database.engine() as connection:
        set_state(connection, source.id, ConnectionState.CLOSED)
    unknown = Arrival(source.tenant_id, UUID(int=1), 1, Origin.DOOR, [change("m")])
    assert inbox.accept([arrival(source, change("m"), revision=source.revision + 1), unknown]) == [Stale(), Stale()]
    assert rows(app, source) == []


def test_what_we_asked_for_ourselves_needs_no_revision(app: App, inbox: InboxStore, source: SourceConnection) -> None:
    fetched = Arrival(source.tenant_id, source.id, None, Origin.FETCH, [change("f-1")])
    assert inbox.accept([fetched]) == [Accepted(1, 0, source.id.int % 16)]
    assert rows(app, source)[0].origin == "fetch"


def test_a_message_is_never_parked_behind_an_activation_s_back(app: App, inbox: InboxStore) -> None:
    draft, _ = add_connection(app, f"reseller-{fresh_id()}", state=ConnectionState.DRAFT)
    inbox.accept([arrival(draft, change("first"))])
    with app.database.engine() as connection:
        set_state(connection, draft.id, ConnectionState.LIVE)
        # While the move is not committed, nothing can be parked by its old state.
        assert inbox.accept([arrival(draft, change("meanwhile"))]) == [Stale()]
    assert [row.message_id for row in rows(app, draft)] == ["first"]


def test_the_time_of_the_last_message_is_kept_and_silence_ends(
    app: App, inbox: InboxStore, source: SourceConnection
) -> None:
    with app.database.engine() as connection:
        connection.execute(text("update connection set silent_since = now() where id = :id"), {"id": source.id})
    inbox.accept([arrival(source, change("m-1"))])
    first = one(app, source)
    assert first.silent_since is None
    assert first.last_received_at is not None
    inbox.accept([arrival(source, change("m-2"))])
    assert one(app, source).last_received_at == first.last_received_at


def test_nothing_is_stored_when_postgresql_does_not_answer(app: App, source: SourceConnection) -> None:
    nowhere = Database(app.database.url.replace("port=", "port=1"))
    with pytest.raises(DependencyDown):
        SqlInbox(nowhere).accept([arrival(source, change("m"))])
    nowhere.dispose()


def test_a_pool_of_which_every_connection_is_at_work_is_an_outage_that_passes(app: App) -> None:
    small = Database(app.database.url, pool_size=1, wait_seconds=0.1)
    with ExitStack() as held:
        for _ in range(1 + OVERFLOW):
            held.enter_context(small.engine())
        with pytest.raises(DependencyDown, match="at work"), small.engine():
            pass
    with small.engine() as connection:
        assert connection.execute(text("select 1")).scalar_one() == 1
    small.dispose()
