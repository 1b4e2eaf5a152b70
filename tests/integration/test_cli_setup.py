"""The command line sets up a deployment: catalogue, connections, secrets, tokens, target; by the real program."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.command_line import CommandLine, over
from tests.servers import Database, PostgresServer, short_folder

_COMMANDS = """demo serve web worker scheduler db doctor token product connection target tree account subscription
explain field message reconcile run backfill import audit connector"""


@pytest.fixture(scope="module")
def module_home() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def bss_sync(module_database: Database, module_home: Path) -> CommandLine:
    program = over(module_database, module_home)
    program.ok("product", "add", "M365")
    return program


def test_help_lists_every_command_of_the_contract(bss_sync: CommandLine) -> None:
    text = bss_sync.ok("--help").out
    for command in _COMMANDS.split():
        assert f" {command} " in text, command


@pytest.mark.parametrize(
    ("group", "commands"),
    [
        ("db", "upgrade status"),
        ("token", "create list revoke"),
        ("product", "add retire import list map"),
        ("connection", "add list show set check activate shadow pause resume close map secret"),
        ("target", "set show test"),
        ("account", "show set history"),
        ("field", "take release"),
        ("message", "list show replay discard"),
        ("run", "list show approve reject"),
        ("audit", "list verify"),
        ("connector", "list show test"),
    ],
)
def test_every_group_has_the_contracts_commands(bss_sync: CommandLine, group: str, commands: str) -> None:
    text = bss_sync.ok(group, "--help").out
    for command in commands.split():
        assert f" {command} " in text, command


def test_a_connection_that_is_added_with_json_prints_exactly_what_the_contract_says(bss_sync: CommandLine) -> None:
    added = bss_sync.ok("connection", "add", "first", "--connector", "webhook", "--activate", "--json").json
    assert list(added) == ["id", "name", "url", "secret"]
    assert added["url"] == f"http://127.0.0.1:8080/v1/connections/{added['id']}/messages"
    prefix, encoded = added["secret"].split("_", 1)
    assert prefix == "whsec"
    assert len(base64.b64decode(encoded, validate=True)) == 32
    shown = bss_sync.ok("connection", "show", added["id"], "--json").json
    assert (shown["state"], shown["policy_version"], shown["url"]) == ("live", 1, added["url"])
    assert added["secret"] not in str(shown)


def test_a_name_that_is_taken_exits_2_with_a_problem_document(bss_sync: CommandLine) -> None:
    bss_sync.ok("connection", "add", "taken", "--connector", "webhook")
    again = bss_sync("connection", "add", "taken", "--connector", "webhook", "--json")
    assert again.code == 2
    assert again.out == ""
    assert again.problem["type"].endswith("state-conflict")
    assert "taken" in again.problem["detail"]
    assert again.problem["next_step"]


def test_an_error_for_people_says_what_happened_and_what_to_do(bss_sync: CommandLine) -> None:
    answer = bss_sync("connection", "show", "nobody")
    assert answer.code == 2
    assert answer.err.splitlines() == [
        "error: There is no connection 'nobody'.",
        "what to do: See: bss-sync connection list",
    ]


def test_wrong_usage_exits_2(bss_sync: CommandLine) -> None:
    assert bss_sync("connection", "add", "x").code == 2
    assert bss_sync("no-such-command").code == 2
    assert bss_sync("connection", "add", "x", "--connector", "fax").code == 2
    wrong = bss_sync("connection", "add", "x", "--connector", "webhook", "--set", "colour=red", "--json")
    assert (wrong.code, wrong.problem["errors"][0]["field"]) == (2, "colour")


def test_a_secret_is_read_from_standard_input_and_never_from_the_command_line(bss_sync: CommandLine) -> None:
    reach = ("--set", "base_url=http://127.0.0.1:9", "--set", "allow_http_private=true")
    add = ("connection", "add", "simulated", "--connector", "simulator", *reach)
    assert bss_sync(*add, "--secret", "api_key=hunter2").code == 2
    bss_sync.ok(*add, "--secret", "api_key=-", given="hunter2\n")
    listed = bss_sync.ok("connection", "secret", "list", "simulated", "--json").json["items"]
    assert {(item["name"], item["scheme"]) for item in listed} == {("webhook", "v1"), ("api_key", "opaque")}
    checked = bss_sync("connection", "activate", "simulated", "--json")
    assert checked.code == 1
    assert [item["check"] for item in checked.json["checks"] if item["ok"] is False] == ["source"]
    assert checked.json["state"] == "draft"


def test_secrets_rotate_are_listed_and_revoked(bss_sync: CommandLine) -> None:
    bss_sync.ok("connection", "add", "rotating", "--connector", "webhook")
    rotated = bss_sync.ok("connection", "secret", "rotate", "rotating", "--overlap", "48h", "--json").json
    assert rotated["secret"].startswith("whsec_")
    bss_sync.ok(
        "connection",
        "secret",
        "add",
        "rotating",
        "--public-key",
        "whpk_" + base64.b64encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode(),
    )
    items = bss_sync.ok("connection", "secret", "list", "rotating", "--json").json["items"]
    assert sorted((item["scheme"], item["standing"]) for item in items) == [
        ("v1", "active"), ("v1", "phasing_out"), ("v1a", "active")
    ]  # fmt: skip
    assert len(bss_sync.ok("connection", "secret", "revoke", "rotating", "--json").json["revoked"]) == 1
    assert bss_sync("connection", "secret", "rotate", "rotating", "--overlap", "soon").code == 2


def test_a_token_prints_exactly_its_id_and_text(bss_sync: CommandLine) -> None:
    made = bss_sync.ok("token", "create", "--role", "operator", "--name", "night shift", "--json").json
    assert list(made) == ["id", "token"]
    assert made["token"].startswith("bst_")
    assert bss_sync("token", "create", "--role", "reseller", "--name", "x").code == 2
    assert made["id"] in bss_sync.ok("token", "list").out
    bss_sync.ok("token", "revoke", made["id"])
    assert made["id"] not in bss_sync.ok("token", "list").out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "Code;Name\nCSV-1;Eins\nCSV-2;\n"),
        ("lines.jsonl", '{"code": "JL-1", "name": "Eins"}\n{"code": "JL-2"}\n'),
        ("array.json", '[{"code": "JA-1"}, {"code": "JA-2", "name": "Zwei"}]'),
    ],
)
def test_products_are_imported_from_files(bss_sync: CommandLine, tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    assert bss_sync.ok("product", "import", file, "--json").json["added"] == 2
    assert bss_sync.ok("product", "import", file, "--json").json == {"added": 0, "unchanged": 2, "released": 0}


def test_a_wrong_product_file_names_the_line_and_adds_nothing(bss_sync: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("code,name\nGOOD,x\n,y\n", encoding="utf-8")
    answer = bss_sync("product", "import", file)
    assert answer.code == 2
    assert "line 3" in answer.err
    assert "GOOD" not in bss_sync.ok("product", "list").out


def test_a_retired_product_is_marked_and_a_mapped_code_is_listed(bss_sync: CommandLine) -> None:
    bss_sync.ok("product", "add", "OLD")
    bss_sync.ok("product", "retire", "OLD")
    (old,) = [item for item in bss_sync.ok("product", "list", "--json").json["items"] if item["code"] == "OLD"]
    assert old["retired_at"] is not None
    bss_sync.ok("connection", "add", "mapping", "--connector", "webhook")
    bss_sync.ok("product", "map", "mapping", "PROD-881", "M365")
    mapped = bss_sync.ok("product", "list", "--connection", "mapping", "--json").json["items"]
    assert mapped == [{"connection": "mapping", "source_code": "PROD-881", "code": "M365"}]


def test_states_move_and_illegal_moves_exit_2(bss_sync: CommandLine) -> None:
    bss_sync.ok("connection", "add", "moving", "--connector", "webhook")
    for command, state in (("shadow", "shadow"), ("activate", "live"), ("pause", "paused"), ("resume", "live")):
        assert bss_sync.ok("connection", command, "moving", "--json").json["state"] == state
    assert bss_sync("connection", "resume", "moving").code == 2
    assert bss_sync("connection", "close", "moving", "--on", "someday").code == 2
    assert bss_sync.ok("connection", "close", "moving", "--on", "2026-01-31", "--json").json["state"] == "done"
    assert bss_sync("connection", "shadow", "moving").code == 2


def test_a_target_is_set_shown_tested_and_taken_away(bss_sync: CommandLine) -> None:
    reach = ("--set", "base_url=http://127.0.0.1:9", "--set", "allow_http_private=true")
    assert bss_sync("target", "set", "--connector", "webhook").code == 2
    bss_sync.ok("target", "set", "--connector", "simulator", *reach, "--drift", "report")
    shown = bss_sync.ok("target", "show", "--json").json
    assert (shown["connector"], shown["drift_policy"]) == ("simulator", "report")
    assert bss_sync("target", "test").code == 1
    bss_sync.ok("target", "set", "--connector", "none")
    assert bss_sync.ok("target", "show", "--json").json is None


def test_connectors_are_listed_with_what_they_can(bss_sync: CommandLine) -> None:
    items = {item["name"]: item["capabilities"] for item in bss_sync.ok("connector", "list", "--json").json["items"]}
    assert {"webhook", "simulator", "stripe"} <= set(items)
    assert items["webhook"] == ["push"]
    shown = bss_sync.ok("connector", "show", "simulator", "--json").json
    assert "base_url" in shown["settings"]["required"]
    assert shown["secrets"] == ["api_key"]


def test_the_doctor_names_what_wants_attention(bss_sync: CommandLine) -> None:
    checks = {item["check"]: item["ok"] for item in bss_sync("doctor", "--json").json["checks"]}
    assert checks["database"] is True
    assert checks["secrets"] is True
    other = bss_sync("doctor", "--json", master_key=base64.b64encode(secrets.token_bytes(32)).decode())
    assert other.code == 1
    assert {item["check"]: item["ok"] for item in other.json["checks"]}["secrets"] is False
    assert "BSS_SYNC_BIND" in bss_sync.ok("doctor", "--settings").out


def test_a_database_that_is_not_migrated_exits_3_until_it_is(
    postgres_server: PostgresServer, module_home: Path
) -> None:
    with postgres_server.database(migrated=False) as empty:
        program = over(empty, module_home)
        answer = program("connection", "list")
        assert answer.code == 3
        assert "bss-sync db upgrade" in answer.err
        assert program("db", "status", "--json").json["migrated"] is False
        program.ok("db", "upgrade")
        assert program.ok("db", "status", "--json").json["migrated"] is True
        program.ok("connection", "list")


def test_a_server_that_is_down_exits_3_and_a_wrong_setting_2(bss_sync: CommandLine) -> None:
    down = bss_sync("connection", "list", database_url="postgresql://nobody@127.0.0.1:9/x", database_owner_url="")
    assert down.code == 3
    wrong = bss_sync("connection", "list", bind="nowhere")
    assert wrong.code == 2
    assert wrong.err.startswith("error: BSS_SYNC_BIND: ")
    assert bss_sync("worker").code == 2
