"""An admin's mapping of a quarantined value: once per connection, field and value (domain.md section 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.admin.acts import record_act
from bss_sync.domain.account import AccountKind
from bss_sync.domain.change import PASSED_HELD
from bss_sync.domain.errors import FieldProblem, InvalidRequest
from bss_sync.domain.subscription import Status, is_period
from bss_sync.domain.tenancy import Connection as SourceConnection

_STATUSES = frozenset(str(status) for status in Status)
_KINDS = frozenset(str(kind) for kind in AccountKind)
_PERIOD = "an ISO 8601 duration such as P1M, or one_time"

CANONICAL: dict[str, tuple[Callable[[str], bool], str]] = {
    "status": (_STATUSES.__contains__, ", ".join(Status)),
    "kind": (_KINDS.__contains__, ", ".join(AccountKind)),
    "billing_cycle": (is_period, _PERIOD),
    "term": (is_period, _PERIOD),
}
"""Field → which canonical values it takes, and how to say so."""


@dataclass(frozen=True, slots=True)
class ValueMap:
    """One mapped value."""

    field: str
    source_value: str
    canonical: str


@dataclass(frozen=True, slots=True)
class Released:
    """How many held messages are decided anew, and the shard to wake after the commit (None: it is not processing)."""

    messages: int
    shard: int | None


_UPSERT = text(
    """insert into value_map (tenant_id, connection_id, field, source_value, canonical)
       values (:tenant_id, :connection_id, :field, :source_value, :canonical)
       on conflict (connection_id, field, source_value) do update set canonical = excluded.canonical"""
)
_RELEASE = text(
    """update message m
       set state = 'pending', shard = case when c.state in ('shadow', 'live') then c.shard end,
           held_field = null, held_value = null, reason = null, verdict = null, decided_at = null,
           change_xid = pg_current_xact_id()
       from connection c
       where c.id = m.connection_id and m.connection_id = :connection_id and m.state = 'quarantined'
         and m.held_field = :field and m.held_value = :source_value
         and settled_on(m.state, m.decided_at) = 'infinity'
       returning m.shard"""
)
# What a later state has passed meanwhile belongs to history all the same. The word of its verdict stays until it is
# decided: such a version is not missing and fills no gap.
_RELEASE_PASSED = text(
    """update message m
       set state = 'pending', shard = case when c.state in ('shadow', 'live') then c.shard end,
           held_field = null, held_value = null, reason = null, decided_at = null, change_xid = pg_current_xact_id()
       from connection c
       where c.id = m.connection_id and m.connection_id = :connection_id and m.state = 'superseded'
         and m.verdict = any(:passed) and m.held_field = :field and m.held_value = :source_value
       returning m.shard"""
)


def map_value(
    connection: Connection, source: SourceConnection, field: str, source_value: str, canonical: str, *, actor: str
) -> Released:
    """Map a source's value and release what it held. InvalidRequest for a field or value that cannot be mapped."""
    if field not in CANONICAL:
        raise InvalidRequest(
            f"{field!r} cannot be mapped.", fields=(FieldProblem("field", f"one of {', '.join(CANONICAL)}"),)
        )
    accepts, allowed = CANONICAL[field]
    if not accepts(canonical):
        raise InvalidRequest(f"{canonical!r} is no canonical {field}.", fields=(FieldProblem("canonical", allowed),))
    scope = {"tenant_id": source.tenant_id, "connection_id": source.id}
    value = {"field": field, "source_value": source_value}
    connection.execute(_UPSERT, {**scope, **value, "canonical": canonical})
    held = {"connection_id": source.id, **value}
    rows = [
        *connection.execute(_RELEASE, held),
        *connection.execute(_RELEASE_PASSED, {**held, "passed": list(PASSED_HELD)}),
    ]
    shards = [row.shard for row in rows]
    record_act(
        connection,
        actor,
        "value.mapped",
        {**value, "canonical": canonical, "released": len(shards)},
        tenant_id=source.tenant_id,
        connection_id=source.id,
    )
    return Released(len(shards), shards[0] if shards else None)


def list_all(connection: Connection, connection_id: UUID) -> list[ValueMap]:
    """The mapped values of a connection."""
    rows = connection.execute(
        text("select field, source_value, canonical from value_map where connection_id = :id order by 1, 2"),
        {"id": connection_id},
    )
    return [ValueMap(row.field, row.source_value, row.canonical) for row in rows]
