"""Who calls? Bearer tokens of the API, and the transaction that a caller may read and write in.

A route says what it needs: ``caller: Annotated[Principal, Depends(require(Right.READ))]`` and opens
``with transaction(request, caller) as connection``. The token is looked up on every request, so a revoked one is
refused at once; only its SHA-256 is known to the database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Connection, text
from starlette.exceptions import HTTPException

from bss_sync.domain.permissions import Right, check_right
from bss_sync.domain.tenancy import Role

if TYPE_CHECKING:
    from bss_sync.bootstrap import App

TOKEN_CHARACTERS_MAX = 512

_bearer = HTTPBearer(auto_error=False, description="A token of `bss-sync token create`.")
_LOOK_UP = text("select id, name, role, tenant_id, connection_id from token_lookup(:digest)")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a token speaks for. ``tenant_id`` is None for the distributor's people: they see every tenant.

    ``connection_id`` narrows a token to one connection where it was created so.
    """

    token_id: UUID
    name: str
    role: Role
    tenant_id: UUID | None
    connection_id: UUID | None

    @property
    def actor(self) -> str:
        """How the audit names it."""
        return f"token:{self.name}"


def application(request: Request) -> App:
    """The wired application behind a request."""
    wired: App = request.app.state.bss_sync
    return wired


def _refused(detail: str) -> HTTPException:
    return HTTPException(401, detail, headers={"WWW-Authenticate": 'Bearer realm="bss-sync"'})


def principal(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Principal:
    """The caller of this request; 401 without a token that is known and not revoked."""
    if credentials is None:
        raise _refused("A token is needed.")
    if len(credentials.credentials) > TOKEN_CHARACTERS_MAX:
        raise _refused("The token is not known.")
    digest = hashlib.sha256(credentials.credentials.encode("utf-8", "surrogateescape")).digest()
    with application(request).database.api(None) as connection:
        row = connection.execute(_LOOK_UP, {"digest": digest}).one_or_none()
    if row is None:
        raise _refused("The token is not known, or it was revoked.")
    return Principal(row.id, row.name, Role(row.role), row.tenant_id, row.connection_id)


def require(right: Right) -> Callable[[Principal], Principal]:
    """A dependency that gives the caller, or refuses (403) one whose role lacks ``right``."""

    def permitted(caller: Annotated[Principal, Depends(principal)]) -> Principal:
        check_right(caller.role, right)
        return caller

    return permitted


@contextmanager
def transaction(request: Request, caller: Principal) -> Iterator[Connection]:
    """One transaction within the caller's reach: a reseller's own tenant, or all for the distributor's people."""
    assert (caller.role is Role.RESELLER) == (caller.tenant_id is not None), "only resellers belong to a tenant"
    with application(request).database.api(caller.tenant_id) as connection:
        yield connection
