"""API tokens. Only the SHA-256 of a token is kept; its text is shown once."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.admin.acts import as_uuid, record_distributor_act
from bss_sync.domain.errors import FieldProblem, InvalidRequest, NotFound
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.domain.tenancy import Role

TOKEN_PREFIX = "bst_"  # noqa: S105  what a token begins with, so that scanners recognise a leaked one
TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token just made: the only moment when its text is known."""

    id: UUID
    token: str


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept. ``tenant`` is None for the distributor's people."""

    id: UUID
    name: str
    role: Role
    tenant: str | None
    connection: str | None
    created_at: datetime
    revoked_at: datetime | None


_INSERT = text(
    """insert into api_token (id, name, role, tenant_id, connection_id, digest)
       values (:id, :name, :role, :tenant_id, :connection_id, :digest)"""
)


def create(connection: Connection, *, role: Role, name: str, source: SourceConnection | None, actor: str) -> NewToken:
    """A new token. A reseller's belongs to a connection's tenant; the distributor's people see every connection."""
    if not name.strip():
        raise InvalidRequest("A token needs a name.", fields=(FieldProblem("name", "who or what will use it"),))
    if (role is Role.RESELLER) != (source is not None):
        problem = "is needed for a reseller's token" if source is None else "is for a reseller's token only"
        raise InvalidRequest(f"connection: {problem}.", fields=(FieldProblem("connection", problem),))
    made = NewToken(uuid4(), TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES))
    connection.execute(
        _INSERT,
        {
            "id": made.id,
            "name": name,
            "role": role,
            "tenant_id": None if source is None else source.tenant_id,
            "connection_id": None if source is None else source.id,
            "digest": hashlib.sha256(made.token.encode()).digest(),
        },
    )
    detail = {"token_id": str(made.id), "name": name, "role": str(role)}
    if source is not None:
        detail["connection"] = source.name
    record_distributor_act(connection, actor, "token.created", detail)
    return made


_LIST = text(
    """select k.id, k.name, k.role, t.name as tenant, c.name as connection, k.created_at, k.revoked_at
       from api_token k left join tenant t on t.id = k.tenant_id left join connection c on c.id = k.connection_id
       where :every or k.revoked_at is null order by k.created_at, k.id"""
)


def list_all(connection: Connection, *, revoked: bool = False) -> list[Token]:
    """The tokens in use, with ``revoked`` also those that are not."""
    return [
        Token(row.id, row.name, Role(row.role), row.tenant, row.connection, row.created_at, row.revoked_at)
        for row in connection.execute(_LIST, {"every": revoked})
    ]


def revoke(connection: Connection, reference: str, *, actor: str) -> list[Token]:
    """Revoke by id, or every token of a name; refused at once from then on. NotFound when none is in use."""
    found = [token for token in list_all(connection) if token.id == as_uuid(reference) or token.name == reference]
    if not found:
        raise NotFound(f"There is no token {reference!r} in use.", next_step="See: bss-sync token list")
    connection.execute(
        text("update api_token set revoked_at = now() where id = any(:ids)"), {"ids": [token.id for token in found]}
    )
    ids = [str(token.id) for token in found]
    record_distributor_act(connection, actor, "token.revoked", {"token_ids": ids, "name": found[0].name})
    return found
