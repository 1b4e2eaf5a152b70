"""A message's whole story by one id: received, waited, decided, delivered, confirmed, replaced by which other.

Told from what is kept anyway (message, audit, history, delivery, drift), in the order in which it happened. Each step
has a time, a word for programs (``step``), a sentence for people (``words``) and its facts. A reseller is told of its
message and of the mirror, never of the distributor's own BSS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.reading import story_delivery
from bss_sync.adapters.sql.reading.context import find_connection
from bss_sync.adapters.sql.reading.entity import show_moment, show_value, show_version
from bss_sync.adapters.sql.reading.messages import MESSAGES, missing_message, show_message
from bss_sync.adapters.sql.reading.paging import is_uuid
from bss_sync.adapters.sql.reading.reach import Reach, Where
from bss_sync.adapters.sql.reading.story_steps import Step, seconds_between, step
from bss_sync.domain.change import Action, Kind, MessageState
from bss_sync.domain.errors import NotFound
from bss_sync.domain.ownership import MIRRORED

ENTRIES_MAX = 200
"""Entries of the audit that are read of one message; a message has a handful."""

_WAYS = {
    "door": "by the webhook door",
    "hook": "by the connector's own webhook",
    "poll": "by a poll",
    "fetch": "by a fetch",
    "backfill": "by a first load",
    "import": "from a file",
    "reconcile": "by a reconciliation",
}
_SAYS = {Action.STATE: "", Action.DELETED: "the deletion of ", Action.NOTIFIED: "a notice of "}
_DECIDING = ("message.applied", "message.superseded")
_ENTRIES = text(
    """select seq, at, actor, action, detail from audit
       where message = :message and chain_id = :chain order by seq limit :row_count"""
)
_CONFLICTS = text(
    """select at, detail from audit where chain_id = :chain and action = 'message.conflict' and at >= :since
       order by at limit :row_count"""
)
_WRITTEN = text(
    """select id, epoch, version, effective_at, recorded_at, state, deleted, ended_reason, late from history
       where record_id = :record and message = :message order by id desc limit 1"""
)
_BEFORE = text(
    """select h.version, h.state, h.message, m.message_id from history h left join message m on m.id = h.message
       where h.record_id = :record and not h.late and (h.epoch, h.version, h.id) < (:epoch, :version, :id)
       order by h.epoch desc, h.version desc, h.id desc limit 1"""
)
_AFTER = text(
    """select h.version, h.recorded_at, h.message, m.message_id from history h left join message m on m.id = h.message
       where h.record_id = :record and not h.late and (h.epoch, h.version, h.id) > (:epoch, :version, :id)
       order by h.epoch, h.version, h.id limit 1"""
)
_PRESENT_THEN = text(
    """select h.version, h.message, m.message_id from history h left join message m on m.id = h.message
       where h.record_id = :record and not h.late and h.message <> :message and h.recorded_at <= :then
       order by h.epoch desc, h.version desc, h.id desc limit 1"""
)


def find_message(connection: Connection, reach: Reach, wanted: str) -> UUID:
    """A message by our id, or as CONNECTION/MESSAGE_ID with the sender's; the newest of that id. Else NotFound."""
    where = Where().within(reach, "m")
    name, slash, sender_id = wanted.partition("/")
    if is_uuid(wanted):
        where.add("m.id = :message", message=UUID(wanted))
    elif slash and name and sender_id and "\x00" not in wanted:
        found = find_connection(connection, reach, name)
        where.add("m.connection_id = :connection", connection=found.id)
        where.add("m.message_id = :message_id", message_id=sender_id)
    else:
        raise NotFound(f"There is no message {wanted[:300]!r}.", next_step="Give its id, or CONNECTION/MESSAGE_ID.")
    query = where.under("select m.id from message m", "order by m.seq desc limit 1")
    message: UUID | None = connection.execute(query, where.values).scalar_one_or_none()
    if message is None and is_uuid(wanted):
        raise missing_message(connection, reach, UUID(wanted))
    if message is None:
        raise NotFound(f"There is no message {wanted[:300]!r}.")
    return message


