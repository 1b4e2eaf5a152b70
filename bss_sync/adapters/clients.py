"""Opens sources and the target: the connector's client with the settings and secrets of now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import SecretStr, ValidationError
from sqlalchemy import Connection as SqlConnection
from sqlalchemy import text

from bss_sync.adapters.code_digest import code_digest
from bss_sync.adapters.guarded_http import GuardedHttp, SharedGate
from bss_sync.adapters.secrets import secret_context
from bss_sync.adapters.sql.breakers import enter
from bss_sync.adapters.sql.database import Database
from bss_sync.domain.change import Kind, OrderKind
from bss_sync.domain.errors import CannotFetch, ConfigurationError, NotFound
from bss_sync.domain.tenancy import Connection, ConnectionState
from bss_sync.ports.breakers import FREE, BreakerStore, Gate, Remote
from bss_sync.ports.connector import Observation, Page, SourceClient
from bss_sync.ports.delivery import OpenTarget, TargetSettings
from bss_sync.ports.sources import OpenSource

if TYPE_CHECKING:
    from bss_sync.ports.connector import ConnectionSettings, ConnectorSpec
    from bss_sync.ports.http import HttpClient
    from bss_sync.ports.runtime import Vault

_CONNECTION = text(
    "select c.*, t.display_name from connection c join tenant t on t.id = c.tenant_id where c.id = :connection"
)
_TARGET = text("select g.*, t.id as tenant_id from target g join tenant t on t.kind = 'distributor'")
_SECRETS = text(
    """select distinct on (name) id, tenant_id, name, nonce, ciphertext, key_id from secret
       where owner_id = :owner and scheme = 'opaque' and revoked_at is null
         and (expires_at is null or expires_at > now())
       order by name, created_at desc"""
)


class Clients:
    """Sources and Targets over the database, the vault and the installed connectors.

    With ``breakers`` every call goes through the remote's breaker; without, it is an admin's own look.
    """

    def __init__(
        self,
        database: Database,
        vault: Vault,
        connectors: Mapping[str, ConnectorSpec],
        http: HttpClient,
        breakers: BreakerStore | None = None,
    ) -> None:
        self._database = database
        self._vault = vault
        self._connectors = connectors
        self._http = http
        self._breakers = breakers

    def source(self, connection_id: UUID, *, push_only: bool = False) -> OpenSource:
        """See Sources. NotFound when there is no such connection."""
        with self._database.engine() as sql:
            row = sql.execute(_CONNECTION, {"connection": connection_id}).one_or_none()
            if row is None:
                raise NotFound(f"There is no connection {connection_id}.")
            secrets = self._secrets(sql, row.id)
            gate, http = self._way(sql, Remote(row.id, row.tenant_id, row.id))
        spec = self._spec(row.connector)
        config = _config(spec, row.settings, f"connection {row.name}")
        client: SourceClient | None = spec.source(config, secrets, http)
        if client is None:
            if not push_only:
                raise _push_only(row.name)
            client = _PushOnly(row.name)
        connection = Connection(
            id=row.id,
            tenant_id=row.tenant_id,
            tenant_name=row.display_name,
            name=row.name,
            connector=row.connector,
            state=ConnectionState(row.state),
            settings=row.settings,
            order=OrderKind(row.order_kind) if row.order_kind else None,
            revision=row.revision,
        )
        program = partial(code_digest, "bss_sync", type(spec).__module__)
        return OpenSource(connection, spec.capabilities, config, client, gate, program)

    def target(self) -> OpenTarget | None:
        """See Targets."""
        with self._database.engine() as sql:
            row = sql.execute(_TARGET).one_or_none()
            if row is None:
                return None
            secrets = self._secrets(sql, row.tenant_id)
            gate, http = self._way(sql, Remote(row.tenant_id, row.tenant_id, None))
        spec = self._spec(row.connector)
        client = spec.target(_config(spec, row.settings, "target"), secrets, http)
        if client is None:
            raise ConfigurationError(f"target: the connector {spec.name} cannot be the distributor's BSS.")
        settings = TargetSettings(row.connector, row.tenant_id, row.drift_policy, row.poll_seconds)
        return OpenTarget(settings, client, gate)

    def _way(self, sql: SqlConnection, remote: Remote) -> tuple[Gate, HttpClient]:
        if self._breakers is None:
            return FREE, self._http
        gate = SharedGate(self._breakers, remote, enter(sql, remote))
        return gate, GuardedHttp(self._http, gate)

    def _spec(self, name: str) -> ConnectorSpec:
        try:
            return self._connectors[name]
        except KeyError:
            raise ConfigurationError(
                f"connector: {name} is not installed here; install it or change the row."
            ) from None

    def _secrets(self, sql: SqlConnection, owner_id: UUID) -> dict[str, SecretStr]:
        return {
            row.name: SecretStr(
                self._vault.open(
                    bytes(row.nonce),
                    bytes(row.ciphertext),
                    row.key_id,
                    tenant_id=row.tenant_id,
                    context=secret_context(row.id, row.name),
                ).decode()
            )
            for row in sql.execute(_SECRETS, {"owner": owner_id})
        }


def _push_only(name: str) -> CannotFetch:
    return CannotFetch(f"The connector of {name} can only push; it cannot be asked.")


class _PushOnly:
    """Stands where a source cannot be asked."""

    def __init__(self, name: str) -> None:
        self._name = name

    def check(self) -> str:
        raise _push_only(self._name)

    def fetch(self, kind: Kind, source_id: str) -> Observation | None:  # noqa: ARG002 - the shape is SourceClient's
        raise _push_only(self._name)

    def list_all(self) -> Iterator[Observation]:
        raise _push_only(self._name)

    def poll(self, cursor: str | None) -> Page:  # noqa: ARG002 - the shape is SourceClient's
        raise _push_only(self._name)


def _config(spec: ConnectorSpec, settings: Mapping[str, Any], whose: str) -> ConnectionSettings:
    try:
        return spec.config.model_validate(settings)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise ConfigurationError(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']} ({whose})") from None
