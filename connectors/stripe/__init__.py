"""Stripe Billing as a reseller's BSS: customers are accounts, subscriptions and their items are subscriptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import SecretStr

from bss_sync.domain.change import OrderKind
from bss_sync.domain.errors import ConfigurationError
from bss_sync.ports.connector import Capabilities, ConnectionSettings
from bss_sync.ports.http import HttpClient
from connectors.stripe.client import StripeClient
from connectors.stripe.config import StripeConfig
from connectors.stripe.webhook import StripeHooks


@dataclass(frozen=True, slots=True)
class StripeConnector:
    """The ConnectorSpec of Stripe."""

    name: str = "stripe"
    title: str = "Stripe Billing"
    capabilities: Capabilities = Capabilities(hooks=True, fetch=True, list=True, order=OrderKind.OBSERVED)
    config: type[ConnectionSettings] = StripeConfig
    secret_names: Sequence[str] = ("api_key", "webhook_secret")

    def source(self, config: StripeConfig, secrets: Mapping[str, SecretStr], http: HttpClient) -> StripeClient:
        """The client that asks Stripe; ConfigurationError without ``api_key``: events carry no state for us."""
        api_key = secrets.get("api_key")
        if api_key is None or not api_key.get_secret_value():
            raise ConfigurationError(
                "api_key: a Stripe connection needs a key that can read customers and subscriptions.",
                next_step="Create a restricted key in Stripe and add it as the connection's secret api_key.",
            )
        return StripeClient(config, api_key, http)

    def target(self, config: StripeConfig, secrets: Mapping[str, SecretStr], http: HttpClient) -> None:  # noqa: ARG002 - the port's signature
        """None: Stripe is not written to."""

    def hooks(self, config: StripeConfig) -> StripeHooks:  # noqa: ARG002 - the port's signature
        """The parser of Stripe's signed events."""
        return StripeHooks()


CONNECTOR: Final = StripeConnector()
