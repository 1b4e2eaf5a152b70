"""The official cases of Standard Webhooks and CloudEvents, over HTTP (tests/fixtures/third_party)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from bss_sync.adapters.sql.admin import secrets as stored_secrets
from bss_sync.bootstrap import App
from bss_sync.domain.errors import InvalidRequest
from bss_sync.pipeline.verify import parse_secret
from tests.app import SettableClock, add_connection
from tests.door_sender import Sender, account, fresh_id, slug
from tests.door_world import door_world
from tests.servers import PostgresServer

THIRD_PARTY = Path(__file__).parents[1] / "fixtures" / "third_party"


def _cases(name: str) -> list[dict[str, Any]]:
    document = json.loads((THIRD_PARTY / name / "vectors.json").read_text(encoding="utf-8"))
    cases: list[dict[str, Any]] = document["cases"]
    return cases


WEBHOOKS = [case for case in _cases("standard_webhooks") if "payload" in case]
REFUSED_SECRETS = [text for case in _cases("standard_webhooks") for text in case.get("secrets", ())]
EVENTS = _cases("cloudevents")


@pytest.fixture(scope="module")
def served(postgres_server: PostgresServer) -> Iterator[tuple[App, SettableClock, httpx.Client]]:
    with door_world(postgres_server) as world:
        yield world.app, world.clock, world.client


@pytest.mark.parametrize("case", WEBHOOKS, ids=lambda case: case["name"])
def test_a_signature_counts_as_the_official_suites_say(
    served: tuple[App, SettableClock, httpx.Client], case: dict[str, Any]
) -> None:
    app, clock, client = served
    source, _ = add_connection(app, f"reseller-{fresh_id()}")
    with app.database.engine() as connection:
        material = parse_secret(case["secret"])
        stored_secrets.add_signing(connection, app.vault, source, scheme=stored_secrets.Scheme.V1, material=material)
    clock.set(datetime.fromtimestamp(case["now"], UTC))
    try:
        answer = client.post(
            f"/v1/connections/{source.name}/messages",
            content=case["payload"].encode(),
            headers={"content-type": "application/json", **case["headers"]},
        )
    finally:
        clock.offset = timedelta(0)
    # What is verified is still no message of ours: 422, or 400 where there is nothing to read.
    expected = (401, "not-verified")
    if case["valid"]:
        expected = (422, "invalid-message") if case["payload"] else (400, "malformed")
    assert (answer.status_code, slug(answer)) == expected


@pytest.mark.parametrize("secret", REFUSED_SECRETS)
def test_an_empty_secret_is_refused(secret: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_secret(secret)


@pytest.mark.parametrize("case", EVENTS, ids=lambda case: case["name"])
def test_a_foreign_cloudevent_is_understood_and_named_unknown(
    served: tuple[App, SettableClock, httpx.Client], case: dict[str, Any]
) -> None:
    app, _, client = served
    source, secret = add_connection(app, f"reseller-{fresh_id()}")
    sender = Sender(client, source.name, secret)
    answer = sender.send_bytes(case["body"].encode(), **case["headers"])
    if case.get("expect_error"):
        assert (answer.status_code, slug(answer)) == (400, "malformed")
    elif case["expect"].get("count") == 0:
        assert (answer.status_code, answer.json()) == (202, {"accepted": 0, "duplicates": 0})
    else:
        assert (answer.status_code, slug(answer)) == (422, "unknown-type")


def _event(event_id: str, **members: Any) -> dict[str, Any]:
    message = account()
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": "https://bss.example",
        "type": f"com.example.{message['type']}",
        "time": message["timestamp"],
        "data": message["data"] | members,
    }


def test_our_message_as_a_cloudevent_has_one_key_in_every_form(
    served: tuple[App, SettableClock, httpx.Client],
) -> None:
    app, _, client = served
    source, secret = add_connection(app, f"reseller-{fresh_id()}")
    sender = Sender(client, source.name, secret)
    event = _event("e-1")
    batch = "application/cloudevents-batch+json"
    assert sender.send([event], content_type=batch).json() == {"accepted": 1, "duplicates": 0}
    assert sender.send([event], content_type=batch).json() == {"accepted": 0, "duplicates": 1}
    structured = sender.send(_event("e-2"), content_type="application/cloudevents+json")
    assert structured.json() == {"accepted": 1, "duplicates": 0}
    attributes = {f"ce-{name}": value for name, value in _event("e-3").items() if name != "data"}
    assert sender.send(_event("e-3")["data"], **attributes).json() == {"accepted": 1, "duplicates": 0}
    assert sender.send(_event("e-3", name="Other")["data"], **attributes).status_code == 409
