"""Idle: what a door, two workers and a scheduler cost while there is nothing to do.

CPU seconds are the kernel's count for each process. Statements are counted by PostgreSQL itself, which logs every one
of this database, the ``BEGIN`` and the ``COMMIT`` of each transaction included.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.figures import Goal, Row, series
from bench.places import Place, installation

WORKERS = 2
SETTLE_SECONDS = 12.0
"""Every period of the scheduler but the longest has passed once, and what the start needed is over."""
TICK_SECONDS = 0.01
"""The kernel counts in these: what is less counts as one."""
_STATEMENT = re.compile(r" LOG: {1,2}(?:statement|execute [^:]*): (?P<words>\S+(?: \S+){0,6})")


@dataclass
class _Rest:
    """One period of rest."""

    percent: dict[str, float] = field(default_factory=dict)
    """Of a core, by process."""
    statements_per_second: float = 0.0
    most: tuple[tuple[str, float], ...] = ()
    """The most frequent statements, by their first words, and how many a second."""


def measure(
    at: Place, *, seconds: float, connections: Sequence[int], settle_seconds: float = SETTLE_SECONDS
) -> list[Row]:
    """Two rows for each number of live connections: CPU of the busiest process in percent of a core, statements/s."""
    rows = []
    for number in connections:
        rest = _rest(at, seconds, number, settle_seconds)
        busiest = max(rest.percent, key=lambda name: rest.percent[name])
        shares = ", ".join(f"{name} {share:.2f} %" for name, share in rest.percent.items())
        words = ", ".join(f"{name} {often:.1f}/s" for name, often in rest.most)
        live = f"{number} live connection{'s' if number > 1 else ''}"
        rows += [
            Row(
                f"idle-cpu-{number}",
                f"Idle, {live}: the busiest process",
                series(busiest, "% of a core", [rest.percent[busiest]]),
                Goal("< 1 %", 1.0, at_least=False),
                None,
                (f"{seconds:.0f} s: {shares}.",),
            ),
            Row(
                f"idle-statements-{number}",
                f"Idle, {live}: statements of all processes",
                series("statements", "1/s", [rest.statements_per_second]),
                Goal("≤ 10", 10.0, at_least=False),
                None,
                (f"BEGIN and COMMIT are counted too. Most frequent: {words}.",),
            ),
        ]
    return rows


def _rest(at: Place, seconds: float, connections: int, settle_seconds: float) -> _Rest:
    found = _Rest()
    with installation(at, resellers=connections) as here, ExitStack() as stack:
        here.log_statements()
        processes = {"door": stack.enter_context(here.process("web", "--bind", "127.0.0.1:0", ready="listening on "))}
        for number in range(WORKERS):
            processes[f"worker {number + 1}"] = stack.enter_context(here.process("worker", ready="working"))
        processes["scheduler"] = stack.enter_context(here.process("scheduler", ready="scheduling"))
        time.sleep(settle_seconds)
        log = _log(at)
        begun, place = time.monotonic(), log.stat().st_size
        before = {name: _cpu_seconds(process) for name, process in processes.items()}
        time.sleep(seconds)
        passed = time.monotonic() - begun
        after = {name: _cpu_seconds(process) for name, process in processes.items()}
        with log.open("rb") as file:
            file.seek(place)
            lines = file.read().decode(errors="replace").splitlines()
    found.percent = {name: 100 * max(after[name] - before[name], TICK_SECONDS) / passed for name in processes}
    counts: dict[str, int] = {}
    for line in lines:
        match = _STATEMENT.search(line)
        if match is not None:
            counts[match["words"]] = counts.get(match["words"], 0) + 1
    found.statements_per_second = sum(counts.values()) / passed
    often = sorted(counts.items(), key=lambda item: -item[1])
    found.most = tuple((words[:60], number / passed) for words, number in often[:6])
    return found


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _log(at: Place) -> Path:
    """What the server writes now."""
    return max((at.home / "postgres").resolve().glob("log/postgresql-*.log"), key=lambda one: one.stat().st_mtime)
