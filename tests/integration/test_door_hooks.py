"""A system's own webhook format at the door, with Stripe's as the example."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from bss_sync.bootstrap import App
from tests.app import add_connection
from tests.door_sender import Sender, account, fresh_id, slug
from tests.door_world import door_world
from tests.servers import PostgresServer

SECRET = "whsec_an_endpoint_s_own_secret"


@pytest.fixture(scope="module")
def served(postgres_server: PostgresServer) -> Iterator[tuple[App, httpx.Client]]:
    with door_world(postgres_server) as world:
        yield world.app, world.client


def _event(event_id: str) -> bytes:
    document: dict[str, Any] = {
        "id": event_id,
        "object": "event",
        "type": "customer.updated",
        "created": 1_772_446_500,
        "data": {"object": {"id": "cus_1", "object": "customer"}},
    }
    return json.dumps(document).encode()


def _signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    seconds = str(int(time.time()))
    signature = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return {"stripe-signature": f"t={seconds},v1={signature}", "content-type": "application/json"}


def test_a_hook_is_verified_by_its_own_secret_stored_once_and_parked_as_a_notification(
    served: tuple[App, httpx.Client],
) -> None:
    app, client = served
    source, _ = add_connection(
        app,
        f"reseller-{fresh_id()}",
        connector="stripe",
        secrets={"webhook_secret": SecretStr(SECRET), "api_key": SecretStr("rk_test_key")},
    )
    path = f"/v1/connections/{source.name}/hooks"
    body = _event("evt_1")
    assert client.post(path, content=body, headers=_signed(body)).json() == {"accepted": 1, "duplicates": 0}
    assert client.post(f"{path}/any/path", content=body, headers=_signed(body)).json() == {
        "accepted": 0,
        "duplicates": 1,
    }
    for wrong in ("whsec_other", "rk_test_key"):
        answer = client.post(path, content=body, headers=_signed(body, wrong))
        assert (answer.status_code, slug(answer)) == (401, "not-verified")
    answer = client.post(path, content=b"no json", headers=_signed(b"no json"))
    assert (answer.status_code, slug(answer)) == (400, "malformed")
    with app.database.engine() as connection:
        row = connection.execute(text("select * from message where connection_id = :id"), {"id": source.id}).one()
    assert (row.origin, row.action, row.source_id, row.message_id) == ("hook", "notified", "cus_1", "evt_1")


def test_a_connector_without_a_format_of_its_own_says_so_only_to_its_sender(
    served: tuple[App, httpx.Client],
) -> None:
    app, client = served
    source, secret = add_connection(app, f"reseller-{fresh_id()}")
    body = json.dumps(account()).encode()
    path = f"/v1/connections/{source.name}/hooks"
    answer = client.post(path, content=body, headers=Sender(client, source.name, secret).signed(body, fresh_id()))
    assert (answer.status_code, slug(answer)) == (404, "not-found")
    assert client.post(path, content=body).status_code == 401
    assert client.post("/v1/connections/nobody/hooks/x", content=body).status_code == 401
