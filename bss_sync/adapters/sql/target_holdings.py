"""What the target ought to hold of a connection, in PostgreSQL (ports/target_holdings.py, TargetHoldings)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.desired import read_desired
from bss_sync.adapters.sql.drifts import BINDINGS, binding_of
from bss_sync.adapters.sql.listing import fill_inside, listing_session
from bss_sync.ports.delivery import Binding, Desired

CHUNK = 500

_WANTED = "(:whole or exists (select 1 from inside_id i where i.id = d.record_id))"
_LOOK = text(f"{BINDINGS} where d.record_id = any(:ids) and d.connection_id = :connection and {_WANTED}")
_NOTE = text(
    """with fresh as (insert into seen_id select unnest(cast(:ids as uuid[])) on conflict do nothing returning id)
       select x.id from unnest(cast(:ids as uuid[])) as x (id) where x.id not in (select id from fresh)"""
)
_UNKNOWN = text(
    """select x.id from unnest(cast(:ids as uuid[])) as x (id)
       where not exists (select 1 from stream s where s.id = x.id)
         and not exists (select 1 from tenant t where t.id = x.id)"""
)
# A live record that nobody ever made due (it ended before it was delivered, or its row is missing) has no binding row.
_COMPLETE = text(
    """insert into delivery (record_id, tenant_id, connection_id, kind, desired_revision)
       select r.id, r.tenant_id, r.connection_id, r.kind, r.revision from (
           select id, tenant_id, connection_id, 'account' as kind, revision from account
           where connection_id = :connection and deleted_at is null and ended_at is null
           union all
           select id, tenant_id, connection_id, 'subscription', revision from subscription
           where connection_id = :connection and deleted_at is null and ended_at is null) r
       join connection c on c.id = r.connection_id and c.state = 'live'
       on conflict do nothing"""
)
_NOT_SEEN = """
    join connection c on c.id = d.connection_id
    where d.connection_id = :connection and d.record_id > :after and c.state in ('live', 'closed')
      and (d.external_id is not null
           or (coalesce(a.deleted_at, a.ended_at, s.deleted_at, s.ended_at) is null and d.due_at is null))
      and not exists (select 1 from seen_id x where x.id = d.record_id)
    order by d.record_id limit :chunk"""
_UNSEEN = text(BINDINGS + _NOT_SEEN.replace("order by", f"and {_WANTED} order by"))
_MAKE_DUE = text(
    """update delivery set due_at = coalesce(due_at, now()), attempts = 0, updated_at = now(),
           state = case when state in ('sending', 'unknown') then state else 'pending' end
       where record_id = any(:ids)"""
)


class SqlTargetHoldings:
    """TargetHoldings over PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def target_listing(self, connection_id: UUID, *, below: str | None = None) -> Iterator[SqlTargetListing]:
        """See TargetHoldings."""
        with listing_session(self._database) as connection:
            with connection.begin():
                connection.execute(_COMPLETE, {"connection": connection_id})
                if below is not None:
                    fill_inside(connection, connection_id, below)
            yield SqlTargetListing(connection, connection_id, whole=below is None)

    def make_due(self, record_ids: Sequence[UUID]) -> None:
        """See TargetHoldings."""
        with self._database.engine() as connection:
            connection.execute(_MAKE_DUE, {"ids": list(record_ids)})


class SqlTargetListing:
    """TargetListing over one session."""

    def __init__(self, connection: Connection, connection_id: UUID, *, whole: bool) -> None:
        self._connection = connection
        self._connection_id = connection_id
        self._whole = whole

    def look(self, record_ids: Sequence[UUID]) -> Mapping[UUID, tuple[Binding, Desired]]:
        """See TargetListing."""
        values = {"ids": list(record_ids), "connection": self._connection_id, "whole": self._whole}
        with self._connection.begin():
            rows = self._connection.execute(_LOOK, values).all()
            desired = read_desired(self._connection, [row.record_id for row in rows])
        return {row.record_id: (binding_of(row), desired[row.record_id][0]) for row in rows if row.record_id in desired}

    def note(self, record_ids: Sequence[UUID]) -> frozenset[UUID]:
        """See TargetListing."""
        ids = list(dict.fromkeys(record_ids))
        with self._connection.begin():
            return frozenset(self._connection.execute(_NOTE, {"ids": ids}).scalars())

    def unknown(self, references: Sequence[UUID]) -> frozenset[UUID]:
        """See TargetListing."""
        if not references:
            return frozenset()
        with self._connection.begin():
            return frozenset(self._connection.execute(_UNKNOWN, {"ids": list(references)}).scalars())

    def unseen(self) -> Iterator[Sequence[tuple[Binding, Desired]]]:
        """See TargetListing."""
        after = UUID(int=0)
        while True:
            values = {"connection": self._connection_id, "after": after, "chunk": CHUNK, "whole": self._whole}
            with self._connection.begin():
                rows = self._connection.execute(_UNSEEN, values).all()
                desired = read_desired(self._connection, [row.record_id for row in rows])
            if not rows:
                return
            yield [(binding_of(row), desired[row.record_id][0]) for row in rows if row.record_id in desired]
            after = rows[-1].record_id
