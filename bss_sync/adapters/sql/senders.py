"""Who may send to the door: connections with their opened secrets, many in one look-up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Row, text

from bss_sync.adapters.secrets import secret_context
from bss_sync.adapters.sql.database import Database
from bss_sync.domain.change import OrderKind
from bss_sync.domain.errors import ConfigurationError
from bss_sync.domain.tenancy import ConnectionState
from bss_sync.ports.runtime import Vault

_log = structlog.get_logger(__name__)

NAME_CHARACTERS_MAX = 255

_CONNECTIONS = text(
    """select id, tenant_id, name, connector, state, settings, order_kind, revision from connection
       where id = any(:ids) or name = any(:names)"""
)
_SECRETS = text(
    """select id, tenant_id, owner_id, name, scheme, nonce, ciphertext, key_id, expires_at from secret
       where owner_id = any(:ids) and revoked_at is null and (expires_at is null or expires_at > now())
       order by created_at desc, id"""
)


@dataclass(frozen=True, slots=True)
class SenderSecret:
    """One opened secret. ``scheme`` is v1, v1a or opaque; it counts until ``expires_at`` (None: for ever)."""

    name: str
    scheme: str
    material: bytes = field(repr=False)
    expires_at: datetime | None

    def counts_at(self, now: datetime) -> bool:
        """Whether it has not expired."""
        return self.expires_at is None or now < self.expires_at


@dataclass(frozen=True, slots=True)
class Sender:
    """A connection as the door sees it. ``revision`` is what an arrival verified with these secrets carries."""

    id: UUID
    tenant_id: UUID
    name: str
    connector: str
    state: ConnectionState
    settings: Mapping[str, Any]
    order: OrderKind | None
    revision: int
    secrets: tuple[SenderSecret, ...] = field(repr=False)


class SqlSenders:
    """Looks senders up in PostgreSQL."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._decoy = UUID(int=0)

    def find(self, wanted: Sequence[str]) -> list[Sender | None]:
        """For each id or name its connection, or None. DependencyDown when PostgreSQL does not answer.

        The connections are read before their secrets: a change in between makes the revision too old, never too new.
        """
        ids = {key: identity for key in wanted if (identity := _as_id(key)) is not None}
        names = [key for key in set(wanted) if len(key) <= NAME_CHARACTERS_MAX and key.isprintable()]
        with self._database.door() as connection:
            rows = connection.execute(_CONNECTIONS, {"ids": list(ids.values()), "names": names}).all()
            # For a stranger somebody's secrets are opened in vain: whether a connection exists must not be told by
            # the time that an answer takes.
            secrets = connection.execute(_SECRETS, {"ids": [row.id for row in rows] or [self._decoy]}).all()
        opened = self._opened(secrets)
        by_id = {row.id: _sender(row, tuple(opened[row.id])) for row in rows}
        by_name = {sender.name: sender for sender in by_id.values()}
        if rows:
            self._decoy = rows[0].id
        return [by_id.get(ids[key]) if ids.get(key) in by_id else by_name.get(key) for key in wanted]

    def _opened(self, rows: Sequence[Row[Any]]) -> defaultdict[UUID, list[SenderSecret]]:
        opened: defaultdict[UUID, list[SenderSecret]] = defaultdict(list)
        for row in rows:
            try:
                material = self._vault.open(
                    bytes(row.nonce),
                    bytes(row.ciphertext),
                    row.key_id,
                    tenant_id=row.tenant_id,
                    context=secret_context(row.id, row.name),
                )
            except ConfigurationError as error:
                # The connection's other secrets still count; this one verifies nothing.
                _log.error("secret.does_not_open", connection=str(row.owner_id), detail=error.detail)
                continue
            opened[row.owner_id].append(SenderSecret(row.name, row.scheme, material, row.expires_at))
        return opened


def _sender(row: Row[Any], secrets: tuple[SenderSecret, ...]) -> Sender:
    order = None if row.order_kind is None else OrderKind(row.order_kind)
    return Sender(
        row.id,
        row.tenant_id,
        row.name,
        row.connector,
        ConnectionState(row.state),
        row.settings,
        order,
        row.revision,
        secrets,
    )


def _as_id(text_: str) -> UUID | None:
    """The id in its usual form only: UUID() itself would take braces, too."""
    with suppress(ValueError):
        identity = UUID(text_)
        return identity if str(identity) == text_.lower() else None
    return None
