"""Where objects are wired, and the only place: settings in, a running application's parts out."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import UUID

from bss_sync import __version__
from bss_sync.adapters import embedded_database
from bss_sync.adapters.clock import SystemClock
from bss_sync.adapters.secrets import KeyVault, home_master_key, parse_master_keys
from bss_sync.adapters.sql import epochs
from bss_sync.adapters.sql.admin import instance
from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.readiness import check_database
from bss_sync.adapters.traces import NoTraces, open_traces
from bss_sync.domain.errors import ConfigurationError, FieldProblem, InvalidRequest
from bss_sync.domain.ownership import parse_policy
from bss_sync.resources import resource_folder
from bss_sync.settings import Settings

if TYPE_CHECKING:
    from bss_sync.adapters.embedded import EmbeddedPostgres
    from bss_sync.domain.tenancy import Tenant
    from bss_sync.ports.connector import ConnectorSpec
    from bss_sync.ports.http import HttpClient, HttpResponse
    from bss_sync.ports.runtime import Clock, WakeUps
    from bss_sync.ports.tracing import Traces
    from bss_sync.telemetry import Metrics

CONNECTOR_GROUP = "bss_sync.connectors"


class Connectors(Mapping[str, "ConnectorSpec"]):
    """Every installed connector by its name; each is imported when it is first asked for."""

    def __init__(self) -> None:
        self._points = {point.name: point for point in importlib.metadata.entry_points(group=CONNECTOR_GROUP)}
        self._loaded: dict[str, ConnectorSpec] = {}

    def __getitem__(self, name: str) -> ConnectorSpec:
        """KeyError for one that is not installed; ``require`` is the polite way to ask."""
        if name not in self._loaded:
            self._loaded[name] = self._points[name].load()
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._points))

    def __len__(self) -> int:
        return len(self._points)

    def require(self, name: str) -> ConnectorSpec:
        """The connector; InvalidRequest that names the installed ones."""
        if name not in self._points:
            known = ", ".join(self)
            raise InvalidRequest(
                f"There is no connector {name!r}.", fields=(FieldProblem("connector", f"installed: {known}"),)
            )
        return self[name]


class SweptWakeUps:
    """Wake-ups of a process that cannot reach the workers: their sweeper finds the work within seconds."""

    def process(self, *shards: int) -> None:
        """Nothing to tell."""

    def deliver(self) -> None:
        """Nothing to tell."""

    def fetch(self) -> None:
        """Nothing to tell."""


def make_metrics() -> Metrics:
    """The figures of one process, all zero."""
    from bss_sync.telemetry import Metrics

    return Metrics()


@dataclass(frozen=True, slots=True)
class App:
    """The parts of a running application.

    ``instance_id`` is this deployment's own id, which chained messages carry; ``owner_url`` is the database as its
    owner, for migrations and retention; ``embedded`` is set where the database is the embedded one. ``metrics`` are
    this process's figures, whichever of its parts counts them.
    """

    settings: Settings
    database: Database
    owner_url: str
    vault: KeyVault
    clock: Clock
    connectors: Connectors
    http: HttpClient
    wake: WakeUps
    instance_id: UUID
    distributor: Tenant
    time_zone: str
    currency: str
    embedded: EmbeddedPostgres | None = field(default=None)
    traces: Traces = field(default_factory=NoTraces)
    metrics: Metrics = field(default_factory=make_metrics)


@contextmanager
def open_app(
    settings: Settings,
    *,
    wake: WakeUps | None = None,
    clock: Clock | None = None,
    http: HttpClient | None = None,
    traces: Traces | None = None,
) -> Iterator[App]:
    """Everything wired, closed again at the end.

    Without BSS_SYNC_DATABASE_URL the embedded PostgreSQL of the home is started or adopted, and migrated. A configured
    database is only looked at: DependencyDown when it does not answer, NotMigrated when it is not migrated.
    """
    with ExitStack() as stack:
        embedded: EmbeddedPostgres | None = None
        if settings.database_url is None:
            embedded = stack.enter_context(embedded_database.running(settings.home))
            owner_url, login_url = embedded_database.owner_url(embedded), embedded_database.login_url(embedded)
        else:
            login_url = settings.database_url.get_secret_value()
            owner_url = settings.owner_url.get_secret_value() if settings.owner_url else login_url
        database = Database(login_url, pool_size=settings.database_pool_size)
        stack.callback(database.dispose)
        if embedded is not None:
            embedded_database.prepare(embedded)
        else:
            check_database(login_url)
        epochs.settle(database)
        with database.engine() as connection:
            own = instance.ensure(
                connection,
                name=settings.distributor_name,
                time_zone=settings.time_zone,
                currency=settings.currency,
            )
        yield App(
            settings=settings,
            database=database,
            owner_url=owner_url,
            vault=make_vault(settings),
            clock=clock or SystemClock(),
            connectors=Connectors(),
            http=http or make_http(),
            wake=wake or make_wake_ups(settings),
            instance_id=own.id,
            distributor=own.distributor,
            time_zone=own.time_zone,
            currency=own.currency,
            embedded=embedded,
            traces=traces or NoTraces(),
        )


def make_vault(settings: Settings) -> KeyVault:
    """The vault under BSS_SYNC_MASTER_KEY, else under the key file of the home."""
    if settings.master_key is not None:
        return KeyVault(parse_master_keys(settings.master_key.get_secret_value()))
    return KeyVault(home_master_key(settings.home))


def make_wake_ups(settings: Settings) -> WakeUps:
    """Wake-ups through Redis where it is configured; else the sweeper of the serving process finds the work."""
    if settings.redis_url is None:
        return SweptWakeUps()
    from bss_sync.adapters.broker import RedisWakeUps

    return RedisWakeUps(settings.redis_url.get_secret_value())


@contextmanager
def make_traces(settings: Settings, part: str) -> Iterator[Traces]:
    """Traces of a long-running process, ``part`` being its command; what is left is sent at the end."""
    traces = open_traces(
        settings.otel_endpoint,
        headers="" if settings.otel_headers is None else settings.otel_headers.get_secret_value(),
        ratio=settings.otel_sample_ratio,
        part=part,
        version=__version__,
    )
    try:
        yield traces
    finally:
        traces.close()


def make_http() -> HttpClient:
    """The one outbound HTTP client; its libraries are loaded with its first call, and most commands make none."""
    return _HttpOnDemand()


class _HttpOnDemand:
    """See HttpClient."""

    @cached_property
    def _client(self) -> HttpClient:
        from bss_sync.adapters.http import RequestsHttpClient

        return RequestsHttpClient()

    def request(self, method: str, url: str, **options: Any) -> HttpResponse:
        """See HttpClient."""
        return self._client.request(method, url, **options)


def ownership_document(settings: Settings) -> dict[str, dict[str, str]]:
    """The field-ownership policy that a new connection gets as its version 1; ConfigurationError names its fault."""
    path = settings.ownership_file or resource_folder("config") / "ownership.toml"
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"BSS_SYNC_OWNERSHIP_FILE: {path} cannot be read: {error}") from None
    parse_policy(document, 1)
    return document


@contextmanager
def embedded_login(settings: Settings) -> Iterator[str]:
    """The address of the embedded database, whose server runs meanwhile; it is not migrated here."""
    with embedded_database.running(settings.home) as server:
        embedded_database.create(server)
        yield embedded_database.login_url(server)


@contextmanager
def backup_login(settings: Settings) -> Iterator[str]:
    """The address of the database as a role that sees every row of it; the embedded server runs meanwhile."""
    if settings.database_url is None:
        with embedded_database.running(settings.home) as server:
            embedded_database.create(server)
            yield embedded_database.superuser_url(server)
    else:
        assert settings.owner_url is not None, "it falls back to database_url"
        yield settings.owner_url.get_secret_value()
