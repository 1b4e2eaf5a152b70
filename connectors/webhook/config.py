"""Settings of a connection that can only push."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bss_sync.ports.connector import ConnectionSettings


class WebhookConfig(ConnectionSettings):
    """Nothing beside what every connection has, but for the order where it should be fixed beforehand."""

    order: Literal["sequence", "timestamp"] | None = Field(
        None, description="How the sender orders its versions; empty: as its first message shows."
    )
