"""Breakers by an admin's hand: close one now, whatever the remote asked for, and try again what had failed."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.admin.acts import record_act
from bss_sync.adapters.sql.reading.breakers import show_breakers
from bss_sync.domain.errors import NotFound
from bss_sync.domain.tenancy import Connection as SourceConnection

# An admin's word is a new beginning: what is tried now does not wait for the retry budget.
_CLOSE = text("delete from breaker where owner_id = :owner_id")
_TRY_SOURCE = text(
    """update fetch_request set due_at = now(), attempts = 0
       where connection_id = :id and due_at > now() and (lease_until is null or lease_until <= now())"""
)
_POLL_SOURCE = text(
    "update connection set poll_due_at = now() where id = :id and poll_failures > 0 and poll_lease_until is null"
)
_TRY_TARGET = text(
    """update delivery set due_at = now(), attempts = 0
       where due_at > now() and state in ('pending', 'unknown')
         and (lease_until is null or lease_until <= now())"""
)
# What was refused for good is tried once more, and what waits for its relatives looks again.
_TRY_REFUSED = text(
    """update delivery set due_at = now(), attempts = 0, state = 'pending', updated_at = now()
       where state in ('dead', 'blocked')"""
)
_HELD_BACK = text(
    """select exists (select from breaker where owner_id = :owner_id and open_until is not null)
           or exists (select from delivery where state in ('dead', 'blocked'))"""
)


@dataclass(frozen=True, slots=True)
class Reset:
    """What a reset found: the state before, and how many pieces of work are tried again now."""

    before: str
    due: int


def target_owner(connection: Connection) -> UUID:
    """Whose breaker the target's is. NotFound when no target is set."""
    owner: UUID | None = connection.execute(
        text("select i.distributor_id from instance i where exists (select from target)")
    ).scalar_one_or_none()
    if owner is None:
        raise NotFound("No target is set.", next_step="Nothing is called: the mirror is the distributor's BSS.")
    return owner


def reset_source(connection: Connection, source: SourceConnection, *, actor: str) -> Reset:
    """Close the breaker of a connection's source, with a fresh budget."""
    before = str(show_breakers(connection, [source.id])[source.id]["state"])
    connection.execute(_CLOSE, {"owner_id": source.id})
    due = connection.execute(_TRY_SOURCE, {"id": source.id}).rowcount
    due += connection.execute(_POLL_SOURCE, {"id": source.id}).rowcount
    detail = {"remote": "source", "before": before, "due": due}
    record_act(connection, actor, "breaker.reset", detail, tenant_id=source.tenant_id, connection_id=source.id)
    return Reset(before, due)


def reset_target(connection: Connection, *, actor: str) -> Reset:
    """Close the breaker of the target, with a fresh budget, and try what had failed, was refused or was blocked."""
    owner = target_owner(connection)
    before = str(show_breakers(connection, [owner])[owner]["state"])
    connection.execute(_CLOSE, {"owner_id": owner})
    due = connection.execute(_TRY_TARGET).rowcount + connection.execute(_TRY_REFUSED).rowcount
    record_act(connection, actor, "breaker.reset", {"remote": "target", "before": before, "due": due}, tenant_id=owner)
    return Reset(before, due)


def release_target(connection: Connection, *, actor: str) -> int:
    """The target has just answered: what was held back goes on. Returns how many deliveries are tried again now."""
    if not connection.execute(_HELD_BACK, {"owner_id": target_owner(connection)}).scalar_one():
        return 0
    return reset_target(connection, actor=actor).due
