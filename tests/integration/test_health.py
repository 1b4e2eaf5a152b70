"""Health, readiness and metrics over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from bss_sync.bootstrap import App
from bss_sync.domain.tenancy import ConnectionState, Role
from tests.app import SettableClock, add_connection, add_token, serving, wired
from tests.door_sender import Sender, account, fresh_id, slug
from tests.servers import Database, RedisServer, short_folder

Served = tuple[App, SettableClock, httpx.Client]


@pytest.fixture
def served(database: Database) -> Iterator[Served]:
    with (
        short_folder() as home,
        wired(database, home) as (app, clock, _),
        serving(app) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield app, clock, client


def test_a_process_whose_database_is_migrated_is_ready(served: Served) -> None:
    _, _, client = served
    assert client.get("/healthz").json() == {"status": "alive"}
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")


@pytest.mark.parametrize("seconds", [-90, 90])
def test_a_clock_more_than_60_seconds_off_is_not_ready(served: Served, seconds: int) -> None:
    _, clock, client = served
    clock.offset = timedelta(seconds=seconds / 2)
    assert client.get("/readyz").status_code == 200
    clock.offset = timedelta(seconds=seconds)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert f"{seconds:+d} s" in answer.json()["checks"]["clock"]


def test_a_schema_of_a_later_version_is_good_until_it_was_contracted(served: Served, database: Database) -> None:
    _, _, client = served
    database.server.execute("update schema_revision set version_num = 'later'", database=database.name)
    assert client.get("/readyz").status_code == 200
    database.server.execute("update alembic_version set version_num = 'later'", database=database.name)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "Run the version that migrated it" in answer.json()["checks"]["schema"]


def test_a_schema_that_is_not_migrated_is_not_ready(served: Served, database: Database) -> None:
    _, _, client = served
    database.server.execute("delete from schema_revision", database=database.name)
    database.server.execute("delete from alembic_version", database=database.name)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "db upgrade" in answer.json()["checks"]["schema"]


def test_without_redis_the_door_works_and_says_that_it_is_degraded(
    database: Database, redis_process: RedisServer
) -> None:
    with (
        short_folder() as home,
        wired(database, home, redis_url=redis_process.url) as (app, _, _),
        serving(app) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        assert client.get("/readyz").json()["checks"]["redis"] == "ok"
        redis_process.kill()
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        source, secret = add_connection(app)
        assert Sender(client, source.name, secret).send(account()).status_code == 202


def _figures(client: httpx.Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_count_what_came_and_what_waits_and_name_nobody(served: Served) -> None:
    app, _, client = served
    source, secret = add_connection(app, "very-private-reseller", state=ConnectionState.PAUSED)
    sender = Sender(client, source.name, secret)
    assert sender.send(account(name="Canary Customer"), "m-1").status_code == 202
    assert sender.send(account(name="Canary Customer"), "m-1").status_code == 202
    assert sender.send(account(kind=1)).status_code == 422
    with app.database.engine() as connection:
        connection.execute(text("update message set received_at = now() - interval '1 hour'"))
    figures = _figures(client)
    own = (("connection", str(source.id)),)
    assert figures["bss_sync_messages_accepted_total", own] == 1
    assert figures["bss_sync_messages_duplicate_total", own] == 1
    assert figures["bss_sync_requests_refused_total", (("reason", "invalid-message"),)] == 1
    assert figures["bss_sync_messages", (("state", "pending"),)] == 1
    assert figures["bss_sync_messages", (("state", "dead"),)] == 0
    assert 3590 < figures["bss_sync_oldest_message_seconds", (("state", "pending"),)] < 3700
    assert figures["bss_sync_connection_silence_seconds", own] < 60
    assert figures["bss_sync_deliveries_due", ()] == 0
    assert figures["bss_sync_group_commit_requests_count", ()] >= 1
    page = client.get("/metrics").text
    assert "Canary" not in page
    assert "very-private-reseller" not in page


def test_the_description_names_every_route_with_an_example(served: Served) -> None:
    _, _, client = served
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {"/healthz", "/readyz", "/metrics"} <= document["paths"].keys()
    door = document["paths"]["/v1/connections/{connection}/messages"]["post"]
    assert {"202", "400", "401", "409", "413", "415", "422", "429", "503"} <= door["responses"].keys()
    assert (
        door["requestBody"]["content"]["application/json"]["examples"]["subscription"]["value"]["data"]["quantity"]
        == 25
    )
    assert "subscription_updated" in document["components"]["schemas"]


def test_a_route_that_is_not_there_is_404_with_any_token(served: Served) -> None:
    app, _, client = served
    token = add_token(app, Role.ADMIN)
    answer = client.get(f"/v1/{fresh_id()}", headers={"authorization": f"Bearer {token}"})
    assert (answer.status_code, slug(answer)) == (404, "not-found")
