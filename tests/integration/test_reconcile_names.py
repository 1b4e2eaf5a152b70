"""Every way in which source, mirror and target can differ is made for real, and named: record, field, cause and age."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bss_sync.jobs.reconciling import make_reconciler
from bss_sync.pipeline.reconcile import Request
from bss_sync.pipeline.reconcile_result import SAMPLE
from bss_sync.ports.reconciliation import Cause, Difference, Problem
from tests.command_line import CommandLine, over
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world

STRANGER = "11111111-2222-5333-8444-555555555555"


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, connection={"page_size": 50, "guard_count": 100}) as one:
        bss = one.simulator.reseller
        bss.put(ACCOUNT, "x", {"name": "Customer X"})
        bss.put(ACCOUNT, "y", {"name": "Customer Y"})
        for number in range(1, 13):
            bss.put(SUBSCRIPTION, f"sub-{number}", {"account_id": "x", "product": PRODUCT, "quantity": number})
        bss.put(SUBSCRIPTION, "sub-y", {"account_id": "y", "product": PRODUCT})
        one.settle()
        yield one


@pytest.fixture
def bss_sync(mirror: World, database: Database, server_home: Path) -> CommandLine:
    commands = over(database, server_home)
    key = mirror.app.settings.master_key
    assert key is not None
    commands.environment["BSS_SYNC_MASTER_KEY"] = key.get_secret_value()
    return commands


def _disturb_the_source(one: World) -> None:
    bss = one.simulator.reseller
    bss.put(SUBSCRIPTION, "sub-new", {"account_id": "y", "product": PRODUCT}, push=False)
    bss.delete(SUBSCRIPTION, "sub-1", push=False)
    bss.patch(SUBSCRIPTION, "sub-2", {"quantity": 22}, push=False)
    bss.patch(SUBSCRIPTION, "sub-3", {"account_id": "y"}, push=False)
    bss.patch(SUBSCRIPTION, "sub-4", {"quantity": 44, "version": 1}, push=False)
    bss.patch(SUBSCRIPTION, "sub-5", {"status": "hibernating"}, push=False)
    bss.patch(SUBSCRIPTION, "sub-6", {"version": 0}, push=False)


def _disturb_the_mirror(one: World) -> None:
    one.execute("update subscription set quantity = 77 where source_id = 'sub-7'")
    one.execute("update subscription set account_id = null where source_id = 'sub-8'")
    one.execute(
        """update subscription set account_id = (select id from account where source_id = 'y')
           where source_id = 'sub-9'"""
    )


def _disturb_the_target(one: World) -> None:
    target = one.simulator.distributor
    ids = {record["reference"]: record["id"] for record in target.records()}
    ours = {number: str(one.record_id(SUBSCRIPTION, f"sub-{number}")) for number in (10, 11, 12)}
    target.edit(ids[ours[10]], {"quantity": "500"}, user="clerk")
    target.remove(ids[ours[11]], user="clerk")
    target.create({"kind": "subscription", "reference": ours[12], "fields": {}})
    target.create({"kind": "account", "reference": STRANGER, "fields": {"name": "Who?"}})


EXPECTED = {
    ("missing", "sub-new", None, "never_received"),
    ("extra", "sub-1", None, "message_lost"),
    ("stale", "sub-2", "quantity", "message_lost"),
    ("mis_parented", "sub-3", "account_id", "message_lost"),
    ("differing", "sub-4", "quantity", "uncounted"),
    ("unknown_value", "sub-5", "status", "message_lost"),
    ("version_regressed", "sub-6", "version", "counted_anew"),
    ("differing", "sub-7", "quantity", "overwritten"),
    ("orphaned", "sub-8", "account_id", "not_linked"),
    ("mis_parented", "sub-9", "account_id", "overwritten"),
    ("target_differs", "sub-10", "quantity", "edited"),
    ("target_missing", "sub-11", None, "removed"),
    ("target_duplicate", "sub-12", "external_id", "unknown_reference"),
    ("target_extra", None, None, "unknown_reference"),
}
TOLD_BY_THE_SOURCE = {"missing", "stale", "unknown_value", "version_regressed", "target_differs", "target_duplicate"}
"""What has an age: who tells what is there now also tells since when."""


def test_each_difference_is_named_by_record_field_cause_and_age_in_json_and_in_words(
    mirror: World, bss_sync: CommandLine
) -> None:
    for disturb in (_disturb_the_source, _disturb_the_mirror, _disturb_the_target):
        disturb(mirror)
    answer = bss_sync("reconcile", mirror.source.name, "--dry-run", "--json")
    assert answer.code == 1, answer.err
    report = answer.json
    found = {
        (one["problem"], None if one["problem"] == "target_extra" else one["source_id"], one["field"], one["cause"])
        for one in report["differences"]
    }
    assert found == EXPECTED
    assert report["total"] == len(report["differences"]) == len(EXPECTED)
    assert sum(report["counts"].values()) == len(EXPECTED)
    assert {one["problem"] for one in report["differences"] if one["since"]} >= TOLD_BY_THE_SOURCE
    values = {one["source_id"]: (one["expected"], one["found"]) for one in report["differences"]}
    assert values["sub-2"] == ("22", "2")
    assert values["sub-7"] == ("7", "77")
    assert values["sub-10"] == ("10", "500")
    lines = bss_sync("reconcile", mirror.source.name, "--dry-run").out.splitlines()
    for problem, source_id, field, cause in EXPECTED:
        wanted = rf"{problem} +(account|subscription) {source_id or '.*'}.*{field or ''}.*\({cause}"
        assert [line for line in lines if re.match(wanted, line)], f"no line says {problem} of {source_id}"
    assert any(
        re.match(r"stale +subscription sub-2 quantity: 22 expected, 2 found \(message_lost, since 20", x) for x in lines
    )
    assert lines[-1] == "nothing was repaired: this was a dry run"


def test_the_run_shows_all_differences_again(mirror: World, bss_sync: CommandLine) -> None:
    _disturb_the_source(mirror)
    report = bss_sync("reconcile", mirror.source.name, "--dry-run", "--json").json
    again = bss_sync.ok("run", "show", report["run_id"], "--differences", "--json").json
    assert again["differences"] == report["differences"]
    words = bss_sync.ok("run", "show", report["run_id"], "--differences").out
    assert "stale             subscription sub-2 quantity: 22 expected, 2 found" in words


def test_a_report_of_many_differences_is_kept_and_told_one_by_one(mirror: World, bss_sync: CommandLine) -> None:
    runs = make_reconciler(mirror.app).runs
    run = runs.start(mirror.source.id, "reconcile", {}, requested_by="test")
    findings = runs.findings(run.id, mirror.source.id)
    number = 3_000
    many = [
        Difference(
            Problem.STALE, "mirror", SUBSCRIPTION, f"sub-{place}", mirror.record_id(SUBSCRIPTION, f"sub-{place}"),
            "quantity", "2", "1\x00", Cause.MESSAGE_LOST,
        )
        for place in range(number)
    ]  # fmt: skip
    findings.add(many)
    findings.add(many[:10])
    assert findings.counts() == {"stale": number}, "what is named twice counts once"
    assert [one.source_id for one in findings.each(3)] == ["sub-0", "sub-1", "sub-2"]
    answer = bss_sync.ok("run", "show", str(run.id), "--differences", "--json")
    assert len(answer.json["differences"]) == number
    assert max(map(len, answer.out.splitlines())) < 500, "a line for each"
    runs.let_go(run.id)


def test_the_runs_own_row_holds_only_the_first_of_many(mirror: World) -> None:
    number = SAMPLE + 50
    for place in range(number):
        mirror.simulator.reseller.put(
            SUBSCRIPTION, f"more-{place:03}", {"account_id": "x", "product": PRODUCT}, push=False
        )
    result = make_reconciler(mirror.app).reconcile(Request(mirror.source.id, dry_run=True))
    assert result.total == number
    kept: Any = mirror.value("select result from run where id = :id", id=result.run_id)
    assert (kept["total"], len(kept["differences"])) == (number, SAMPLE)
    assert len(list(result.findings.each())) == number
    assert len(json.dumps(kept)) < 100_000
