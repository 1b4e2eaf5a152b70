"""Stripe Billing as a reseller's BSS: customers are accounts, subscriptions and their items are subscriptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from bss_sync.domain.change import OrderKind
from bss_sync.domain.errors import ConfigurationError
from bss_sync.ports.connector import (
    Capabilities,
    ConnectionSettings,
    ConnectorSpec,
    HookParser,
    SourceClient,
    TargetClient,
)
from bss_sync.ports.http import HttpClient
from connectors.stripe.client import StripeClient
from connectors.stripe.config import StripeConfig
from connectors.stripe.webhook import StripeHooks


class StripeConnector:
    """What the entry point gives (ConnectorSpec)."""

    name: str = "stripe"
    title: str = "Stripe Billing"
    capabilities: Capabilities = Capabilities(hooks=True, fetch=True, list=True, order=OrderKind.OBSERVED)
    config: type[ConnectionSettings] = StripeConfig
    # api_key asks Stripe; webhook_secret is the endpoint's signing secret, whole as Stripe shows it (whsec_…).
    secret_names: Sequence[str] = ("api_key", "webhook_secret")

    def source(self, config: Any, secrets: Mapping[str, SecretStr], http: HttpClient) -> SourceClient:
        """The client that asks Stripe; ConfigurationError without ``api_key``: events are only notifications."""
        api_key = secrets.get("api_key")
        if api_key is None or not api_key.get_secret_value():
            raise ConfigurationError(
                "api_key: a Stripe connection needs a key that can read customers and subscriptions.",
                next_step="Create a restricted key in Stripe and add it as the connection's secret api_key.",
            )
        return StripeClient(config, api_key, http)

    def target(
        self,
        config: Any,  # noqa: ARG002 - the shape is ConnectorSpec's
        secrets: Mapping[str, SecretStr],  # noqa: ARG002 - likewise
        http: HttpClient,  # noqa: ARG002 - likewise
    ) -> TargetClient | None:
        """None: Stripe is not written to."""
        return None

    def hooks(self, config: Any) -> HookParser:  # noqa: ARG002 - the shape is ConnectorSpec's
        """The parser of Stripe's signed events."""
        return StripeHooks()


CONNECTOR: ConnectorSpec = StripeConnector()
