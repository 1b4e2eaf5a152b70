"""Writes what a batch decided: a fixed number of statements, in the transaction that loaded it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.guards import note_ends
from bss_sync.adapters.sql.mirror_rows import write_mirror
from bss_sync.adapters.sql.streams_load import Loaded
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import MessageState, shard_of
from bss_sync.ports.streams import Entity, Settled, Verdict, Written

_VERDICTS = text("""
    update message m set state = r.state, verdict = r.verdict, reason = r.reason, stack = r.stack,
        held_field = r.held_field, held_value = r.held_value, waits_for = r.waits_for, wait_reason = r.wait_reason,
        wait_until = r.wait_until, fetch_asked = r.fetch_asked, attempts = m.attempts + 1, decided_at = now(),
        applied_at = case when r.state = 'applied' then now() else m.applied_at end,
        change_xid = pg_current_xact_id()
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, state text, verdict text, reason text, stack text,
        held_field text, held_value text, waits_for uuid, wait_reason text, wait_until timestamptz, fetch_asked boolean)
    where m.id = r.id""")
_POSITIONS = text("""
    update stream s set epoch = r.epoch, version = r.version, version_sent_at = r.sent_at,
        version_message_id = r.message_id, version_seq = r.seq, digest = decode(r.digest, 'hex'), deleted = r.deleted
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, epoch integer, version bigint, sent_at timestamptz,
        message_id text, seq bigint, digest text, deleted boolean)
    where s.id = r.id""")
_RELEASE = text(
    "update stream set lease_until = null, unfinished = 0, solo_claims = 0, "
    "ready_at = case when id = any(:again) then now() when ready_at = lease_until then null else ready_at end "
    "where id = any(:ids)"
)
_HISTORY = text("""
    insert into history (tenant_id, connection_id, kind, record_id, epoch, version, effective_at, state, deleted,
                         ended_reason, late, message)
    select r.tenant_id, r.connection_id, r.kind, r.record_id, r.epoch, r.version, r.effective_at, r.state, r.deleted,
           r.ended_reason, r.late, r.message
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (tenant_id uuid, connection_id uuid, kind text, record_id uuid,
        epoch integer, version bigint, effective_at timestamptz, state jsonb, deleted boolean, ended_reason text,
        late boolean, message uuid)""")
_UNSTAGE = text("delete from staging where stream_id = any(:ids)")
_STAGE = text("""
    insert into staging (stream_id, action, tenant_id, connection_id, kind, message, message_id, version, order_kind,
                         sent_at, effective_at, body, passed, reason, product)
    select r.stream_id, r.action, r.tenant_id, r.connection_id, r.kind, r.message, r.message_id, r.version,
           r.order_kind, r.sent_at, r.effective_at, r.body, r.passed, r.reason, r.product
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (stream_id uuid, action text, tenant_id uuid,
        connection_id uuid, kind text, message uuid, message_id text, version bigint, order_kind text,
        sent_at timestamptz, effective_at timestamptz, body jsonb, passed text[], reason text, product text)""")
_OVERTAKE = text("""
    update message m set state = 'superseded', verdict = 'overtaken', decided_at = now(),
        change_xid = pg_current_xact_id()
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, version bigint, seq bigint)
    where m.stream_id = r.id and m.state in ('quarantined', 'dead')
        and (m.version < r.version or (m.version is null and m.action = 'state' and m.seq < r.seq))""")
_GAPS = text("""
    insert into gap (tenant_id, connection_id, stream_id, from_version, to_version, missing)
    select r.tenant_id, r.connection_id, r.stream_id, r.from_version, r.to_version, r.missing
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (tenant_id uuid, connection_id uuid, stream_id uuid,
        from_version bigint, to_version bigint, missing bigint)""")
_CLOSE_GAPS = text("""
    update gap g set missing = g.missing - 1, closed_at = case when g.missing <= 1 then now() end,
        closed_by = case when g.missing <= 1 then r.message_id end
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (stream_id uuid, version bigint, message_id text)
    where g.stream_id = r.stream_id and g.closed_at is null and r.version between g.from_version and g.to_version""")
_FETCHES = text("""
    insert into fetch_request (stream_id, tenant_id, connection_id, kind, source_id, reason)
    select distinct on (r.stream_id) r.stream_id, r.tenant_id, r.connection_id, r.kind, r.source_id, r.reason
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (stream_id uuid, tenant_id uuid, connection_id uuid, kind text,
        source_id text, reason text) order by r.stream_id
    on conflict (stream_id) do update set asked = fetch_request.asked + 1,
        due_at = least(fetch_request.due_at, now())""")
_DELIVERIES = text("""
    insert into delivery (record_id, tenant_id, connection_id, kind, desired_revision, due_at)
    select r.id, r.tenant_id, r.connection_id, r.kind, r.revision, now() from (
        select id, tenant_id, connection_id, 'account' as kind, revision from account where id = any(:ids)
        union all
        select id, tenant_id, connection_id, 'subscription', revision from subscription where id = any(:ids)) r
    join connection c on c.id = r.connection_id and c.state = 'live'
    where exists (select from target) order by r.id
    on conflict (record_id) do update set desired_revision = excluded.desired_revision, due_at = now(), attempts = 0,
        state = case when delivery.state in ('sending', 'unknown') then delivery.state else 'pending' end,
        updated_at = now()""")
_REVIVE = text("""
    update message m set state = 'pending', verdict = null, reason = null, stack = null, wait_until = null,
        fetch_asked = false, shard = c.shard, change_xid = pg_current_xact_id()
    from connection c where c.id = m.connection_id and m.id in (
        select id from message where state = 'dead' and waits_for = any(:known) for update skip locked)""")
# Staging keeps the latest state only: what lies between it and an entry with a late version belongs to history too.
_KNOWN_SINCE = text("""
    update message m set state = 'pending', shard = c.shard, change_xid = pg_current_xact_id()
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, version bigint), connection c
    where c.id = m.connection_id and m.stream_id = r.id and m.state = 'out_of_scope'
        and (m.action = 'deleted' or m.version > r.version)""")
LEVELS_AT_ONCE = 200
_WAKE = """
    update stream set ready_at = now() where id in (
        select s.id from stream s where s.id <> all(:ours) and s.id in ({which}) for update skip locked)
    returning shard"""
# A deep tree is woken a stretch at a time, not a level at a time: what enters below its parent shares a batch with it.
_WAKE_WAITING = text(
    _WAKE.format(
        which="with recursive below as ("
        "select stream_id, 1 as level from message where state = 'waiting' and waits_for = any(:ids) "
        "union select m.stream_id, b.level + 1 from below b join message m on m.waits_for = b.stream_id "
        "where m.state = 'waiting' and b.level < :levels) select stream_id from below"
    )
).bindparams(levels=LEVELS_AT_ONCE)
_WAKE_STAGED = text(
    _WAKE.format(
        which="with recursive above as ("
        "select stream_id, connection_id, body ->> 'parent_id' as parent, 1 as level from staging "
        "where stream_id = any(:ids) and action = 'state' "
        "union select g.stream_id, g.connection_id, g.body ->> 'parent_id', a.level + 1 from above a "
        "join stream t on t.connection_id = a.connection_id and t.kind = 'account' and t.source_id = a.parent "
        "join staging g on g.stream_id = t.id and g.action = 'state' where a.level < :levels) "
        "select stream_id from above"
    )
).bindparams(levels=LEVELS_AT_ONCE)
_WAKE_CYCLES = text(
    _WAKE.format(
        which="select stream_id from message where state = 'waiting' and wait_reason = 'cycle' "
        "and connection_id = any(:ids)"
    )
)
_WAKE_UNLINKED = text(
    _WAKE.format(
        which="select c.id from subscription p join subscription c on c.connection_id = p.connection_id "
        "and c.parent_source_id = p.source_id and c.parent_id is null where p.id = any(:ids)"
    )
)
_WAKE_KEPT_APART = text(
    _WAKE.format(
        which="select c.id from subscription c join subscription p on p.connection_id = c.connection_id "
        "and p.source_id = c.parent_source_id where c.parent_id is null and c.connection_id = any(:ids)"
    )
)


def write_settled(connection: Connection, loaded: Loaded, settled: Settled, ours: list[UUID]) -> Written:
    """Write everything that was decided for the streams ``ours``, wake what it sets free, release their leases."""
    before = loaded.before
    _run(connection, _VERDICTS, [_verdict(verdict) for _stream, verdict in settled.verdicts.values()])
    moved_on = [entity for key, entity in settled.entities.items() if entity.position != before[key].position]
    _run(connection, _POSITIONS, [_position(entity) for entity in moved_on])
    _write_staging(connection, settled, loaded)
    altered = write_mirror(connection, [settled.entities[key] for key in settled.changed], before)
    _run(connection, _HISTORY, [_history(row, settled.entities[row.record_id]) for row in settled.history])
    _run(connection, _OVERTAKE, _overtaking(settled, moved_on))
    _run(connection, _GAPS, [_with_ids(_gap(gap), settled.entities[gap.stream_id]) for gap in settled.gaps])
    _run(
        connection,
        _CLOSE_GAPS,
        [{"stream_id": str(s), "version": v, "message_id": m} for s, v, m in settled.closed_gaps],
    )
    _run(connection, _FETCHES, [_fetch(request) for request in settled.fetches])
    deliveries = connection.execute(_DELIVERIES, {"ids": list(altered)}).rowcount > 0 if altered else False
    shards = _wake(connection, settled, ours)
    again = _unfinished(loaded, settled)
    shards.update(shard_of(loaded.before[key].connection_id) for key in again)
    connection.execute(_RELEASE, {"ids": ours, "again": again})
    stopped = note_ends(connection, settled, loaded.batch.guards)
    append_audit(connection, [*_audit(loaded, settled, altered), *stopped])
    return Written(frozenset(shards), deliveries, bool(settled.fetches))


def _run(connection: Connection, statement: Any, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        connection.execute(statement, {"rows": json.dumps(rows)})


def _overtaking(settled: Settled, moved_on: Sequence[Entity]) -> list[dict[str, Any]]:
    """Below which version held messages have been settled: an answer to a question of ours settles its own too."""
    streams = {entity.id for entity in moved_on} | settled.confirmed.keys()
    positions = {key: settled.entities[key].position for key in streams}
    return [
        {
            "id": str(key),
            "version": max(position.version or 0, settled.confirmed.get(key, -1) + 1),
            "seq": position.seq,
        }
        for key, position in positions.items()
    ]


def _unfinished(loaded: Loaded, settled: Settled) -> list[UUID]:
    """Crowded streams in which something moved: the rest of their messages may move now."""
    moved = {stream for stream, verdict in settled.verdicts.values() if verdict.state is not MessageState.WAITING}
    fresh = {
        key
        for key in loaded.crowded
        if any(message.state is MessageState.PENDING for message in loaded.before[key].open)
    }
    return list(loaded.crowded & (moved | fresh))


def _wake(connection: Connection, settled: Settled, ours: list[UUID]) -> set[int]:
    shards: set[int] = set()

    def wake(statement: Any, ids: Iterable[UUID]) -> None:
        wanted = list(ids)
        if wanted:
            shards.update(connection.execute(statement, {"ids": wanted, "ours": ours}).scalars())

    wake(_WAKE_WAITING, settled.entered | settled.arrived)
    wake(_WAKE_UNLINKED, settled.entered)
    wake(_WAKE_STAGED, settled.needed - set(settled.entities))
    wake(_WAKE_CYCLES, {settled.entities[key].connection_id for key in settled.moved})
    reparented = settled.moved - settled.entered
    wake(_WAKE_KEPT_APART, {settled.entities[key].connection_id for key in reparented})
    known = settled.entered | settled.arrived
    if known and connection.execute(_REVIVE, {"known": list(known)}).rowcount:
        shards.update(shard_of(settled.entities[key].connection_id) for key in known)
    since = settled.known_since()
    if since:
        rows = json.dumps([{"id": str(key), "version": version} for key, version in since.items()])
        if connection.execute(_KNOWN_SINCE, {"rows": rows}).rowcount:
            shards.update(shard_of(settled.entities[key].connection_id) for key in since)
    return shards


def _write_staging(connection: Connection, settled: Settled, loaded: Loaded) -> None:
    touched = [
        entity
        for key, entity in settled.entities.items()
        if (entity.staged, entity.staged_end) != (loaded.before[key].staged, loaded.before[key].staged_end)
    ]
    if not touched:
        return
    connection.execute(_UNSTAGE, {"ids": [entity.id for entity in touched]})
    rows = []
    for entity in touched:
        for message in (entity.staged, entity.staged_end):
            if message is not None:
                decided = settled.verdicts.get(message.id)
                rows.append(
                    {
                        "stream_id": str(entity.id),
                        "action": message.action.value,
                        "tenant_id": str(entity.tenant_id),
                        "connection_id": str(entity.connection_id),
                        "kind": entity.kind.value,
                        "message": str(message.id),
                        "message_id": message.message_id,
                        "version": message.version,
                        "order_kind": message.order.value,
                        "sent_at": message.sent_at.isoformat(),
                        "effective_at": message.effective_at.isoformat(),
                        "body": dict(message.body),
                        "passed": message.passed,
                        "reason": (decided[1].reason or decided[1].verdict) if decided else "out_of_scope",
                        "product": message.body.get("product"),
                    }
                )
    _run(connection, _STAGE, rows)


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "id": str(verdict.message),
        "state": verdict.state.value,
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "stack": verdict.stack,
        "held_field": verdict.held_field,
        "held_value": verdict.held_value,
        "waits_for": None if verdict.waits_for is None else str(verdict.waits_for),
        "wait_reason": None if verdict.wait_reason is None else verdict.wait_reason.value,
        "wait_until": None if verdict.wait_until is None else verdict.wait_until.isoformat(),
        "fetch_asked": verdict.fetch_asked,
    }


def _position(entity: Entity) -> dict[str, Any]:
    position = entity.position
    return {
        "id": str(entity.id),
        "epoch": position.epoch,
        "version": position.version,
        "sent_at": None if position.sent_at is None else position.sent_at.isoformat(),
        "message_id": position.message_id,
        "seq": position.seq,
        "digest": None if position.digest is None else position.digest.hex(),
        "deleted": position.deleted,
    }


def _with_ids(row: dict[str, Any], entity: Entity) -> dict[str, Any]:
    return {**row, "tenant_id": str(entity.tenant_id), "connection_id": str(entity.connection_id)}


def _history(row: Any, entity: Entity) -> dict[str, Any]:
    values = {
        "kind": entity.kind.value,
        "record_id": str(row.record_id),
        "epoch": row.epoch,
        "version": row.version,
        "effective_at": row.effective_at.isoformat(),
        "state": dict(row.state),
        "deleted": row.deleted,
        "ended_reason": row.ended_reason,
        "late": row.late,
        "message": str(row.message),
    }
    return _with_ids(values, entity)


def _gap(gap: Any) -> dict[str, Any]:
    return {
        "stream_id": str(gap.stream_id),
        "from_version": gap.from_version,
        "to_version": gap.to_version,
        "missing": gap.missing,
    }


def _fetch(request: Any) -> dict[str, Any]:
    return {
        "stream_id": str(request.stream_id),
        "tenant_id": str(request.tenant_id),
        "connection_id": str(request.connection_id),
        "kind": request.kind.value,
        "source_id": request.source_id,
        "reason": request.reason,
    }


def _audit(loaded: Loaded, settled: Settled, revisions: Mapping[UUID, int]) -> Iterable[AuditEntry]:
    waiting_before = {
        message.id
        for entity in loaded.before.values()
        for message in entity.open
        if message.state is MessageState.WAITING
    }
    for message_id, (stream, verdict) in settled.verdicts.items():
        if verdict.state is MessageState.WAITING and message_id in waiting_before:
            continue
        entity, known = settled.entities[stream], loaded.before[stream]
        detail: dict[str, Any] = {"verdict": verdict.verdict, "version": entity.position.version}
        if verdict.reason is not None:
            detail["reason"] = verdict.reason
        if verdict.state is MessageState.APPLIED:
            detail["fields"] = _changed_fields(known, entity)
            if stream in revisions:
                # What a delivery must bring at least, for this message's story.
                detail["revision"] = revisions[stream]
        yield AuditEntry(
            chain_id=entity.connection_id,
            tenant_id=entity.tenant_id,
            connection_id=entity.connection_id,
            actor="system",
            action=f"message.{verdict.state}",
            detail=detail,
            kind=entity.kind.value,
            record_id=entity.id,
            message=message_id,
        )


def _changed_fields(before: Entity, after: Entity) -> list[str]:
    if after.mirrored is None:
        return []
    old = {} if before.mirrored is None else before.mirrored.content
    new = after.mirrored.content
    # What somebody wrote past the line counts too: the columns are compared as they were found.
    was, shown = {**old, **before.laid}, {**new, **after.taken}
    return [name for name in new if name not in old or old[name] != new[name] or was[name] != shown[name]]
