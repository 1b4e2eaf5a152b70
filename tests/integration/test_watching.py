"""Watching the running program: its log by one id, its figures, and the files that read them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]  # its types are a package of their own, for one call
from prometheus_client.parser import text_string_to_metric_families

from tests.app import add_connection, serving
from tests.door_sender import Sender, account
from tests.servers import Database
from tests.world import World, eventually, world

_CHECKOUT = Path(__file__).resolve().parents[2]
_DASHBOARD = _CHECKOUT / "deploy" / "grafana" / "dashboard.json"
_RULES = _CHECKOUT / "deploy" / "prometheus" / "alerts.yml"
_NAME = re.compile(r"\bbss_sync_[a-z0-9_]+")


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, connection={"poll_seconds": 0}) as one:
        yield one


@dataclass
class Running:
    """A process of the program: what it said on its standard output, and its log."""

    process: subprocess.Popen[str]
    log: Path
    said: list[str]

    def address(self, words: str) -> str:
        """The address behind ``words``, once it has been said."""
        assert self.process.stdout is not None
        while not any(line.startswith(words) for line in self.said):
            line = self.process.stdout.readline()
            assert line, f"it ended: {self.log.read_text()}"
            self.said.append(line)
        return next(line for line in self.said if line.startswith(words)).removeprefix(words).strip()

    def lines(self, wanted: str) -> list[dict[str, Any]]:
        """The entries of the log that hold ``wanted``, as grep finds them."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if wanted in line]


