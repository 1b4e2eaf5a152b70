"""What reconciliation compares with, in PostgreSQL (ports/reconciliation.py).

Which ids a listing held is kept in a temporary table of one session: a million of them cost this process nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DataError

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.database import Database, answering
from bss_sync.adapters.sql.ranges import DIGITS, hash_by_range, of_text, range_name, range_number, sums
from bss_sync.adapters.sql.shown_columns import KEPT, LISTED
from bss_sync.adapters.sql.streams_load import shown_content
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import Kind, stream_id
from bss_sync.domain.product import Catalogue
from bss_sync.ports.connector import RangeDigest
from bss_sync.ports.reconciliation import Held, Listed
from bss_sync.ports.streams import ConnectionRules

CHUNK = 500

_SEEN = text("create temporary table if not exists seen_id (id uuid primary key) on commit preserve rows")
# The limit keeps PostgreSQL at two index look-ups for each listed id, however large the tables are.
_UNLIKE = """
    with listed as materialized (
        select * from jsonb_to_recordset(cast(:rows as jsonb)) as l (id uuid, version bigint, content jsonb)),
    noted as (insert into seen_id select id from listed on conflict do nothing)
    select l.id from listed l left join lateral (
        select true as level from stream s join {table} r on r.id = s.id
        where s.id = l.id and s.version = r.version and (l.version is null or s.version = l.version)
          and r.deleted_at is null and r.ended_at is null and not s.deleted and r.source = l.content
          and {columns} limit 1) held on true
    where held.level is null"""
_INSIDE_TABLE = text("create temporary table if not exists inside_id (id uuid primary key) on commit preserve rows")
_FILL_INSIDE = text(
    """with recursive below as (
           select id from account where connection_id = :connection and source_id = :source_id
           union select a.id from account a join below b on a.parent_id = b.id),
       held as (
           select s.id from subscription s join below b on s.account_id = b.id
           union select s.id from subscription s join held h on s.parent_id = h.id)
       insert into inside_id select id from below union select id from held"""
)
_INSIDE = text("select id from inside_id where id = any(:ids)")
_ASTRAY = """
    {held} where r.connection_id = :connection and r.updated_at < :started and r.id > :after and not ({columns})
    order by r.id limit :chunk"""
_NOTE = text("insert into seen_id select unnest(cast(:ids as uuid[])) on conflict do nothing")


_HELD = """
    select r.*, s.version as known_version, s.digest, s.deleted as known_deleted,
           exists (select 1 from message m where m.stream_id = r.id and m.state in ('pending', 'waiting')) as waiting,
           r.updated_at >= :started as changed,
           array(select t.field from takeover t where t.record_id = r.id and t.released_at is null) as taken,
           exists (select 1 from message m where m.stream_id = r.id and m.state in ('quarantined', 'dead')) as stopped
    from {table} r join stream s on s.id = r.id"""
_UNLIKE_BY_KIND = {kind: text(_UNLIKE.format(table=kind, columns=LISTED[kind])) for kind in Kind}
_STREAMS = text(
    """select s.*, exists (select 1 from message m where m.stream_id = s.id and m.state in ('quarantined', 'dead'))
              as stopped,
              exists (select 1 from message m where m.stream_id = s.id and m.state in ('pending', 'waiting'))
              as waiting,
              exists (select 1 from message m where m.stream_id = s.id and m.received_at >= :started) as changed,
              exists (select 1 from history h where h.record_id = s.id) as once_mirrored
       from stream s where s.id = any(:ids)"""
)
_UNSEEN = """
    {held} where r.connection_id = :connection and r.deleted_at is null and r.ended_at is null
      and r.updated_at < :started and r.id > :after and not exists (select 1 from seen_id x where x.id = r.id)
      and {narrowed}
    order by r.id limit :chunk"""
_UNSEEN_COUNT = """
    select (select count(*) from account r where r.connection_id = :connection and r.deleted_at is null
               and r.ended_at is null and r.updated_at < :started and {narrowed}
               and not exists (select 1 from seen_id x where x.id = r.id))
          + (select count(*) from subscription r where r.connection_id = :connection and r.deleted_at is null
               and r.ended_at is null and r.updated_at < :started and {narrowed}
               and not exists (select 1 from seen_id x where x.id = r.id))"""
_NARROWED = "left(r.source_id, :range_digits) = any(cast(:ranges as text[]))"
_RANGES = text(
    f"""select {range_number("s.source_id", of_text)} as range, count(*) as number,
               {sums("s.source_id", of_text, "s.version", "s.deleted")} as sums
        from stream s where s.connection_id = :connection and s.version is not null group by 1"""  # noqa: S608  constants only
)
_LIVE = text(
    """select (select count(*) from account where connection_id = :connection and deleted_at is null
                 and ended_at is null)
            + (select count(*) from subscription where connection_id = :connection and deleted_at is null
                 and ended_at is null)"""
)
_HELD_BENT = _HELD.replace("select r.*,", "select r.*, p.source_id as linked_to,", 1)
_UNLINKED = """
    {held} join {relative} p on p.connection_id = r.connection_id and p.source_id = r.{column}_source_id
    where r.connection_id = :connection and r.{column}_id is null
      and r.{column}_source_id is not null and r.deleted_at is null and r.ended_at is null
      and r.updated_at < :started limit 1000"""
_BENT = """
    {held} join {relative} p on p.id = r.{column}_id
    where r.connection_id = :connection and r.deleted_at is null and r.ended_at is null and r.updated_at < :started
      and (p.source_id is distinct from r.{column}_source_id or p.connection_id <> r.connection_id) limit 1000"""
_LINKS = (
    (Kind.ACCOUNT, "account", "parent"),
    (Kind.SUBSCRIPTION, "account", "account"),
    (Kind.SUBSCRIPTION, "subscription", "parent"),
)
_CONNECTION = text(
    """select c.id, c.name, c.connector, c.settings, i.id as instance_id from connection c cross join instance i
       where c.id = :connection"""
)
_WAKE = text("update stream set ready_at = least(ready_at, now()) where id = any(:ids)")
_EPOCH = text(
    """update stream set epoch = epoch + 1, epoch_at = now(), version = null, version_sent_at = null,
           version_message_id = null, digest = null, deleted = false
       where id = :id returning tenant_id, epoch"""
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
    def listing(self, connection_id: UUID) -> Iterator[SqlListing]:
        """See Holdings."""
        with seen_ids(self._database) as connection:
            yield SqlListing(connection, connection_id)

    def wake(self, stream_ids: Sequence[UUID]) -> None:
        """See Holdings."""
        with self._database.engine() as connection:
            connection.execute(_WAKE, {"ids": list(stream_ids)})

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


@contextmanager
def seen_ids(database: Database) -> Iterator[Connection]:
    """A session with an empty table of seen ids. It is used in short transactions and ends with the comparison."""
    with answering():
        connection = database.pool("engine").connect()
    try:
        with answering():
            with connection.begin():
                connection.execute(_SEEN)
                connection.execute(_INSIDE_TABLE)
                connection.execute(text("truncate seen_id, inside_id"))
            yield connection
    finally:
        # The session ends with its table: a pooled one would hand the ids to whoever comes next.
        connection.invalidate()
        connection.close()


def fill_inside(connection: Connection, connection_id: UUID, source_id: str) -> None:
    """Note what the mirror has below an account, itself included: for one session."""
    connection.execute(_FILL_INSIDE, {"connection": connection_id, "source_id": source_id})


class SqlListing:
    """Listing over one session."""

    def __init__(self, connection: Connection, connection_id: UUID) -> None:
        self._connection = connection
        self._connection_id = connection_id
        with connection.begin():
            self._started: datetime = connection.execute(text("select now()")).scalar_one()
        self._scope: dict[str, Any] = {"connection": connection_id, "started": self._started}
        self._narrowed = "true"

    def unlike(self, kind: Kind, seen: Sequence[Listed]) -> frozenset[str]:
        """See Listing."""
        ids = {stream_id(self._connection_id, kind, one.source_id): one for one in seen}
        assert len(ids) == len(seen), "a chunk names each entity once"
        rows = [{"id": str(key), "version": one.version, "content": one.content} for key, one in ids.items()]
        with self._connection.begin():
            unlike = self._connection.execute(_UNLIKE_BY_KIND[kind], {"rows": json.dumps(rows)}).scalars().all()
        return frozenset(ids[identity].source_id for identity in unlike)

    def note(self, kind: Kind, source_ids: Sequence[str]) -> None:
        """See Listing."""
        ids = [stream_id(self._connection_id, kind, source_id) for source_id in source_ids]
        with self._connection.begin():
            self._connection.execute(_NOTE, {"ids": ids})

    def look(self, kind: Kind, source_ids: Sequence[str]) -> Mapping[str, Held]:
        """See Listing."""
        ids = {stream_id(self._connection_id, kind, source_id): source_id for source_id in source_ids}
        values = {"ids": list(ids), "started": self._started}
        with self._connection.begin():
            records = self._connection.execute(text(_HELD.format(table=kind) + " where r.id = any(:ids)"), values)
            held = {row.source_id: _record(kind, row) for row in records}
            if len(held) < len(ids):
                for row in self._connection.execute(_STREAMS, values):
                    if row.source_id not in held:
                        held[row.source_id] = _stream(kind, row)
        for identity, source_id in ids.items():
            if source_id not in held:
                held[source_id] = Held(identity, kind, source_id, False, None, None, False, None)
        return held

    def ranges(self) -> Mapping[str, RangeDigest] | None:
        """See Listing."""
        try:
            with self._connection.begin():
                hash_by_range(self._connection)
                rows = self._connection.execute(_RANGES, {"connection": self._connection_id})
                return {range_name(row.range): RangeDigest(row.number, row.sums) for row in rows}
        except DataError:
            return None

    def narrow(self, ranges: Sequence[str]) -> None:
        """See Listing."""
        # Without any there is nothing to look for, and no row is read to find that out.
        self._narrowed = _NARROWED if ranges else "false"
        self._scope |= {"ranges": list(ranges), "range_digits": DIGITS} if ranges else {}

    def below(self, source_id: str) -> None:
        """See Listing."""
        self._narrowed = "exists (select 1 from inside_id i where i.id = r.id)"
        with self._connection.begin():
            fill_inside(self._connection, self._connection_id, source_id)

    def inside(self, record_ids: Sequence[UUID]) -> frozenset[UUID]:
        """See Listing."""
        with self._connection.begin():
            found = self._connection.execute(_INSIDE, {"ids": list(record_ids)}).scalars()
            return frozenset(found)

    def astray(self) -> Iterator[Sequence[Held]]:
        """See Listing."""
        for kind in Kind:
            statement = text(_ASTRAY.format(held=_HELD.format(table=kind), columns=KEPT[kind]))
            after = UUID(int=0)
            while True:
                with self._connection.begin():
                    rows = self._connection.execute(statement, self._scope | {"after": after, "chunk": CHUNK}).all()
                if not rows:
                    break
                # What is taken over differs rightly, and only in those fields.
                held = [_record(kind, row) for row in rows]
                if bent := [one for one in held if _is_astray(one)]:
                    yield bent
                after = rows[-1].id

    def live(self) -> int:
        """See Listing."""
        with self._connection.begin():
            return int(self._connection.execute(_LIVE, self._scope).scalar_one())

    def unseen_count(self) -> int:
        """See Listing."""
        with self._connection.begin():
            return int(
                self._connection.execute(text(_UNSEEN_COUNT.format(narrowed=self._narrowed)), self._scope).scalar_one()
            )

    def unseen(self) -> Iterator[Sequence[Held]]:
        """See Listing."""
        # Subscriptions end before the accounts that hold them.
        for kind in (Kind.SUBSCRIPTION, Kind.ACCOUNT):
            statement = text(_UNSEEN.format(held=_HELD.format(table=kind), narrowed=self._narrowed))
            after = UUID(int=0)
            while True:
                with self._connection.begin():
                    rows = self._connection.execute(statement, self._scope | {"after": after, "chunk": CHUNK}).all()
                if not rows:
                    break
                yield [_record(kind, row) for row in rows]
                after = rows[-1].id

    def unlinked(self) -> Sequence[tuple[Held, str, str | None]]:
        """See Listing."""
        found: list[tuple[Held, str, str | None]] = []
        with self._connection.begin():
            for kind, relative, column in _LINKS:
                statement = _UNLINKED.format(held=_HELD.format(table=kind), relative=relative, column=column)
                rows = self._connection.execute(text(statement), self._scope)
                found += [(_record(kind, row), f"{column}_id", None) for row in rows]
                statement = _BENT.format(held=_HELD_BENT.format(table=kind), relative=relative, column=column)
                rows = self._connection.execute(text(statement), self._scope)
                found += [(_record(kind, row), f"{column}_id", row.linked_to) for row in rows]
        return found


def _is_astray(held: Held) -> bool:
    content, recorded = held.content or {}, held.recorded or {}
    return any(value != content.get(name) for name, value in recorded.items() if name not in held.taken)


def _record(kind: Kind, row: Row[Any]) -> Held:
    return Held(
        stream_id=row.id,
        kind=kind,
        source_id=row.source_id,
        mirrored=True,
        version=row.version if row.known_version is None else row.known_version,
        digest=None if row.digest is None else bytes(row.digest),
        deleted=row.deleted_at is not None,
        content=shown_content(kind, row),
        ended_reason=row.ended_reason,
        taken=frozenset(row.taken),
        changed=row.changed,
        stopped=row.stopped,
        waiting=row.waiting,
        recorded=row.source,
        shown_version=row.version,
        known_deleted=row.known_deleted,
        once_mirrored=True,
    )


def _stream(kind: Kind, row: Row[Any]) -> Held:
    return Held(
        stream_id=row.id,
        kind=kind,
        source_id=row.source_id,
        mirrored=False,
        version=row.version,
        digest=None if row.digest is None else bytes(row.digest),
        deleted=row.deleted,
        content=None,
        changed=row.changed,
        stopped=row.stopped,
        waiting=row.waiting,
        known_deleted=row.deleted,
        once_mirrored=row.once_mirrored,
    )
