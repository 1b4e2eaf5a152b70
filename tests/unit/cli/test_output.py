"""What the terminal shows: one exit code for each kind of error, problems as the HTTP interface says them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from uuid import UUID

import pytest

from bss_sync.cli import output
from bss_sync.domain import errors
from bss_sync.domain.errors import BssSyncError, FieldProblem
from bss_sync.web.problem import PROBLEM_BASE


def _tree(kind: type[BssSyncError] = BssSyncError) -> Iterator[type[BssSyncError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _tree(below)


@pytest.mark.parametrize(
    ("code", "names"),
    [
        (
            1,
            "FieldLocked OperationRefused NotPermitted GuardStopped RemoteRefused InvalidMessage UnknownValue",
        ),
        (2, "ConfigurationError InvalidRequest NotFound StateConflict MessageConflict"),
        (3, "Transient DependencyDown RemoteBusy RemoteUnknown NotMigrated CannotFetch LeaseLost"),
    ],
)
def test_every_kind_of_error_has_its_exit_code(code: int, names: str) -> None:
    for name in names.split():
        kind = getattr(errors, name)
        assert output.exit_code(kind.__new__(kind)) == code, name


def test_no_error_of_the_tree_counts_as_done() -> None:
    assert {output.exit_code(kind.__new__(kind)) for kind in _tree()} == {1, 2, 3}


def test_a_problem_is_the_http_interfaces() -> None:
    error = errors.FieldLocked("quantity is locked", fields=(FieldProblem("quantity", "owned by X", "X"),))
    assert output.PROBLEM_BASE == PROBLEM_BASE
    assert output.problem(error) == {
        "type": f"{PROBLEM_BASE}field-locked",
        "title": "field locked",
        "detail": "quantity is locked",
        "next_step": error.advice,
        "errors": [{"field": "quantity", "detail": "owned by X", "owner": "X"}],
    }


def test_a_defect_is_a_problem_document_with_places_and_no_values_where_json_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bss-sync", "reconcile", "x", "--json"])
    try:
        int("canary")
    except ValueError as error:
        output.report_defect(error)
    said = capsys.readouterr().err
    document = json.loads(said)
    assert document["type"].endswith("/internal")
    assert any("test_output.py" in place for place in document["places"])
    assert "canary" not in said
    assert "Traceback" not in said


def test_values_are_written_as_the_contract_spells_them() -> None:
    value = {
        "at": datetime(2026, 3, 2, 10, 15, tzinfo=UTC),
        "on": date(2026, 3, 2),
        "id": UUID(int=1),
        "amount": Decimal("18.90"),
        "names": frozenset({"b", "a"}),
    }
    assert json.loads(json.dumps(value, default=output.plain)) == {
        "at": "2026-03-02T10:15:00Z",
        "on": "2026-03-02",
        "id": "00000000-0000-0000-0000-000000000001",
        "amount": "18.90",
        "names": ["a", "b"],
    }


def test_help_loads_neither_the_database_nor_the_web() -> None:
    script = """
import sys
from bss_sync.cli import main
heavy = {"sqlalchemy", "alembic", "psycopg", "fastapi", "requests", "dramatiq", "redis", "pydantic", "rich.console"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
