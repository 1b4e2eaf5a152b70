"""Settings of a connection to the instance of the tier below."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from bss_sync.ports.connector import ConnectionSettings


class ChainConfig(ConnectionSettings):
    """Where the instance below answers, and how it is followed."""

    base_url: str = Field(
        pattern=r"^https?://[^/\s?#]+[^\s?#]*$",
        max_length=255,
        description="Address of the instance below, such as https://sync.sub-reseller.example",
    )
    page_size: int = Field(500, ge=1, le=500, description="Entities per page of a listing or of what changed.")
    compare: Literal["digests", "rows"] = Field(
        "digests",
        description="What reconcile compares: digests of ranges, then the rows of those that differ; or every row.",
    )
    # A question about what changed reads only what changed since the cursor; a hop's latency is this setting.
    poll_seconds: float = Field(5, ge=0, description="Seconds between polls; 0 switches polling off.")

    @field_validator("base_url")
    @classmethod
    def _without_trailing_slash(cls, value: str) -> str:
        return value.rstrip("/")
