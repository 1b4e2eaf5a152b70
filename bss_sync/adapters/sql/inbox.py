"""Stores arrivals durably: one short transaction for many requests (ports/inbox.py, InboxStore).

How two processes stay out of each other's way:
- The rows of the connections are share-locked until the commit, so that a message is never parked behind an
  activation's back. A row that an admin changes at that moment is skipped: its arrivals are Stale, the others commit.
- Keys are inserted in one order everywhere, so that two transactions never wait for each other crosswise.
- A conflict with what is stored shows at the insert; it undoes the transaction, and the next leaves that arrival out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog
from psycopg.rows import namedtuple_row
from sqlalchemy import Connection, text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.database import Database, driver
from bss_sync.adapters.sql.inbox_rows import (
    COLUMNS,
    HELD,
    STORING,
    TOUCH,
    Key,
    message_ids,
    message_row,
    order_of,
)
from bss_sync.adapters.sql.records import record_set
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import Change, stream_id
from bss_sync.domain.errors import DependencyDown, FieldProblem, MessageConflict
from bss_sync.domain.tenancy import PROCESSING, ConnectionState
from bss_sync.ports.inbox import Accepted, Arrival, Stale

ATTEMPTS_MAX = 5
LOCK_TIMEOUT_SECONDS = 3

_log = structlog.get_logger(__name__)

Answer = Accepted | MessageConflict | Stale

_LOCK = HELD.format(ids="%(ids)s", strength="{strength}")
_SHARE = _LOCK.format(strength="for share skip locked").encode()
_SHARE_WAITING = _LOCK.format(strength="for share").encode()
_EXCLUSIVE = _LOCK.format(strength="for no key update").encode()
_WAIT_BOUNDED = b"select set_config('lock_timeout', %(wait)s, true)"
_PIN = text("update connection set order_kind = :order_kind where id = :id and order_kind is null")
_INSERT = f"""
       with arrived as materialized (
           select * from jsonb_to_recordset(cast(%(rows)s as jsonb)) as r (tenant uuid, shard smallint, {COLUMNS})
       ), {STORING}
       select count(*) as number,
              -- Which they are is asked for only when some were known: hardly ever.
              case when count(*) < %(expected)s then json_agg(json_build_array(connection_id, message_id)) end
       from fresh""".encode()  # noqa: S608  our own texts
_KNOWN = text(
    """select k.connection_id, k.message_id, k.digest from message_key k
       join jsonb_to_recordset(cast(:keys as jsonb)) as r (connection uuid, message_id text)
         on k.connection_id = r.connection and k.message_id = r.message_id"""
)


@dataclass(slots=True)
class _Plan:
    """What one attempt wants to store: each key once, none of a stale or refused arrival.

    ``answers`` holds what is decided before anything is stored, ``owner`` whose key it is and ``owned`` the keys of
    each arrival, by the arrival's index.
    """

    answers: dict[int, MessageConflict | Stale] = field(default_factory=dict)
    changes: dict[Key, Change] = field(default_factory=dict)
    owner: dict[Key, int] = field(default_factory=dict)
    owned: dict[int, list[Key]] = field(default_factory=dict)
    ids: dict[Key, UUID] = field(default_factory=dict)


class _Conflicts(Exception):
    """Undoes the attempt: these arrivals, by their index, contradict what is stored."""

    def __init__(self, refused: Mapping[int, MessageConflict]) -> None:
        super().__init__(refused)
        self.refused = refused


class _OrderUnknown(Exception):
    """Undoes the attempt: a connection has no order yet, which needs the stronger lock."""


class SqlInbox:
    """The inbox in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def accept(self, arrivals: Sequence[Arrival]) -> list[Accepted | MessageConflict | Stale]:
        """One transaction for all arrivals (see the port); DependencyDown when nothing could be stored."""
        refused: dict[int, MessageConflict] = {}
        exclusive = False
        for _ in range(ATTEMPTS_MAX):
            try:
                return self._attempt(arrivals, refused, exclusive)
            except _Conflicts as found:
                refused |= found.refused
            except _OrderUnknown:
                exclusive = True
        raise DependencyDown("The inbox kept changing under this request.")

    def _attempt(
        self, arrivals: Sequence[Arrival], refused: Mapping[int, MessageConflict], exclusive: bool
    ) -> list[Answer]:
        with self._database.door() as connection:
            senders = _lock(connection, arrivals, exclusive)
            orders = _orders(arrivals, senders)
            pinned = {sender: order for sender, order in orders.items() if order != senders[sender].order_kind}
            if pinned and not exclusive:
                raise _OrderUnknown
            plan = _plan(arrivals, senders, orders, refused)
            stored = _store(connection, arrivals, senders, plan)
            for connection_id, order in pinned.items():
                connection.execute(_PIN, {"id": connection_id, "order_kind": order})
            append_audit(connection, _conflict_entries(arrivals, senders, plan))
        touch(self._database, [sender.id for sender in senders.values() if sender.untouched])
        _tell(arrivals, plan, stored)
        return [_answer(index, arrival, plan, stored, senders) for index, arrival in enumerate(arrivals)]


