"""Writes what a batch decided: a fixed number of statements, in the transaction that loaded it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.chain_places import place
from bss_sync.adapters.sql.guards import note_ends
from bss_sync.adapters.sql.history_rows import presents, write_history
from bss_sync.adapters.sql.mirror_rows import write_mirror
from bss_sync.adapters.sql.records import id_array, record_set
from bss_sync.adapters.sql.streams_load import Loaded
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import MessageState, shard_of
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
_POSITIONS = text("""
    update stream s set epoch = r.epoch, version = r.version, version_sent_at = r.sent_at,
        version_message_id = r.message_id, version_seq = r.seq, digest = decode(r.digest, 'hex'), deleted = r.deleted
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, epoch integer, version bigint, sent_at timestamptz,
        message_id text, seq bigint, digest text, deleted boolean)
    where s.id = r.id""")
_RELEASE = text(
    "update stream set lease_until = null, unfinished = 0, solo_claims = 0, "
    "ready_at = case when id = any(cast(:again as uuid[])) then now() "
    "when ready_at = lease_until then null else ready_at end where id = any(cast(:ids as uuid[]))"
)
# More follows under the same lease. Should it never end, this claim and the one of the whole stream count for the rest.
_KEEP = text(
    "update stream set unfinished = 1, solo_claims = least(solo_claims, 2) where id = any(cast(:ids as uuid[]))"
)
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
# Asked for first, and nearly always none: joined into the update, a plan made while the inbox was empty and kept would
# look at every message of a flood for each record that enters.
_DEAD_FOR = text("""
    select id from message where state = 'dead' and waits_for = any(cast(:known as uuid[]))
        and settled_on(state, decided_at) = 'infinity' for update skip locked""")
_REVIVE = text("""
    update message m set state = 'pending', verdict = null, reason = null, stack = null, wait_until = null,
        fetch_asked = false, shard = c.shard, change_xid = pg_current_xact_id()
    from connection c where c.id = m.connection_id and settled_on(m.state, m.decided_at) = 'infinity'
        and m.id = any(cast(:dead as uuid[]))""")
# Staging keeps the latest state only: what lies between it and an entry with a late version belongs to history too.
_KNOWN_SINCE = text("""
    update message m set state = 'pending', shard = c.shard, change_xid = pg_current_xact_id()
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, version bigint), connection c
    where c.id = m.connection_id and m.stream_id = r.id and m.state = 'out_of_scope'
        and (m.action = 'deleted' or m.version > r.version)""")
LEVELS_AT_ONCE = 200
_WAKE = """
    update stream set ready_at = now() where id in (
        select s.id from stream s where s.id <> all(cast(:ours as uuid[])) and s.id in ({which}) for update skip locked)
    returning shard"""
# A deep tree is woken a stretch at a time, not a level at a time: what enters below its parent shares a batch with it.
_WAKE_WAITING = text(
    _WAKE.format(
        which="with recursive below as ("
        "select stream_id, 1 as level from message where state = 'waiting' and waits_for = any(cast(:ids as uuid[])) "
        "and settled_on(state, decided_at) = 'infinity' "
        "union select m.stream_id, b.level + 1 from below b join message m on m.waits_for = b.stream_id "
        "where m.state = 'waiting' and settled_on(m.state, m.decided_at) = 'infinity' "
        "and b.level < :levels) select stream_id from below"
    )
).bindparams(levels=LEVELS_AT_ONCE)
_WAKE_STAGED = text(
    _WAKE.format(
        which="with recursive above as ("
        "select stream_id, connection_id, body ->> 'parent_id' as parent, 1 as level from staging "
        "where stream_id = any(cast(:ids as uuid[])) and action = 'state' "
        "union select g.stream_id, g.connection_id, g.body ->> 'parent_id', a.level + 1 from above a "
        "join stream t on t.connection_id = a.connection_id and t.kind = 'account' and t.source_id = a.parent "
        "join staging g on g.stream_id = t.id and g.action = 'state' where a.level < :levels) "
        "select stream_id from above"
    )
).bindparams(levels=LEVELS_AT_ONCE)
_WAKE_CYCLES = text(
    _WAKE.format(
        which="select stream_id from message where state = 'waiting' and wait_reason = 'cycle' "
        "and connection_id = any(cast(:ids as uuid[])) and settled_on(state, decided_at) = 'infinity'"
    )
)
_WAKE_UNLINKED = text(
    _WAKE.format(
        which="select c.id from subscription p join subscription c on c.connection_id = p.connection_id "
        "and c.parent_source_id = p.source_id and c.parent_id is null where p.id = any(cast(:ids as uuid[]))"
    )
)
_WAKE_KEPT_APART = text(
    _WAKE.format(
        which="select c.id from subscription c join subscription p on p.connection_id = c.connection_id "
        "and p.source_id = c.parent_source_id where c.parent_id is null and c.connection_id = any(cast(:ids as uuid[]))"
    )
)


def write_settled(connection: Connection, loaded: Loaded, settled: Settled, ours: list[UUID]) -> Written:
    """Write everything that was decided for the streams ``ours``, wake what it sets free, release their leases."""
    before = loaded.before
    _write_verdicts(connection, settled, before)
    moved_on = [entity for key, entity in settled.entities.items() if entity.position != before[key].position]
    _run(connection, _POSITIONS, [_position(entity) for entity in moved_on])
    _write_staging(connection, settled, loaded)
    places = place(settled, loaded)
    told = presents(settled, places)
    write_history(connection, settled, places, told)
    changed = [settled.entities[key] for key in settled.changed]
    altered, deliveries = write_mirror(connection, changed, before, places, told)
    _run(connection, _OVERTAKE, _overtaking(settled, moved_on))
    _run(connection, _GAPS, [_with_ids(_gap(gap), settled.entities[gap.stream_id]) for gap in settled.gaps])
    _run(
        connection,
        _CLOSE_GAPS,
        [{"stream_id": s, "version": v, "message_id": m} for s, v, m in settled.closed_gaps],
    )
    _run(connection, _FETCHES, [_fetch(request) for request in settled.fetches])
    listed = id_array(ours)
    shards = _wake(connection, settled, before, listed)
    if settled.partial:
        connection.execute(_KEEP, {"ids": listed})
    else:
        again = _unfinished(loaded, settled)
        shards.update(shard_of(loaded.before[key].connection_id) for key in again)
        connection.execute(_RELEASE, {"ids": listed, "again": id_array(again)})
    stopped = note_ends(connection, settled, loaded.batch.guards)
    append_audit(connection, [*_audit(loaded, settled, altered), *stopped])
    return Written(frozenset(shards), deliveries, bool(settled.fetches))


def _write_verdicts(connection: Connection, settled: Settled, before: Mapping[UUID, Entity]) -> None:
    was_open = {message.id for entity in before.values() for message in entity.open}
    verdicts = [verdict for _stream, verdict in settled.verdicts.values()]
    _run(connection, _OPEN_VERDICTS, [_verdict(one) for one in verdicts if one.message in was_open])
    _run(connection, _STAGED_VERDICTS, [_verdict(one) for one in verdicts if one.message not in was_open])


def _run(connection: Connection, statement: Any, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        connection.execute(statement, {"rows": record_set(rows)})


def _overtaking(settled: Settled, moved_on: Sequence[Entity]) -> list[dict[str, Any]]:
    """Below which version held messages have been settled: an answer to a question of ours settles its own too."""
    streams = {entity.id for entity in moved_on} | settled.confirmed.keys()
    positions = {key: settled.entities[key].position for key in streams}
    return [
        {
            "id": key,
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


def _wake(connection: Connection, settled: Settled, before: Mapping[UUID, Entity], ours: str) -> set[int]:
    shards: set[int] = set()

    def wake(statement: Any, ids: Iterable[UUID]) -> None:
        wanted = list(ids)
        if wanted:
            shards.update(connection.execute(statement, {"ids": id_array(wanted), "ours": ours}).scalars())

    wake(_WAKE_WAITING, settled.entered | settled.arrived)
    wake(_WAKE_UNLINKED, settled.entered)
    wake(_WAKE_STAGED, settled.needed - set(settled.entities))
    wake(_WAKE_CYCLES, {settled.entities[key].connection_id for key in settled.moved})
    reparented = settled.moved - settled.entered
    wake(_WAKE_KEPT_APART, {settled.entities[key].connection_id for key in reparented})
    known = settled.entered | settled.arrived
    dead = connection.execute(_DEAD_FOR, {"known": id_array(known)}).scalars().all() if known else ()
    if dead:
        connection.execute(_REVIVE, {"dead": id_array(dead)})
        shards.update(shard_of(settled.entities[key].connection_id) for key in known)
    # Of an entity that nothing was known of, nothing was put aside: every part of the inbox would be looked into.
    since = {key: version for key, version in settled.known_since().items() if before[key].position.version is not None}
    if since:
        rows = record_set([{"id": key, "version": version} for key, version in since.items()])
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
