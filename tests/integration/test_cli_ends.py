"""How commands end that do not end well: wrong usage, Ctrl-C, a guard; with words and a code for each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, text

from bss_sync.settings import PREFIX
from connectors.simulator.faults import Fault
from tests.chaos.scenarios import eventually
from tests.command_line import CommandLine, over
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, target=False, connection={"page_size": 50, "guard_count": 3}) as one:
        one.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
        for number in range(1, 7):
            body = {"account_id": "x", "product": PRODUCT, "quantity": number}
            one.simulator.reseller.put(SUBSCRIPTION, f"sub-{number}", body)
        one.settle()
        yield one


@pytest.fixture
def bss_sync(mirror: World, database: Database, server_home: Path) -> CommandLine:
    commands = over(database, server_home)
    key = mirror.app.settings.master_key
    assert key is not None
    commands.environment["BSS_SYNC_MASTER_KEY"] = key.get_secret_value()
    return commands


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (("token", "create", "--json"), "--role"),
        (("token", "create", "--role", "king", "--name", "x", "--json"), "--role"),
        (("message", "show", "not-an-id", "--json"), "message"),
        (("reconcile", "--json"), "connection"),
        (("product", "list", "--no-such-option", "--json"), None),
    ],
)
def test_wrong_usage_is_a_problem_document_where_json_is_wanted(
    tmp_path: Path, command: tuple[str, ...], field: str | None
) -> None:
    answer = CommandLine({f"{PREFIX}HOME": str(tmp_path)})(*command)
    assert (answer.code, answer.out) == (2, "")
    assert answer.problem["type"].endswith("/invalid-request")
    assert answer.problem["detail"] != ""
    assert "--help" in answer.problem["next_step"]
    named = [one["field"] for one in answer.problem.get("errors", [])]
    assert named == ([] if field is None else [field])
    words = CommandLine({f"{PREFIX}HOME": str(tmp_path)})(*command[:-1])
    assert words.code == 2
    assert "Usage:" in words.err


def test_a_reconcile_that_the_guard_stops_names_what_it_has_found(mirror: World, bss_sync: CommandLine) -> None:
    for number in range(1, 6):
        mirror.simulator.reseller.delete(SUBSCRIPTION, f"sub-{number}", push=False)
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub-6", {"quantity": 60}, push=False)
    expected = {("extra", f"sub-{number}") for number in range(1, 6)} | {("stale", "sub-6")}
    answer = bss_sync("reconcile", mirror.source.name, "--json")
    assert answer.code == 1
    assert answer.problem["type"].endswith("/guard-stopped")
    assert {(one["problem"], one["source_id"]) for one in answer.json["differences"]} == expected
    assert (answer.json["ends"], answer.json["total"], answer.json["stopped"]) == (5, 6, True)
    assert all(one["since"] is None or one["since"].endswith("Z") for one in answer.json["differences"])
    assert any(one["since"] for one in answer.json["differences"])
    words = bss_sync("reconcile", mirror.source.name)
    assert words.code == 1
    assert "bss-sync run approve" in words.err
    for number in range(1, 6):
        assert f"subscription sub-{number}" in words.out


@pytest.mark.parametrize("json_wanted", [False, True], ids=["words", "json"])
def test_ctrl_c_says_that_it_was_interrupted_and_what_becomes_of_the_run(
    mirror: World, bss_sync: CommandLine, json_wanted: bool
) -> None:
    mirror.simulator.faults.add(Fault(method="GET", path="/subscriptions", delay_seconds=3))
    given = [mirror.source.name, *(["--json"] if json_wanted else [])]
    with subprocess.Popen(
        [sys.executable, "-m", "bss_sync.cli.main", "reconcile", *given],
        env={**os.environ, **bss_sync.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        runs = "select count(*) from run where kind = 'reconcile' and state = 'running'"
        eventually(lambda: mirror.value(runs) == 1, "the run has begun")
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    said = json.loads(err)["detail"] if json_wanted else err
    assert "interrupted" in said.lower()
    assert "bss-sync run list" in said
    # Within a statement it takes the run's session with it: the run waits to be carried on.
    assert mirror.value("select state from run where kind = 'reconcile'") in {"failed", "running"}
    mirror.simulator.faults.clear()
    assert bss_sync("reconcile", mirror.source.name).code == 0


def test_ctrl_c_in_the_middle_of_a_statement_is_ctrl_c_and_the_run_is_carried_on(
    mirror: World, bss_sync: CommandLine, database: Database
) -> None:
    watch = create_engine(database.superuser_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    mirror.simulator.faults.add(Fault(method="GET", path="/subscriptions", delay_seconds=1, times=1))
    with subprocess.Popen(
        [sys.executable, "-m", "bss_sync.cli.main", "reconcile", mirror.source.name],
        env={**os.environ, **bss_sync.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        eventually(lambda: mirror.value("select count(*) from run where kind = 'reconcile'") == 1, "the run has begun")
        with mirror.app.database.engine() as other:
            other.execute(text("select 1 from run where kind = 'reconcile' for update"))
            waiting = text("select count(*) from pg_locks where not granted")
            with watch.connect() as seeing:
                eventually(lambda: seeing.execute(waiting).scalar() == 1, "it waits for the run's row")
            process.send_signal(signal.SIGINT)
            _out, err = process.communicate(timeout=30)
    assert (process.returncode, "interrupted" in err) == (130, True)
    assert mirror.value("select state from run where kind = 'reconcile'") == "running"
    assert bss_sync("reconcile", mirror.source.name).code == 0
    assert mirror.value("select array_agg(state) from run where kind = 'reconcile'") == ["done"]