def tell_story(connection: Connection, reach: Reach, wanted: str) -> dict[str, Any]:
    """The message as lists show it, and ``steps``. NotFound when it is not within reach."""
    where = Where().add("m.id = :message", message=find_message(connection, reach, wanted))
    query = where.under(f"select {MESSAGES.columns}, m.dropped, m.trace {MESSAGES.tables}")
    message = connection.execute(query, where.values).one()
    entries = connection.execute(
        _ENTRIES, {"message": message.id, "chain": message.connection_id, "row_count": ENTRIES_MAX}
    ).all()
    steps = [_received(message), *_conflicts(connection, message), *_decisions(connection, message, entries)]
    written = _written(connection, message)
    applied = next((entry for entry in reversed(entries) if entry.action == "message.applied"), None)
    if written is not None:
        # The audit is written last in its transaction: the change is told after the decision for it.
        decided_at = max((one.at for one in entries if one.action in _DECIDING), default=written.row.recorded_at)
        steps += _changes(message, written, max(decided_at, written.row.recorded_at))
    if applied is not None and not reach.is_reseller:
        until = written.replaced.recorded_at if written is not None and written.replaced is not None else None
        steps += story_delivery.deliveries(connection, message, applied, until)
    # Steps of one transaction have one time and keep the order in which they are told.
    steps.sort(key=lambda one: one.at)
    shown = show_message(message)
    return {
        **shown,
        "dropped": list(message.dropped),
        "trace": message.trace,
        "steps": [{**one.facts, "at": show_moment(one.at), "step": one.word, "words": one.words} for one in steps],
    }


def _received(message: Row[Any]) -> Step:
    version = show_version(message.version, message.order_kind)
    stated = "" if version is None else f", version {version}"
    dropped = f"; dropped: {', '.join(message.dropped)}" if message.dropped else ""
    what = f"{_SAYS[Action(message.action)]}{message.kind} {message.source_id}{stated}"
    words = f"received {_WAYS[message.origin]} from {message.connection_name}: {what}{dropped}"
    return step(message.received_at, "received", words, origin=message.origin, dropped=list(message.dropped))


def _conflicts(connection: Connection, message: Row[Any]) -> Iterator[Step]:
    """The same id came again with another body. The audit keeps which ids, within the words of each problem."""
    values = {"chain": message.connection_id, "since": message.received_at, "row_count": ENTRIES_MAX}
    for row in connection.execute(_CONFLICTS, values):
        if any(f": {message.message_id} was sent before" in problem for problem in (row.detail or {})["problems"]):
            yield step(row.at, "refused", "refused: the same id came again with another body")


def _decisions(connection: Connection, message: Row[Any], entries: Sequence[Row[Any]]) -> Iterator[Step]:
    ends = [entry.at for entry in entries[1:]] + [None]
    last_seq = max((entry.seq for entry in entries), default=None)
    for entry, ended_at in zip(entries, ends, strict=True):
        yield from _entry(connection, message, entry, ended_at, is_last=entry.seq == last_seq)
    if message.state == MessageState.SUPERSEDED and message.decided_at is not None:
        # A held message that a newer state has overtaken is settled with that state's entry, and has none of its own.
        if not any(entry.action == "message.superseded" for entry in entries):
            yield _superseded(connection, message, message.decided_at, message.verdict)
    elif message.state == MessageState.PENDING:
        words = "waits for its turn" if not entries else "is to be decided anew"
        yield step(message.received_at if not entries else entries[-1].at, "pending", words)


