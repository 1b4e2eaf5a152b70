"""How long what is no longer needed is kept (goals.md; docs/decisions/0025-retention.md).

Audit, bindings and tombstones are kept for ever and have no setting.
"""

from __future__ import annotations

from dataclasses import dataclass

from bss_sync.domain.errors import ConfigurationError

TOLD_AGAIN_DAYS = 31
"""Sources tell again what happened up to a month ago: senders that retry, lists of events that are read anew."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Days, counted by PostgreSQL's clock in UTC.

    message_days         a settled message, from the day on which it was settled
    history_days         a state of the past, from when it was recorded, once no later question can ask for it
    deduplication_days   a message's key: a repeat is known by it; older repeats fall to the version rule
    """

    message_days: int = 400
    history_days: int = 3653
    deduplication_days: int = 90

    def check(self) -> None:
        """ConfigurationError, beginning with the setting's name, for settings that contradict each other."""
        if self.deduplication_days < TOLD_AGAIN_DAYS:
            raise ConfigurationError(
                f"deduplication_days: sources tell again what is up to {TOLD_AGAIN_DAYS} days old; "
                f"set {TOLD_AGAIN_DAYS} or more."
            )
        if self.message_days < self.deduplication_days:
            raise ConfigurationError(
                "message_days: a key that is remembered longer than its message names what can no longer be shown; "
                f"set deduplication_days ({self.deduplication_days}) or more."
            )
        if self.history_days < self.message_days:
            raise ConfigurationError(
                "history_days: a message can be decided anew as long as it is kept, and writes into history; "
                f"set message_days ({self.message_days}) or more."
            )
