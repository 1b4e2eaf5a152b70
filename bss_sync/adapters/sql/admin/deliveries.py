"""Which records the distributor's external BSS should hold: one delivery row each (architecture.md, decision 4)."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, text

_DESIRE = text(
    """with wanted as (
           select id, tenant_id, connection_id, 'account' as kind, revision, created_at, deleted_at, ended_at
           from account
           union all
           select id, tenant_id, connection_id, 'subscription', revision, created_at, deleted_at, ended_at
           from subscription
       )
       insert into delivery (record_id, tenant_id, connection_id, kind, desired_revision, due_at)
       select w.id, w.tenant_id, w.connection_id, w.kind, w.revision, now()
       from wanted w join connection c on c.id = w.connection_id
       where c.state = 'live' and (cast(:connection_id as uuid) is null or c.id = :connection_id)
         and exists (select 1 from target)
         and ((w.deleted_at is null and w.ended_at is null)
              or exists (select 1 from delivery d where d.record_id = w.id))
       order by w.kind, w.created_at
       on conflict (record_id) do update
           set desired_revision = greatest(delivery.desired_revision, excluded.desired_revision),
               state = case when delivery.state in ('sending', 'unknown') then delivery.state else 'pending' end,
               due_at = least(delivery.due_at, now()), updated_at = now()
           where delivery.confirmed_revision < excluded.desired_revision"""
)


def desire(connection: Connection, connection_id: UUID | None = None) -> int:
    """Ask for every live record of a live connection, or of all, that the target lacks. Returns how many."""
    return connection.execute(_DESIRE, {"connection_id": connection_id}).rowcount


def forget_confirmations(connection: Connection) -> None:
    """Another system is the target now: what the old one confirmed says nothing about it."""
    connection.execute(
        text(
            """update delivery set state = 'pending', confirmed_revision = 0, external_id = null, intent = null,
                      intent_key = null, intent_revision = null, confirmed = null, confirmed_at = null, attempts = 0,
                      last_error = null, lease_until = null, token = token + 1, updated_at = now()"""
        )
    )


def rest(connection: Connection) -> None:
    """Nothing is due while there is no target."""
    connection.execute(text("update delivery set due_at = null, lease_until = null, updated_at = now()"))
