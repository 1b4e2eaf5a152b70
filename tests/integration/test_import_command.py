"""``bss-sync import`` as an admin runs it: every form of file, a dry run, a report of what is refused, a kill."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import CommandLine, over
from tests.servers import Database
from tests.workbooks import Cell, write_workbook
from tests.world import PRODUCT, World, eventually, world

_HEADER = ("kind", "id", "version", "parent_id", "name", "number", "email", "account_kind")


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, target=False, connection={"account_scope": "all"}) as one:
        yield one


@pytest.fixture
def bss_sync(mirror: World, database: Database, server_home: Path) -> CommandLine:
    commands = over(database, server_home)
    key = mirror.app.settings.master_key
    assert key is not None
    commands.environment["BSS_SYNC_MASTER_KEY"] = key.get_secret_value()
    return commands


def _rows(number: int) -> list[list[Cell]]:
    """Accounts, of which each seventh has a version that is none."""
    return [
        ["account", f"a-{one:04}", "new" if one % 7 == 6 else 1, None, f"Account {one}", None, None, "customer"]
        for one in range(number)
    ]


def _write(file: Path, number: int) -> None:
    rows = _rows(number)
    if file.suffix == ".xlsx":
        write_workbook(file, [list(_HEADER), *rows])
    elif file.suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8") as lines:
            csv.writer(lines).writerows([_HEADER, *rows])
    else:
        with file.open("w", encoding="utf-8") as lines:
            for row in rows:
                data = dict(zip(_HEADER[1:-1], row[1:-1], strict=True)) | {"kind": row[-1]}
                lines.write(json.dumps({"kind": row[0], "data": data}) + "\n")


@pytest.mark.parametrize("name", ["export.jsonl", "export.csv", "export.xlsx"])
def test_every_form_is_checked_taken_in_and_its_refused_rows_written_down(
    mirror: World, bss_sync: CommandLine, tmp_path: Path, name: str
) -> None:
    file, refused = tmp_path / name, tmp_path / "refused.csv"
    _write(file, 70)
    first = 1 if name == "export.jsonl" else 2
    checked = bss_sync("import", mirror.source.name, file, "--dry-run", "--refusals", refused, "--json")
    assert (checked.code, checked.json["accepted"], checked.json["refused"]) == (1, 60, 10)
    assert mirror.value("select count(*) from message") == 0
    with refused.open(newline="", encoding="utf-8") as lines:
        told = list(csv.DictReader(lines))
    assert [int(row["line"]) for row in told] == [first + one for one in range(70) if one % 7 == 6]
    assert all("version" in row["detail"] for row in told)
    taken = bss_sync("import", mirror.source.name, file, "--json")
    assert (taken.code, taken.json["accepted"], taken.json["refused"]) == (1, 60, 10)
    mirror.process()
    assert mirror.value("select count(*) from account") == 60


def test_an_import_that_was_killed_is_given_again_and_takes_in_what_is_missing(
    mirror: World, bss_sync: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "export.jsonl"
    _write(file, 7_000)
    with subprocess.Popen(
        [sys.executable, "-m", "bss_sync.cli.main", "import", mirror.source.name, str(file)],
        env={**os.environ, **bss_sync.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        far = "select coalesce(max((progress ->> 'read')::int), 0) from run where kind = 'import'"
        eventually(lambda: mirror.value(far) >= 1_000, seconds=40)
        process.send_signal(signal.SIGKILL)
    done = mirror.value("select count(*) from message")
    assert 0 < done < 6_000, "it was killed on the way"
    again = bss_sync("import", mirror.source.name, file, "--json").json
    assert (again["read"], again["duplicates"], again["accepted"], again["refused"]) == (
        7_000,
        done,
        6_000 - done,
        1_000,
    )
    mirror.process()
    assert mirror.value("select count(*) from account") == 6_000
    assert mirror.value("select count(*) from history") == 6_000
    assert mirror.value("select array_agg(state order by state) from run where kind = 'import'") == ["done", "failed"]


def test_an_unwritable_report_is_named_before_anything_is_stored(
    mirror: World, bss_sync: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "export.csv"
    _write(file, 3)
    answer = bss_sync("import", mirror.source.name, file, "--refusals", tmp_path / "no" / "where.csv", "--json")
    assert (answer.code, "cannot be written" in answer.problem["detail"]) == (2, True)
    assert mirror.value("select count(*) from message") == 0


def test_the_catalogue_decides_here_too(mirror: World, bss_sync: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    record = {
        "id": "sub", "version": 1, "account_id": None, "parent_id": None, "product": PRODUCT, "status": "active",
        "trial": True, "start_date": None, "end_date": None, "activation_date": None, "cancellation_date": None,
        "auto_renew": True, "billing_cycle": "P1M", "term": None, "quantity": 1, "characteristics": {},
    }  # fmt: skip
    file.write_text(json.dumps({"kind": "subscription", "data": record}) + "\n")
    bss_sync.ok("import", mirror.source.name, file)
    assert mirror.value("select state || ' ' || reason from message") == "out_of_scope trial"
