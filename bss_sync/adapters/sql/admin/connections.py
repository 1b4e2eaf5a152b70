"""Connections: resellers' BSSs, set up and looked at. Their states are moved by connection_states.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from pydantic import SecretStr
from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.admin import secrets as stored_secrets
from bss_sync.adapters.sql.admin import tenants
from bss_sync.adapters.sql.admin.acts import as_uuid, record_act
from bss_sync.adapters.sql.admin.connector_settings import as_words, declared_order, validate_settings
from bss_sync.domain.change import OrderKind, shard_of
from bss_sync.domain.errors import FieldProblem, InvalidRequest, NotFound, StateConflict
from bss_sync.domain.fairness import PRIORITY_DEFAULT, PRIORITY_MAX, PRIORITY_MIN
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.domain.tenancy import ConnectionState, Tenant
from bss_sync.ports.connector import ConnectorSpec
from bss_sync.ports.runtime import Vault

NAME_CHARACTERS_MAX = 255


@dataclass(frozen=True, slots=True)
class NewConnection:
    """What ``connection add`` is asked for. ``document`` is the ownership policy of version 1."""

    name: str
    spec: ConnectorSpec
    settings: Mapping[str, Any]
    secrets: Mapping[str, SecretStr]
    document: Mapping[str, Mapping[str, str]]
    tenant: str | None = None
    display_name: str | None = None


_FIND = """select c.id, c.tenant_id, t.name as tenant_name, c.name, c.connector, c.state, c.settings, c.order_kind,
                  c.revision
           from connection c join tenant t on t.id = c.tenant_id where c.id = :id or c.name = :name"""


def find(connection: Connection, reference: str, *, lock: bool = False) -> SourceConnection:
    """A connection by its id or name; NotFound. ``lock`` keeps others from changing it until the commit."""
    words = _FIND + (" for no key update of c" if lock else "")
    row = connection.execute(text(words), {"id": as_uuid(reference), "name": reference}).one_or_none()
    if row is None:
        raise NotFound(f"There is no connection {reference!r}.", next_step="See: bss-sync connection list")
    return _source(row)


def _source(row: Row[Any]) -> SourceConnection:
    return SourceConnection(
        id=row.id,
        tenant_id=row.tenant_id,
        tenant_name=row.tenant_name,
        name=row.name,
        connector=row.connector,
        state=ConnectionState(row.state),
        settings=row.settings,
        order=None if row.order_kind is None else OrderKind(row.order_kind),
        revision=row.revision,
    )


_INSERT = text(
    """insert into connection (id, tenant_id, name, connector, settings, order_kind, shard)
       values (:id, :tenant_id, :name, :connector, cast(:settings as jsonb), :order_kind, :shard)"""
)
_POLICY = text(
    """insert into ownership_policy (tenant_id, connection_id, version, document)
       values (:tenant_id, :connection_id, 1, cast(:document as jsonb))"""
)


def add(connection: Connection, vault: Vault, new: NewConnection, *, actor: str) -> tuple[SourceConnection, str]:
    """A connection in the state draft, and its signing secret, which is shown this once.

    StateConflict for a name that is taken, InvalidRequest that names each wrong setting or secret.
    """
    _check_name(new.name)
    settings = validate_settings(new.spec, new.settings)
    check_secret_names(new.spec, new.secrets)
    tenant = _tenant_for(connection, new)
    connection_id = uuid4()
    order = declared_order(new.spec, settings)
    connection.execute(
        _INSERT,
        {
            "id": connection_id,
            "tenant_id": tenant.id,
            "name": new.name,
            "connector": new.spec.name,
            "settings": json.dumps(settings),
            "order_kind": order,
            "shard": shard_of(connection_id),
        },
    )
    scope = {"tenant_id": tenant.id, "connection_id": connection_id}
    connection.execute(_POLICY, {**scope, "document": json.dumps(new.document)})
    source = find(connection, str(connection_id))
    shown, material = stored_secrets.new_signing_secret()
    stored_secrets.add_signing(connection, vault, source, scheme=stored_secrets.Scheme.V1, material=material)
    stored_secrets.replace_opaque(connection, vault, tenant_id=tenant.id, owner_id=connection_id, values=new.secrets)
    detail = {"name": new.name, "tenant": tenant.name, "connector": new.spec.name, "settings": as_words(settings)}
    record_act(connection, actor, "connection.added", detail, tenant_id=tenant.id, connection_id=connection_id)
    return source, shown


def _check_name(name: str) -> None:
    problem = None
    if not name or len(name) > NAME_CHARACTERS_MAX or not name.isprintable() or name != name.strip():
        problem = f"1 to {NAME_CHARACTERS_MAX} printable characters, no spaces at the ends"
    elif "/" in name:
        problem = "must not hold a slash: CONNECTION/SOURCE_ID names a record"
    elif as_uuid(name) is not None:
        problem = "must not look like an id"
    if problem is not None:
        raise InvalidRequest(
            f"{name[:40]!r} is no name for a connection: {problem}.", fields=(FieldProblem("name", problem),)
        )


def check_secret_names(spec: ConnectorSpec, given: Mapping[str, SecretStr]) -> None:
    """InvalidRequest that names each secret which the connector does not take."""
    known = ", ".join(spec.secret_names) or "none"
    problems = tuple(
        FieldProblem(f"secret.{name}", f"the connector {spec.name} takes: {known}")
        for name in given
        if name not in spec.secret_names
    )
    if problems:
        raise InvalidRequest(f"{spec.name} has no secret {', '.join(map(repr, given))}.", fields=problems)


def _tenant_for(connection: Connection, new: NewConnection) -> Tenant:
    """The tenant that the connection belongs to: the named one, made where it is new, else one of its own."""
    taken = connection.execute(text("select 1 from connection where name = :name"), {"name": new.name}).first()
    if taken is not None:
        raise StateConflict(
            f"There is a connection {new.name!r} already.", next_step=f"See: bss-sync connection show {new.name!r}"
        )
    wanted = new.tenant or new.name
    found = tenants.find(connection, wanted)
    if found is None:
        return tenants.create(connection, wanted, new.display_name)
    if new.tenant is None:
        raise StateConflict(
            f"There is a tenant {wanted!r} already.",
            next_step=f"If the connection is that tenant's, say so: --tenant {wanted!r}",
        )
    tenant = tenants.require_reseller(connection, wanted)
    if new.display_name is not None:
        tenants.rename(connection, tenant, new.display_name)
    return tenant


def change(
    connection: Connection,
    source: SourceConnection,
    spec: ConnectorSpec,
    *,
    settings: Mapping[str, Any],
    display_name: str | None,
    actor: str,
) -> None:
    """Change some settings, keep the others; ``priority`` among them is the connection's own.

    InvalidRequest names each wrong one; nothing is changed then.
    """
    priority = _priority(settings["priority"]) if "priority" in settings else None
    merged = {**source.settings, **{name: value for name, value in settings.items() if name != "priority"}}
    validated = validate_settings(spec, {name: value for name, value in merged.items() if value != ""})
    changed = sorted(
        name for name in {*validated, *source.settings} if validated.get(name) != source.settings.get(name)
    )
    connection.execute(
        text(
            """update connection set settings = cast(:settings as jsonb), revision = revision + 1, updated_at = now(),
                      order_kind = coalesce(:order_kind, order_kind), priority = coalesce(:priority, priority),
                      poll_due_at = case when poll_due_at is null then null else now() end
               where id = :id"""
        ),
        {
            "id": source.id,
            "settings": json.dumps(validated),
            "order_kind": declared_order(spec, validated),
            "priority": priority,
        },
    )
    if priority is not None:
        changed.append("priority")
    if display_name is not None:
        tenant = tenants.require_reseller(connection, str(source.tenant_id))
        tenants.rename(connection, tenant, display_name)
        changed.append("display_name")
    words = as_words({name: validated[name] for name in changed if name in validated} | _named(priority))
    detail = {"changed": changed, "settings": words}
    record_act(connection, actor, "connection.changed", detail, tenant_id=source.tenant_id, connection_id=source.id)


def _named(priority: int | None) -> dict[str, int]:
    return {} if priority is None else {"priority": priority}


def _priority(given: Any) -> int:
    """1 to 10; an empty value is the default again."""
    if given == "":
        return PRIORITY_DEFAULT
    try:
        priority = int(given)
    except (TypeError, ValueError):
        priority = 0
    if not PRIORITY_MIN <= priority <= PRIORITY_MAX:
        problem = f"a whole number from {PRIORITY_MIN} to {PRIORITY_MAX}"
        raise InvalidRequest(f"priority: {problem}.", fields=(FieldProblem("priority", problem),))
    return priority


def policy_version(connection: Connection, source: SourceConnection) -> int:
    """The version of the field-ownership policy that holds for a connection."""
    query = text("select max(version) from ownership_policy where connection_id = :id")
    version: int = connection.execute(query, {"id": source.id}).scalar_one()
    return version
