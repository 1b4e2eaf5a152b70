"""Contacts and activities of an account: what the distributor's people keep about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from bss_sync.adapters.sql.reading.entity import show_moment
from bss_sync.adapters.sql.reading.paging import Page, Paging, Source, read_rows
from bss_sync.adapters.sql.reading.reach import Reach, Where
from bss_sync.adapters.sql.reading.records import find_record
from bss_sync.domain.change import Kind
from bss_sync.domain.errors import NotFound
from bss_sync.domain.moment import rfc3339
from bss_sync.domain.relation import Relation

_SOURCES: Mapping[Relation, Source] = {
    Relation.CONTACT: Source(
        "contacts",
        "n.id, n.account_id, n.name, n.email, n.phone, n.created_by, n.created_at, n.updated_at",
        "from contact n",
        "n.change_xid",
        (("n.id", "uuid"),),
    ),
    Relation.ACTIVITY: Source(
        "activities",
        "n.id, n.account_id, n.kind, n.subject, n.body, n.due_at, n.created_by, n.created_at, n.updated_at",
        "from activity n",
        "n.change_xid",
        (("n.id", "uuid"),),
    ),
}


def list_relations(connection: Connection, reach: Reach, relation: Relation, account_id: UUID, paging: Paging) -> Page:
    """One page of an account's contacts or activities. NotFound when the account is not within reach."""
    find_record(connection, reach, Kind.ACCOUNT, account_id)
    where = Where().within(Reach(reach.tenant_id), "n")
    where.add("n.account_id = :account_id and n.deleted_at is null", account_id=account_id)
    rows = read_rows(connection, _SOURCES[relation], where, paging)
    return Page([show_relation(relation, row) for row in rows.rows], rows.next_cursor, rows.has_more, rows.anew)


def get_relation(
    connection: Connection, reach: Reach, relation: Relation, account_id: UUID, relation_id: UUID
) -> dict[str, Any]:
    """One contact or activity of an account; NotFound when there is none, or none any more."""
    find_record(connection, reach, Kind.ACCOUNT, account_id)
    source = _SOURCES[relation]
    where = Where().within(Reach(reach.tenant_id), "n")
    where.add("n.account_id = :account_id and n.id = :id", account_id=account_id, id=relation_id)
    where.add("n.deleted_at is null")
    row = connection.execute(where.under(f"select {source.columns} {source.tables}"), where.values).one_or_none()
    if row is None:
        raise NotFound(f"The account has no {relation} {relation_id}.")
    return show_relation(relation, row)


def show_relation(relation: Relation, row: Row[Any]) -> dict[str, Any]:
    """A contact or an activity, ready for JSON."""
    if relation is Relation.CONTACT:
        content = {"name": row.name, "email": row.email, "phone": row.phone}
    else:
        content = {"kind": row.kind, "subject": row.subject, "body": row.body, "due_at": show_moment(row.due_at)}
    return {
        "id": str(row.id),
        "account_id": str(row.account_id),
        **content,
        "created_by": row.created_by,
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
    }
