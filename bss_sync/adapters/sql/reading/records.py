"""Lists and single records of the mirror, now or as of a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from bss_sync.adapters.sql.reading import past, present
from bss_sync.adapters.sql.reading.context import (
    Installation,
    find_connection,
    read_installation,
    read_policies,
    read_taken,
)
from bss_sync.adapters.sql.reading.entity import Record, Viewer, show
from bss_sync.adapters.sql.reading.named import records_named
from bss_sync.adapters.sql.reading.paging import (
    Page,
    Paging,
    decode_cursor,
    encode_cursor,
    is_uuid,
    read_rows,
    wrong_cursor,
)
from bss_sync.adapters.sql.reading.reach import Reach, Where
from bss_sync.domain.change import Kind
from bss_sync.domain.errors import FieldProblem, InvalidRequest, NotFound
from bss_sync.domain.moment import AsOf, parse_moment, rfc3339

_PORTION = 600
"""States of the past that are read at a time."""

RECORD_STATES = ("live", "ended", "deleted", "orphaned")


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which records. ``connection`` is an id or a name; ``state`` is one of ``RECORD_STATES``.

    Deleted records are left out unless ``include_deleted``, or ``state`` asks for them. Whoever follows a list by its
    cursor includes them, or never learns of a deletion. ``updated_since`` is inclusive.
    """

    connection: str | None = None
    source_id: str | None = None
    state: str | None = None
    updated_since: datetime | None = None
    include_deleted: bool = False

    def __post_init__(self) -> None:
        """InvalidRequest for an unknown state."""
        check_state(self.state, RECORD_STATES)


def check_state(state: str | None, known: Sequence[str]) -> None:
    """InvalidRequest that names the known ones."""
    if state is not None and state not in known:
        names = ", ".join(known)
        raise InvalidRequest(f"There is no state {state!r}.", fields=(FieldProblem("state", f"known: {names}"),))


def list_records(
    connection: Connection, reach: Reach, kind: Kind, wanted: RecordFilter, paging: Paging, at: AsOf | None = None
) -> Page:
    """One page of records as the contract's entities. NotFound for a connection that is not within reach.

    As of a time, records that did not exist yet are absent, and the cursor keeps the first page's recording time.
    """
    if at is not None:
        return _list_past(connection, reach, kind, wanted, paging, at)
    where, of = Where().within(reach, "r"), None
    if wanted.connection is not None:
        of = find_connection(connection, reach, wanted.connection).id
        where.add("r.connection_id = :connection", connection=of)
    if wanted.source_id is not None:
        where.add("r.id = any(:named)", named=records_named(connection, reach, kind, wanted.source_id, of))
    if wanted.updated_since is not None:
        where.add("r.updated_at >= :since", since=wanted.updated_since)
    if wanted.state is not None:
        where.add(present.STATES[kind][wanted.state])
    elif not wanted.include_deleted:
        where.add("r.deleted_at is null")
    # There is an index for everything and one for each connection. A source's id and what was deleted above name few.
    whole = reach.tenant_id is None or reach.connection_id is not None or of is not None
    along_index = whole and wanted.source_id is None and wanted.state != "orphaned"
    source, since = present.SOURCES[kind], wanted.updated_since
    rows = read_rows(connection, source, where, paging, since=since, along_index=along_index)
    items = show_all(connection, reach, [present.record_of(kind, row) for row in rows.rows])
    return Page(items, rows.next_cursor, rows.has_more, rows.anew)


def get_record(
    connection: Connection, reach: Reach, kind: Kind, record_id: UUID, at: AsOf | None = None
) -> dict[str, Any]:
    """One record, deleted or not. NotFound when it is foreign or did not exist then."""
    record = find_record(connection, reach, kind, record_id) if at is None else None
    if at is not None:
        within = Where().within(reach, "h").add("h.record_id = :record_id", record_id=record_id)
        rows = past.read_states(connection, kind, at, within, Where())
        if not rows:
            raise not_found(kind, record_id)
        record = past.record_of(kind, rows[0])
    assert record is not None, "the present or the past has answered"
    return show_all(connection, reach, [record])[0]


