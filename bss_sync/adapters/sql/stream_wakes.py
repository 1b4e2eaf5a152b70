"""Wakes what a batch sets free elsewhere: who waited for what it brought, and what is known of it from before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import text

from bss_sync.adapters.sql.direct import Statements
from bss_sync.adapters.sql.records import id_array, record_set
from bss_sync.adapters.sql.relatives import WAITING_FOR
from bss_sync.domain.change import shard_of
from bss_sync.ports.streams import Entity, Settled

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
        select s.id from stream s where s.id <> all(cast(:ours as uuid[])) and s.id in ({which})
        for no key update skip locked)
    returning shard"""
# A deep tree is woken a stretch at a time, not a level at a time: what enters below its parent shares a batch with it.
_WAKE_WAITING = text(
    _WAKE.format(
        which="with recursive below as ("  # noqa: S608  our own text
        f"select m.stream_id, 1 as level from unnest(cast(:ids as uuid[])) as k (id) {WAITING_FOR} "
        "where m.state = 'waiting' union "
        f"select m.stream_id, k.level + 1 from (select stream_id as id, level from below) k {WAITING_FOR} "
        "where m.state = 'waiting' and k.level < :levels) select stream_id from below"
    )
).bindparams(levels=LEVELS_AT_ONCE)
# Who waits already is known to be needed: two that wait for each other would wake each other for ever.
_WAKE_STAGED = text(
    _WAKE.format(
        which="with recursive above as ("
        "select stream_id, connection_id, message, body ->> 'parent_id' as parent, 1 as level from staging "
        "where stream_id = any(cast(:ids as uuid[])) and action = 'state' "
        "union select g.stream_id, g.connection_id, g.message, g.body ->> 'parent_id', a.level + 1 from above a "
        "join stream t on t.connection_id = a.connection_id and t.kind = 'account' and t.source_id = a.parent "
        "join staging g on g.stream_id = t.id and g.action = 'state' where a.level < :levels) "
        "select a.stream_id from above a where not exists (select from (select state from message "
        "where id = a.message and stream_id = a.stream_id and settled_on(state, decided_at) = 'infinity' offset 0) m "
        "where m.state = 'waiting')"
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


# Nearly always there is nothing to wake: asked once.
_SET_FREE = text(f"""
    select coalesce(bool_or(m.state = 'waiting'), false) as waiting, coalesce(bool_or(m.state = 'dead'), false) as dead,
        exists (select from subscription p join subscription c on c.connection_id = p.connection_id
                  and c.parent_source_id = p.source_id and c.parent_id is null
                where p.id = any(cast(:entered as uuid[]))) as unlinked,
        exists (select from unnest(cast(:moved as uuid[])) as c (id) cross join lateral (
                    select state from message where connection_id = c.id and wait_reason = 'cycle'
                        and settled_on(state, decided_at) = 'infinity' offset 0) m
                where m.state = 'waiting') as cycles
    from unnest(cast(:known as uuid[])) as k (id) {WAITING_FOR}""")  # noqa: S608  our own text


def wake_set_free(connection: Statements, settled: Settled, before: Mapping[UUID, Entity], ours: str) -> set[int]:
    """Wake what a batch sets free elsewhere; the shards that have work now."""
    shards: set[int] = set()

    def wake(statement: Any, ids: Iterable[UUID]) -> None:
        wanted = list(ids)
        if wanted:
            shards.update(connection.execute(statement, {"ids": id_array(wanted), "ours": ours}).scalars())

    known = settled.entered | settled.arrived
    moved = {settled.entities[key].connection_id for key in settled.moved}
    if known or moved:
        values = {"known": id_array(known), "entered": id_array(settled.entered), "moved": id_array(moved)}
        free = connection.execute(_SET_FREE, values).one()
        if free.waiting:
            wake(_WAKE_WAITING, settled.entered | settled.arrived)
        if free.unlinked:
            wake(_WAKE_UNLINKED, settled.entered)
        if free.cycles:
            wake(_WAKE_CYCLES, moved)
        if free.dead and _revive(connection, known):
            shards.update(shard_of(settled.entities[key].connection_id) for key in known)
    wake(_WAKE_STAGED, settled.needed - set(settled.entities))
    reparented = settled.moved - settled.entered
    wake(_WAKE_KEPT_APART, {settled.entities[key].connection_id for key in reparented})
    # Of an entity that nothing was known of, nothing was put aside: every part of the inbox would be looked into.
    since = {key: version for key, version in settled.known_since().items() if before[key].position.version is not None}
    if since:
        rows = record_set([{"id": key, "version": version} for key, version in since.items()])
        if connection.execute(_KNOWN_SINCE, {"rows": rows}).rowcount:
            shards.update(shard_of(settled.entities[key].connection_id) for key in since)
    return shards


def _revive(connection: Statements, known: Collection[UUID]) -> bool:
    """Open again what died waiting for these."""
    dead = connection.execute(_DEAD_FOR, {"known": id_array(known)}).scalars().all()
    if dead:
        connection.execute(_REVIVE, {"dead": id_array(dead)})
    return bool(dead)
