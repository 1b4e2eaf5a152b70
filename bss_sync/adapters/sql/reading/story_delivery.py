"""The second half of a message's story: how its effect reached the distributor's BSS, and what was edited there since.

Delivery is level-triggered: what is delivered is the record as it is then. The first delivery of the message's revision
or a later one has brought its effect; attempts before it are its attempts.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.reading.story_steps import Step, step

ATTEMPTS_MAX = 200
_DONE = {
    "delivery.created": "created in the distributor's BSS",
    "delivery.updated": "updated in the distributor's BSS",
    "delivery.found": "found in the distributor's BSS: an earlier attempt whose answer was lost had taken effect",
}
_ENTRIES = text(
    """select seq, at, action, detail from audit
       where record_id = :record and chain_id = :chain and seq > :seq and at >= :since and action like 'delivery.%'
       order by seq limit :row_count"""
)
_DELIVERY = text("select * from delivery where record_id = :record")
_REFUSED_RELATIVE = text(
    """select d.kind, d.last_error, coalesce(a.source_id, s.source_id) as source_id from delivery d
       left join account a on a.id = d.record_id left join subscription s on s.id = d.record_id
       where d.state = 'dead' and d.external_id is null and d.record_id in (
           select account_id from subscription where id = :id union all
           select parent_id from subscription where id = :id union all select parent_id from account where id = :id)
       order by d.kind limit 1"""
)
_TARGET = text("select 1 from target")
_DRIFT = text(
    """select field, problem, action, changed_by, changed_at, found_at, settled_at from drift
       where record_id = :record and found_at >= :since and (cast(:until as timestamptz) is null or found_at < :until)
       order by found_at limit :row_count"""
)


def deliveries(connection: Connection, message: Row[Any], applied: Row[Any], until: datetime | None) -> Iterator[Step]:
    """The steps after ``applied``, the audit's entry. ``until``: when another message replaced this one's state."""
    revision = (applied.detail or {}).get("revision")
    if revision is None:
        # Nothing that the distributor's BSS holds has changed.
        return
    values = {"record": message.stream_id, "chain": message.connection_id, "seq": applied.seq, "since": applied.at}
    settled = False
    for entry in connection.execute(_ENTRIES, values | {"row_count": ATTEMPTS_MAX}):
        detail = entry.detail or {}
        yield _attempt(entry, detail, revision)
        settled = entry.action == "delivery.dead"
        if entry.action in _DONE and detail.get("revision", revision) >= revision:
            settled = True
            break
    if not settled:
        delivery = connection.execute(_DELIVERY, {"record": message.stream_id}).one_or_none()
        yield _state(connection, delivery, revision, applied.at)
    yield from _drift(connection, message, applied.at, until)


def _attempt(entry: Row[Any], detail: dict[str, Any], revision: int) -> Step:
    external_id, attempt = detail.get("external_id"), detail.get("attempt")
    if entry.action in _DONE:
        brought = detail.get("revision", revision)
        newer = ", with a newer state" if brought > revision else ""
        older = ", with the state before this one" if brought < revision else ""
        words = f"{_DONE[entry.action]} as {external_id}, attempt {attempt}{newer}{older}"
        word = "delivered" if older else "confirmed"
        return step(entry.at, word, words, external_id=external_id, attempt=attempt, revision=brought)
    error = detail.get("error")
    if entry.action == "delivery.dead":
        word, words = "refused", f"refused by the distributor's BSS for good: {error}"
    elif entry.action == "delivery.vanished":
        word, words = "vanished", f"had been removed in the distributor's BSS and is created anew: {error}"
    elif detail.get("state") == "unknown":
        word, words = (
            "unknown",
            f"attempt {attempt}: the answer was lost, so it is looked up before anything else: {error}",
        )
    else:
        word, words = "failed", f"attempt {attempt} failed and is repeated: {error}"
    return step(entry.at, word, words, attempt=attempt, error=error)


def _state(connection: Connection, delivery: Row[Any] | None, revision: int, applied_at: datetime) -> Step:
    """How it stands where no attempt has brought it yet."""
    if delivery is None:
        if connection.execute(_TARGET).one_or_none() is None:
            return step(applied_at, "confirmed", "there in the mirror, which is the distributor's BSS here")
        return step(applied_at, "undelivered", "not delivered: its connection was not live then")
    if delivery.confirmed_revision >= revision and delivery.confirmed_at is not None:
        words = f"confirmed: the distributor's BSS held just this already as {delivery.external_id}"
        return step(delivery.confirmed_at, "confirmed", words, external_id=delivery.external_id)
    due = "" if delivery.due_at is None else f", due {delivery.due_at:%Y-%m-%d %H:%M:%SZ}"
    waits = {
        "blocked": _blocked(connection, delivery.record_id) if delivery.state == "blocked" else "",
        "dead": "an earlier state was refused for good",
        "sending": "an attempt is under way",
        "unknown": "an answer was lost",
    }.get(delivery.state, "it is to be sent")
    at = max(applied_at, delivery.updated_at)
    return step(at, "undelivered", f"not delivered yet: {waits}{due}", state=delivery.state, attempts=delivery.attempts)


def _blocked(connection: Connection, record_id: UUID) -> str:
    refused = connection.execute(_REFUSED_RELATIVE, {"id": record_id}).one_or_none()
    if refused is None:
        return "its account or parent is not in the distributor's BSS yet"
    words = f"{refused.kind} {refused.source_id}, which it needs, was refused there for good ({refused.last_error})"
    return f"{words}; it follows when that is delivered: with its next change, or by bss-sync reconcile"


def _drift(connection: Connection, message: Row[Any], since: datetime, until: datetime | None) -> Iterator[Step]:
    values = {"record": message.stream_id, "since": since, "until": until, "row_count": ATTEMPTS_MAX}
    for row in connection.execute(_DRIFT, values):
        field = row.field or "the record"
        by = f" by {row.changed_by}" if row.changed_by else ""
        words = f"{field} was found changed behind the system's back{by} ({row.problem}); {row.action}"
        yield step(row.found_at, "drifted", words, field=row.field, action=row.action, changed_by=row.changed_by)
        if row.settled_at is not None:
            yield step(row.settled_at, "settled", f"{field} is as intended again", field=row.field)