def touch(database: Database, ids: list[UUID]) -> None:
    """Note that they sent something. Never worth failing for: the messages are committed."""
    if not ids:
        return
    try:
        with database.door() as connection:
            driver(connection).execute(TOUCH, {"ids": ids})
    except DependencyDown:
        return


def _lock(connection: Connection, arrivals: Sequence[Arrival], exclusive: bool) -> dict[UUID, Any]:
    """The connections of these arrivals, locked until the commit; those under change just now are missing."""
    statement = _SHARE
    if exclusive:
        # The first message decides the order: under a lock that no other first message can hold too.
        statement = _EXCLUSIVE
    elif any(arrival.revision is None for arrival in arrivals):
        # What we asked for ourselves has nobody to verify it again: it waits.
        statement = _SHARE_WAITING
    ids = list({arrival.connection_id for arrival in arrivals})
    raw = driver(connection)
    # In a pipeline BEGIN travels with the statement.
    with raw.pipeline(), raw.cursor(row_factory=namedtuple_row) as cursor:
        if statement is not _SHARE:
            raw.execute(_WAIT_BOUNDED, {"wait": f"{LOCK_TIMEOUT_SECONDS}s"})
        cursor.execute(statement, {"ids": ids}, prepare=True)
        rows: list[Any] = cursor.fetchall()
    return {row.id: row for row in rows}


def _is_current(arrival: Arrival, sender: Any | None) -> bool:
    if sender is None or sender.state == ConnectionState.CLOSED:
        return False
    return arrival.revision is None or arrival.revision == sender.revision


def _orders(arrivals: Sequence[Arrival], senders: Mapping[UUID, Any]) -> dict[UUID, str]:
    """Each connection's order: as pinned, else as the first current arrival shows it."""
    orders = {sender.id: sender.order_kind for sender in senders.values() if sender.order_kind is not None}
    for arrival in arrivals:
        if arrival.connection_id not in orders and _is_current(arrival, senders.get(arrival.connection_id)):
            order = order_of(arrival)
            if order is not None:
                orders[arrival.connection_id] = order
    return orders


def _plan(
    arrivals: Sequence[Arrival],
    senders: Mapping[UUID, Any],
    orders: Mapping[UUID, str],
    refused: Mapping[int, MessageConflict],
) -> _Plan:
    plan = _Plan()
    for index, arrival in enumerate(arrivals):
        order = order_of(arrival)
        current = _is_current(arrival, senders.get(arrival.connection_id))
        if not current or (arrival.revision is not None and order not in (None, orders.get(arrival.connection_id))):
            # A wrong order is the door's to name: it verifies again and then knows the connection's.
            plan.answers[index] = Stale()
            continue
        conflict = refused.get(index) or _conflict(arrival, plan.changes)
        if conflict is not None:
            plan.answers[index] = conflict
            continue
        sender_number = arrival.connection_id.int
        owned = plan.owned[index] = []
        for change in arrival.changes:
            key = (sender_number, change.message_id)
            if plan.changes.setdefault(key, change) is change:
                plan.owner[key] = index
                owned.append(key)
    return plan


def _conflict(arrival: Arrival, known: Mapping[Key, Change]) -> MessageConflict | None:
    """The refusal when an element contradicts what comes before it in the same transaction."""
    own: dict[str, bytes] = {}
    wrong = []
    sender_number = arrival.connection_id.int
    for index, change in enumerate(arrival.changes):
        earlier = known.get((sender_number, change.message_id))
        digest = own.setdefault(change.message_id, change.digest) if earlier is None else earlier.digest
        if digest != change.digest:
            wrong.append(index)
    return _refusal(arrival, wrong) if wrong else None


