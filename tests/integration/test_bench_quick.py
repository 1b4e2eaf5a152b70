"""The benchmarks in small: each part measures, and the report has its rows and charts. Speed is not judged here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import PARTS

pytestmark = pytest.mark.slow

_SECONDS_MAX = 220
"""Two minutes where nothing else runs."""
_ROOT = Path(__file__).parents[2]


def test_a_quick_run_of_all_parts_makes_a_report_of_finite_figures_and_judges_none(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=_SECONDS_MAX)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [line.split()[0] for line in done.stdout.splitlines() if line.endswith(" …")] == [
        part.name for part in PARTS if not part.long
    ]
    report = json.loads((tmp_path / "report.json").read_text())
    page = (tmp_path / "report.md").read_text()
    assert report["quick"] is True
    assert report["machine"]["postgresql"]
    names = [row["name"] for row in report["rows"]]
    assert len(set(names)) == len(names) > 0
    for row in report["rows"]:
        assert f"| {row['what']} |" in page
        _check(row)
        assert row["verdict"] == "shown", row["name"]
        if row["reference"] is not None:
            assert (tmp_path / f"{row['name']}.svg").read_text().startswith("<svg")
            assert f"({row['name']}.svg)" in page


def _check(row: dict[str, Any]) -> None:
    """Every figure is a number above zero, and each of our rounds has one of the reference."""
    figures = [row["figure"], *row["ratios"], *row["ours"]["rounds"]]
    if row["reference"] is not None:
        figures += row["reference"]["rounds"]
        assert len(row["reference"]["rounds"]) == len(row["ours"]["rounds"])
    assert all(math.isfinite(one) and one > 0 for one in figures), row["name"]
