"""Another instance of bss_sync as a reseller's BSS: the tier below (docs/decisions/0020-chained-tiers.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from bss_sync.domain.change import OrderKind
from bss_sync.ports.connector import Capabilities, ConnectionSettings, ConnectorSpec, HookParser, TargetClient
from bss_sync.ports.http import HttpClient
from connectors.bss_sync.client import ChainSource
from connectors.bss_sync.config import ChainConfig


class ChainConnector:
    """What the entry point gives (ConnectorSpec)."""

    name: str = "bss_sync"
    title: str = "Another instance of bss_sync: the tier below"
    capabilities: Capabilities = Capabilities(fetch=True, list=True, poll=True, order=OrderKind.SEQUENCE)
    config: type[ConnectionSettings] = ChainConfig
    secret_names: Sequence[str] = ("token",)

    def source(self, config: Any, secrets: Mapping[str, SecretStr], http: HttpClient) -> ChainSource:
        """The client of the instance below."""
        return ChainSource(config, secrets, http)

    def target(
        self,
        config: Any,  # noqa: ARG002 - the shape is ConnectorSpec's
        secrets: Mapping[str, SecretStr],  # noqa: ARG002  the Protocol names it
        http: HttpClient,  # noqa: ARG002  the Protocol names it
    ) -> TargetClient | None:
        """None: a tier never writes into the one below."""
        return None

    def hooks(self, config: Any) -> HookParser | None:  # noqa: ARG002 - the shape is ConnectorSpec's
        """None: the tier below pushes nothing, it is polled."""
        return None


CONNECTOR: ConnectorSpec = ChainConnector()
