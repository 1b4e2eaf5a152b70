"""Tenants, connections and the people who use them (domain.md sections 1, 2 and 6)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from bss_sync.domain.change import OrderKind
from bss_sync.domain.errors import StateConflict


class TenantKind(StrEnum):
    """Parties with a BSS of their own."""

    DISTRIBUTOR = "distributor"  # one per deployment
    RESELLER = "reseller"  # a tenant reseller: the bill-to of everything that comes from its BSS


class ConnectionState(StrEnum):
    """Connecting a reseller is a process, not a switch. Messages are accepted in every state but ``closed``."""

    DRAFT = "draft"  # being set up: nothing processed, polled or delivered
    CHECKING = "checking"  # the checks run: likewise
    PAUSED = "paused"  # stopped by an admin: likewise
    SHADOW = "shadow"  # the mirror is written and compared; nothing is delivered, ordered or invoiced
    LIVE = "live"  # everything
    CLOSED = "closed"  # ended on a date; history is kept


PROCESSING = frozenset({ConnectionState.SHADOW, ConnectionState.LIVE})
"""States in which messages are processed and sources polled."""

_MOVES: dict[ConnectionState, frozenset[ConnectionState]] = {
    ConnectionState.DRAFT: frozenset({ConnectionState.CHECKING, ConnectionState.SHADOW, ConnectionState.CLOSED}),
    ConnectionState.CHECKING: frozenset({ConnectionState.DRAFT, ConnectionState.LIVE, ConnectionState.SHADOW}),
    ConnectionState.PAUSED: frozenset({ConnectionState.SHADOW, ConnectionState.LIVE, ConnectionState.CLOSED}),
    ConnectionState.SHADOW: frozenset(
        {ConnectionState.CHECKING, ConnectionState.LIVE, ConnectionState.PAUSED, ConnectionState.CLOSED}
    ),
    ConnectionState.LIVE: frozenset({ConnectionState.SHADOW, ConnectionState.PAUSED, ConnectionState.CLOSED}),
    ConnectionState.CLOSED: frozenset(),
}


def check_move(current: ConnectionState, wanted: ConnectionState) -> None:
    """Raise StateConflict unless a connection may move from ``current`` to ``wanted``."""
    if wanted not in _MOVES[current]:
        allowed = ", ".join(sorted(_MOVES[current])) or "nothing"
        raise StateConflict(f"A connection that is {current} cannot become {wanted}; it can become: {allowed}.")


class Role(StrEnum):
    """The roles of API tokens (contract: Roles)."""

    ADMIN = "admin"  # everything
    OPERATOR = "operator"  # every GET; own fields, contacts, activities, replay, reconcile
    AUDITOR = "auditor"  # every GET
    CHAIN = "chain"  # the instance of the tier above: GET of /v1/chain and nothing else
    RESELLER = "reseller"  # GET of its own subtree, messages and health


@dataclass(frozen=True, slots=True)
class Tenant:
    """A party with a BSS of its own."""

    id: UUID
    name: str
    display_name: str
    kind: TenantKind


@dataclass(frozen=True, slots=True)
class Connection:
    """One reseller's BSS, connected.

    ``settings`` are the connector's (its JSON Schema), ``order`` is None until the first message shows it (a
    push-only connector may speak either kind), ``revision`` grows with every change of the row or its secrets.
    """

    id: UUID
    tenant_id: UUID
    tenant_name: str
    name: str
    connector: str
    state: ConnectionState
    settings: dict[str, Any]
    order: OrderKind | None
    revision: int
