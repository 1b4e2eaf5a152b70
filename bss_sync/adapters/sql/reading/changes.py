"""The history of one record, field by field: what changed when, by which message."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.epochs import current_epoch, is_still_good
from bss_sync.adapters.sql.reading.entity import Record, show_value, show_version
from bss_sync.adapters.sql.reading.paging import (
    Page,
    Paging,
    decode_cursor,
    encode_cursor,
    is_uuid,
    named,
    wrong_cursor,
)
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
    epoch = current_epoch(connection)
    # Whatever is seen now was written below this: a restore of an earlier state is noticed by it.
    seen_below = int(
        connection.execute(text("select cast(pg_snapshot_xmax(pg_current_snapshot()) as text)")).scalar_one()
    )
    start = 0 if paging.cursor is None else _position(connection, paging.cursor, epoch)
    after = start or 0
    where = (
        Where().within(reach, "h").add("h.record_id = :record_id and h.id > :after", record_id=record_id, after=after)
    )
    query = where.under(_CHANGES, "order by h.id limit :row_count")
    rows = connection.execute(query, {**where.values, "row_count": paging.limit + 1}).all()
    shown = rows[: paging.limit]
    seen = [] if epoch is None else [seen_below]
    cursor = encode_cursor(["history", shown[-1].id if shown else after, *seen, *named(epoch)])
    return Page([_change(record, row) for row in shown], cursor, len(rows) > paging.limit, start is None)


def _position(connection: Connection, cursor: str, current: UUID | None) -> int | None:
    """Behind which row to go on; None for a cursor from before a restored backup."""
    match decode_cursor(cursor):
        case ["history", int(after), int(seen_below), str(epoch)] if (
            _is_number(after) and _is_number(seen_below) and is_uuid(epoch)
        ):
            return after if is_still_good(connection, UUID(epoch), current, seen_below) else None
        case ["history", int(after)] if _is_number(after):
            return after if is_still_good(connection, None, current, 0) else None
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


def _is_number(value: int) -> bool:
    return not isinstance(value, bool) and 0 <= value < _ID_MAX


def differences(kind: Kind, before: Content | None, after: Content) -> dict[str, dict[str, Any]]:
    """The mirrored fields that differ: field → from, to. From nothing, every field that has a value."""
    earlier = before or {}
    return {
        field: {"from": show_value(field, earlier.get(field)), "to": show_value(field, after.get(field))}
        for field in MIRRORED[kind]
        if earlier.get(field) != after.get(field)
    }
