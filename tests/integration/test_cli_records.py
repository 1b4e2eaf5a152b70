"""The command line on a live mirror: what it shows, sets, refuses, takes over and explains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command_line import CommandLine, over
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world


@dataclass
class Desk:
    """A mirror with one customer and its subscription, and the program over it."""

    bss_sync: CommandLine
    world: World


@pytest.fixture
def desk(database: Database, server_home: Path) -> Iterator[Desk]:
    with world(database, server_home, target=False) as one:
        reseller = one.simulator.reseller
        reseller.put(ACCOUNT, "lite-1", {"name": "Cloud Lite", "kind": "reseller"})
        reseller.put(ACCOUNT, "cust-x", {"name": "Cloud Customer X", "parent_id": "lite-1"})
        reseller.put(SUBSCRIPTION, "sub-1", {"account_id": "cust-x", "product": PRODUCT, "quantity": 25})
        one.poll()
        program = over(database, server_home)
        key = one.app.settings.master_key
        assert key is not None
        program.environment["BSS_SYNC_MASTER_KEY"] = key.get_secret_value()
        yield Desk(program, one)


def test_a_record_is_found_by_our_id_by_its_connection_and_by_its_source_id(desk: Desk) -> None:
    ours = str(desk.world.record_id(SUBSCRIPTION, "sub-1"))
    for reference in (ours, f"{desk.world.source.name}/sub-1", "sub-1"):
        assert desk.bss_sync.ok("subscription", "show", reference, "--json").json["id"] == ours
    assert desk.bss_sync("subscription", "show", "sub-99").code == 2


def test_the_tree_shows_who_is_under_whom_now_and_nobody_long_ago(desk: Desk) -> None:
    lines = desk.bss_sync.ok("tree").out.splitlines()
    assert [line.strip(" │├└─") for line in lines] == [
        "cloud-resell (tenant)",
        "Cloud Lite (reseller) [lite-1]",
        "Cloud Customer X [cust-x]",
        f"25 × {PRODUCT}, active [sub-1]",
    ]
    (root,) = desk.bss_sync.ok("tree", "--json").json["items"]
    assert root["accounts"][0]["accounts"][0]["subscriptions"][0]["source_id"] == "sub-1"
    (before,) = desk.bss_sync.ok("tree", "--as-of", "2020-01-01", "--json").json["items"]
    assert before["accounts"] == []


def test_a_locked_field_is_refused_with_its_owners_name_and_exit_code_1(desk: Desk) -> None:
    refused = desk.bss_sync("subscription", "set", "sub-1", "quantity=3", "notes=x", "--json")
    assert refused.code == 1
    assert refused.problem["errors"] == [
        {"field": "quantity", "detail": "owned by cloud-resell, locked here", "owner": "cloud-resell"}
    ]
    shown = desk.bss_sync.ok("subscription", "show", "sub-1", "--json").json
    assert (shown["quantity"], shown["notes"]) == (25, None)


def test_own_fields_are_set_as_text_or_json_and_cleared_with_null(desk: Desk) -> None:
    desk.bss_sync.ok("subscription", "set", "sub-1", "notes=12345", 'price={"amount": "18.90", "currency": "EUR"}')
    shown = desk.bss_sync.ok("subscription", "show", "sub-1", "--json").json
    assert shown["notes"] == "12345"
    assert shown["price"] == {"amount": "18.90", "currency": "EUR"}
    desk.bss_sync.ok("account", "set", "cust-x", 'tags=["vip"]')
    assert desk.bss_sync.ok("subscription", "set", "sub-1", "notes=null", "--json").json["notes"] is None


def test_a_field_that_was_taken_is_set_does_not_follow_and_returns_on_release(desk: Desk) -> None:
    take = ("subscription", "sub-1", "quantity")
    assert desk.bss_sync("field", "take", *take).code == 2, "a reason is needed"
    desk.bss_sync.ok("field", "take", *take, "--reason", "dispute 88")
    desk.bss_sync.ok("subscription", "set", "sub-1", "quantity=3")
    desk.world.simulator.reseller.put(
        SUBSCRIPTION, "sub-1", {"account_id": "cust-x", "product": PRODUCT, "quantity": 30}
    )
    desk.world.poll()
    (explained,) = desk.bss_sync.ok("explain", "subscription", "sub-1", "quantity", "--json").json["fields"]
    assert explained["value"] == 3
    assert explained["taken_over"]["reason"] == "dispute 88"
    assert explained["taken_over"]["source_value"] == 30
    desk.bss_sync.ok("field", "release", *take, "--reason", "settled")
    desk.world.process()
    assert desk.bss_sync.ok("subscription", "show", "sub-1", "--json").json["quantity"] == 30


def test_history_and_explain_name_the_messages(desk: Desk) -> None:
    (change,) = desk.bss_sync.ok("subscription", "history", "sub-1", "--json").json["items"]
    assert change["changes"]["quantity"] == {"from": None, "to": 25}
    words = desk.bss_sync.ok("explain", "subscription", "sub-1", "quantity").out
    assert "quantity = 25" in words
    assert "owned by cloud-resell, locked here" in words
    assert f"written by message {change['message']['message_id']}" in words


def test_messages_are_listed_by_what_they_are_about(desk: Desk) -> None:
    def found(*options: str) -> set[str]:
        return {item["source_id"] for item in desk.bss_sync.ok("message", "list", *options, "--json").json["items"]}

    assert found() == {"lite-1", "cust-x", "sub-1"}
    assert found("--entity", "sub-1") == {"sub-1"}
    assert found("--subtree", "cust-x") == {"cust-x", "sub-1"}
    assert found("--state", "dead") == set()
    assert found("--until", "2020-01-01") == set()
    assert found("--error", "ENTERED") == {"lite-1", "cust-x", "sub-1"}
    assert desk.bss_sync("message", "list", "--state", "lost").code == 2


def test_a_held_message_is_shown_with_what_to_do_and_released_by_a_mapping(desk: Desk) -> None:
    desk.world.simulator.reseller.put(
        SUBSCRIPTION, "sub-2", {"account_id": "cust-x", "product": PRODUCT, "status": "aktiv"}
    )
    desk.world.poll()
    (held,) = desk.bss_sync.ok("message", "list", "--state", "quarantined", "--json").json["items"]
    words = desk.bss_sync.ok("message", "show", held["id"]).out
    assert "bss-sync connection map cloud-resell status 'aktiv' CANONICAL" in words
    assert desk.bss_sync("connection", "map", "cloud-resell", "status", "aktiv", "lively").code == 2
    mapped = desk.bss_sync.ok("connection", "map", "cloud-resell", "status", "aktiv", "active", "--json").json
    assert mapped["released"] == 1
    desk.world.process()
    assert desk.bss_sync.ok("subscription", "show", "sub-2", "--json").json["status"] == "active"


def test_the_audit_is_listed_and_a_tampered_entry_is_found(desk: Desk, database: Database) -> None:
    assert desk.bss_sync.ok("audit", "verify", "--json").json["whole"] is True
    actions = {
        item["action"]
        for item in desk.bss_sync.ok("audit", "list", "--connection", "cloud-resell", "--json").json["items"]
    }
    assert "connection.added" in actions
    from sqlalchemy import create_engine, text

    engine = create_engine(database.superuser_url)
    with engine.begin() as sql:
        sql.execute(text("update audit set actor = 'nobody' where action = 'connection.added'"))
    engine.dispose()
    broken = desk.bss_sync("audit", "verify", "--json")
    assert broken.code == 1
    assert [item["connection"] for item in broken.json["broken"]] == ["cloud-resell"]


def test_reconcile_names_a_difference_repairs_it_and_finds_none_afterwards(desk: Desk) -> None:
    desk.world.simulator.reseller.put(
        SUBSCRIPTION, "sub-1", {"account_id": "cust-x", "product": PRODUCT, "quantity": 7}
    )
    dry = desk.bss_sync("reconcile", "cloud-resell", "--dry-run", "--json")
    assert (dry.code, dry.json["total"] >= 1, dry.json["repaired"]) == (1, True, 0)
    first = desk.bss_sync("reconcile", "cloud-resell")
    assert first.code == 1
    assert "subscription sub-1" in first.out
    desk.world.process()
    assert desk.bss_sync.ok("reconcile", "cloud-resell", "--json").json["total"] == 0
    runs = desk.bss_sync.ok("run", "list", "--kind", "reconcile", "--json").json["items"]
    assert len(runs) == 3
    assert desk.bss_sync("run", "approve", runs[0]["id"]).code == 2


def test_a_file_is_imported_its_wrong_rows_are_named_and_a_backfill_reads_the_source(
    desk: Desk, tmp_path: Path
) -> None:
    file = tmp_path / "accounts.jsonl"
    good = {
        "id": "cust-z",
        "version": 1,
        "parent_id": None,
        "kind": "customer",
        "name": "Z",
        "number": None,
        "email": None,
    }
    rows = [{"kind": "account", "data": good}, {"kind": "account", "data": {"id": "cust-q", "version": 1}}]
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    imported = desk.bss_sync("import", "cloud-resell", file, "--json")
    assert imported.code == 1
    assert (imported.json["accepted"], [item["line"] for item in imported.json["refusals"]]) == (1, [2])
    assert desk.bss_sync.ok("backfill", "cloud-resell", "--json").json["read"] == 3
    assert desk.bss_sync("import", "cloud-resell", tmp_path / "missing.jsonl").code == 2


def test_messages_are_replayed_dry_or_not_and_discarded_with_a_reason(desk: Desk) -> None:
    desk.world.simulator.reseller.put(
        SUBSCRIPTION, "sub-2", {"account_id": "cust-x", "product": PRODUCT, "status": "aktiv"}
    )
    desk.world.poll()
    assert desk.bss_sync("message", "replay").code == 2, "nothing narrows it down"
    desk.world.execute(
        """insert into value_map (tenant_id, connection_id, field, source_value, canonical)
           select tenant_id, id, 'status', 'aktiv', 'active' from connection"""
    )
    chosen = ("message", "replay", "--state", "quarantined", "--json")
    (planned,) = desk.bss_sync.ok(*chosen, "--dry-run").json["messages"]
    assert (planned["state"], planned["becomes"]) == ("quarantined", "applied")
    assert len(desk.bss_sync.ok("message", "list", "--state", "quarantined", "--json").json["items"]) == 1
    desk.bss_sync.ok(*chosen)
    desk.world.process()
    assert desk.bss_sync.ok("subscription", "show", "sub-2", "--json").json["status"] == "active"
    desk.world.execute("update message set state = 'dead' where source_id = 'sub-2'")
    assert desk.bss_sync("message", "discard", "--state", "dead").code == 2, "a reason is needed"
    gone = desk.bss_sync.ok("message", "discard", "--state", "dead", "--reason", "by mistake", "--json").json
    assert gone["discarded"] == 1
