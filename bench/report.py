"""The report: report.md and report.json, with a chart for each row that has a reference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.charts import bars, number
from bench.figures import Row

_HEAD = """# Benchmarks

Every ratio was measured in one run: our figure and its reference by turns, on the same machine, PostgreSQL
with fsync on. The figure is the median of the rounds; the spread is the least and the greatest. `make bench` makes this
page.
"""


def write_report(folder: Path, machine: Mapping[str, str], rows: Sequence[Row], *, quick: bool) -> Path:
    """Write everything into ``folder`` and return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"quick": quick, "machine": dict(machine), "rows": [row.document() for row in rows]}
    (folder / "report.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        if row.reference is not None:
            chart = bars(row.what, (row.ours, row.reference))
            (folder / f"{row.name}.svg").write_text(chart, encoding="utf-8")
    page = folder / "report.md"
    page.write_text(_page(machine, rows, quick=quick), encoding="utf-8")
    return page


def _page(machine: Mapping[str, str], rows: Sequence[Row], *, quick: bool) -> str:
    lines = [_HEAD]
    if quick:
        lines.append("> A quick run: small sizes and few rounds show that everything works, not how fast it is.\n")
    lines += ["| machine | |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine.items()), ""]
    lines += ["| what | ours | reference | ratio | goal | |", "|---|---|---|---|---|---|"]
    lines += [_line(row) for row in rows]
    for row in rows:
        lines += ["", f"## {row.what}", ""]
        if row.reference is not None:
            lines += [f"![{row.what}]({row.name}.svg)", ""]
        lines += [f"- {note}" for note in (*_rounds(row), *row.notes)]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    reference = "" if row.reference is None else f"{number(row.reference.median)} {row.reference.unit}"
    ratio = f"**{number(row.figure)}**" if row.ratios else ""
    if len(row.ratios) > 1:
        ratio += f" ({number(min(row.ratios))}–{number(max(row.ratios))})"
    goal = "" if row.goal is None else row.goal.words
    return (
        f"| {row.what} | {number(row.ours.median)} {row.ours.unit} | {reference} | {ratio} | {goal} | {row.verdict} |"
    )


def _rounds(row: Row) -> list[str]:
    told = []
    for one in (row.ours, row.reference):
        if one is not None:
            values = ", ".join(number(value) for value in one.rounds)
            told.append(f"{one.name}: median {number(one.median)} {one.unit}, rounds {values}")
    if row.ratios:
        told.append(f"ratio: {', '.join(number(value) for value in row.ratios)}")
    return told
