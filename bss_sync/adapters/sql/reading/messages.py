"""The inbox: what came in, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from bss_sync.adapters.sql.reading.context import find_connection
from bss_sync.adapters.sql.reading.entity import show_moment, show_version
from bss_sync.adapters.sql.reading.named import records_named
from bss_sync.adapters.sql.reading.paging import Page, Paging, Source, read_rows
from bss_sync.adapters.sql.reading.reach import Reach, Where
from bss_sync.adapters.sql.reading.records import check_state
from bss_sync.adapters.sql.retention import messages_gone_since
from bss_sync.domain.change import HELD, OPEN, Kind, MessageState
from bss_sync.domain.errors import FieldProblem, InvalidRequest, NoLongerKept, NotFound
from bss_sync.domain.moment import rfc3339

MESSAGES = Source(
    "messages",
    """m.id, m.message_id, c.name as connection_name, m.connection_id, m.kind, m.source_id, m.stream_id, m.action,
    m.origin, m.version, m.order_kind, m.state, m.verdict, m.reason, m.attempts, m.sent_at, m.effective_at,
    m.received_at, m.decided_at, m.applied_at, m.wait_reason, m.wait_until, m.held_field, m.held_value""",
    "from message m join connection c on c.id = m.connection_id",
    "m.change_xid",
    (("m.id", "uuid"),),
)


@dataclass(frozen=True, slots=True)
class MessageFilter:
    """Which messages. ``updated_since`` compares with the last decision, else with the arrival; inclusive."""

    connection: str | None = None
    source_id: str | None = None
    message_id: str | None = None
    kind: str | None = None
    state: str | None = None
    updated_since: datetime | None = None

    def __post_init__(self) -> None:
        """InvalidRequest for an unknown state or kind."""
        check_state(self.state, tuple(MessageState))
        if self.kind is not None and self.kind not in tuple(Kind):
            raise InvalidRequest(
                f"There is no kind {self.kind!r}.", fields=(FieldProblem("kind", "known: account, subscription"),)
            )


def list_messages(connection: Connection, reach: Reach, wanted: MessageFilter, paging: Paging) -> Page:
    """One page of the inbox, without bodies."""
    where, of = Where().within(reach, "m"), None
    if wanted.connection is not None:
        of = find_connection(connection, reach, wanted.connection).id
        where.add("m.connection_id = :connection", connection=of)
    if wanted.source_id is not None:
        where.add("m.stream_id = any(:named)", named=records_named(connection, reach, "message", wanted.source_id, of))
    for column in ("message_id", "kind", "state"):
        value = getattr(wanted, column)
        if value is not None:
            where.add(f"m.{column} = :{column}", **{column: value})
    if wanted.state in (*OPEN, *HELD):
        # They are in the open part only: the months of what is settled are not looked at.
        where.add("settled_on(m.state, m.decided_at) = 'infinity'")
    if wanted.updated_since is not None:
        where.add("greatest(m.received_at, m.decided_at, m.applied_at) >= :since", since=wanted.updated_since)
    narrow = (of, wanted.source_id, wanted.message_id, reach.tenant_id, reach.connection_id)
    along_index = not any(narrow) and wanted.state in (None, MessageState.APPLIED)
    rows = read_rows(connection, MESSAGES, where, paging, since=wanted.updated_since, along_index=along_index)
    return Page([show_message(row) for row in rows.rows], rows.next_cursor, rows.has_more, rows.anew)


def get_message(
    connection: Connection, reach: Reach, message: UUID, *, with_payload: bool, with_stack: bool
) -> dict[str, Any]:
    """One message by our id. NotFound when it is not within reach.

    The payload of a message that is out of scope is shown to nobody (domain.md section 3).
    """
    where = Where().within(reach, "m").add("m.id = :message", message=message)
    query = where.under(f"select {MESSAGES.columns}, m.dropped, m.body, m.stack {MESSAGES.tables}")
    row = connection.execute(query, where.values).one_or_none()
    if row is None:
        raise missing_message(connection, reach, message)
    shown = {**show_message(row), "dropped": list(row.dropped)}
    if with_payload:
        shown["payload"] = None if row.state == MessageState.OUT_OF_SCOPE else row.body
    if with_stack:
        shown["stack"] = row.stack
    return shown


def missing_message(connection: Connection, reach: Reach, message: UUID) -> NotFound:
    """What to raise for an id that the inbox has not: NoLongerKept where the audit, which is never pruned, knows it."""
    where = Where().within(reach, "a").add("a.message = :message", message=message)
    query = where.under("select max(a.at) from audit a")
    settled_at: datetime | None = connection.execute(query, where.values).scalar_one()
    if settled_at is None:
        return NotFound(f"There is no message {message}.")
    since = messages_gone_since(connection, settled_at)
    when = "" if since is None else f" since {since.isoformat()}"
    return NoLongerKept(f"The message {message} is no longer kept{when}, by policy.")


def show_message(row: Row[Any]) -> dict[str, Any]:
    """A message as the contract shows it, without its payload."""
    return {
        "id": str(row.id),
        "message_id": row.message_id,
        "connection": row.connection_name,
        "connection_id": str(row.connection_id),
        "kind": row.kind,
        "source_id": row.source_id,
        "record_id": str(row.stream_id),
        "action": row.action,
        "origin": row.origin,
        "version": show_version(row.version, row.order_kind),
        "state": row.state,
        "verdict": row.verdict,
        "reason": row.reason,
        "held": None if row.held_field is None else {"field": row.held_field, "value": row.held_value},
        "waits": None if row.wait_reason is None else {"for": row.wait_reason, "until": show_moment(row.wait_until)},
        "attempts": row.attempts,
        "sent_at": rfc3339(row.sent_at),
        "effective_at": rfc3339(row.effective_at),
        "received_at": rfc3339(row.received_at),
        "decided_at": show_moment(row.decided_at),
        "applied_at": show_moment(row.applied_at),
    }
