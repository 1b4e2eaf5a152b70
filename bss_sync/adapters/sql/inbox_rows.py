"""How a message travels into the inbox: its row as JSON, its id, and the order that its sender speaks.

For both ways in: in a transaction that looks closely (inbox.py), and in one statement (inbox_at_once.py).
"""

from __future__ import annotations

import secrets
import time
from typing import Any
from uuid import UUID

from bss_sync.domain.change import Change, OrderKind, stream_id
from bss_sync.ports.inbox import Arrival

TOUCH_SECONDS = 1
"""A busy connection's last_received_at is at most this much behind: it is not written on every commit."""

Key = tuple[int, str]
"""A connection's id as a number, which is compared and hashed many times faster than the id, and a message id."""

UNTOUCHED = f"""
    (silent_since is not null or last_received_at is null
     or last_received_at < clock_timestamp() - interval '{TOUCH_SECONDS} s') as untouched"""
"""SQL: a column that tells whether a connection that sends something now is to be noted as alive."""

HELD = f"""
    select id, tenant_id, name, state, shard, revision, order_kind, {UNTOUCHED}
    from connection where id = any({{ids}}) order by id {{strength}}"""  # noqa: S608  our own text
"""SQL: connections, locked until the commit."""

TOUCH = b"""
    with due as (select id from connection where id = any(%(ids)s) order by id for no key update skip locked)
    update connection set last_received_at = clock_timestamp(), silent_since = null
    where id = any(array(select id from due)) and set_config('synchronous_commit', 'off', true) = 'off'"""
"""SQL: notes that they sent something. Nobody waits for the disk: it is never worth failing for."""

COLUMNS = """
    id uuid, connection uuid, stream uuid, origin text, message_id text, kind text, source_id text, action text,
    order_kind text, version bigint, sent_at timestamptz, effective_at timestamptz, body jsonb, dropped text[],
    passed text[], digest text, trace text"""
"""SQL: the members of ``message_row`` and their types."""

STORING = """fresh as (
    insert into message_key (tenant_id, connection_id, message_id, digest)
    select tenant, connection, message_id, decode(digest, 'hex') from arrived
    on conflict (connection_id, message_id) do nothing
    returning connection_id, message_id
), stored as (
    insert into message (id, tenant_id, connection_id, stream_id, shard, origin, message_id, kind, source_id,
                         action, order_kind, version, sent_at, effective_at, body, dropped, passed,
                         digest, trace)
    select a.id, a.tenant, a.connection, a.stream, a.shard, a.origin, a.message_id, a.kind, a.source_id,
           a.action, a.order_kind, a.version, a.sent_at, a.effective_at, a.body, a.dropped, a.passed,
           decode(a.digest, 'hex'), a.trace
    from arrived a join fresh f on f.connection_id = a.connection and f.message_id = a.message_id
    order by a.id
)"""
"""SQL: stores ``arrived`` (``message_row``, tenant and shard); ``fresh`` has the keys that nobody had stored before."""

_RANDOM_BYTES = 8
_RANDOM_MASK = (1 << 54) - 1


def message_row(message_id: UUID, arrival: Arrival, change: Change) -> dict[str, Any]:
    """One message, for ``record_set``; what belongs to the connection (tenant, shard) is added by whoever locks it."""
    body = change.body
    return {
        "id": message_id,
        "connection": arrival.connection_id,
        "stream": stream_id(arrival.connection_id, change.kind, change.source_id),
        "origin": arrival.origin,
        "message_id": change.message_id,
        "kind": change.kind,
        "source_id": change.source_id,
        "action": change.action,
        "order_kind": change.order,
        "version": change.version,
        "sent_at": change.sent_at,
        "effective_at": change.effective_at,
        "body": body if isinstance(body, dict) else dict(body),
        "dropped": change.dropped,
        "passed": change.passed,
        "digest": change.digest.hex(),
        "trace": arrival.trace,
    }


def order_of(arrival: Arrival) -> str | None:
    """The order that the arrival speaks; None for notifications and for what we count ourselves."""
    for change in arrival.changes:
        if change.version is not None and change.order is not OrderKind.OBSERVED:
            return str(change.order)
    return None


def message_ids(count: int) -> list[UUID]:
    """UUIDs (version 7) that grow within the batch and with time: new rows stay together in the index."""
    start = time.time_ns()
    # Asked for at once: every call into the system lets other threads in, and this one must wait to get back.
    random = secrets.token_bytes(_RANDOM_BYTES * count)
    ids = []
    for number in range(count):
        milliseconds, rest = divmod(start + number, 1_000_000)
        noise = int.from_bytes(random[_RANDOM_BYTES * number : _RANDOM_BYTES * (number + 1)], "big") & _RANDOM_MASK
        high = milliseconds << 16 | 0x7000 | rest >> 8
        low = 0b10 << 62 | (rest & 0xFF) << 54 | noise
        ids.append(UUID(int=high << 64 | low))
    return ids
