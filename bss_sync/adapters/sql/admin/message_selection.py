"""Messages by what an admin chooses them by: state, connection, subtree, entity, error, time window."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from sqlalchemy import Connection

from bss_sync.adapters.sql.floors import floor_of
from bss_sync.adapters.sql.reading.messages import MESSAGES, missing_message, show_message
from bss_sync.adapters.sql.reading.named import records_named
from bss_sync.adapters.sql.reading.paging import Page, Paging, read_rows
from bss_sync.adapters.sql.reading.reach import Reach, Where
from bss_sync.adapters.sql.reading.records import check_state
from bss_sync.adapters.sql.retention import messages_gone_before
from bss_sync.domain.change import MessageState
from bss_sync.domain.errors import FieldProblem, InvalidRequest, NoLongerKept

_BELOW = """m.stream_id in (
    with recursive below as (
        select id from account where id = :below
        union select a.id from account a join below b on a.parent_id = b.id)
    select id from below
    union all select s.id from subscription s join below b on s.account_id = b.id)"""


@dataclass(frozen=True, slots=True)
class Selection:
    """Every condition that is set must hold; none set means every message. ``until`` is inclusive."""

    ids: tuple[UUID, ...] = ()
    state: str | None = None
    connection_id: UUID | None = None
    below: UUID | None = None
    source_id: str | None = None
    error: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    field: str | None = None

    @property
    def is_everything(self) -> bool:
        """Whether nothing narrows it down."""
        return self == Selection()

    def where(self, connection: Connection, reach: Reach) -> Where:
        """The conditions on ``message m``. InvalidRequest for an unknown state."""
        check_state(self.state, tuple(MessageState))
        where = Where().within(reach, "m")
        if self.ids:
            where.add("m.id = any(:ids)", ids=list(self.ids))
        if self.state is not None:
            where.add("m.state = :state", state=self.state)
        if self.connection_id is not None:
            where.add("m.connection_id = :connection_id", connection_id=self.connection_id)
        if self.below is not None:
            where.add(_BELOW, below=self.below)
        if self.source_id is not None:
            named = records_named(connection, reach, "message", self.source_id, self.connection_id)
            where.add("m.stream_id = any(:named)", named=named)
        if self.error is not None:
            where.add("strpos(lower(concat_ws(' ', m.verdict, m.reason)), lower(:error)) > 0", error=self.error)
        if self.since is not None:
            where.add("m.received_at >= :since", since=self.since)
        if self.until is not None:
            where.add("m.received_at <= :until", until=self.until)
        if self.field is not None:
            where.add("m.held_field = :field", field=self.field)
        return where


def list_selected(connection: Connection, reach: Reach, selection: Selection, limit: int) -> Page:
    """One page of what was chosen, without bodies."""
    rows = read_rows(connection, MESSAGES, selection.where(connection, reach), Paging(limit), since=selection.since)
    return Page([show_message(row) for row in rows.rows], rows.next_cursor, rows.has_more, rows.anew)


CHOSEN_MAX = 100_000
"""Messages that one act may be about; a replay of more is several."""


def chosen_ids(connection: Connection, reach: Reach, selection: Selection) -> list[UUID]:
    """The ids of what was chosen, in the order in which it came.

    InvalidRequest when nothing narrows the choice down or it is more than ``CHOSEN_MAX``, NotFound when none of
    the ids is there, NoLongerKept for a window that lies before what is kept.
    """
    if selection.is_everything:
        raise InvalidRequest(
            "Say which messages: by their ids, or by --state, --connection, --subtree, --entity, --error or --since.",
            fields=(FieldProblem("ID", "nothing narrows it down"),),
        )
    where = selection.where(connection, reach)
    if selection.since is not None:
        where.add("m.change_xid >= cast(:floor as xid8)", floor=str(floor_of(connection, selection.since)))
    query = where.under("select m.id from message m", "order by m.seq limit :chosen_max")
    found = list(connection.execute(query, {**where.values, "chosen_max": CHOSEN_MAX + 1}).scalars())
    if len(found) > CHOSEN_MAX:
        raise InvalidRequest(f"These are more than {CHOSEN_MAX} messages.", next_step="Narrow them down.")
    unknown = set(selection.ids) - set(found)
    if unknown and len(selection.ids) == len(unknown):
        raise missing_message(connection, reach, min(unknown))
    gone = gone_from(connection, selection)
    if not found and gone is not None:
        raise NoLongerKept(
            f"Messages that were settled before {gone.isoformat()} are no longer kept, by policy.",
            next_step="Have the source say it again: bss-sync reconcile CONNECTION",
        )
    return found


def gone_from(connection: Connection, selection: Selection) -> date | None:
    """The day before which settled messages are no longer kept, when the chosen window reaches back behind it."""
    begins = selection.since or selection.until
    gone = None if begins is None else messages_gone_before(connection)
    return gone if gone is not None and begins is not None and begins.date() < gone else None
