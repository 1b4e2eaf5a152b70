"""This deployment: its own id and its distributor."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID, uuid4

from sqlalchemy import Connection, text

from bss_sync.domain.tenancy import Tenant, TenantKind


@dataclass(frozen=True, slots=True)
class Instance:
    """``id`` is what chained messages carry; days are counted in ``time_zone``; ``currency`` is ISO 4217."""

    id: UUID
    distributor: Tenant
    time_zone: str
    currency: str


_READ = text(
    """select i.id, i.time_zone, i.currency, t.id as tenant_id, t.name, t.display_name
       from instance i join tenant t on t.id = i.distributor_id"""
)


def read(connection: Connection) -> Instance | None:
    """The deployment, or None before its first start."""
    row = connection.execute(_READ).one_or_none()
    if row is None:
        return None
    distributor = Tenant(row.tenant_id, row.name, row.display_name, TenantKind.DISTRIBUTOR)
    return Instance(row.id, distributor, row.time_zone, row.currency)


def ensure(connection: Connection, *, name: str, time_zone: str, currency: str) -> Instance:
    """The deployment; made at the first start, of two processes at once by one. Later the arguments have no effect."""
    found = read(connection)
    if found is not None:
        return found
    connection.execute(
        text(
            """insert into tenant (id, name, display_name, kind) values (:id, :name, :name, 'distributor')
               on conflict (kind) where kind = 'distributor' do nothing"""
        ),
        {"id": uuid4(), "name": name},
    )
    connection.execute(
        text(
            """insert into instance (distributor_id, time_zone, currency)
               select id, :time_zone, :currency from tenant where kind = 'distributor' on conflict do nothing"""
        ),
        {"time_zone": time_zone, "currency": currency},
    )
    made = read(connection)
    assert made is not None, "the row has just been written, by us or by the one that we waited for"
    return made
