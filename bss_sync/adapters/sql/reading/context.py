"""What every answer needs: the distributor's name, its time zone, and who owns which field of the records shown."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.reading.paging import is_uuid
from bss_sync.adapters.sql.reading.reach import Reach, Where
from bss_sync.domain.errors import ConfigurationError, FieldProblem, NotFound
from bss_sync.domain.ownership import OwnershipPolicy, default_document, parse_policy

_INSTANCE = text(
    """select i.distributor_id, t.display_name, i.time_zone, i.currency, now() as moment
       from instance i join tenant t on t.id = i.distributor_id"""
)
_POLICIES = text(
    """select distinct on (connection_id) connection_id, version, document from ownership_policy
       where connection_id = any(cast(:ids as uuid[])) order by connection_id, version desc"""
)
_TAKEN = text(
    """select record_id, field from takeover
       where record_id = any(cast(:ids as uuid[])) and released_at is null"""
)


@dataclass(frozen=True, slots=True)
class Installation:
    """The distributor behind this deployment. ``now`` is PostgreSQL's clock."""

    distributor_id: UUID
    distributor: str
    time_zone: str
    currency: str
    now: Any


@dataclass(frozen=True, slots=True)
class Named:
    """A connection by its id and name."""

    id: UUID
    tenant_id: UUID
    name: str


DEFAULT_POLICY = parse_policy(default_document(), 0)
"""Holds where a connection has no policy of its own."""


def read_installation(connection: Connection) -> Installation:
    """The one row of this deployment; ConfigurationError when it was never set up."""
    row = connection.execute(_INSTANCE).one_or_none()
    if row is None:
        raise ConfigurationError("instance: this database was never set up.", next_step="Run: bss-sync doctor")
    return Installation(row.distributor_id, row.display_name, row.time_zone, row.currency, row.moment)


def find_connection(connection: Connection, reach: Reach, wanted: str) -> Named:
    """A connection by id or name; NotFound also for a foreign one."""
    where = Where().within(reach, "c", connection_column="id")
    if is_uuid(wanted):
        where.add("(c.id = cast(:wanted_id as uuid) or c.name = :wanted)", wanted_id=wanted, wanted=wanted)
    else:
        where.add("c.name = :wanted", wanted=wanted.replace("\x00", ""))
    query = where.under("select c.id, c.tenant_id, c.name from connection c", "limit 1")
    row = connection.execute(query, where.values).one_or_none()
    if row is None:
        raise NotFound(
            f"There is no connection {wanted!r}.", fields=(FieldProblem("connection", "no such connection"),)
        )
    return Named(row.id, row.tenant_id, row.name)


def read_policies(connection: Connection, connection_ids: Collection[UUID]) -> Mapping[UUID, OwnershipPolicy]:
    """The newest ownership policy of each connection, the law's own table where there is none."""
    rows = connection.execute(_POLICIES, {"ids": list(connection_ids)})
    found = {row.connection_id: parse_policy(row.document, row.version) for row in rows}
    return {connection_id: found.get(connection_id, DEFAULT_POLICY) for connection_id in connection_ids}


def read_taken(connection: Connection, record_ids: Collection[UUID]) -> Mapping[UUID, frozenset[str]]:
    """The fields of each record that the distributor has taken over now."""
    taken: dict[UUID, set[str]] = {}
    for row in connection.execute(_TAKEN, {"ids": list(record_ids)}):
        taken.setdefault(row.record_id, set()).add(row.field)
    return {record_id: frozenset(fields) for record_id, fields in taken.items()}
