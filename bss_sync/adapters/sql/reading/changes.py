"""The history of one record, field by field: what changed when, by which message."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from bss_sync.adapters.sql.reading.entity import Record, show_value, show_version
from bss_sync.adapters.sql.reading.paging import Page, Paging, decode_cursor, encode_cursor, wrong_cursor
from bss_sync.adapters.sql.reading.reach import Reach, Where
from bss_sync.adapters.sql.reading.records import find_record
from bss_sync.domain.change import Content, Kind
from bss_sync.domain.moment import rfc3339
from bss_sync.domain.ownership import MIRRORED

# The predecessor is what was known of the next lower version when the row was recorded: for a state that came in
# order it is the mirror before it.
_CHANGES = """select h.id, h.epoch, h.version, h.effective_at, h.recorded_at, h.state, h.deleted, h.late,
    h.ended_reason, h.message, m.message_id, before.state as before_state, before.deleted as before_deleted
    from history h left join message m on m.id = h.message
    left join lateral (select b.state, b.deleted from history b where b.record_id = h.record_id and b.id < h.id
        and (b.epoch, b.version, b.id) < (h.epoch, h.version, h.id)
        order by b.epoch desc, b.version desc, b.id desc limit 1) before on true"""
_ID_MAX = 2**63


def list_changes(connection: Connection, reach: Reach, kind: Kind, record_id: UUID, paging: Paging) -> Page:
    """What was recorded of one record, in the order of recording. NotFound when it is not within reach.

    The history of one record is written by one worker at a time, so its order is that of the commits.
    """
    record = find_record(connection, reach, kind, record_id)
    after = 0 if paging.cursor is None else _position(paging.cursor)
    where = (
        Where().within(reach, "h").add("h.record_id = :record_id and h.id > :after", record_id=record_id, after=after)
    )
    query = where.under(_CHANGES, "order by h.id limit :row_count")
    rows = connection.execute(query, {**where.values, "row_count": paging.limit + 1}).all()
    shown = rows[: paging.limit]
    cursor = encode_cursor(["history", shown[-1].id if shown else after])
    return Page([_change(record, row) for row in shown], cursor, len(rows) > paging.limit)


def _position(cursor: str) -> int:
    match decode_cursor(cursor):
        case ["history", int(after)] if not isinstance(after, bool) and 0 <= after < _ID_MAX:
            return after
        case _:
            raise wrong_cursor()


def _change(record: Record, row: Row[Any]) -> dict[str, Any]:
    return {
        "version": show_version(row.version, record.order),
        "effective_at": rfc3339(row.effective_at),
        "recorded_at": rfc3339(row.recorded_at),
        "late": row.late,
        "deleted": row.deleted,
        "ended_reason": row.ended_reason,
        "message": {"id": str(row.message), "message_id": row.message_id},
        "changes": differences(record.kind, row.before_state, row.state),
    }


def differences(kind: Kind, before: Content | None, after: Content) -> dict[str, dict[str, Any]]:
    """The mirrored fields that differ: field → from, to. From nothing, every field that has a value."""
    earlier = before or {}
    return {
        field: {"from": show_value(field, earlier.get(field)), "to": show_value(field, after.get(field))}
        for field in MIRRORED[kind]
        if earlier.get(field) != after.get(field)
    }
