"""Alerts beside the sweep: a round every ten seconds, in a thread of its own: no mail server delays the sweep."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from bss_sync.adapters.alerts import EmailWay, WebhookWay
from bss_sync.adapters.sql.alerts import SqlAlerts
from bss_sync.bootstrap import App
from bss_sync.domain.alerting import parse_rules
from bss_sync.domain.errors import BssSyncError
from bss_sync.jobs.actors import places
from bss_sync.pipeline.alert import Alerter
from bss_sync.ports.alerting import AlertWay

ALERT_SECONDS = 10.0

_log = structlog.get_logger(__name__)


@dataclass
class Alerting:
    """Rounds of alerts for as long as the scheduler acts. ``alerter`` None: nobody is to be told."""

    alerter: Alerter | None
    seconds: Callable[[], float] = time.monotonic
    period_seconds: float = ALERT_SECONDS
    _due: float = 0.0
    _round: threading.Thread | None = field(default=None)

    def tick(self) -> None:
        """Begin a round when one is due and none is under way."""
        now = self.seconds()
        if self.alerter is None or now < self._due or (self._round is not None and self._round.is_alive()):
            return
        self._due = now + self.period_seconds
        self._round = threading.Thread(target=self._run, args=(self.alerter,), name="alerts", daemon=True)
        self._round.start()

    def stop(self, wait_seconds: float) -> None:
        """Let the present round end, for so long at most: what is cut off is told by the next scheduler."""
        if self._round is not None:
            self._round.join(wait_seconds)

    def _run(self, alerter: Alerter) -> None:
        try:
            told = alerter.run()
        except BssSyncError as error:
            _log.warning("alerts.interrupted", error=type(error).__name__, detail=error.detail)
        except Exception as error:  # noqa: BLE001 - a defect here must not end in silence, nor end the sweep
            _log.error("alerts.defect", error=type(error).__name__, places=places(error))
        else:
            if told:
                _log.info("alerts.told", alerts=told)


def make_alerter(app: App) -> Alerter | None:
    """The alerts of this installation; None where no way to a person is set. ConfigurationError for a wrong setting."""
    rules = parse_rules(app.settings.alert_rules)
    ways = _ways(app)
    if not ways:
        return None

    def observe(way: str, outcome: str) -> None:
        app.metrics.alerts.labels(way, outcome).inc()

    return Alerter(SqlAlerts(app.database), ways, rules, observe)


def _ways(app: App) -> list[AlertWay]:
    settings = app.settings
    ways: list[AlertWay] = []
    if settings.alert_smtp_url is not None:
        assert settings.alert_email_to is not None, "the settings come together"
        assert settings.alert_email_from is not None, "the settings come together"
        recipients = [one.strip() for one in settings.alert_email_to.split(",") if one.strip()]
        ways.append(EmailWay(settings.alert_smtp_url.get_secret_value(), settings.alert_email_from, recipients))
    if settings.alert_webhook_url is not None:
        assert settings.alert_webhook_secret is not None, "the settings come together"
        secret = settings.alert_webhook_secret.get_secret_value()
        private = settings.alert_webhook_allow_http_private
        ways.append(WebhookWay(app.http, settings.alert_webhook_url, secret, allow_http_private=private))
    return ways