def find_record(connection: Connection, reach: Reach, kind: Kind, record_id: UUID) -> Record:
    """The present of one record; NotFound when there is none within reach."""
    source = present.SOURCES[kind]
    where = Where().within(reach, "r").add("r.id = :record_id", record_id=record_id)
    query = where.under(f"select {source.columns} {source.tables}")
    row = connection.execute(query, where.values).one_or_none()
    if row is None:
        raise not_found(kind, record_id)
    return present.record_of(kind, row)


def not_found(kind: Kind, record_id: UUID) -> NotFound:
    """No such record; a foreign one looks the same."""
    return NotFound(f"There is no {kind} {record_id}.")


def show_all(connection: Connection, reach: Reach, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Records as the contract's entities, with who owns which field now."""
    if not records:
        return []
    viewer = viewer_of(reach, read_installation(connection))
    policies = read_policies(connection, {record.connection_id for record in records})
    taken = read_taken(connection, {record.id for record in records})
    return [
        show(record, policies[record.connection_id], taken.get(record.id, frozenset()), viewer) for record in records
    ]


def viewer_of(reach: Reach, installation: Installation) -> Viewer:
    """Whose eyes the answer is for."""
    return Viewer(installation.distributor, reach.is_reseller)


def _list_past(
    connection: Connection, reach: Reach, kind: Kind, wanted: RecordFilter, paging: Paging, at: AsOf
) -> Page:
    """In the order of ids. What is recorded after the first page never shows, so that the pages fit together."""
    name = f"{kind}s as of"
    last: str | None = None
    if paging.cursor is not None:
        last, at = _past_position(name, paging.cursor, at)
    within, of = Where().within(reach, "h"), None
    if wanted.connection is not None:
        of = find_connection(connection, reach, wanted.connection).id
        within.add("h.connection_id = :connection", connection=of)
    if wanted.source_id is not None:
        within.add("h.record_id = any(:named)", named=records_named(connection, reach, kind, wanted.source_id, of))
    found = _past_rows(connection, kind, at, within, _shown_then(kind, wanted), last)
    rows = list(islice(found, paging.limit + 1))
    records = [past.record_of(kind, row) for row in rows[: paging.limit]]
    if records:
        last = str(records[-1].id)
    cursor = encode_cursor([name, last, rfc3339(at.recorded)])
    return Page(show_all(connection, reach, records), cursor, len(rows) > paging.limit)


def _shown_then(kind: Kind, wanted: RecordFilter) -> Where:
    shown = Where()
    if wanted.updated_since is not None:
        shown.add("r.recorded_at >= :since", since=wanted.updated_since)
    if wanted.state == "orphaned":
        shown.add(past.ORPHANED[kind])
    elif wanted.state is not None:
        shown.add(past.STATES[wanted.state])
    elif not wanted.include_deleted:
        shown.add("not r.deleted")
    return shown


def _past_rows(
    connection: Connection, kind: Kind, at: AsOf, within: Where, shown: Where, last: str | None
) -> Iterator[Row[Any]]:
    """Wanted states behind ``last``, read in portions: a page costs what it shows, not what there is."""
    while True:
        portion = Where(list(within.parts), dict(within.values))
        if last is not None:
            portion.add("h.record_id > cast(:last as uuid)", last=last)
        rows = past.read_states(connection, kind, at, portion, shown, _PORTION)
        yield from (row for row in rows if row.wanted)
        if len(rows) < _PORTION:
            return
        last = str(rows[-1].id)


def _past_position(name: str, cursor: str, at: AsOf) -> tuple[str | None, AsOf]:
    match decode_cursor(cursor):
        case [str(given), None | str() as last, str(recorded)] if given == name and (last is None or is_uuid(last)):
            try:
                return last, AsOf(at.effective, parse_moment(recorded, "UTC", field="cursor"))
            except InvalidRequest:
                raise wrong_cursor() from None
        case _:
            raise wrong_cursor()
