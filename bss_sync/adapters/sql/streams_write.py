"""Writes what a batch decided: a fixed number of statements, in the transaction that loaded it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy import text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.chain_places import place
from bss_sync.adapters.sql.direct import PLANNED_ONCE, Statements
from bss_sync.adapters.sql.guards import note_ends
from bss_sync.adapters.sql.history_rows import presents, write_history
from bss_sync.adapters.sql.mirror_rows import write_mirror
from bss_sync.adapters.sql.records import id_array, record_set
from bss_sync.adapters.sql.stream_wakes import wake_set_free as wake_set_free  # noqa: PLC0414  known by this name
from bss_sync.adapters.sql.streams_load import Loaded
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import HELD, MessageState, shard_of
from bss_sync.domain.errors import LeaseLost
from bss_sync.ports.streams import Entity, FetchRequest, Gap, Settled, Verdict, Written

_VERDICTS = """
    update message m set state = r.state, verdict = r.verdict, reason = r.reason, stack = r.stack,
        held_field = r.held_field, held_value = r.held_value, waits_for = r.waits_for, wait_reason = r.wait_reason,
        wait_until = r.wait_until, fetch_asked = coalesce(r.fetch_asked, false), attempts = m.attempts + 1,
        decided_at = now(), applied_at = case when r.state = 'applied' then now() else m.applied_at end,
        change_xid = pg_current_xact_id()
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, state text, verdict text, reason text, stack text,
        held_field text, held_value text, waits_for uuid, wait_reason text, wait_until timestamptz, fetch_asked boolean)
    where m.id = r.id"""
# What is open lies in one part of the inbox; a state that staging had kept was settled in any.
_OPEN_VERDICTS = text(_VERDICTS + " and settled_on(m.state, m.decided_at) = 'infinity'")
_STAGED_VERDICTS = text(_VERDICTS)
_NEW = text("""
    insert into stream (id, tenant_id, connection_id, shard, kind, source_id, ready_at, epoch, version, version_sent_at,
                        version_message_id, version_seq, digest, deleted)
    select r.id, r.tenant_id, r.connection_id, r.shard, r.kind, r.source_id, case when r.again then now() end, r.epoch,
           r.version, r.sent_at, r.message_id, r.seq, decode(r.digest, 'hex'), r.deleted
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, tenant_id uuid, connection_id uuid, shard smallint,
        kind text, source_id text, again boolean, epoch integer, version bigint, sent_at timestamptz, message_id text,
        seq bigint, digest text, deleted boolean) order by r.id
    on conflict do nothing""").execution_options(**PLANNED_ONCE)
# A lease ends with the verdict, and so does the wake-up that the claim took along; but one that came to a leased stream
# afterwards stays. Where more follows under the same lease, and it never ends, this claim and the one of the whole
# stream count for the rest.
_MOVE = text("""
    update stream s set epoch = r.epoch, version = r.version, version_sent_at = r.sent_at,
        version_message_id = r.message_id, version_seq = r.seq, digest = decode(r.digest, 'hex'), deleted = r.deleted,
        lease_until = case when :keep then s.lease_until end,
        unfinished = case when :keep then 1 else 0 end,
        solo_claims = case when :keep then least(s.solo_claims, 2) else 0 end,
        ready_at = case when r.again then now() when :keep then s.ready_at
                        when s.lease_until is null or s.ready_at = s.lease_until then null else s.ready_at end
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, again boolean, epoch integer, version bigint,
        sent_at timestamptz, message_id text, seq bigint, digest text, deleted boolean)
    where s.id = r.id""")
_UNSTAGE = text("delete from staging where stream_id = any(cast(:ids as uuid[]))")
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
    where m.stream_id = r.id and m.state in ('quarantined', 'dead') and settled_on(m.state, m.decided_at) = 'infinity'
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


def write_settled(connection: Statements, loaded: Loaded, settled: Settled, ours: list[UUID]) -> Written:
    """Write everything that was decided for the streams ``ours``, wake what it sets free, release their leases."""
    before = loaded.before
    _write_verdicts(connection, settled, before)
    again = [] if settled.partial else _unfinished(loaded, settled)
    _write_streams(connection, loaded, settled, ours, again)
    written = write_effects(connection, loaded, settled, ours)
    shards = {shard_of(before[key].connection_id) for key in again}
    return replace(written, wake_shards=written.wake_shards | shards)


def write_effects(connection: Statements, loaded: Loaded, settled: Settled, ours: list[UUID]) -> Written:
    """The same but for messages and streams, which are written already."""
    before = loaded.before
    write_staging(connection, settled, loaded)
    places = place(settled, loaded)
    told = presents(settled, places)
    write_history(connection, settled, places, told)
    changed = [settled.entities[key] for key in settled.changed]
    altered, deliveries = write_mirror(connection, changed, before, places, told)
    _run(connection, _OVERTAKE, _overtaking(settled, loaded))
    _run(connection, _GAPS, [_with_ids(_gap(gap), settled.entities[gap.stream_id]) for gap in settled.gaps])
    _run(
        connection,
        _CLOSE_GAPS,
        [{"stream_id": s, "version": v, "message_id": m} for s, v, m in settled.closed_gaps],
    )
    _run(connection, _FETCHES, [_fetch(request) for request in settled.fetches])
    listed = id_array(ours)
    shards = wake_set_free(connection, settled, before, listed)
    stopped = note_ends(connection, settled, loaded.batch.guards)
    append_audit(connection, [*audit_entries(loaded, settled, altered), *stopped])
    return Written(frozenset(shards), deliveries, bool(settled.fetches))


def _write_verdicts(connection: Statements, settled: Settled, before: Mapping[UUID, Entity]) -> None:
    was_open = {message.id for entity in before.values() for message in entity.open}
    verdicts = [verdict for _stream, verdict in settled.verdicts.values()]
    _run(connection, _OPEN_VERDICTS, [_verdict(one) for one in verdicts if one.message in was_open])
    _run(connection, _STAGED_VERDICTS, [_verdict(one) for one in verdicts if one.message not in was_open])


def _run(connection: Statements, statement: Any, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        connection.execute(statement, {"rows": record_set(rows)})


def _write_streams(
    connection: Statements, loaded: Loaded, settled: Settled, ours: Sequence[UUID], again: Sequence[UUID]
) -> None:
    """Where the streams stand now, and that nobody is at them any more. LeaseLost where a new one is there already."""
    new, moved = [], []
    restless = set(again)
    for key in ours:
        before = loaded.before[key]
        after = settled.entities.get(key, before)
        if key in loaded.fresh:
            new.append(_new_stream(after) | {"again": key in restless})
        elif settled.partial or key in restless or key in loaded.marked or after.position != before.position:
            moved.append(_position(after) | {"again": key in restless})
    if new and connection.execute(_NEW, {"rows": record_set(new)}).rowcount < len(new):
        raise LeaseLost("Somebody else has come to a new stream of this claim first.")
    if moved:
        connection.execute(_MOVE, {"rows": record_set(moved), "keep": settled.partial})


def _overtaking(settled: Settled, loaded: Loaded) -> list[dict[str, Any]]:
    holds = loaded.held | {stream for stream, verdict in settled.verdicts.values() if verdict.state in HELD}
    reached = {key: settled.reach(loaded.before[key]) for key in holds}
    return [{"id": key, "version": to.version, "seq": to.seq} for key, to in reached.items() if to is not None]


def _unfinished(loaded: Loaded, settled: Settled) -> list[UUID]:
    """Crowded streams in which something moved: the rest of their messages may move now."""
    moved = {stream for stream, verdict in settled.verdicts.values() if verdict.state is not MessageState.WAITING}
    fresh = {
        key
        for key in loaded.crowded
        if any(message.state is MessageState.PENDING for message in loaded.before[key].open)
    }
    return list(loaded.crowded & (moved | fresh))


def write_staging(connection: Statements, settled: Settled, loaded: Loaded) -> None:
    """Keep what is out of scope now, and forget what is not any more."""
    touched = [
        entity
        for key, entity in settled.entities.items()
        if (entity.staged, entity.staged_end) != (loaded.before[key].staged, loaded.before[key].staged_end)
    ]
    if not touched:
        return
    connection.execute(_UNSTAGE, {"ids": id_array(entity.id for entity in touched)})
    rows = []
    for entity in touched:
        for message in (entity.staged, entity.staged_end):
            if message is not None:
                decided = settled.verdicts.get(message.id)
                rows.append(
                    {
                        "stream_id": entity.id,
                        "action": message.action,
                        "tenant_id": entity.tenant_id,
                        "connection_id": entity.connection_id,
                        "kind": entity.kind,
                        "message": message.id,
                        "message_id": message.message_id,
                        "version": message.version,
                        "order_kind": message.order,
                        "sent_at": message.sent_at,
                        "effective_at": message.effective_at,
                        "body": message.body,
                        "passed": message.passed,
                        "reason": (decided[1].reason or decided[1].verdict) if decided else "out_of_scope",
                        "product": message.body.get("product"),
                    }
                )
    _run(connection, _STAGE, rows)


_WORDS = ("reason", "stack", "held_field", "held_value", "waits_for", "wait_reason", "wait_until")


def _verdict(verdict: Verdict) -> dict[str, Any]:
    row: dict[str, Any] = {"id": verdict.message, "state": verdict.state, "verdict": verdict.verdict}
    if verdict.state is not MessageState.APPLIED or verdict.reason is not None:
        row |= {name: value for name in _WORDS if (value := getattr(verdict, name)) is not None}
        row["fetch_asked"] = verdict.fetch_asked
    return row


def _new_stream(entity: Entity) -> dict[str, Any]:
    return {
        **_position(entity),
        "tenant_id": entity.tenant_id,
        "connection_id": entity.connection_id,
        "shard": shard_of(entity.connection_id),
        "kind": entity.kind,
        "source_id": entity.source_id,
    }


def _position(entity: Entity) -> dict[str, Any]:
    position = entity.position
    return {
        "id": entity.id,
        "epoch": position.epoch,
        "version": position.version,
        "sent_at": position.sent_at,
        "message_id": position.message_id,
        "seq": position.seq,
        "digest": None if position.digest is None else position.digest.hex(),
        "deleted": position.deleted,
    }


def _with_ids(row: dict[str, Any], entity: Entity) -> dict[str, Any]:
    return {**row, "tenant_id": entity.tenant_id, "connection_id": entity.connection_id}


def _gap(gap: Gap) -> dict[str, Any]:
    return {
        "stream_id": gap.stream_id,
        "from_version": gap.from_version,
        "to_version": gap.to_version,
        "missing": gap.missing,
    }


def _fetch(request: FetchRequest) -> dict[str, Any]:
    return {
        "stream_id": request.stream_id,
        "tenant_id": request.tenant_id,
        "connection_id": request.connection_id,
        "kind": request.kind,
        "source_id": request.source_id,
        "reason": request.reason,
    }


def audit_entries(loaded: Loaded, settled: Settled, revisions: Mapping[UUID, int]) -> Iterable[AuditEntry]:
    """What the audit keeps of a batch: an entry for each message that was decided."""
    waiting_before = {
        message.id
        for entity in loaded.before.values()
        for message in entity.open
        if message.state is MessageState.WAITING
    }
    details: dict[Hashable, dict[str, Any]] = {}
    for message_id, (stream, verdict) in settled.verdicts.items():
        if verdict.state is MessageState.WAITING and message_id in waiting_before:
            continue
        entity, known = settled.entities[stream], loaded.before[stream]
        detail: dict[str, Any] = {"verdict": verdict.verdict, "version": entity.position.version}
        if verdict.reason is not None:
            detail["reason"] = verdict.reason
        if verdict.state is MessageState.APPLIED:
            fields, revision = _changed_fields(known, entity), revisions.get(stream)
            detail["fields"] = fields
            if revision is not None:
                # What a delivery must bring at least, for this message's story.
                detail["revision"] = revision
            # Many say the same: they share it, so that the chain writes it down once.
            words = (verdict.verdict, entity.position.version, verdict.reason, revision, *fields)
            detail = details.setdefault(words, detail)
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
    if not (before.laid or after.taken):
        return [name for name, value in new.items() if name not in old or old[name] != value]
    # What somebody wrote past the line counts too: the columns are compared as they were found.
    was, shown = {**old, **before.laid}, {**new, **after.taken}
    return [name for name in new if name not in old or old[name] != new[name] or was[name] != shown[name]]
