"""Closing a connection on a date: what is live ends with the end of that day, under the guard; history is kept.

It is a run of its own: ``stopped`` while the guard waits for an admin, ``approved`` until the day is over, then
``done``. A day that is over already, or today, closes at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.admin import connections
from bss_sync.adapters.sql.admin.acts import record_act
from bss_sync.domain.errors import StateConflict
from bss_sync.domain.guard import exceeds
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.domain.tenancy import ConnectionState, check_move
from bss_sync.ports.connector import ConnectionSettings

REASON = "closed"


@dataclass(frozen=True, slots=True)
class Closing:
    """A closing that was asked for. ``state`` is the run's: stopped by the guard, approved for a later day, or done."""

    run_id: UUID
    state: str
    on: date
    accounts: int
    subscriptions: int

    @property
    def records(self) -> int:
        """How many end."""
        return self.accounts + self.subscriptions


_LIVE = text(
    """select (select count(*) from account where connection_id = :id and deleted_at is null and ended_at is null),
              (select count(*) from subscription where connection_id = :id and deleted_at is null
                 and ended_at is null)"""
)


def request(connection: Connection, source: SourceConnection, on: date, *, actor: str) -> Closing:
    """Ask for the closing of a connection, which is locked. StateConflict when it cannot close or is closing."""
    check_move(source.state, ConnectionState.CLOSED)
    open_run = connection.execute(
        text("select id from run where connection_id = :id and kind = 'close' and state in ('stopped', 'approved')"),
        {"id": source.id},
    ).scalar()
    if open_run is not None:
        raise StateConflict(f"{source.name} is being closed already.", next_step=f"See: bss-sync run show {open_run}")
    accounts, subscriptions = connection.execute(_LIVE, {"id": source.id}).one()
    state = "stopped" if _guarded(source.settings, accounts + subscriptions) else "approved"
    run_id = uuid4()
    connection.execute(
        text(
            """insert into run (id, tenant_id, connection_id, kind, state, options, progress, requested_by)
               values (:id, :tenant_id, :connection_id, 'close', :state, cast(:options as jsonb),
                       cast(:progress as jsonb), :actor)"""
        ),
        {
            "id": run_id,
            "tenant_id": source.tenant_id,
            "connection_id": source.id,
            "state": state,
            "options": json.dumps({"on": on.isoformat()}),
            "progress": json.dumps({"accounts": accounts, "subscriptions": subscriptions}),
            "actor": actor,
        },
    )
    if state == "approved" and is_due(connection, on):
        return execute(connection, run_id, actor=actor)
    _announce(connection, source, state, on)
    detail = {"run_id": str(run_id), "on": on.isoformat(), "state": state, "records": accounts + subscriptions}
    _record(connection, source, actor, "connection.closing", detail)
    return Closing(run_id, state, on, accounts, subscriptions)


def _guarded(settings: Mapping[str, Any], records: int) -> bool:
    """Whether the guard stops it: all that is live would end, which is a share of one (domain.md section 7, 4)."""
    guard = ConnectionSettings.model_validate(
        {name: settings[name] for name in ("guard_count", "guard_share") if name in settings}
    )
    return exceeds(records, records, count=guard.guard_count, share=guard.guard_share)


def _announce(connection: Connection, source: SourceConnection, state: str, on: date) -> None:
    if state == "approved":
        connection.execute(
            text("update connection set closed_on = :on, updated_at = now() where id = :id"),
            {"on": on, "id": source.id},
        )


def end_of_day(connection: Connection, on: date) -> datetime:
    """The first moment after a day in the distributor's time zone; aware UTC."""
    zone: str = connection.execute(text("select time_zone from instance")).scalar_one()
    return datetime.combine(on + timedelta(days=1), time(), ZoneInfo(zone)).astimezone(UTC)


def is_due(connection: Connection, on: date) -> bool:
    """Whether the day has begun in the distributor's time zone: closing on today means now."""
    begun = end_of_day(connection, on - timedelta(days=1))
    return bool(connection.execute(text("select now() >= :begun"), {"begun": begun}).scalar_one())


