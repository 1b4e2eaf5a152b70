"""Scenarios on the line over PostgreSQL: the door's inbox, the streams, the sweeper's statements."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Row, text

from bss_sync.adapters.sql.admin import instance, products, takeovers, value_maps
from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.adapters.sql.reconciliation import SqlHoldings
from bss_sync.adapters.sql.stream_rows import shown_content
from bss_sync.adapters.sql.streams import SqlStreams
from bss_sync.adapters.sql.upkeep import SqlUpkeep
from bss_sync.domain.change import Change, Json, Kind, shard_of, stream_id
from bss_sync.domain.ownership import default_document
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.domain.tenancy import ConnectionState
from bss_sync.pipeline.line import accept, process
from bss_sync.ports.inbox import Accepted, Arrival, Origin
from tests.scenario import WAIT_SECONDS, Asked, Hole, Scenario, Shown, Told, subscription_body
from tests.servers import Database as TestDatabase

ROUNDS_MAX = 2_000
ACTOR = "test"
_CONNECTION = """insert into connection (id, tenant_id, name, connector, state, settings, shard)
    values (:id, :tenant, :name, :connector, 'live', cast(:settings as jsonb), :shard)"""


_POLICY = """insert into ownership_policy (tenant_id, connection_id, version, document)
    values (:t, :c, 1, cast(:d as jsonb))"""
_PRODUCTS = """insert into product (code, name) values ('OURS-1', 'One'), ('OURS-2', 'Two')
    on conflict (code) do update set retired_at = null"""


@dataclass(kw_only=True)
class PostgresScenario(Scenario):
    """A connection in a database."""

    database: Database
    streams: SqlStreams
    connection_id: UUID
    tenant_id: UUID
    name: str

    def rows(self, statement: str, **values: Any) -> Sequence[Row[Any]]:
        """Query as the engine."""
        with self.database.engine() as connection:
            return connection.execute(text(statement), values).all()

    def execute(self, statement: str, **values: Any) -> None:
        """Act as the engine."""
        with self.database.engine() as connection:
            connection.execute(text(statement), values)

    def pending(self, *source_ids: str, **body: str) -> list[str]:
        """The messages, each the first about its subscription, that are stored and not decided yet: their ids."""
        return [
            self.send(self.change(Kind.SUBSCRIPTION, name, 1, subscription_body(**body)), work=False)
            for name in source_ids
        ]

    def another_worker(self) -> SqlStreams:
        """The streams as a second worker has them."""
        return SqlStreams(self.database, lambda _connector: False)

    def expire_leases(self) -> None:
        """Every lease on streams has run out."""
        self.execute("update claim set lease_until = now() - interval '1 second'")
        self.execute("update stream set lease_until = now() - interval '1 second' where lease_until is not null")

    def record_id(self, kind: Kind, source_id: str) -> UUID:
        """The id of a stream and its record."""
        return stream_id(self.connection_id, kind, source_id)

    @property
    def shard(self) -> int:
        """The connection's shard."""
        return shard_of(self.connection_id)

    def accept(self, changes: Sequence[Change], origin: Origin) -> None:
        inbox = SqlInbox(self.database)
        (answer,) = accept(inbox, [Arrival(self.tenant_id, self.connection_id, None, origin, changes)])
        assert isinstance(answer, Accepted)

    def work(self) -> None:
        upkeep = SqlUpkeep(self.database)
        for _round in range(ROUNDS_MAX):
            result = process(self.streams, self.shard)
            if (
                not result.decided
                and not result.more
                and not upkeep.wake_released()
                and self.shard not in upkeep.hints().shards
            ):
                return
        raise AssertionError("the line never came to rest")

    def verdict(self, message_id: str) -> tuple[str, str | None, str | None]:
        (row,) = self.rows(
            "select state, verdict, reason from message where connection_id = :c and message_id = :m",
            c=self.connection_id,
            m=message_id,
        )
        return row.state, row.verdict, row.reason

    def states(self) -> list[str]:
        return [
            row.state for row in self.rows("select state from message where connection_id=:c", c=self.connection_id)
        ]

    def mirror(self, kind: Kind, source_id: str) -> Shown | None:
        found = self.rows(f"select * from {kind} where id = :id", id=self.record_id(kind, source_id))
        if not found:
            return None
        (row,) = found
        account = row.account_id if kind is Kind.SUBSCRIPTION else None
        return Shown(
            shown_content(kind, row),
            row.version,
            row.deleted_at is not None,
            row.ended_reason,
            self._source_id(kind, row.parent_id),
            self._source_id(Kind.ACCOUNT, account),
        )

    def _source_id(self, kind: Kind, record_id: UUID | None) -> str | None:
        if record_id is None:
            return None
        (row,) = self.rows(f"select source_id from {kind} where id = :id", id=record_id)
        return str(row.source_id)

    def mirrored(self, kind: Kind) -> set[str]:
        found = self.rows(f"select source_id from {kind} where connection_id = :c", c=self.connection_id)
        return {row.source_id for row in found}

    def history(self, kind: Kind, source_id: str) -> list[Told]:
        found = self.rows("select * from history where record_id = :id order by id", id=self.record_id(kind, source_id))
        return [
            Told(row.version, row.effective_at, row.state, row.deleted, row.late, row.ended_reason, row.epoch)
            for row in found
        ]

    def gaps(self, kind: Kind, source_id: str) -> list[Hole]:
        found = self.rows(
            "select * from gap where stream_id = :id and closed_at is null order by id",
            id=self.record_id(kind, source_id),
        )
        return [Hole(row.from_version, row.to_version, row.missing) for row in found]

    def fetches(self) -> set[Asked]:
        found = self.rows("select kind, source_id from fetch_request where connection_id = :c", c=self.connection_id)
        return {Asked(Kind(row.kind), row.source_id) for row in found}

    def pass_time(self, seconds: float) -> None:
        self.execute(
            """update message set wait_until = wait_until - make_interval(secs => :s)
               where wait_until is not null and connection_id = :c""",
            s=seconds,
            c=self.connection_id,
        )
        self.work()

    def offer(self, code: str) -> None:
        with self.database.engine() as connection:
            products.add(connection, [products.NewProduct(code, code)], actor=ACTOR)
        self.work()

    def retire(self, code: str) -> None:
        with self.database.engine() as connection:
            products.retire(connection, code, actor=ACTOR)

    def map_value(self, name: str, source_value: str, canonical: str) -> None:
        with self.database.engine() as connection:
            value_maps.map_value(connection, self._source(), name, source_value, canonical, actor=ACTOR)
        self.work()

    def _source(self) -> SourceConnection:
        state = ConnectionState.LIVE
        return SourceConnection(
            self.connection_id, self.tenant_id, self.name, self.name, "webhook", state, {}, self.order, 1
        )

    def take(self, kind: Kind, source_id: str, name: str, value: Json) -> None:
        record_id = self.record_id(kind, source_id)
        with self.database.engine() as connection:
            takeovers.take(connection, kind, record_id, name, reason="agreed by telephone", actor=ACTOR)
            takeovers.set_value(connection, kind, record_id, name, value, actor=ACTOR)
        self.work()

    def give_back(self, kind: Kind, source_id: str, name: str) -> None:
        with self.database.engine() as connection:
            takeovers.release(connection, kind, self.record_id(kind, source_id), name, reason="done", actor=ACTOR)
        self.work()

    def replay(self, *message_ids: str) -> None:
        self.execute(
            """update message set state = 'pending', shard = :shard, change_xid = pg_current_xact_id()
               where connection_id = :c and message_id = any(:ids)""",
            shard=self.shard,
            c=self.connection_id,
            ids=list(message_ids),
        )
        self.work()

    def accept_source(self, kind: Kind, source_id: str) -> None:
        assert SqlHoldings(self.database).begin_epoch(self.connection_id, kind, source_id, actor=ACTOR)