def _entry(
    connection: Connection, message: Row[Any], entry: Row[Any], ended_at: datetime | None, *, is_last: bool
) -> Iterator[Step]:
    word, detail = entry.action.removeprefix("message."), entry.detail or {}
    reason, verdict = detail.get("reason"), detail.get("verdict")
    because = f": {reason}" if reason else ""
    if word == "waiting":
        yield _waited(message, entry, reason, ended_at, is_last)
    elif word == "applied":
        yield step(entry.at, "applied", f"applied{because} ({verdict})", verdict=verdict, reason=reason)
    elif word == "superseded":
        yield _superseded(connection, message, entry.at, verdict)
    elif word == "quarantined":
        held = f", {message.held_field} = {message.held_value!r}" if is_last and message.held_field else ""
        yield step(entry.at, "held", f"held until an admin decides{because}{held}", verdict=verdict, reason=reason)
    elif word == "dead":
        yield step(entry.at, "dead", f"became a dead letter{because}", verdict=verdict, reason=reason)
    elif word == "out_of_scope":
        yield step(entry.at, "out_of_scope", f"not mirrored{because}", verdict=verdict, reason=reason)
    elif word == "fetched":
        yield step(entry.at, "fetched", "the state that it announced was fetched")
    elif word in ("replayed", "discarded"):
        who = f"{word} by {entry.actor}{because}"
        yield step(entry.at, word, who, actor=entry.actor, reason=reason, was=detail.get("from"))
    else:
        yield step(entry.at, word, f"{word.replace('_', ' ')}{because}", verdict=verdict, reason=reason)


def _waited(message: Row[Any], entry: Row[Any], reason: str | None, ended_at: datetime | None, is_last: bool) -> Step:
    why = reason or "something that is not here yet"
    if ended_at is None and is_last and message.state == MessageState.WAITING:
        until = show_moment(message.wait_until)
        return step(entry.at, "waits", f"waits ({why}) until {until or 'it is here'}", reason=reason, until=until)
    seconds = seconds_between(entry.at, ended_at)
    lasted = "" if seconds is None else f" for {seconds:g} s"
    return step(entry.at, "waited", f"waited ({why}){lasted}", reason=reason, seconds=seconds)


def _superseded(connection: Connection, message: Row[Any], at: datetime, verdict: str | None) -> Step:
    values = {"record": message.stream_id, "message": message.id, "then": at}
    present = connection.execute(_PRESENT_THEN, values).one_or_none()
    by = None if present is None else _message_of(present, message.order_kind)
    behind = "" if by is None else f" by {by['message_id'] or by['id']}, version {by['version']}"
    return step(at, "superseded", f"superseded{behind} ({verdict})", verdict=verdict, by=by)


def _message_of(row: Row[Any], order: str) -> dict[str, Any]:
    return {"id": str(row.message), "message_id": row.message_id, "version": show_version(row.version, order)}


@dataclass(frozen=True, slots=True)
class _Written:
    """The row of history that the message wrote, the one before it, and the one that replaced it."""

    row: Row[Any]
    before: Row[Any] | None
    replaced: Row[Any] | None


def _written(connection: Connection, message: Row[Any]) -> _Written | None:
    row = connection.execute(_WRITTEN, {"record": message.stream_id, "message": message.id}).one_or_none()
    if row is None:
        return None
    place = {"record": message.stream_id, "epoch": row.epoch, "version": row.version, "id": row.id}
    before = connection.execute(_BEFORE, place).one_or_none()
    replaced = None if row.late else connection.execute(_AFTER, place).one_or_none()
    return _Written(row, before, replaced)


def _changes(message: Row[Any], written: _Written, at: datetime) -> Iterator[Step]:
    row, old = written.row, {} if written.before is None else written.before.state
    fields = {
        name: {"from": show_value(name, old.get(name)), "to": show_value(name, row.state.get(name))}
        for name in MIRRORED[Kind(message.kind)]
        if old.get(name) != row.state.get(name)
    }
    effective = show_moment(row.effective_at)
    if row.late:
        words = f"entered into history late, effective {effective}: the present did not change"
    elif written.before is None:
        words = f"new in the mirror, effective {effective}"
    else:
        told = ", ".join(f"{name} {change['from']!r} → {change['to']!r}" for name, change in fields.items())
        words = f"changed, effective {effective}: {told or 'no field'}"
    if row.deleted:
        words += "; deleted"
    elif row.ended_reason is not None:
        words += f"; ended: {row.ended_reason}"
    yield step(at, "changed", words, effective_at=effective, late=row.late, fields=fields)
    if written.replaced is not None:
        by = _message_of(written.replaced, message.order_kind)
        words = f"replaced by {by['message_id'] or by['id']}, version {by['version']}"
        yield step(written.replaced.recorded_at, "replaced", words, by=by)
