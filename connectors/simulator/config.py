"""Settings of a connection to the simulated BSS."""

from __future__ import annotations

from pydantic import Field, field_validator

from bss_sync.domain.change import OrderKind
from bss_sync.ports.connector import ConnectionSettings


class SimulatorConfig(ConnectionSettings):
    """Where the simulator listens and how it orders its versions."""

    base_url: str = Field(
        pattern=r"^https?://[^/\s?#]+[^\s?#]*$",
        description="Address of the simulated BSS, such as http://127.0.0.1:9000 (allow_http_private must be set).",
    )
    order: OrderKind = Field(
        OrderKind.SEQUENCE, description="How its versions are ordered; the simulator must run with the same order."
    )
    page_size: int = Field(500, ge=1, le=1000, description="Entities per page of a listing or a change feed.")

    @field_validator("base_url")
    @classmethod
    def _without_trailing_slash(cls, value: str) -> str:
        return value.rstrip("/")
