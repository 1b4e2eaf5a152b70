"""Backfills and imports: whole listings and files through the inbox, each row once, each refused row by its line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bss_sync.domain.errors import InvalidMessage, InvalidRequest, Transient
from bss_sync.jobs.reconciling import make_loader, make_reconciler
from bss_sync.pipeline.file_rows import open_rows, snapshot
from bss_sync.pipeline.load import Loaded
from bss_sync.pipeline.reconcile import Request
from connectors.simulator.faults import Fault
from tests.reconciling import found
from tests.servers import Database
from tests.workbooks import DATE, Cell, write_workbook
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world

RECORD = {
    "id": "sub-1",
    "version": 3,
    "account_id": "x",
    "parent_id": None,
    "product": PRODUCT,
    "status": "active",
    "trial": False,
    "start_date": "2026-01-01",
    "end_date": None,
    "activation_date": None,
    "cancellation_date": None,
    "auto_renew": True,
    "billing_cycle": "P1M",
    "term": None,
    "quantity": 2.5,
    "characteristics": {"domain": "x.example"},
}
CUSTOMER = {"id": "x", "version": 1, "parent_id": None, "kind": "customer", "name": "X", "number": None, "email": None}


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, target=False) as one:
        yield one


def _import(one: World, file: Path, **given: Any) -> Loaded:
    with open_rows(file, one.app.clock.now()) as rows:
        loaded = make_loader(one.app).import_rows(one.source.id, rows, requested_by="test", **given)
    one.process()
    return loaded


def _lines(*documents: object) -> str:
    return "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in documents)


def _counts(loaded: Loaded) -> tuple[int, int, int, int]:
    return loaded.read, loaded.accepted, loaded.duplicates, loaded.refused


def test_a_backfill_takes_in_everything_and_again_nothing(mirror: World) -> None:
    bss = mirror.simulator.reseller
    bss.put(ACCOUNT, "x", {})
    for number in range(600):
        bss.put(SUBSCRIPTION, f"sub-{number}", {"account_id": "x", "product": PRODUCT})
    seen: list[int] = []
    loader = make_loader(mirror.app)
    assert _counts(loader.backfill(mirror.source.id, requested_by="test", progress=seen.append)) == (601, 601, 0, 0)
    assert seen == [1, 501, 601], "page by page"
    mirror.process()
    assert mirror.value("select count(*) from subscription") == 600
    assert _counts(loader.backfill(mirror.source.id, requested_by="test")) == (601, 0, 601, 0)
    assert mirror.value("select count(*) from run where kind = 'backfill' and state = 'done'") == 2


def test_a_backfill_that_breaks_off_is_begun_again(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "x", {})
    mirror.simulator.reseller.put(SUBSCRIPTION, "sub", {"account_id": "x", "product": PRODUCT})
    mirror.simulator.faults.add(Fault(path="/subscriptions", status=500))
    loader = make_loader(mirror.app)
    with pytest.raises(Transient):
        loader.backfill(mirror.source.id, requested_by="test")
    failed = mirror.value("select id from run where state = 'failed'")
    mirror.simulator.faults.clear()
    loader.backfill(mirror.source.id, requested_by="test")
    mirror.process()
    assert mirror.value("select options ->> 'resumes' from run where state = 'done'") == str(failed)
    assert mirror.value("select count(*) from subscription") == 1


def test_json_lines_of_records_and_of_messages_are_taken_in(mirror: World, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    message = {"id": "m-1", "type": "subscription.updated", "timestamp": "2026-03-02T10:15:00Z", "data": RECORD}
    file.write_text(_lines({"kind": "account", "data": CUSTOMER}, "", message))
    assert _counts(_import(mirror, file)) == (2, 2, 0, 0)
    (row,) = mirror.rows("select * from subscription")
    assert (row.source_id, row.version, str(row.quantity)) == ("sub-1", 3, "2.5")
    assert _counts(_import(mirror, file)) == (2, 0, 2, 0)


def test_refused_rows_are_named_by_line_and_field_and_the_others_are_taken(mirror: World, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    without = {name: value for name, value in RECORD.items() if name != "status"}
    file.write_text(
        _lines({"kind": "account", "data": CUSTOMER}, "{broken", {"kind": "subscription", "data": without}, "[1]")
    )
    loaded = _import(mirror, file)
    assert _counts(loaded) == (4, 1, 0, 3)
    assert [one.line for one in loaded.refusals] == [2, 3, 4]
    assert "data.status" in loaded.refusals[1].detail


def test_a_row_that_contradicts_an_earlier_message_is_refused_alone(mirror: World, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    message = {"id": "m-1", "type": "account.updated", "timestamp": "2026-03-02T10:15:00Z", "data": CUSTOMER}
    file.write_text(_lines(message))
    _import(mirror, file)
    other = {"id": "m-2", "type": "subscription.updated", "timestamp": "2026-03-02T10:15:00Z", "data": RECORD}
    file.write_text(_lines(message | {"data": CUSTOMER | {"name": "Other"}}, other))
    loaded = _import(mirror, file)
    assert _counts(loaded) == (2, 1, 0, 1)
    assert [one.line for one in loaded.refusals] == [1]


def test_a_csv_is_taken_in(mirror: World, tmp_path: Path) -> None:
    file = tmp_path / "export.CSV"
    file.write_text(
        "kind,id,version,account_id,parent_id,product,status,trial,start_date,end_date,activation_date,"
        "cancellation_date,auto_renew,billing_cycle,term,quantity,characteristics,name,number,email,account_kind\n"
        'account,x,1,,,,,,,,,,,,,,,"Customer, X",,x@example.com,customer\n'
        f'subscription,sub-1,3,x,,{PRODUCT},active,false,2026-01-01,,,,true,P1M,,2.5,"{{""domain"": ""d""}}",,,,\n'
        f"subscription,sub-2,3,x,,{PRODUCT},active,maybe,2026-01-01,,,,true,P1M,,2.5,,,,,\n"
    )
    loaded = _import(mirror, file)
    assert _counts(loaded) == (3, 2, 0, 1)
    assert (loaded.refusals[0].line, "data.trial" in loaded.refusals[0].detail) == (4, True)
    assert mirror.value("select name from account") == "Customer, X"
    (row,) = mirror.rows("select * from subscription")
    assert (row.characteristics, row.auto_renew, str(row.quantity)) == ({"domain": "d"}, True, "2.5")


def test_a_workbook_is_taken_in_and_its_refused_rows_are_named(mirror: World, tmp_path: Path) -> None:
    file = tmp_path / "export.XLSX"
    header = ["kind", "id", "version", "account_id", "parent_id", "product", "status", "trial", "start_date",
              "end_date", "activation_date", "cancellation_date", "auto_renew", "billing_cycle", "term", "quantity",
              "characteristics", "name", "number", "email", "account_kind"]  # fmt: skip
    account: list[Cell] = ["account", 4711, 1, *[None] * 14, "Customer, X", None, "x@example.com", "customer"]
    paid: list[Cell] = ["subscription", "sub-1", 3, 4711, None, PRODUCT, "active", False, (46023.0, DATE), *[None] * 3,
                        True, "P1M", None, 2.5, '{"domain": "d"}']  # fmt: skip
    wrong = [*paid]
    wrong[1], wrong[7] = "sub-2", "maybe"
    write_workbook(file, [header, account, paid, wrong, [*paid, *[None] * 4, "beyond"]])
    loaded = _import(mirror, file)
    assert _counts(loaded) == (4, 2, 0, 2)
    assert [(one.line, one.detail.partition(" ")[0]) for one in loaded.refusals] == [(4, "[0].data.trial"), (5, "has")]
    (row,) = mirror.rows("select s.*, a.name from subscription s join account a on a.id = s.account_id")
    assert (row.name, row.account_source_id, str(row.quantity)) == ("Customer, X", "4711", "2.5")
    assert (row.start_date.isoformat(), row.trial, row.characteristics) == ("2026-01-01", False, {"domain": "d"})


def test_who_imports_again_after_a_kill_lets_workers_decide_what_was_under_way(mirror: World, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    records = [RECORD | {"id": f"sub-{number:05}", "account_id": None} for number in range(6_000)]
    file.write_text(_lines(*({"kind": "subscription", "data": one} for one in records)))
    runs = make_loader(mirror.app).runs
    lost = runs.start(mirror.source.id, "import", {"file": file.name}, requested_by="test")
    runs.progress(lost.id, {"read": 1_000})
    runs.let_go(lost.id)
    with open_rows(file, mirror.app.clock.now()) as rows:
        loaded = make_loader(mirror.app).import_rows(mirror.source.id, rows, requested_by="test")
    assert _counts(loaded) == (6_000, 6_000, 0, 0)
    pending = mirror.rows("select min(source_id) as first, max(source_id) as last, count(*) as number from message "
                          "where state = 'pending'")  # fmt: skip
    assert [tuple(row) for row in pending] == [("sub-01000", "sub-04999", 4_000)]


def test_a_dry_run_checks_every_row_and_stores_none(mirror: World, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    file.write_text(_lines({"kind": "account", "data": CUSTOMER}, "{broken"))
    assert _counts(_import(mirror, file, dry_run=True)) == (2, 1, 0, 1)
    assert mirror.value("select count(*) from message") == 0


def test_a_file_that_cannot_be_read_is_named(mirror: World, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="nowhere"), open_rows(tmp_path / "nowhere", mirror.app.clock.now()):
        raise AssertionError("it does not open")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"name": "Müller"}'.encode("latin-1"))
    with pytest.raises(InvalidRequest, match="UTF-8"):
        _import(mirror, latin)


def test_a_snapshot_file_proves_the_mirror_level_or_names_what_differs(mirror: World, tmp_path: Path) -> None:
    file = tmp_path / "snapshot.jsonl"
    file.write_text(_lines({"kind": "account", "data": CUSTOMER}, {"kind": "subscription", "data": RECORD}))
    _import(mirror, file)

    def reconciled() -> list[tuple[str, str, str | None]]:
        with open_rows(file, mirror.app.clock.now()) as rows:
            request = Request(mirror.source.id, snapshot=snapshot(rows), dry_run=True)
            result = make_reconciler(mirror.app).reconcile(request)
        assert result.source_error is None
        return found(result)

    assert reconciled() == []
    file.write_text(
        _lines({"kind": "account", "data": CUSTOMER}, {"kind": "subscription", "data": RECORD | {"quantity": 3}})
    )
    assert reconciled() == [("differing", "sub-1", "quantity")]
    file.write_text(_lines({"kind": "account", "data": CUSTOMER}))
    assert reconciled() == [("extra", "sub-1", None)]


def test_a_snapshot_with_a_refused_row_proves_nothing(mirror: World, tmp_path: Path) -> None:
    file = tmp_path / "snapshot.jsonl"
    file.write_text(_lines({"kind": "account", "data": CUSTOMER}, "{broken"))
    with open_rows(file, mirror.app.clock.now()) as rows, pytest.raises(InvalidMessage, match="Line 2"):
        list(snapshot(rows))
    with open_rows(file, mirror.app.clock.now()) as rows:
        result = make_reconciler(mirror.app).reconcile(Request(mirror.source.id, snapshot=snapshot(rows)))
    assert result.source_error is not None
    assert "Line 2" in result.source_error