def _refusal(arrival: Arrival, wrong: Sequence[int]) -> MessageConflict:
    return MessageConflict(
        "The same message id was sent before with another body.",
        fields=tuple(
            FieldProblem(f"[{index}].id", f"{arrival.changes[index].message_id} was sent before with another body")
            for index in wrong
        ),
    )


def _store(connection: Connection, arrivals: Sequence[Arrival], senders: Mapping[UUID, Any], plan: _Plan) -> set[Key]:
    """Insert what is new and return its keys. Raises _Conflicts when a known key has another digest."""
    if not plan.changes:
        return set()
    plan.ids = dict(zip(plan.changes, message_ids(len(plan.changes)), strict=True))
    by_number = {sender.id.int: sender for sender in senders.values()}
    # In one order everywhere.
    rows = [
        message_row(plan.ids[key], arrivals[plan.owner[key]], plan.changes[key]) | _place(by_number[key[0]])
        for key in sorted(plan.changes)
    ]
    with driver(connection).cursor() as cursor:
        cursor.execute(_INSERT, {"rows": record_set(rows), "expected": len(rows)}, prepare=True)
        number, fresh = cursor.fetchone() or (0, None)
    if number == len(rows):
        return set(plan.changes)
    stored = {(UUID(sender_id).int, message_id) for sender_id, message_id in fresh or ()}
    _compare_known(connection, arrivals, plan, stored)
    return stored


def _tell(arrivals: Sequence[Arrival], plan: _Plan, stored: set[Key]) -> None:
    """A line of the log for each new message, for those who ask for so much."""
    # Where no log is set up (a command, a benchmark), nobody asked.
    if not structlog.is_configured() or not _log.is_enabled_for(logging.DEBUG):
        return
    for key in stored:
        change, arrival = plan.changes[key], arrivals[plan.owner[key]]
        _log.debug(
            "message.accepted",
            message=str(plan.ids[key]),
            message_id=change.message_id,
            stream=str(stream_id(arrival.connection_id, change.kind, change.source_id)),
            connection=str(arrival.connection_id),
            origin=arrival.origin.value,
        )


def _place(sender: Any) -> dict[str, Any]:
    """What a message has from its connection; parked while that is not processing."""
    return {"tenant": sender.tenant_id, "shard": sender.shard if sender.state in PROCESSING else None}


def _compare_known(connection: Connection, arrivals: Sequence[Arrival], plan: _Plan, stored: set[Key]) -> None:
    """Raise _Conflicts unless every key that was not new is a repetition of the same content."""
    known = [{"connection": UUID(int=key[0]), "message_id": key[1]} for key in plan.changes if key not in stored]
    digests = {
        (row.connection_id.int, row.message_id): bytes(row.digest)
        for row in connection.execute(_KNOWN, {"keys": record_set(known)})
    }
    different = {key for key, digest in digests.items() if plan.changes[key].digest != digest}
    if not different:
        return
    refused = {}
    for index, arrival in enumerate(arrivals):
        keys = [(arrival.connection_id.int, change.message_id) for change in arrival.changes]
        if index not in plan.answers and not different.isdisjoint(keys):
            refused[index] = _refusal(arrival, [place for place, key in enumerate(keys) if key in different])
    raise _Conflicts(refused)


def _conflict_entries(arrivals: Sequence[Arrival], senders: Mapping[UUID, Any], plan: _Plan) -> list[AuditEntry]:
    """What the audit keeps of refused arrivals: which ids, never their content."""
    entries = []
    for index, answer in plan.answers.items():
        if isinstance(answer, MessageConflict):
            sender = senders[arrivals[index].connection_id]
            entries.append(
                AuditEntry(
                    chain_id=sender.id,
                    tenant_id=sender.tenant_id,
                    connection_id=sender.id,
                    actor=f"sender:{sender.name}",
                    action="message.conflict",
                    detail={
                        "problems": [f"{item.field}: {item.detail}" for item in answer.fields],
                        "messages": len(arrivals[index].changes),
                    },
                )
            )
    return entries


def _answer(index: int, arrival: Arrival, plan: _Plan, stored: set[Key], senders: Mapping[UUID, Any]) -> Answer:
    decided = plan.answers.get(index)
    if decided is not None:
        return decided
    accepted = sum(key in stored for key in plan.owned[index])
    sender = senders[arrival.connection_id]
    shard = sender.shard if accepted and sender.state in PROCESSING else None
    return Accepted(accepted, len(arrival.changes) - accepted, shard)
