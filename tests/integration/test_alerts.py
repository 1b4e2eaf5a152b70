"""Alerts to a person: each condition once until it clears, by real SMTP and real HTTP, with nobody's data in them."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from standardwebhooks import Webhook

from bss_sync.adapters.alerts import EmailWay, WebhookWay
from bss_sync.adapters.http import RequestsHttpClient
from bss_sync.bootstrap import App
from bss_sync.domain.errors import ConfigurationError, DependencyDown, RemoteRefused
from bss_sync.domain.tenancy import Connection
from bss_sync.jobs.alerting import Alerting, make_alerter
from bss_sync.pipeline.alert import Alerter
from bss_sync.runner import Parts, running_scheduler
from tests.app import add_connection, wired
from tests.mail_server import MailServer, mail_server
from tests.servers import Database
from tests.wire_server import WireServer, answer
from tests.world import eventually

SECRET = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


@dataclass
class Watched:
    """An installation with both ways to a person."""

    app: App
    alerter: Alerter
    mail: MailServer
    hook: WireServer
    source: Connection
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(1_000)))

    def execute(self, statement: str, **values: Any) -> None:
        with self.app.database.engine() as connection:
            connection.execute(text(statement), values)

    def subjects(self) -> list[str]:
        return [str(message["Subject"]) for message in self.mail.messages]

    def add_message(self, state: str) -> None:
        number = next(self._numbers)
        self.execute(
            """insert into message (id, tenant_id, connection_id, stream_id, message_id, kind, source_id, action,
                   order_kind, version, sent_at, effective_at, body, digest, state, held_value, reason)
               values (:id, :tenant, :connection, :id, :name, 'account', 'canary-source', 'state', 'sequence', 1, now(),
                   now(), '{"name": "Canary Customer"}', '\\x00', :state, 'Canary Value', 'Canary Reason')""",
            id=uuid4(),
            tenant=self.source.tenant_id,
            connection=self.source.id,
            name=f"m-{number}",
            state=state,
        )

    def add_run(self, state: str) -> None:
        self.execute(
            """insert into run (id, tenant_id, connection_id, kind, state, requested_by)
               values (:id, :tenant, :connection, 'reconcile', :state, 'Canary Admin')""",
            id=uuid4(),
            tenant=self.source.tenant_id,
            connection=self.source.id,
            state=state,
        )

    def due_now(self) -> None:
        """As if the pause after a failure were over."""
        self.execute("update alert set due_at = now() where due_at is not null")


@pytest.fixture
def watched(database: Database, server_home: Path) -> Iterator[Watched]:
    with mail_server() as mail, WireServer(answer(204, b"")) as hook:
        settings = {
            "alert_email_to": "ops@cloud.example, night@cloud.example",
            "alert_email_from": "bss-sync@cloud.example",
            "alert_smtp_url": mail.url,
            "alert_webhook_url": hook.url,
            "alert_webhook_secret": SECRET,
            "alert_webhook_allow_http_private": True,
        }
        with wired(database, server_home, **settings) as (app, _, _):
            source, _secret = add_connection(app)
            alerter = make_alerter(app)
            assert alerter is not None
            yield Watched(app, alerter, mail, hook, source)


def test_nobody_is_told_while_all_is_well(watched: Watched) -> None:
    assert watched.alerter.run() == 0
    assert watched.mail.messages == []
    assert watched.hook.requests == []


def test_a_condition_is_told_once_by_every_way_until_it_clears(watched: Watched) -> None:
    watched.add_message("dead")
    assert watched.alerter.run() == 1
    watched.add_message("dead")
    assert watched.alerter.run() == 0, "more of the same is the same condition"
    assert watched.subjects() == ["[bss-sync] critical: 1 dead letters of cloud-resell"]
    assert len(watched.hook.requests) == 1
    watched.execute("update message set state = 'discarded'")
    assert watched.alerter.run() == 0
    watched.add_message("dead")
    assert watched.alerter.run() == 1
    assert len(watched.subjects()) == 2


def test_every_rule_finds_its_condition(watched: Watched) -> None:
    watched.add_message("quarantined")
    watched.add_message("dead")
    watched.add_run("stopped")
    watched.execute("update connection set silent_since = now()")
    watched.execute(
        """insert into drift (id, tenant_id, connection_id, kind, place, problem, action, settled_at)
           select gen_random_uuid(), tenant_id, id, 'account', 'target', 'target_differs', 'repaired', now()
           from connection"""
    )
    assert watched.alerter.run() == 5
    assert sorted(watched.subjects()) == [
        "[bss-sync] critical: 1 dead letters of cloud-resell",
        "[bss-sync] critical: A run of cloud-resell has stopped",
        "[bss-sync] critical: cloud-resell is silent",
        "[bss-sync] warning: 1 differences of cloud-resell",
        "[bss-sync] warning: 1 messages of cloud-resell are held",
    ]
    watched.execute("update drift set found_at = now() - interval '1 hour'")
    watched.execute("update connection set silent_since = null")
    watched.alerter.run()
    with watched.app.database.engine() as connection:
        cleared = connection.execute(text("select rule from alert where cleared_at is not null order by rule"))
        assert list(cleared.scalars()) == ["drift", "silence"]


def test_a_record_that_the_distributors_bss_refused_is_a_dead_letter_too(watched: Watched) -> None:
    watched.execute(
        """with s as (insert into stream (id, tenant_id, connection_id, shard, kind, source_id)
               select gen_random_uuid(), tenant_id, id, shard, 'account', 'x' from connection returning *)
           insert into delivery (record_id, tenant_id, connection_id, kind, state, desired_revision)
           select id, tenant_id, connection_id, kind, 'dead', 1 from s"""
    )
    assert watched.alerter.run() == 1


def test_each_of_two_stopped_runs_is_told(watched: Watched) -> None:
    watched.add_run("stopped")
    assert watched.alerter.run() == 1
    watched.add_run("stopped")
    assert watched.alerter.run() == 1


def test_the_webhook_is_signed_as_standard_webhooks_and_its_id_is_the_alerts(watched: Watched) -> None:
    watched.add_message("dead")
    watched.alerter.run()
    head, _, body = watched.hook.requests[0].partition(b"\r\n\r\n")
    lines = [line.partition(": ") for line in head.decode().split("\r\n")[1:]]
    headers = {name.lower(): value for name, _, value in lines}
    verified = Webhook(SECRET).verify(body, headers)
    assert json.loads(body)["type"] == "alert.dead_letters"
    assert verified["data"]["id"] == headers["webhook-id"]


def test_no_alert_holds_anybodys_data(watched: Watched) -> None:
    watched.add_message("dead")
    watched.add_message("quarantined")
    watched.add_run("failed")
    watched.execute("update run set finished_at = now()")
    assert watched.alerter.run() == 3
    said = [message.as_string() for message in watched.mail.messages]
    said += [request.decode() for request in watched.hook.requests]
    assert len(said) == 6
    assert [words for words in said if "canary" in words.lower()] == []


def test_a_way_that_is_down_is_tried_again_and_the_others_are_not_told_twice(watched: Watched) -> None:
    watched.mail.down = True
    watched.add_message("dead")
    assert watched.alerter.run() == 0
    assert len(watched.hook.requests) == 1
    assert watched.alerter.run() == 0, "not before its time"
    watched.mail.down = False
    watched.due_now()
    assert watched.alerter.run() == 1
    assert len(watched.subjects()) == 1
    assert len(watched.hook.requests) == 1
    assert watched.app.metrics.alerts.labels("email", "failed")._value.get() == 1


def test_what_cleared_before_anybody_could_be_told_is_not_told(watched: Watched) -> None:
    watched.mail.down = True
    watched.add_message("dead")
    watched.alerter.run()
    watched.execute("update message set state = 'discarded'")
    watched.mail.down = False
    watched.due_now()
    assert watched.alerter.run() == 0
    assert watched.subjects() == []


def test_both_recipients_get_the_mail_and_an_unknown_one_does_not_stop_it(watched: Watched) -> None:
    watched.mail.refuses.add("night@cloud.example")
    watched.add_message("dead")
    assert watched.alerter.run() == 1
    assert watched.mail.envelopes == [["ops@cloud.example"]]
    watched.mail.refuses.clear()
    watched.add_run("stopped")
    watched.alerter.run()
    assert watched.mail.envelopes[1] == ["ops@cloud.example", "night@cloud.example"]


def test_a_mail_says_what_to_look_at(watched: Watched) -> None:
    watched.add_message("dead")
    watched.alerter.run()
    (message,) = watched.mail.messages
    assert "bss-sync message list --state dead --connection cloud-resell" in message.get_content()
    assert message["From"] == "bss-sync@cloud.example"
    assert message["Auto-Submitted"] == "auto-generated"


def test_a_password_is_never_sent_without_tls(watched: Watched) -> None:
    watched.add_message("dead")
    watched.alerter.store.refresh(watched.alerter.rules)
    (alert,) = watched.alerter.store.claim(1)
    way = EmailWay(watched.mail.url.replace("//", "//me:hunter2@"), "a@b.example", ["c@d.example"])
    with pytest.raises(RemoteRefused, match="no TLS"):
        way.tell(alert)
    assert watched.mail.logins == []


def test_a_server_that_refuses_everybody_and_one_that_is_gone_are_errors_of_ours(watched: Watched) -> None:
    watched.add_message("dead")
    watched.alerter.store.refresh(watched.alerter.rules)
    (alert,) = watched.alerter.store.claim(1)
    watched.mail.refuses.add("c@d.example")
    with pytest.raises(RemoteRefused):
        EmailWay(watched.mail.url, "a@b.example", ["c@d.example"]).tell(alert)
    with pytest.raises(DependencyDown):
        EmailWay("smtp://127.0.0.1:1", "a@b.example", ["c@d.example"]).tell(alert)


@pytest.mark.parametrize(
    ("url", "sender", "recipients"),
    [
        ("http://x", "a@b", ["c@d"]),
        ("smtp://x", "nobody", ["c@d"]),
        ("smtp://x", "a@b", []),
        ("smtp://x", "a@b", ["c\n@d"]),
    ],
)
def test_wrong_mail_settings_are_named(url: str, sender: str, recipients: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"^BSS_SYNC_ALERT_"):
        EmailWay(url, sender, recipients)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_AAAA", "no base64!"])
def test_a_weak_webhook_secret_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^BSS_SYNC_ALERT_WEBHOOK_SECRET"):
        WebhookWay(RequestsHttpClient(), "https://hooks.example", secret)


def test_settings_of_one_way_come_together(database: Database, server_home: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"^BSS_SYNC_ALERT_EMAIL_FROM: is needed"),
        wired(database, server_home, alert_email_to="a@b.example"),
    ):
        pass


def test_without_any_way_nothing_is_done(database: Database, server_home: Path) -> None:
    with wired(database, server_home) as (app, _, _):
        assert make_alerter(app) is None
        Alerting(None).tick()


def test_the_scheduler_tells(watched: Watched) -> None:
    watched.add_message("dead")
    with running_scheduler(watched.app, Parts(None).wake):
        eventually(watched.subjects, seconds=10)
    assert watched.app.metrics.swept_at._value.get() > 0
