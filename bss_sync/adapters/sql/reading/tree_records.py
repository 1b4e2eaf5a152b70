"""The records that a tree is made of, and how many they may be."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.reading import past, present
from bss_sync.adapters.sql.reading.entity import Record
from bss_sync.adapters.sql.reading.reach import Reach, Where
from bss_sync.adapters.sql.reading.records import not_found
from bss_sync.domain.change import Kind
from bss_sync.domain.errors import FieldProblem, InvalidRequest
from bss_sync.domain.moment import AsOf

RECORDS_MAX = 20_000
"""A tree is read whole, some 5 KB a record: more would be too much for a process that serves others beside."""

# What was deleted holds nothing: what hangs below it stands below the tenant.
_BELOW = """
    with recursive accounts as (
        select r.id from account r where {start} and r.deleted_at is null
        union select a.id from account a join accounts on a.parent_id = accounts.id where a.deleted_at is null),
    held as (
        select s.id from subscription s join accounts on s.account_id = accounts.id where s.deleted_at is null
        union select s.id from subscription s join held on s.parent_id = held.id where s.deleted_at is null)
    select id from accounts union all select id from held limit :records_max"""
_NUMBER = "select count(*) from (select from {kind} r"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records: within reach, of one connection or all, now or as of a time, perhaps only these ids."""

    reach: Reach
    only: UUID | None
    at: AsOf | None
    ids: list[UUID] | None

    def where(self, alias: str, id_column: str) -> Where:
        """As conditions."""
        where = Where().within(self.reach, alias)
        if self.only is not None:
            where.add(f"{alias}.connection_id = :only", only=self.only)
        if self.ids is not None:
            where.add(f"{alias}.{id_column} = any(:ids)", ids=self.ids)
        return where


def read_below(connection: Connection, reach: Reach, account: UUID) -> list[UUID]:
    """The ids of an account and of what hangs below it, up to one more than can be shown.

    NotFound where there is no such account within reach.
    """
    where = Where().within(reach, "r").add("r.id = :account", account=account)
    query = text(_BELOW.format(start=where.sql()))
    found = list(connection.execute(query, {**where.values, "records_max": RECORDS_MAX + 1}).scalars())
    if not found:
        raise not_found(Kind.ACCOUNT, account)
    return found


def check_number(connection: Connection, wanted: Wanted) -> None:
    """InvalidRequest where there are more than ``RECORDS_MAX``. As of a time, what was deleted counts too."""
    number = 0
    for kind in Kind:
        where = wanted.where("r", "id")
        if wanted.at is None:
            where.add("r.deleted_at is null")
        query = where.under(_NUMBER.format(kind=kind), "limit :records_max) r")
        number += connection.execute(query, {**where.values, "records_max": RECORDS_MAX + 1}).scalar_one()
    if number > RECORDS_MAX:
        raise InvalidRequest(
            f"The hierarchy has more than {RECORDS_MAX:,} records here, which is as many as are shown at once.",
            fields=(FieldProblem("subtree", "narrow it down: a connection, or an account and what is below it"),),
            next_step="Choose a connection or an account (subtree); lists show everything, page by page.",
        )


def read_records(connection: Connection, kind: Kind, wanted: Wanted) -> list[Record]:
    """In the order of their names, so that two trees can be compared by eye."""
    if wanted.at is None:
        where = wanted.where("r", "id").add("r.deleted_at is null")
        source = present.SOURCES[kind]
        query = where.under(f"select {source.columns} {source.tables}")
        found = [present.record_of(kind, row) for row in connection.execute(query, where.values)]
    else:
        where = wanted.where("h", "record_id")
        rows = past.read_states(connection, kind, wanted.at, where, Where().add("not r.deleted"))
        found = [past.record_of(kind, row) for row in rows if row.wanted]
    found.sort(key=lambda record: (record.title or record.content.get("name") or "", record.source_id))
    return found
