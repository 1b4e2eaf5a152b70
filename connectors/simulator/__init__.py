"""The simulator: a reseller's BSS and a distributor's BSS in memory, behind real HTTP, with fault knobs.

The connector speaks to either. ``python -m connectors.simulator`` starts the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from bss_sync.domain.change import OrderKind
from bss_sync.ports.connector import Capabilities, ConnectionSettings, ConnectorSpec, HookParser
from bss_sync.ports.http import HttpClient
from connectors.simulator.client import SimulatorSource, SimulatorTarget
from connectors.simulator.config import SimulatorConfig


class SimulatorConnector:
    """What the entry point gives (ConnectorSpec)."""

    name: str = "simulator"
    title: str = "Simulated BSS (tests and demonstrations)"
    capabilities: Capabilities = Capabilities(
        push=True, fetch=True, list=True, poll=True, target=True, order=OrderKind.SEQUENCE
    )
    config: type[ConnectionSettings] = SimulatorConfig
    secret_names: Sequence[str] = ("api_key",)

    def source(self, config: Any, secrets: Mapping[str, SecretStr], http: HttpClient) -> SimulatorSource:
        """The client of the simulated reseller BSS."""
        return SimulatorSource(config, secrets, http)

    def target(self, config: Any, secrets: Mapping[str, SecretStr], http: HttpClient) -> SimulatorTarget:
        """The client of the simulated distributor BSS."""
        return SimulatorTarget(config, secrets, http)

    def hooks(self, config: Any) -> HookParser | None:  # noqa: ARG002 - the shape is ConnectorSpec's
        """None: it pushes signed messages of the contract to the webhook door."""
        return None


CONNECTOR: ConnectorSpec = SimulatorConnector()
