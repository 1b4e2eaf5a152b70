"""Tenant resellers: the bill-to of everything that comes from their BSS."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.admin.acts import as_uuid
from bss_sync.domain.errors import InvalidRequest, NotFound
from bss_sync.domain.tenancy import Tenant, TenantKind

_COLUMNS = "id, name, display_name, kind"


def find(connection: Connection, reference: str) -> Tenant | None:
    """A tenant by its id or name."""
    row = connection.execute(
        text(f"select {_COLUMNS} from tenant where id = :id or name = :name"),  # noqa: S608  constants only
        {"id": as_uuid(reference), "name": reference},
    ).one_or_none()
    return None if row is None else Tenant(row.id, row.name, row.display_name, TenantKind(row.kind))


def require_reseller(connection: Connection, reference: str) -> Tenant:
    """A tenant reseller; NotFound, or InvalidRequest for the distributor."""
    found = find(connection, reference)
    if found is None:
        raise NotFound(f"There is no tenant {reference!r}.", next_step="See: bss-sync connection list")
    if found.kind is TenantKind.DISTRIBUTOR:
        raise InvalidRequest(f"{reference!r} is the distributor: only a reseller's BSS can be connected.")
    return found


def create(connection: Connection, name: str, display_name: str | None = None) -> Tenant:
    """A new tenant reseller. The caller has made sure that the name is free."""
    tenant = Tenant(uuid4(), name, display_name or name, TenantKind.RESELLER)
    connection.execute(
        text("insert into tenant (id, name, display_name, kind) values (:id, :name, :display_name, 'reseller')"),
        {"id": tenant.id, "name": tenant.name, "display_name": tenant.display_name},
    )
    return tenant


def rename(connection: Connection, tenant: Tenant, display_name: str) -> None:
    """Another name to show; the name that commands use stays."""
    connection.execute(
        text("update tenant set display_name = :display_name where id = :id"),
        {"id": tenant.id, "display_name": display_name},
    )
