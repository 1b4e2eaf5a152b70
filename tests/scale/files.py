"""Files of many records in every form, each import killed once, beside live messages; every end is checked.

The command is a process of its own and ends by SIGKILL; then the same file is given again. Here and there stands a row
that is broken: each is in the report with its line, and no other. Some of the subscriptions change meanwhile: the file
is older than that, and the newer state stays.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.load import ask, installed, source_of
from bench.places import Place
from tests.scale.level import ACCOUNT, PER_ACCOUNT, account_of, body_of, id_of
from tests.scale.live import Live
from tests.scale.model import check
from tests.scale.processes import SETTLED, command, rows_read, wait, working
from tests.workbooks import Cell, write_workbook

FORMS = ("jsonl", "csv", "xlsx")
BROKEN_EVERY = 5_000
"""Behind so many subscriptions stands a row whose version is none."""
_MEMBERS = ("id", "version", *body_of(0))
_HEADER = ("kind", *_MEMBERS, "name", "number", "email", "account_kind")


def run(at: Place, records: int) -> Iterator[dict[str, Any]]:
    """The figures of each form, as they come. AssertionError where an end is not the model's."""
    for form in FORMS:
        # Its source is never asked: the connection is one like any other.
        with source_of() as url, installed(at, url) as here:
            ask(here, "update connection set poll_due_at = now() + interval '1 day'")
            file, report = here.folder / f"export.{form}", here.folder / "refused.csv"
            broken = write(file, records)
            environment = here.environment | {"BSS_SYNC_LEASE_SECONDS": "5"}
            arguments = ["import", "source", str(file), "--refusals", str(report), "--json"]
            began = time.monotonic()
            checked = command(environment, [*arguments, "--dry-run"], None, code=1)
            dry_seconds = time.monotonic() - began
            assert _lines(report) == broken, "the dry run names the broken rows"
            assert here.ask("select count(*) from message") == 0, "a dry run stores nothing"
            live = Live(here, records, lambda _number: None)
            with working(here, environment), live.sending():
                began = time.monotonic()
                killed = command(environment, arguments, lambda: rows_read(here) > records // 2)
                resumed = command(environment, arguments, None, code=1)
                live.stop()
                wait(here, SETTLED)
                seconds = time.monotonic() - began
            assert _lines(report) == broken, "the import names the broken rows"
            check(here, records, live.changed)
            yield {
                "step": f"import of {form}, killed once",
                "records": records,
                "file_mb": file.stat().st_size >> 20,
                "dry_run_seconds": dry_seconds,
                "seconds": seconds,
                "live": live.sent,
                "refused": len(broken),
                "memory_mb": [checked.most_mb, killed.most_mb, resumed.most_mb],
                "memory_over_time_mb": resumed.over_time(),
            }


def _lines(report: Path) -> list[int]:
    with report.open(newline="", encoding="utf-8") as rows:
        return [int(row["line"]) for row in csv.DictReader(rows)]


def write(file: Path, records: int) -> list[int]:
    """Write the accounts and their subscriptions; the lines of the rows that are broken."""
    header = file.suffix != ".jsonl"
    rows = _rows(records)
    if file.suffix == ".xlsx":
        write_workbook(file, _cells(rows))
    else:
        with file.open("w", newline="", encoding="utf-8") as lines:
            if header:
                csv.writer(lines).writerows(_cells(rows))
            else:
                lines.writelines(json.dumps(row) + "\n" for row in rows)
    return [number + header for number, row in enumerate(_rows(records), 1) if row["data"]["version"] == "none"]


def _rows(records: int) -> Iterator[dict[str, Any]]:
    for number in range(records):
        if number % PER_ACCOUNT == 0:
            account = {"id": account_of(number), "version": 1, **ACCOUNT}
            yield {"kind": "account", "data": account}
        yield {"kind": "subscription", "data": _subscription(number, 1)}
        if number % BROKEN_EVERY == BROKEN_EVERY - 1:
            yield {"kind": "subscription", "data": _subscription(number, "none")}


def _subscription(number: int, version: int | str) -> dict[str, Any]:
    body = body_of(number)
    return {"id": id_of(number), "version": version, **body, "quantity": int(body["quantity"])}


def _cells(rows: Iterable[dict[str, Any]]) -> Iterator[list[Cell]]:
    yield list(_HEADER)
    for row in rows:
        data = row["data"]
        if row["kind"] == "account":
            cells = data | {"account_kind": data["kind"]}
        else:
            cells = data | {
                "characteristics": json.dumps(data["characteristics"]),
                "trial": str(data["trial"]).lower(),
                "auto_renew": str(data["auto_renew"]).lower(),
            }
        yield [row["kind"], *(cells.get(name) for name in _HEADER[1:])]
