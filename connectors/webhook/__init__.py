"""The push-only connector: any system that signs messages of the contract and sends them to the webhook door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from bss_sync.ports.connector import (
    Capabilities,
    ConnectionSettings,
    ConnectorSpec,
    HookParser,
    SourceClient,
    TargetClient,
)
from bss_sync.ports.http import HttpClient
from connectors.webhook.config import WebhookConfig


class WebhookConnector:
    """What the entry point gives (ConnectorSpec). The door itself verifies and parses, so there is no hook parser."""

    name: str = "webhook"
    title: str = "Signed webhooks (push only)"
    capabilities: Capabilities = Capabilities(push=True, order=None)
    config: type[ConnectionSettings] = WebhookConfig
    secret_names: Sequence[str] = ()

    def source(
        self,
        config: Any,  # noqa: ARG002 - the shape is ConnectorSpec's
        secrets: Mapping[str, SecretStr],  # noqa: ARG002  the Protocol names it
        http: HttpClient,  # noqa: ARG002  the Protocol names it
    ) -> SourceClient | None:
        """None: it cannot be asked; a reconcile needs a snapshot file."""
        return None

    def target(
        self,
        config: Any,  # noqa: ARG002 - the shape is ConnectorSpec's
        secrets: Mapping[str, SecretStr],  # noqa: ARG002  the Protocol names it
        http: HttpClient,  # noqa: ARG002  the Protocol names it
    ) -> TargetClient | None:
        """None: it cannot be written to."""
        return None

    def hooks(self, config: Any) -> HookParser | None:  # noqa: ARG002 - the shape is ConnectorSpec's
        """None: its messages come in the contract's format."""
        return None


CONNECTOR: ConnectorSpec = WebhookConnector()
