"""Alert: a person is told of what needs one, once until it clears (domain/alerting.py).

refresh   conditions that hold → alerts                                                    → commit
claim     alerts that somebody is still to be told of: attempt + 1                         → commit
tell      e-mail, webhook                                                                  (no transaction)
told      by which ways; or the error and when to try again                                → commit
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from bss_sync.domain.alerting import Alert, Rule
from bss_sync.domain.errors import BssSyncError
from bss_sync.pipeline.deliver import backoff_seconds
from bss_sync.ports.alerting import AlertStore, AlertWay

BATCH_ALERTS = 20
FIRST_PAUSE_FACTOR = 5.0
"""Mail servers that are down are asked again after about five seconds, then ever more seldom."""


def _nobody(_way: str, _outcome: str) -> None:
    """Nobody counts."""


@dataclass
class Alerter:
    """Tells people. ``observe`` is told each attempt: the way, and ``sent`` or ``failed``."""

    store: AlertStore
    ways: Sequence[AlertWay]
    rules: Collection[Rule]
    observe: Callable[[str, str], None] = _nobody

    def run(self) -> int:
        """One round; returns how many alerts were told in every way. DependencyDown when PostgreSQL does not answer."""
        self.store.refresh(self.rules)
        return sum(self._tell(alert) for alert in self.store.claim(BATCH_ALERTS))

    def _tell(self, alert: Alert) -> bool:
        told = set(alert.told)
        failed = None
        for way in self.ways:
            if way.name in told:
                continue
            try:
                way.tell(alert)
            except BssSyncError as error:
                failed = f"{way.name}: {error.slug}: {error.detail}"
                self.observe(way.name, "failed")
            else:
                told.add(way.name)
                self.observe(way.name, "sent")
        delay = None if failed is None else FIRST_PAUSE_FACTOR * backoff_seconds(alert.attempts)
        self.store.told(alert, told, error=failed, delay_seconds=delay)
        return failed is None
