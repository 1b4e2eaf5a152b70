"""What the contract suite for connectors is run against, and an HttpClient without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from bss_sync.domain.change import Kind, OrderKind
from bss_sync.domain.errors import BssSyncError
from bss_sync.ports.connector import ConnectionSettings, ConnectorSpec, SourceClient, TargetClient
from bss_sync.ports.http import HttpClient, HttpResponse

PAGES_MAX = 10_000
"""Pages after which a poll that never ends is called endless."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A connector and the running system that it is tested against.

    ``package`` is its import name. ``change`` makes one change in the source and returns what was changed.
    ``unknown_id`` is an id that the source has never heard of.
    """

    spec: ConnectorSpec
    package: str
    config: ConnectionSettings
    http: HttpClient
    secrets: Mapping[str, SecretStr] = field(default_factory=dict)
    change: Callable[[], tuple[Kind, str]] | None = None
    unknown_id: str = "never-heard-of"

    @property
    def source(self) -> SourceClient | None:
        """A new source client."""
        return self.spec.source(self.config, self.secrets, self.http)

    @property
    def target(self) -> TargetClient | None:
        """A new target client."""
        return self.spec.target(self.config, self.secrets, self.http)

    @property
    def order(self) -> OrderKind | None:
        """How versions are ordered: as this connection is set, else as the connector declares."""
        return getattr(self.config, "order", None) or self.spec.capabilities.order


Check = Callable[[Subject], None]


@dataclass(slots=True)
class ScriptedHttp:
    """An HttpClient without a network: every call gets ``answer`` or raises ``error``. It counts the calls."""

    answer: HttpResponse | None = None
    error: BssSyncError | None = None
    calls: int = 0

    def request(self, method: str, url: str, **_: Any) -> HttpResponse:
        """See HttpClient."""
        self.calls += 1
        if self.error is not None:
            raise self.error
        assert self.answer is not None, f"{method} {url}: neither an answer nor an error is scripted"
        return self.answer