_END = """
    with ended as (
        update {table} set ended_at = least(:at, now()), ended_reason = :reason, revision = revision + 1,
               chain_version = coalesce(chain_version, greatest(version, revision)) + 1, chain_effective_at = null,
               updated_at = now(), change_xid = pg_current_xact_id()
        where connection_id = :id and deleted_at is null and ended_at is null
        returning id, tenant_id, connection_id, epoch, version, source, message, ended_at, chain_version, parent_id)
    insert into history (tenant_id, connection_id, kind, record_id, epoch, version, effective_at, state, deleted,
                         ended_reason, message, chain_version, chain_linked)
    select tenant_id, connection_id, '{table}', id, epoch, version, ended_at, source, false, :reason, message,
           chain_version, parent_id is not null
    from ended"""
# Whoever has a stream that is new has no row to be fenced: it looks at the connection, and waits for us (streams_load).
_FENCE_NEW = text("select from connection where id = :id for update")
_FENCE = text("update stream set token = token + 1, lease_until = null, ready_at = null where connection_id = :id")
_PARK = text(
    """update message set shard = null, change_xid = pg_current_xact_id()
       where connection_id = :id and state = 'pending' and shard is not null
         and settled_on(state, decided_at) = 'infinity'"""
)
_FETCHES = text("delete from fetch_request where connection_id = :id")
# What the distributor's BSS holds is ended there; what it never got is not sent any more.
_DELIVER_ENDS = text(
    """update delivery d set due_at = case when d.external_id is not null or d.state in ('sending', 'unknown')
                                           then now() end,
              state = case when d.state in ('sending', 'unknown') then d.state else 'pending' end,
              desired_revision = greatest(d.desired_revision, r.revision), attempts = 0, updated_at = now()
       from (select id, revision from account where connection_id = :id
             union all select id, revision from subscription where connection_id = :id) r
       where d.record_id = r.id and d.confirmed_revision < r.revision"""
)
_CLOSE = text(
    """update connection set state = 'closed', closed_on = :on, paused_from = null, poll_due_at = null,
              revision = revision + 1, updated_at = now() where id = :id"""
)


def execute(connection: Connection, run_id: UUID, *, actor: str) -> Closing:
    """End what is live and close the connection. The streams are fenced: work that is under way writes nothing."""
    run = connection.execute(
        text("select connection_id, options from run where id = :id for update"), {"id": run_id}
    ).one()
    on = date.fromisoformat(run.options["on"])
    source = connections.find(connection, str(run.connection_id), lock=True)
    check_move(source.state, ConnectionState.CLOSED)
    scope = {"id": source.id}
    connection.execute(_FENCE_NEW, scope)
    connection.execute(_FENCE, scope)
    connection.execute(_PARK, scope)
    connection.execute(_FETCHES, scope)
    ending = {**scope, "at": end_of_day(connection, on), "reason": REASON}
    accounts = connection.execute(text(_END.format(table="account")), ending).rowcount
    subscriptions = connection.execute(text(_END.format(table="subscription")), ending).rowcount
    connection.execute(_DELIVER_ENDS, scope)
    connection.execute(_CLOSE, {**scope, "on": on})
    connection.execute(
        text(
            """update run set state = 'done', result = cast(:result as jsonb), updated_at = now(), finished_at = now()
               where id = :id"""
        ),
        {"id": run_id, "result": json.dumps({"accounts": accounts, "subscriptions": subscriptions})},
    )
    detail = {"run_id": str(run_id), "on": on.isoformat(), "accounts": accounts, "subscriptions": subscriptions}
    _record(connection, source, actor, "connection.closed", detail)
    return Closing(run_id, "done", on, accounts, subscriptions)


_APPROVED = text(
    """select r.id, r.options from run r join connection c on c.id = r.connection_id
       where r.kind = 'close' and r.state = 'approved' and c.state <> 'checking'
       order by r.created_at for update of r skip locked"""
)


def execute_next_due(connection: Connection) -> Closing | None:
    """Close the next connection that was approved for a day that has begun; None when there is none.

    One to a transaction. The sweeper asks again and again.
    """
    for row in connection.execute(_APPROVED).all():
        if is_due(connection, date.fromisoformat(row.options["on"])):
            return execute(connection, row.id, actor="system")
    return None


def _record(
    connection: Connection, source: SourceConnection, actor: str, action: str, detail: Mapping[str, Any]
) -> None:
    record_act(connection, actor, action, detail, tenant_id=source.tenant_id, connection_id=source.id)
