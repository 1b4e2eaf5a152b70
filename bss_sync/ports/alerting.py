"""Alerts, as the scheduler sees them: which conditions hold, who was told, and the ways to tell a person."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from bss_sync.domain.alerting import Alert, Rule


class AlertStore(Protocol):
    """Remembers conditions. Every method is one transaction; times are PostgreSQL's."""

    def refresh(self, rules: Collection[Rule]) -> int:
        """Open what holds and was not open, clear what holds no more or is watched no more; returns how many opened."""
        ...

    def claim(self, limit: int) -> Sequence[Alert]:
        """Open alerts that somebody is still to be told of: attempts + 1, and due again later should this end here."""
        ...

    def told(self, alert: Alert, ways: Collection[str], *, error: str | None, delay_seconds: float | None) -> None:
        """These ways have taken the alert by now; ``delay_seconds`` until the next attempt, None when there is none."""
        ...


class AlertWay(Protocol):
    """One way to tell a person."""

    @property
    def name(self) -> str:
        """A short word: ``email``, ``webhook``."""
        ...

    def tell(self, alert: Alert) -> None:
        """Tell. Transient when it may succeed later, Terminal when not as it is; in both cases it is tried again.

        The same alert may be told twice when a process dies in between; its id is the same.
        """
        ...
