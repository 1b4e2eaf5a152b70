"""The ways to a person (ports/alerting.py, AlertWay): e-mail by SMTP, and a webhook signed as Standard Webhooks."""

from __future__ import annotations

import base64
import json
import smtplib
import ssl
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from urllib.parse import unquote, urlsplit

import structlog
from standardwebhooks import Webhook

from bss_sync.domain.alerting import WORDINGS, Alert, document_of, next_step_of, title_of
from bss_sync.domain.errors import ConfigurationError, DependencyDown, RemoteRefused
from bss_sync.domain.moment import rfc3339
from bss_sync.ports.http import HttpClient

_log = structlog.get_logger(__name__)

SMTP_SECONDS_MAX = 15.0
_PORTS = {"smtp": 25, "smtps": 465}
_SECRET_BYTES = range(24, 65)


class EmailWay:
    """Mails each alert to every address. ``url``: ``smtp[s]://[user:password@]host[:port]``.

    ``smtps`` speaks TLS from the start, ``smtp`` turns to it where the server offers it; a password goes out under TLS
    only. ``answer_seconds`` is how long each of the server's answers may take.
    """

    name = "email"

    def __init__(
        self,
        url: str,
        sender: str,
        recipients: Sequence[str],
        *,
        context: ssl.SSLContext | None = None,
        answer_seconds: float = SMTP_SECONDS_MAX,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ConfigurationError("BSS_SYNC_ALERT_SMTP_URL: must be smtp://host:port or smtps://host:port.")
        for setting, addresses in (("FROM", [sender]), ("TO", recipients)):
            if not addresses or not all("@" in one and one.isprintable() and " " not in one for one in addresses):
                raise ConfigurationError(f"BSS_SYNC_ALERT_EMAIL_{setting}: must be e-mail addresses.")
        self._implicit = parts.scheme == "smtps"
        self._host, self._port = parts.hostname, parts.port or _PORTS[parts.scheme]
        self._login = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        self._sender, self._recipients = sender, list(recipients)
        self._context = context or ssl.create_default_context()
        self._answer_seconds = answer_seconds

    def tell(self, alert: Alert) -> None:
        """See AlertWay."""
        try:
            with ExitStack() as stack:
                server = stack.enter_context(self._connect())
                refused = server.send_message(self._message(alert), self._sender, self._recipients)
        except smtplib.SMTPRecipientsRefused as error:
            detail = f"The mail server refuses all {len(error.recipients)} recipients."
            raise RemoteRefused(detail, status=_refusal(error)) from None
        except (smtplib.SMTPResponseException, smtplib.SMTPNotSupportedError) as error:
            raise RemoteRefused(f"The mail server refuses ({type(error).__name__}).", status=_refusal(error)) from None
        except (OSError, smtplib.SMTPException) as error:
            raise DependencyDown(f"The mail server does not answer ({type(error).__name__}).") from None
        if refused:
            # Somebody was told; telling all of them again for the sake of the others would only be noise.
            _log.warning("alert.partly_refused", refused=len(refused), recipients=len(self._recipients))

    def _connect(self) -> smtplib.SMTP:
        if self._implicit:
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                self._host, self._port, timeout=self._answer_seconds, context=self._context
            )
        else:
            server = smtplib.SMTP(self._host, self._port, timeout=self._answer_seconds)
        try:
            server.ehlo()
            secure = self._implicit
            if not secure and server.has_extn("starttls"):
                server.starttls(context=self._context)
                server.ehlo()
                secure = True
            if self._login is not None:
                if not secure:
                    raise RemoteRefused("The mail server offers no TLS; the password was not sent.", status=0)
                server.login(*self._login)
        except BaseException:
            server.close()
            raise
        return server

    def _message(self, alert: Alert) -> EmailMessage:
        message = EmailMessage()
        message["Subject"] = f"[bss-sync] {WORDINGS[alert.rule].severity}: {title_of(alert)}"
        message["From"], message["To"] = self._sender, ", ".join(self._recipients)
        message["Date"] = format_datetime(datetime.now(UTC))
        # The same alert has the same id: should it be told twice, the reader's program sees one.
        message["Message-ID"] = f"<alert-{alert.id}@{self._sender.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"
        since = "" if alert.since is None else f"Since: {rfc3339(alert.since)}\n"
        message.set_content(
            f"{title_of(alert)}.\n\n{since}Look: {next_step_of(alert)}\n\n"
            f"Rule {alert.rule}, alert {alert.id}. It is told once, and again only after it has cleared.\n"
        )
        return message


def _refusal(error: smtplib.SMTPException) -> int:
    """The server's reply code; 0 where it has none."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return next((code for code, _words in error.recipients.values()), 0)
    return error.smtp_code if isinstance(error, smtplib.SMTPResponseException) else 0


class WebhookWay:
    """Posts each alert, signed with ``secret`` (``whsec_…``); the alert's id is the ``webhook-id``."""

    name = "webhook"

    def __init__(self, http: HttpClient, url: str, secret: str, *, allow_http_private: bool = False) -> None:
        try:
            material = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            material = b""
        if len(material) not in _SECRET_BYTES:
            raise ConfigurationError(
                "BSS_SYNC_ALERT_WEBHOOK_SECRET: must be whsec_ and 24 to 64 bytes in base64.",
                next_step="Make one of: openssl rand -base64 32",
            )
        self._http, self._url, self._allow = http, url, allow_http_private
        self._webhook = Webhook(secret)

    def tell(self, alert: Alert) -> None:
        """See AlertWay."""
        body = json.dumps(document_of(alert), ensure_ascii=False, separators=(",", ":"))
        now = datetime.now(UTC)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": str(alert.id),
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(str(alert.id), now, body),
        }
        response = self._http.request(
            "POST",
            self._url,
            headers=headers,
            body=body.encode(),
            idempotency_key=str(alert.id),
            allow_http_private=self._allow,
        )
        if not 200 <= response.status < 300:
            raise RemoteRefused(f"The alert's receiver answers {response.status}.", status=response.status)
