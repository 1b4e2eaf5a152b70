"""Settings of a Stripe connection."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from bss_sync.ports.connector import ConnectionSettings


class StripeConfig(ConnectionSettings):
    """One Stripe account as a reseller's BSS."""

    base_url: str = Field(
        "https://api.stripe.com",
        pattern=r"^https?://[^\s?#]+$",
        max_length=255,
        description="Where Stripe's API answers; another address only for test systems.",
    )
    product_field: Literal["product", "price", "lookup_key"] = Field(
        "product",
        description="What is taken as the product's code: the product's id, the price's id or the price's lookup key.",
    )
    metadata_prefix: str = Field(
        "",
        max_length=30,
        description="Put before the keys parent, kind and number that are read from a customer's metadata.",
    )
    # Stripe pushes; the poll lists everything and is only the net below, so it is rarer than elsewhere.
    poll_seconds: float = Field(3_600, ge=0, description="Seconds between polls; 0 switches polling off.")

    @field_validator("base_url")
    @classmethod
    def _without_trailing_slash(cls, value: str) -> str:
        return value.rstrip("/")