@contextmanager
def postgres_scenario(
    server: TestDatabase | Database,
    *,
    can_fetch: bool = False,
    accounts_at_once: bool = False,
    lease_seconds: float = 30,
) -> Iterator[PostgresScenario]:
    """A live connection, and the distributor's two products. Pools may be given, to share them between scenarios."""
    own = isinstance(server, TestDatabase)
    database = Database(server.login_url) if isinstance(server, TestDatabase) else server
    try:
        connection_id, tenant_id = uuid4(), uuid4()
        settings = {"wait_seconds": WAIT_SECONDS, "account_scope": "all" if accounts_at_once else "first_paid"}
        name = f"reseller-{connection_id}"
        with database.engine() as connection:
            instance.ensure(connection, name="cloud", time_zone="UTC", currency="EUR")
            connection.execute(
                text(
                    "insert into tenant (id, name, display_name, kind) values (:id, :name, 'Cloud Resell', 'reseller')"
                ),
                {"id": tenant_id, "name": name},
            )
            connection.execute(
                text(_CONNECTION),
                {
                    "id": connection_id,
                    "tenant": tenant_id,
                    "name": name,
                    "connector": "fetching" if can_fetch else "webhook",
                    "settings": json.dumps(settings),
                    "shard": shard_of(connection_id),
                },
            )
            connection.execute(
                text(_POLICY),
                {"t": tenant_id, "c": connection_id, "d": json.dumps(default_document())},
            )
            connection.execute(text(_PRODUCTS))
        streams = SqlStreams(database, lambda connector: connector == "fetching", lease_seconds=lease_seconds)
        yield PostgresScenario(
            database=database, streams=streams, connection_id=connection_id, tenant_id=tenant_id, name=name
        )
        with database.engine() as connection:
            # The next scenario of this database starts with what this one started with.
            connection.execute(text("update connection set state = 'closed'"))
            connection.execute(text("delete from product where code not in ('OURS-1', 'OURS-2')"))
    finally:
        if own:
            database.dispose()
