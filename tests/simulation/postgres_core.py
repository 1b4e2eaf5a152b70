"""The stores on PostgreSQL, under the world's clock.

``now()`` in the program's statements and in the columns' defaults is replaced by a function that reads the world's
time, so that leases, deadlines and retries pass as fast as the schedule wants. Everything else is as in production.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import Row, text

from bss_sync.adapters.sql.admin import instance, products
from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.deliveries import SqlDeliveries
from bss_sync.adapters.sql.drifts import SqlDrifts
from bss_sync.adapters.sql.fetches import SqlFetches, SqlPolls
from bss_sync.adapters.sql.first_load import SqlFirstLoad
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.adapters.sql.reconciliation import SqlHoldings
from bss_sync.adapters.sql.runs import SqlRuns
from bss_sync.adapters.sql.streams import SqlStreams
from bss_sync.adapters.sql.streams_load import shown_content
from bss_sync.adapters.sql.target_holdings import SqlTargetHoldings
from bss_sync.adapters.sql.upkeep import SqlUpkeep
from bss_sync.domain.change import Action, Kind, shard_of
from bss_sync.domain.ownership import default_document
from tests.servers import Database as TestDatabase
from tests.simulation.core import Decided, Name, Present, Record, Told
from tests.simulation.memory_core import held_quantity
from tests.simulation.oracles import BILL_TO
from tests.simulation.postgres_admin import PostgresAdmin
from tests.simulation.profile import GUARD, Profile

_CLOCK = """
    create schema simulated;
    create table simulated.clock (moment timestamptz not null);
    insert into simulated.clock values ('2026-01-01');
    create function simulated.now() returns timestamptz language sql stable as 'select moment from simulated.clock';
    create function simulated.clock_timestamp() returns timestamptz language sql stable
        as 'select moment from simulated.clock';
    grant usage on schema simulated to public;
    grant select, update on simulated.clock to public"""
_DEFAULTS = """
    select format('alter table %s alter column %I set default simulated.now()', d.adrelid::regclass, a.attname)
    from pg_attrdef d join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
    where pg_get_expr(d.adbin, d.adrelid) = 'now()' and d.adrelid::regclass::text not like 'pg_%'"""
_PRESENT = """
    select id, '{kind}' as kind, epoch, version, deleted_at is not null as deleted, parent_id from {kind}
    where connection_id = :c"""
_RECORDS = """
    select r.*, d.external_id, d.state as delivery from {kind} r left join delivery d on d.record_id = r.id
    where r.connection_id = :c"""


def install_clock(server: TestDatabase) -> None:
    """Let the program's sessions in this database see the world's clock."""
    with psycopg.connect(server.superuser_url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as session:
        session.execute(_CLOCK.encode())
        for (statement,) in session.execute(_DEFAULTS).fetchall():
            session.execute(str(statement).encode())
        path = f'alter database "{server.name}" set search_path = simulated, pg_catalog, public'
        session.execute(path.encode())


class PostgresCore:
    """``core.Core`` over the real stores. One live connection; those of earlier schedules are closed."""

    def __init__(self, server: Database, codes: Sequence[str], profile: Profile) -> None:
        self.database = server
        self.connection_id, self.tenant_id = uuid4(), uuid4()
        self.shard = shard_of(self.connection_id)
        self._set_up(codes, profile)
        self.inbox = SqlInbox(server)
        self.streams = SqlStreams(server, lambda _connector: True)
        self.deliveries, self.drift, self.fetches = SqlDeliveries(server), SqlDrifts(server), SqlFetches(server)
        self.polls, self.holdings = SqlPolls(server), SqlHoldings(server)
        self.chunks = SqlFirstLoad(server, lambda _connector: True)
        self.target_holdings = SqlTargetHoldings(server)
        self._upkeep = SqlUpkeep(server)
        self.admin = PostgresAdmin(server, self.connection_id)

    def _set_up(self, codes: Sequence[str], profile: Profile) -> None:
        scope = "all" if profile.accounts_at_once else "first_paid"
        settings: dict[str, object] = {"wait_seconds": 900, "account_scope": scope, "poll_seconds": 30}
        if profile.guarded:
            settings |= {"guard_count": GUARD[0], "guard_share": GUARD[1]}
        values = {
            "c": self.connection_id,
            "t": self.tenant_id,
            "name": f"reseller-{self.connection_id}",
            "settings": json.dumps(settings),
            "shard": self.shard,
            "document": json.dumps(default_document()),
            "bill_to": BILL_TO,
        }
        with self.database.engine() as connection:
            instance.ensure(connection, name="cloud", time_zone="UTC", currency="EUR")
            for statement in (
                "update connection set state = 'paused' where state = 'live'",
                "delete from target",
                "update delivery set external_id = null, due_at = null",
                "insert into tenant (id, name, display_name, kind) values (:t, :name, :bill_to, 'reseller')",
                """insert into connection (id, tenant_id, name, connector, state, settings, shard)
                   values (:c, :t, :name, 'simulator', 'live', cast(:settings as jsonb), :shard)""",
                """insert into ownership_policy (tenant_id, connection_id, version, document)
                   values (:t, :c, 1, cast(:document as jsonb))""",
            ):
                connection.execute(text(statement), {k: v for k, v in values.items() if f":{k}" in statement})
            connection.execute(
                text("insert into target (connector, drift_policy, poll_seconds) values ('simulator', 'repair', 20)")
            )
            products.add(connection, [products.NewProduct(code, code) for code in codes], actor="test")

    def _rows(self, statement: str, **values: Any) -> Sequence[Row[Any]]:
        with self.database.engine() as connection:
            return connection.execute(text(statement), {"c": self.connection_id} | values).all()

    def _execute(self, statement: str, **values: Any) -> None:
        with self.database.engine() as connection:
            connection.execute(text(statement), values)

    def runs(self) -> SqlRuns:
        """See Core."""
        return SqlRuns(self.database)

    def set_time(self, now: datetime) -> None:
        """See Core."""
        self._execute("update simulated.clock set moment = :now", now=now)

    def sweep(self) -> bool:
        """See Core."""
        self._upkeep.wake_released()
        return bool(self._upkeep.hints().shards)

    def offer(self, code: str, *, retired: bool) -> None:
        """See Core."""
        with self.database.engine() as connection:
            known = connection.execute(text("select count(*) from product where code = :code"), {"code": code})
            if not known.scalar_one():
                products.add(connection, [products.NewProduct(code, code)], actor="test")
            if retired:
                products.retire(connection, code, actor="test")

    def revive_killed(self) -> None:
        """See Core."""
        self._execute(
            """update message m set state = 'pending', shard = c.shard, change_xid = pg_current_xact_id()
               from connection c where c.id = m.connection_id and m.connection_id = :c
                 and m.state = 'quarantined' and m.reason = 'process_killer'""",
            c=self.connection_id,
        )

    def tokens(self, stream_ids: Sequence[UUID]) -> Mapping[UUID, int]:
        """See Core."""
        return {
            row.id: row.token
            for row in self._rows("select id, token from stream where id = any(:ids)", ids=list(stream_ids))
        }

    def present(self) -> Mapping[UUID, Present]:
        """See Core."""
        rows = self._rows(" union all ".join(_PRESENT.format(kind=kind) for kind in Kind))
        return {row.id: Present(Kind(row.kind), row.epoch, row.version, row.deleted, row.parent_id) for row in rows}

    def fingerprint(self) -> object:
        """See Core."""
        return self._rows(
            """select (select count(*) || max(change_xid)::text from message where connection_id = :c),
                      (select count(*) || string_agg(state || coalesce(external_id, ''), ',' order by record_id)
                       from delivery where connection_id = :c),
                      (select count(*) from history where connection_id = :c),
                      (select count(*) from fetch_request where connection_id = :c)"""
        )

    def records(self) -> Mapping[Name, Record]:
        """See Core."""
        found: dict[Name, Record] = {}
        for kind in Kind:
            for row in self._rows(_RECORDS.format(kind=kind)):
                found[kind, row.source_id] = Record(
                    id=row.id,
                    content=shown_content(kind, row),
                    version=row.version,
                    deleted=row.deleted_at is not None,
                    ended=row.ended_reason,
                    parent=row.parent_id,
                    account=row.account_id if kind is Kind.SUBSCRIPTION else None,
                    external_id=row.external_id,
                    delivery=row.delivery,
                )
        return found

    def history(self) -> Sequence[Told]:
        """See Core."""
        rows = self._rows(
            """select h.*, s.source_id from history h join stream s on s.id = h.record_id
               where h.connection_id = :c order by h.id"""
        )
        return [
            Told(
                (Kind(row.kind), row.source_id),
                row.epoch,
                row.version,
                row.effective_at,
                held_quantity(row.state, ended=row.deleted or row.ended_reason is not None),
                row.message,
            )
            for row in rows
        ]

    def messages(self) -> Sequence[Decided]:
        """See Core."""
        audited: dict[UUID, Counter[str]] = {}
        for row in self._rows(
            """select message, action, count(*) as number from audit
               where connection_id = :c and message is not null group by message, action"""
        ):
            state = {"message.fetched": "applied"}.get(row.action, row.action.removeprefix("message."))
            audited.setdefault(row.message, Counter())[state] += row.number
        return [
            Decided(
                row.id,
                row.message_id,
                (Kind(row.kind), row.source_id),
                Action(row.action),
                row.version,
                row.state,
                audited.get(row.id, Counter()),
            )
            for row in self._rows("select * from message where connection_id = :c")
        ]
