"""Replays in PostgreSQL (ports/replays.py, ReplayStore)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.runs import run_entry
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import Kind, MessageState
from bss_sync.ports.replays import DueReplay, Replayed, StoredMessage

_LOAD = text(
    """select id, message_id, connection_id, stream_id, kind, source_id, state from message
       where id = any(:ids) order by seq"""
)
# The streams first, like the workers do: two that wait for each other's rows would be stopped by PostgreSQL.
_STREAMS = text(
    "select id from stream where id in (select stream_id from message where id = any(:ids)) order by id "
    "for no key update"
)
_CONNECTIONS = text("select distinct connection_id from message where id = any(:ids)")
_CHOSEN = text("select id, state from message where id = any(:ids) order by id for update")
_OPENABLE = text(
    "select count(*) from message where id = any(:ids) and state not in ('applied', 'superseded', 'pending')"
)
_BEGIN = text(
    """insert into run (id, tenant_id, connection_id, kind, options, progress, requested_by)
       select :run, coalesce((select tenant_id from connection where id = cast(:connection as uuid)), i.distributor_id),
              cast(:connection as uuid), 'replay', cast(:options as jsonb),
              jsonb_build_object('done', 0, 'due_at', now() + :lease * interval '1s'), :actor
       from instance i returning *"""
)
_ITEMS = text(
    """insert into replay_item (run_id, place, tenant_id, stream_id, message)
       select :run, row_number() over (order by m.connection_id, m.kind, m.stream_id, m.seq), m.tenant_id, m.stream_id,
              m.id
       from message m where m.id = any(:ids) and m.state not in ('applied', 'superseded', 'pending')"""
)
_TOTAL = text("update run set progress = progress || jsonb_build_object('total', cast(:total as int)) where id = :run")
_RUN = text("select * from run where id = :run and kind = 'replay' and state = 'running' for update skip locked")
_NEXT = text(
    """select message, place from replay_item i where i.run_id = :run and i.place > :done and i.place <= (
           select max(j.place) from replay_item j where j.run_id = :run and j.stream_id = (
               select k.stream_id from replay_item k where k.run_id = :run and k.place <= :done + :limit
               order by k.place desc limit 1))
       order by place"""
)
_STEPPED = text(
    """update run set updated_at = now(), progress = progress
           || jsonb_build_object('done', cast(:done as int), 'due_at', now() + :lease * interval '1s')
       where id = :run"""
)
_DONE = text(
    """update run set state = 'done', updated_at = now(), finished_at = now(),
           result = jsonb_build_object('replayed', cast(:done as int)) where id = :run"""
)
_FORGET = text("delete from replay_item where run_id = :run")
_DUE = text(
    """select id, (options ->> 'rate')::float as rate from run where kind = 'replay' and state = 'running'
         and (progress ->> 'due_at')::timestamptz <= now() order by created_at limit 1"""
)
# What it waited for stays needed until it is decided anew: the dry run saw it so, in whatever steps it is carried out.
_REOPEN = text(
    """update message m set state = 'pending', shard = case when c.state in ('shadow', 'live') then c.shard end,
           verdict = null, reason = null, stack = null, held_field = null, held_value = null,
           waits_for = case when m.state = 'dead' or m.wait_reason in ('account_unknown', 'parent_unknown')
                            then m.waits_for end,
           wait_reason = null, wait_until = null, fetch_asked = false, decided_at = null,
           change_xid = pg_current_xact_id()
       from connection c where c.id = m.connection_id and m.id = any(:ids)
         and m.state not in ('applied', 'superseded', 'pending')
       returning m.id, m.tenant_id, m.connection_id, m.stream_id, m.kind, m.shard, m.message_id"""
)
# What had been put aside as a process-killer is claimed like any other again.
_FORGIVE = text("update stream set unfinished = 0, solo_claims = 0 where id = any(:ids)")
_DISCARD = text(
    """update message m set state = 'discarded', shard = null, verdict = 'discarded', reason = :reason,
           waits_for = null, wait_reason = null, wait_until = null, decided_at = now(),
           change_xid = pg_current_xact_id()
       where m.id = any(:ids) and m.state in ('pending', 'waiting', 'quarantined', 'dead', 'out_of_scope')
       returning m.id, m.tenant_id, m.connection_id, m.stream_id, m.kind, m.message_id"""
)
# A discarded state that was kept for later does not enter any more.
_UNSTAGE = text("delete from staging where message = any(:ids)")


class SqlReplays:
    """ReplayStore over PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self, ids: Sequence[UUID]) -> Sequence[StoredMessage]:
        """See ReplayStore."""
        with self._database.engine() as connection:
            rows = connection.execute(_LOAD, {"ids": list(ids)}).all()
        return [
            StoredMessage(
                id=row.id,
                message_id=row.message_id,
                connection_id=row.connection_id,
                stream_id=row.stream_id,
                kind=Kind(row.kind),
                source_id=row.source_id,
                state=MessageState(row.state),
            )
            for row in rows
        ]

    def begin(self, ids: Sequence[UUID], *, actor: str, rate: float | None, lease_seconds: float) -> UUID | None:
        """See ReplayStore."""
        run_id = uuid4()
        with self._database.engine() as connection:
            of = connection.execute(_CONNECTIONS, {"ids": list(ids)}).scalars().all()
            values = {
                "run": run_id,
                "connection": of[0] if len(of) == 1 else None,
                "options": json.dumps({"rate": rate, "chosen": len(ids)}),
                "actor": actor,
                "lease": lease_seconds,
            }
            if connection.execute(_OPENABLE, {"ids": list(ids)}).scalar_one() == 0:
                return None
            row = connection.execute(_BEGIN, values).one()
            total = connection.execute(_ITEMS, {"run": run_id, "ids": list(ids)}).rowcount
            connection.execute(_TOTAL, {"run": run_id, "total": total})
            append_audit(connection, [run_entry(row, "run.started", {"messages": total})])
        return run_id

    def step(self, run_id: UUID, limit: int, *, lease_seconds: float) -> Replayed | None:
        """See ReplayStore."""
        with self._database.engine() as connection:
            run = connection.execute(_RUN, {"run": run_id}).one_or_none()
            if run is None:
                return None
            done, total = int(run.progress["done"]), int(run.progress["total"])
            items = connection.execute(_NEXT, {"run": run_id, "done": done, "limit": limit}).all()
            opened = _reopen(connection, [item.message for item in items])
            done = items[-1].place if items else total
            rate = run.options["rate"]
            rest_seconds = 0.0 if rate is None else len(opened) / rate
            connection.execute(_STEPPED, {"run": run_id, "done": done, "lease": rest_seconds + lease_seconds})
            entries = [_entry(row, "message.replayed", run.requested_by, {"from": state}) for row, state in opened]
            if done >= total:
                connection.execute(_DONE, {"run": run_id, "done": done})
                connection.execute(_FORGET, {"run": run_id})
                entries.append(run_entry(run, "run.done", {"messages": done}))
            append_audit(connection, entries)
        shards = frozenset(row.shard for row, _state in opened if row.shard is not None)
        return Replayed(done, total, shards, rest_seconds)

    def due(self) -> DueReplay | None:
        """See ReplayStore."""
        with self._database.engine() as connection:
            row = connection.execute(_DUE).one_or_none()
        return None if row is None else DueReplay(row.id, row.rate)

    def discard(self, ids: Sequence[UUID], reason: str, *, actor: str) -> int:
        """See ReplayStore."""
        with self._database.engine() as connection:
            connection.execute(_STREAMS, {"ids": list(ids)})
            before = {row.id: row.state for row in connection.execute(_CHOSEN, {"ids": list(ids)})}
            rows = connection.execute(_DISCARD, {"ids": list(ids), "reason": reason}).all()
            connection.execute(_UNSTAGE, {"ids": [row.id for row in rows]})
            append_audit(
                connection,
                [_entry(row, "message.discarded", actor, {"from": before[row.id], "reason": reason}) for row in rows],
            )
        return len(rows)


def _reopen(connection: Connection, ids: Sequence[UUID]) -> list[tuple[Row[Any], str]]:
    """Make them pending, but for those that are decided or pending by now; each with the state that it had."""
    connection.execute(_STREAMS, {"ids": list(ids)})
    before = {row.id: row.state for row in connection.execute(_CHOSEN, {"ids": list(ids)})}
    rows = connection.execute(_REOPEN, {"ids": list(ids)}).all()
    connection.execute(_FORGIVE, {"ids": list({row.stream_id for row in rows})})
    return [(row, before[row.id]) for row in rows]


def _entry(row: Row[Any], action: str, actor: str, detail: dict[str, str]) -> AuditEntry:
    return AuditEntry(
        row.connection_id,
        row.tenant_id,
        actor,
        action,
        {"message_id": row.message_id, **detail},
        connection_id=row.connection_id,
        kind=row.kind,
        record_id=row.stream_id,
        message=row.id,
    )