@contextmanager
def _running(one: World, command: str, folder: Path, **settings: str) -> Iterator[Running]:
    known = one.app.settings
    assert known.database_url is not None
    assert known.master_key is not None
    own = {
        "HOME": str(known.home),
        "DATABASE_URL": known.database_url.get_secret_value(),
        "MASTER_KEY": known.master_key.get_secret_value(),
        "BIND": "127.0.0.1:0",
        "LOG_FORMAT": "json",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BSS_SYNC_")}
    environment |= {f"BSS_SYNC_{name}": value for name, value in {**own, **settings}.items()}
    log = folder / f"{command}.log"
    program = [sys.executable, "-m", "bss_sync.cli.main", command]
    with (
        log.open("w") as errors,
        subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            yield Running(process, log, [])
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0
        finally:
            process.kill()


def _figures(address: str) -> dict[str, float]:
    """Samples by name, summed over their labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(address, timeout=30).text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def _names(page: str) -> set[str]:
    """Every name that can be asked for, also of families that have no sample yet."""
    names: set[str] = set()
    for family in text_string_to_metric_families(page):
        if family.name.startswith("bss_sync_"):
            endings = {"counter": ["_total"], "histogram": ["", "_bucket", "_count", "_sum"]}.get(family.type, [""])
            names |= {family.name + ending for ending in endings}
    return names


@pytest.mark.slow
def test_grep_by_one_id_gives_a_messages_story_in_order(mirror: World, tmp_path: Path) -> None:
    source, secret = add_connection(mirror.app, "pushed", settings={"account_scope": "all"})
    with _running(mirror, "serve", tmp_path, LOG_LEVEL="debug") as program:
        address = program.address("listening on ")
        with httpx.Client(base_url=address, timeout=30) as client:
            body = account(parent_id=None, name="Canary Customer")
            assert Sender(client, source.name, secret).send(body, "m-story").status_code == 202
        eventually(lambda: mirror.value("select count(*) from delivery where state = 'confirmed'") == 1)
        eventually(lambda: program.lines("record.delivered"))
        figures = _figures(f"{address}/metrics")
    (row,) = mirror.rows("select id, stream_id from message where message_id = 'm-story'")
    told = program.lines(str(row.id))
    assert [line["event"] for line in told] == ["message.accepted", "message.decided", "record.delivered"]
    assert [line["at"] for line in told] == sorted(line["at"] for line in told)
    assert told[1]["state"] == "applied"
    assert told[2]["outcome"] == "created"
    assert {line["stream"] for line in told} == {str(row.stream_id)}
    assert "Canary" not in program.log.read_text()
    assert figures["bss_sync_message_decided_seconds_count"] == 1
    assert figures["bss_sync_deliveries_total"] == 1
    assert figures["bss_sync_scheduler_acting"] == 1


@pytest.mark.slow
def test_a_worker_shows_its_figures_at_an_address_of_its_own(mirror: World, redis_server: str, tmp_path: Path) -> None:
    source, secret = add_connection(mirror.app, "pushed", settings={"account_scope": "all"})
    with serving(mirror.app) as url, httpx.Client(base_url=url, timeout=30) as client:
        assert Sender(client, source.name, secret).send(account(parent_id=None), "m-1").status_code == 202
    settings = {"REDIS_URL": redis_server, "METRICS_BIND": "127.0.0.1:0"}
    with (
        _running(mirror, "worker", tmp_path, **settings) as worker,
        _running(mirror, "scheduler", tmp_path, **settings) as scheduler,
    ):
        of_worker, of_scheduler = worker.address("metrics on "), scheduler.address("metrics on ")
        eventually(lambda: _figures(of_worker).get("bss_sync_message_decided_seconds_count") == 1, seconds=30)
        eventually(lambda: _figures(of_scheduler)["bss_sync_scheduler_acting"] == 1, seconds=10)
        worker.address("working")
        scheduler.address("scheduling")
    (line,) = worker.lines("batch.decided")
    assert (line["messages"], line["applied"]) == (1, 1)
    assert worker.lines("message.decided") == [], "a line per message is for those who ask for it"


def test_the_docs_name_every_metric_and_no_other(mirror: World) -> None:
    with serving(mirror.app) as url:
        shown = _names(httpx.get(f"{url}/metrics", timeout=30).text)
    documented = set(
        re.findall(r"^\| `(bss_sync_[a-z_]+)`", (_CHECKOUT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    )
    families = {name for name in shown if not re.search(r"_(bucket|count|sum)$", name)}
    assert documented == families


def test_the_dashboard_and_the_rules_ask_for_metrics_that_there_are(mirror: World) -> None:
    with serving(mirror.app) as url:
        shown = _names(httpx.get(f"{url}/metrics", timeout=30).text)
    dashboard = json.loads(_DASHBOARD.read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    (group,) = yaml.safe_load(_RULES.read_text())["groups"]
    asked += [rule["expr"] for rule in group["rules"]]
    assert len(asked) > 30
    names = {name for expression in asked for name in _NAME.findall(expression)}
    assert names <= shown
    assert {"bss_sync_message_decided_seconds_bucket", "bss_sync_breaker_state", "bss_sync_connection_drift"} <= names


def test_panels_have_places_of_their_own_and_every_rule_says_what_to_do() -> None:
    panels = json.loads(_DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    (group,) = yaml.safe_load(_RULES.read_text())["groups"]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "next_step"}


def test_figures_tell_drift_breakers_and_stopped_runs(mirror: World) -> None:
    mirror.execute(
        """insert into drift (id, tenant_id, connection_id, kind, place, problem, action)
           select gen_random_uuid(), tenant_id, id, 'account', 'target', 'target_differs', 'reported' from connection"""
    )
    mirror.execute(
        """insert into run (id, tenant_id, kind, state, requested_by)
           select gen_random_uuid(), tenant_id, 'reconcile', 'stopped', 'test' from connection"""
    )
    mirror.execute(
        """insert into breaker (owner_id, tenant_id, connection_id, open_until)
           select id, tenant_id, id, now() + interval '1 minute' from connection"""
    )
    with serving(mirror.app) as url:
        page = httpx.get(f"{url}/metrics", timeout=30).text
    own = f'connection="{mirror.source.id}"'
    assert f"bss_sync_connection_drift{{{own}}} 1.0" in page
    assert 'bss_sync_runs{kind="reconcile",state="stopped"} 1.0' in page
    assert f'bss_sync_breaker_state{{remote="{mirror.source.id}"}} 2.0' in page


def test_an_address_that_is_taken_stops_the_start_and_is_named(
    mirror: World, redis_server: str, tmp_path: Path
) -> None:
    with serving(mirror.app) as url:
        taken = url.removeprefix("http://")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BSS_SYNC_")}
        known = mirror.app.settings
        assert known.database_url is not None
        environment |= {
            "BSS_SYNC_HOME": str(tmp_path),
            "BSS_SYNC_DATABASE_URL": known.database_url.get_secret_value(),
            "BSS_SYNC_REDIS_URL": redis_server,
            "BSS_SYNC_METRICS_BIND": taken,
        }
        assert known.master_key is not None
        environment["BSS_SYNC_MASTER_KEY"] = known.master_key.get_secret_value()
        done = subprocess.run(
            [sys.executable, "-m", "bss_sync.cli.main", "worker"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert "BSS_SYNC_METRICS_BIND: cannot listen" in done.stderr
