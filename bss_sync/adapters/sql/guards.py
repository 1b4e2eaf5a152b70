"""The blast-radius guard over live messages in PostgreSQL: what has ended within the hour, and what was held back.

Only a batch that may end something asks, and it asks once for each connection. Batches of one connection that end
something take turns, so that two of them cannot pass the guard side by side.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from bss_sync.adapters.sql.direct import Statements
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import Action, Kind
from bss_sync.domain.guard import ENDED_STATUSES, GUARD_SECONDS, Guard
from bss_sync.domain.product import why_left_scope
from bss_sync.ports.connector import ConnectionSettings
from bss_sync.ports.streams import ConnectionRules, Entity, InboxMessage, Settled, is_live

KIND = "guard"
"""The kind of run that asks an admin about held ends."""
REASON = "guard"
"""Why such a message is held."""

_LOCK = text("select pg_advisory_xact_lock(hashtextextended(cast(:id as text), 8))")
_STATE = text("""
    select coalesce((c.settings ->> 'guard_count')::int, :count) as guard_count,
           coalesce((c.settings ->> 'guard_share')::float, :share) as guard_share,
           (select coalesce(sum(e.number), 0) from ending e
            where e.connection_id = c.id and e.at > now() - make_interval(secs => :seconds)) as ended,
           exists (select 1 from run r where r.connection_id = c.id and r.kind = 'guard' and r.state = 'stopped')
               as stopped
    from connection c where c.id = :id""")
# Counted only as far as the answer depends on it.
_RECORDS = text("""
    select count(*) from (
        select 1 from account where connection_id = :id and deleted_at is null and ended_at is null
        union all
        select 1 from subscription where connection_id = :id and deleted_at is null and ended_at is null
            and status <> all(:ended)
        limit :enough) r""")
_NOTE = text("""
    with old as (delete from ending where connection_id = :id and at < now() - make_interval(secs => :seconds))
    insert into ending (tenant_id, connection_id, number)
    select tenant_id, id, :number from connection where id = :id""")
_HOLD = text("""
    update run set progress = jsonb_set(progress, '{held}', to_jsonb((progress ->> 'held')::int + :held)),
        updated_at = now()
    where connection_id = :id and kind = 'guard' and state = 'stopped'""")
_STOP = text("""
    insert into run (id, tenant_id, connection_id, kind, state, progress, requested_by)
    select :run, tenant_id, id, 'guard', 'stopped', cast(:progress as jsonb), 'system' from connection where id = :id
    returning tenant_id""")


def load_guards(
    connection: Statements, entities: Mapping[UUID, Entity], rules: Mapping[UUID, ConnectionRules], *, lock: bool
) -> dict[UUID, Guard]:
    """The guards of the connections of which this batch may end something."""
    candidates = Counter(
        entity.connection_id
        for entity in entities.values()
        if is_live(entity.mirrored)
        and any(_may_end(entity, message, rules[entity.connection_id]) for message in entity.open)
    )
    guards = {}
    for connection_id in sorted(candidates):
        if lock:
            connection.execute(_LOCK, {"id": connection_id})
        guards[connection_id] = _guard(connection, connection_id, candidates[connection_id])
    return guards


def _may_end(entity: Entity, message: InboxMessage, rules: ConnectionRules) -> bool:
    if message.action is Action.DELETED:
        return True
    if entity.kind is Kind.ACCOUNT or message.action is not Action.STATE:
        return False
    status = message.body["status"]
    ends = rules.value_maps.get(("status", status), status) in ENDED_STATUSES
    return ends or why_left_scope(rules.catalogue.resolve(message.body["product"])) is not None


def _guard(connection: Statements, connection_id: UUID, candidates: int) -> Guard:
    fields = ConnectionSettings.model_fields
    values = {"id": connection_id, "seconds": GUARD_SECONDS}
    defaults = {"count": fields["guard_count"].default, "share": fields["guard_share"].default}
    row = connection.execute(_STATE, values | defaults).one()
    ended, most = int(row.ended), int(row.ended) + candidates
    records = 0
    if most > row.guard_count and not row.stopped:
        enough = math.ceil(most / row.guard_share) + 1
        live = {"id": connection_id, "ended": list(ENDED_STATUSES), "enough": enough}
        records = ended + int(connection.execute(_RECORDS, live).scalar_one())
    return Guard(row.guard_count, row.guard_share, records, ended, stopped=row.stopped)


def note_ends(connection: Statements, settled: Settled, guards: Mapping[UUID, Guard]) -> list[AuditEntry]:
    """Count what has ended; where ends were held, have a run ask an admin. Returns what the audit is to keep."""
    for connection_id, number in settled.ends.items():
        connection.execute(_NOTE, {"id": connection_id, "number": number, "seconds": GUARD_SECONDS})
    entries = []
    for connection_id, held in settled.guarded.items():
        if connection.execute(_HOLD, {"id": connection_id, "held": held}).rowcount == 0:
            entries.append(_stop(connection, connection_id, held, guards[connection_id]))
    return entries


def _stop(connection: Statements, connection_id: UUID, held: int, guard: Guard) -> AuditEntry:
    run_id = uuid4()
    progress = {"held": held, "ended": guard.ended, "guard_count": guard.count, "guard_share": guard.share}
    values = {"run": run_id, "id": connection_id, "progress": json.dumps(progress)}
    tenant_id = connection.execute(_STOP, values).scalar_one()
    detail = {"run_id": str(run_id), "kind": KIND, "ended": guard.ended, "held": held}
    return AuditEntry(connection_id, tenant_id, "system", "run.stopped", detail, connection_id=connection_id)


_OVERTAKEN = text("""
    update message m set state = 'superseded', verdict = 'overtaken', decided_at = now(),
        change_xid = pg_current_xact_id()
    from stream s where s.id = m.stream_id and m.connection_id = :id and m.state = 'quarantined'
        and settled_on(m.state, m.decided_at) = 'infinity'
        and m.reason = 'guard' and m.version is null and m.seq < s.version_seq""")
_RELEASE = text("""
    update message m set state = 'pending', cleared = true, verdict = null, reason = null, decided_at = null,
        shard = case when c.state in ('shadow', 'live') then c.shard end, change_xid = pg_current_xact_id()
    from connection c
    where c.id = m.connection_id and c.id = :id and m.state = 'quarantined' and m.reason = 'guard'
        and settled_on(m.state, m.decided_at) = 'infinity'
    returning m.id, m.tenant_id, m.kind, m.stream_id, m.message_id""")
_FORGET = text("delete from ending where connection_id = :id")
_DISCARD = text("""
    update message m set state = 'discarded', shard = null, verdict = 'discarded', reason = :reason, decided_at = now(),
        change_xid = pg_current_xact_id()
    where m.connection_id = :id and m.state = 'quarantined' and m.reason = 'guard'
        and settled_on(m.state, m.decided_at) = 'infinity'
    returning m.id, m.tenant_id, m.kind, m.stream_id, m.message_id""")


def release(connection: Statements, connection_id: UUID, *, actor: str) -> list[AuditEntry]:
    """Let the held ends happen, and begin to count anew: what an admin has seen is no accident."""
    connection.execute(_LOCK, {"id": connection_id})
    connection.execute(_OVERTAKEN, {"id": connection_id})
    rows = connection.execute(_RELEASE, {"id": connection_id}).all()
    connection.execute(_FORGET, {"id": connection_id})
    return _entries(connection_id, rows, actor, "message.released", {"from": "quarantined"})


def discard(connection: Statements, connection_id: UUID, run_id: UUID, *, actor: str) -> list[AuditEntry]:
    """Give the held ends up: the records live on as they are."""
    connection.execute(_LOCK, {"id": connection_id})
    reason = f"the guard's run {run_id} was rejected"
    rows = connection.execute(_DISCARD, {"id": connection_id, "reason": reason}).all()
    return _entries(connection_id, rows, actor, "message.discarded", {"from": "quarantined", "reason": reason})


def _entries(
    connection_id: UUID, rows: Sequence[Any], actor: str, action: str, detail: Mapping[str, str]
) -> list[AuditEntry]:
    return [
        AuditEntry(
            connection_id,
            row.tenant_id,
            actor,
            action,
            {"message_id": row.message_id, **detail},
            connection_id=connection_id,
            kind=row.kind,
            record_id=row.stream_id,
            message=row.id,
        )
        for row in rows
    ]
