"""The system's clock (bss_sync.ports.runtime.Clock)."""

from __future__ import annotations

from datetime import UTC, datetime


class SystemClock:
    """The time of this machine."""

    def now(self) -> datetime:
        """The present moment; aware UTC."""
        return datetime.now(UTC)
