"""What reconciliation compares with, in PostgreSQL (ports/reconciliation.py, Holdings)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID

from sqlalchemy import text

from bss_sync.adapters.sql import level_pages
from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.listing import SqlListing, listing_session
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import Kind, stream_id
from bss_sync.domain.product import Catalogue
from bss_sync.ports.streams import ConnectionRules

_CONNECTION = text(
    """select c.id, c.name, c.connector, c.settings, i.id as instance_id from connection c cross join instance i
       where c.id = :connection"""
)
_WAKE = text("update stream set ready_at = least(ready_at, now()) where id = any(:ids)")
_KNOWN = text("select source_id from stream where id = any(:ids)")
_EXAMPLES = text(
    """select source_id from stream where connection_id = :connection and kind = any(:kinds)
       order by source_id limit 5"""
)
_EPOCH = text(
    """update stream set epoch = epoch + 1, epoch_at = now(), version = null, version_sent_at = null,
           version_message_id = null, digest = null, deleted = false
       where id = :id returning tenant_id, epoch"""
)
_PRUNE = (
    *(
        text(
            f"""delete from {table} t where t.kept_at < now() - interval '1 day'
                and not exists (select 1 from run r where r.id = t.run_id and r.state = 'running')"""  # noqa: S608  constants only
        )
        for table in ("run_seen", "run_end")
    ),
    text(
        """delete from run_difference where (run_id, seq) in (
               select run_id, seq from run_difference where found_at < now() - interval '90 days'
               order by found_at limit 10000)"""
    ),
    level_pages.PRUNE,
)


class SqlHoldings:
    """Holdings over PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rules(self, connection_id: UUID) -> ConnectionRules:
        """See Holdings."""
        scope = {"connection": connection_id}
        with self._database.engine() as connection:
            row = connection.execute(_CONNECTION, scope).one()
            codes = connection.execute(text("select code, retired_at is not null as retired from product"))
            maps = connection.execute(
                text("select source_code, code from product_map where connection_id = :connection"), scope
            )
            values = connection.execute(
                text("select field, source_value, canonical from value_map where connection_id = :connection"), scope
            )
            return ConnectionRules(
                connection_id=row.id,
                name=row.name,
                catalogue=Catalogue(
                    {one.code: one.retired for one in codes}, {one.source_code: one.code for one in maps}
                ),
                value_maps={(one.field, one.source_value): one.canonical for one in values},
                accounts_at_once=row.settings.get("account_scope") == "all",
                wait_seconds=0,
                can_fetch=False,
                instance_id=str(row.instance_id),
            )

    @contextmanager
    def listing(self, connection_id: UUID, run_id: UUID, started: datetime | None = None) -> Iterator[SqlListing]:
        """See Holdings."""
        with listing_session(self._database) as connection:
            with connection.begin():
                # What processes that nobody carries on have left behind, and reports that nobody reads any more.
                for statement in _PRUNE:
                    connection.execute(statement)
            yield SqlListing(connection, connection_id, run_id, started)

    def wake(self, stream_ids: Sequence[UUID]) -> None:
        """See Holdings."""
        with self._database.engine() as connection:
            connection.execute(_WAKE, {"ids": list(stream_ids)})

    def unknown(self, connection_id: UUID, source_ids: Collection[str], kind: Kind | None = None) -> Sequence[str]:
        """See Holdings."""
        wanted = sorted(source_ids)
        kinds = list(Kind) if kind is None else [kind]
        ids = [stream_id(connection_id, one, source_id) for source_id in wanted for one in kinds]
        with self._database.engine() as connection:
            known = set(connection.execute(_KNOWN, {"ids": ids}).scalars())
        return [source_id for source_id in wanted if source_id not in known]

    def examples(self, connection_id: UUID, kind: Kind | None = None) -> Sequence[str]:
        """See Holdings."""
        values = {"connection": connection_id, "kinds": list(Kind) if kind is None else [kind]}
        with self._database.engine() as connection:
            return connection.execute(_EXAMPLES, values).scalars().all()

    def begin_epoch(self, connection_id: UUID, kind: Kind, source_id: str, *, actor: str) -> bool:
        """See Holdings."""
        identity = stream_id(connection_id, kind, source_id)
        with self._database.engine() as connection:
            row = connection.execute(_EPOCH, {"id": identity}).one_or_none()
            if row is None:
                return False
            append_audit(
                connection,
                [
                    AuditEntry(
                        connection_id,
                        row.tenant_id,
                        actor,
                        "stream.epoch_begun",
                        {"epoch": row.epoch, "source_id": source_id},
                        connection_id=connection_id,
                        kind=str(kind),
                        record_id=identity,
                    )
                ],
            )
        return True
