"""Messages, connections, runs, differences, the audit and tokens over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from bss_sync.domain.change import Kind
from tests.api_world import ApiWorld, api_world
from tests.door_sender import fresh_id
from tests.servers import PostgresServer, short_folder

ACCOUNT, SUBSCRIPTION = Kind.ACCOUNT, Kind.SUBSCRIPTION


@pytest.fixture(scope="module")
def world(postgres_server: PostgresServer) -> Iterator[ApiWorld]:
    with postgres_server.database() as database, short_folder() as home, api_world(database, home) as one:
        yield one


def test_a_message_is_shown_as_the_contract_says(world: ApiWorld) -> None:
    (item,) = world.get("/v1/messages", message_id="first-of-sub-x", connection="cloud-resell")["items"]
    wanted = {
        "id",
        "message_id",
        "connection",
        "kind",
        "source_id",
        "version",
        "state",
        "verdict",
        "reason",
        "attempts",
    }
    assert wanted | {"received_at", "applied_at"} <= item.keys()
    assert (item["state"], item["source_id"], item["version"]) == ("applied", "sub-x", 1)
    assert item["applied_at"].endswith("Z")
    assert item["record_id"] == str(world.id_of(SUBSCRIPTION, "sub-x"))
    assert "payload" not in item


def test_the_payload_is_for_admins_and_operators(world: ApiWorld) -> None:
    (item,) = world.get("/v1/messages", message_id="first-of-sub-x")["items"]
    path = "/v1/messages/" + item["id"]
    for who in ("admin", "operator"):
        assert world.get(path, who)["payload"]["product"] == "M365-BUS-PREM"
    for who in ("auditor", "reseller"):
        shown = world.get(path, who)
        assert not {"payload", "stack"} & shown.keys()
        assert shown["dropped"] == []
    assert world.client("stranger").get(path).status_code == 404


def test_nobody_is_shown_what_is_out_of_scope(world: ApiWorld) -> None:
    said = world.say(SUBSCRIPTION, fresh_id("foreign"), 1, product="NOT-OURS")
    (item,) = world.get("/v1/messages", message_id=said)["items"]
    assert item["state"] == "out_of_scope"
    assert world.get("/v1/messages/" + item["id"], "admin")["payload"] is None


def test_messages_filter_by_state_kind_and_source_id(world: ApiWorld) -> None:
    held = world.say(SUBSCRIPTION, fresh_id("held"), 1, status="dreaming")
    quarantined = world.get("/v1/messages", state="quarantined", kind="subscription")["items"]
    assert held in [item["message_id"] for item in quarantined]
    assert all(item["state"] == "quarantined" for item in quarantined)
    assert quarantined[0]["held"] == {"field": "status", "value": "dreaming"}
    assert world.get("/v1/messages", source_id="sub-x", connection="cloud-other")["items"]
    assert world.get("/v1/messages", updated_since="2999-01-01T00:00:00Z")["items"] == []
    for wrong in ({"state": "lost"}, {"kind": "invoice"}):
        assert world.client("auditor").get("/v1/messages", params=wrong).status_code == 422


def test_a_reseller_sees_its_own_messages_only(world: ApiWorld) -> None:
    items = world.get("/v1/messages", "stranger", limit=500)["items"]
    assert {item["connection"] for item in items} == {"cloud-other"}


def test_connections_tell_their_health(world: ApiWorld) -> None:
    world.say(SUBSCRIPTION, fresh_id("held"), 1, source=world.other, status="dreaming")
    by_name = {item["name"]: item for item in world.get("/v1/connections")["items"]}
    assert by_name.keys() == {"cloud-resell", "cloud-other"}
    one = world.get("/v1/connections/cloud-other")
    assert one == world.get(f"/v1/connections/{world.other.id}") == by_name["cloud-other"]
    assert (one["state"], one["connector"], one["display_name"]) == ("live", "webhook", "Cloud Other")
    assert one["health"]["quarantined"] == 1
    assert one["health"]["pending"] == 0
    own = world.get("/v1/connections", "stranger")["items"]
    assert [item["name"] for item in own] == ["cloud-other"]
    assert "settings" not in own[0]
    assert world.client("stranger").get("/v1/connections/cloud-resell").status_code == 404
    assert world.client("auditor").get("/v1/connections", params={"state": "odd"}).status_code == 422


def test_runs_and_differences_are_listed(world: ApiWorld) -> None:
    run_id, record_id = uuid4(), world.id_of(SUBSCRIPTION, "sub-x")
    shared = {"tenant": world.resell.tenant_id, "connection": world.resell.id}
    world.execute(
        """insert into run (id, tenant_id, connection_id, kind, state, requested_by)
           values (:id, :tenant, :connection, 'reconcile', 'stopped', 'cli:mara')""",
        id=run_id,
        **shared,
    )
    world.execute(
        """insert into drift (id, tenant_id, connection_id, record_id, kind, source_id, place, problem, field,
               expected, found, action, run_id)
           values (:id, :tenant, :connection, :record, 'subscription', 'sub-x', 'target', 'lock_violation', 'quantity',
               cast(:expected as jsonb), cast(:found as jsonb), 'repaired', :run)""",
        id=uuid4(),
        record=record_id,
        expected=json.dumps("25"),
        found=json.dumps("30"),
        run=run_id,
        **shared,
    )
    (run,) = world.get("/v1/runs", state="stopped", connection="cloud-resell")["items"]
    assert world.get(f"/v1/runs/{run_id}") == run
    assert world.get("/v1/runs", kind="import")["items"] == []
    (drift,) = world.get("/v1/drift", state="open", record_id=str(record_id))["items"]
    assert (drift["field"], drift["expected"], drift["found"], drift["run_id"]) == ("quantity", "25", "30", str(run_id))
    assert world.get("/v1/drift", state="settled")["items"] == []
    explained = world.get(world.path_of(SUBSCRIPTION, "sub-x") + "/explain", field="quantity")["fields"][0]
    assert [violation["found"] for violation in explained["lock_violations"]] == ["30"]
    cursor = world.get("/v1/runs")["next_cursor"]
    assert world.get("/v1/runs", cursor=cursor)["items"] == []
    approved = world.client("admin").post(f"/v1/runs/{run_id}/approve")
    assert (approved.status_code, approved.json()["state"]) == (200, "approved")
    assert world.client("admin").post(f"/v1/runs/{run_id}/reject").status_code == 409
    (again,) = world.get("/v1/runs", cursor=cursor)["items"]
    assert again["state"] == "approved", "a change moves a run to the end of its list"
    assert world.client("auditor").get("/v1/drift", params={"record_id": "x"}).status_code == 422
    assert world.client("auditor").get(f"/v1/runs/{uuid4()}").status_code == 404


def test_the_audit_is_listed_and_followed(world: ApiWorld) -> None:
    record_id = str(world.id_of(SUBSCRIPTION, "sub-x"))
    operator = world.client("operator")
    before = world.get("/v1/audit", limit=500)
    operator.patch(world.path_of(SUBSCRIPTION, "sub-x"), json={"quantity": 1})
    # A resumed list may repeat what was young when it ended; it never misses anything.
    resumed = world.get("/v1/audit", cursor=before["next_cursor"])["items"]
    followed = [entry for entry in resumed if entry not in before["items"]]
    assert [entry["action"] for entry in followed] == ["field.refused"]
    assert followed[0]["actor"] == "token:test operator"
    refused = world.get("/v1/audit", record_id=record_id, action="field.refused")["items"]
    assert refused[-1:] == followed
    assert world.get("/v1/audit", actor="nobody")["items"] == []


def test_a_reseller_sees_nothing_of_what_others_did(world: ApiWorld) -> None:
    world.client("operator").patch(world.path_of(SUBSCRIPTION, "sub-x"), json={"notes": "secret", "price": "1"})
    entries = world.get("/v1/audit", "reseller", limit=500)["items"]
    assert entries
    assert {entry["connection"] for entry in entries} == {"cloud-resell"}
    assert all(entry["action"].startswith("message.") or entry["actor"].startswith("sender:") for entry in entries)


def test_a_held_message_is_replayed_once_its_cause_is_gone(world: ApiWorld) -> None:
    source_id = fresh_id("held")
    said = world.say(SUBSCRIPTION, source_id, 1, status="napping")
    (item,) = world.get("/v1/messages", message_id=said)["items"]
    operator, path = world.client("operator"), f"/v1/messages/{item['id']}/replay"
    still = operator.post(path, json={"dry_run": True}).json()
    assert (still["dry_run"], still["messages"][0]["becomes"]) == (True, "quarantined")
    world.execute(
        """insert into value_map (tenant_id, connection_id, field, source_value, canonical)
           values (:tenant, :connection, 'status', 'napping', 'suspended')""",
        tenant=world.resell.tenant_id,
        connection=world.resell.id,
    )
    chosen = {"state": "quarantined", "source_id": source_id, "connection": "cloud-resell", "since": "2026-01-01"}
    planned = operator.post("/v1/replays", json={**chosen, "dry_run": True})
    assert planned.status_code == 200, planned.text
    assert planned.json()["messages"][0]["becomes"] == "applied"
    assert world.get("/v1/messages/" + item["id"])["state"] == "quarantined", "a dry run changes nothing"
    assert operator.post(path).status_code == 200
    world.process()
    assert world.get("/v1/messages/" + item["id"])["state"] == "applied"
    assert world.get(world.path_of(SUBSCRIPTION, source_id))["status"] == "suspended"
    assert operator.post(path).json()["changes"] == 0, "what was applied answers no change"


def test_a_replay_needs_a_choice(world: ApiWorld) -> None:
    operator = world.client("operator")
    too_odd: list[dict[str, Any]] = [
        {},
        {"state": "lost"},
        {"ids": ["x"]},
        {"ids": []},
        {"dry_run": "yes", "state": "dead"},
        {"all": True},
    ]
    for wrong in too_odd:
        assert operator.post("/v1/replays", json=wrong).status_code == 422
    assert operator.post("/v1/replays", json={"connection": "nobody"}).status_code == 404


def test_a_token_is_made_used_and_revoked(world: ApiWorld) -> None:
    admin = world.client("admin")
    made = admin.post("/v1/tokens", json={"role": "auditor", "name": "robot"})
    assert made.status_code == 201, made.text
    bearer = {"authorization": f"Bearer {made.json()['token']}"}
    assert admin.get("/v1/accounts", headers=bearer).status_code == 200
    assert "robot" in [item["name"] for item in admin.get("/v1/tokens").json()["items"]]
    assert made.json()["token"] not in admin.get("/v1/tokens").text
    assert admin.delete("/v1/tokens/" + made.json()["id"]).status_code == 204
    assert admin.get("/v1/accounts", headers=bearer).status_code == 401
    assert admin.delete("/v1/tokens/" + made.json()["id"]).status_code == 404
    for wrong in ({"role": "king", "name": "x"}, {"role": "auditor"}, {"role": "reseller", "name": "x"}):
        assert admin.post("/v1/tokens", json=wrong).status_code == 422


def test_every_route_has_a_summary_and_an_example(world: ApiWorld) -> None:
    document = world.get("/openapi.json")
    lacking = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            bodies = [operation.get("requestBody"), *operation["responses"].values()]
            media = [content for body in bodies if body for content in body.get("content", {}).values()]
            exemplified = any({"example", "examples"} & content.keys() for content in media)
            if "summary" not in operation or (path.startswith("/v1/") and method != "delete" and not exemplified):
                lacking.append(f"{method} {path}")
    assert lacking == []
