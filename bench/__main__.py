"""``python -m bench [--quick] [--only NAME] [--rounds N] [--out FOLDER]``: measure, and write the report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import apply, door, fairness, growth, idle, latency, load, reconcile, scale_out
from bench.figures import Row
from bench.machine import describe
from bench.places import Place, place
from bench.report import write_report
from bss_sync.telemetry import configure_logging


@dataclass(frozen=True)
class Part:
    """Some rows of the report, in full size and in small."""

    name: str
    full: Callable[[Place, int], list[Row]]
    quick: Callable[[Place], list[Row]]
    long: bool = False
    """It takes so long that it runs only when it is named."""


PARTS = (
    Part(
        "door",
        lambda at, rounds: door.measure(at, single=20_000, batched=100_000, rounds=rounds),
        lambda at: door.measure(at, single=1_000, batched=5_000, rounds=1),
    ),
    Part(
        "apply",
        lambda at, rounds: apply.measure(at, streams=20_000, usual_streams=5_000, rounds=rounds),
        lambda at: apply.measure(at, streams=1_000, usual_streams=400, rounds=1),
    ),
    Part(
        "load",
        lambda at, rounds: load.measure(at, records=100_000, rounds=rounds),
        lambda at: load.measure(at, records=2_000, rounds=1),
    ),
    Part(
        "load_large",
        lambda at, _rounds: load.measure(at, records=1_000_000, rounds=1),
        lambda at: load.measure(at, records=2_000, rounds=1),
        long=True,
    ),
    Part(
        "reconcile",
        lambda at, rounds: reconcile.measure(at, records=100_000, rounds=rounds),
        lambda at: reconcile.measure(at, records=2_000, rounds=1),
    ),
    Part(
        "reconcile_large",
        lambda at, _rounds: reconcile.measure(at, records=1_000_000, rounds=2),
        lambda at: reconcile.measure(at, records=2_000, rounds=1),
        long=True,
    ),
    Part(
        "latency",
        lambda at, rounds: latency.measure(at, messages=10_000, single=100, rounds=rounds),
        lambda at: latency.measure(at, messages=400, single=10, rounds=1),
    ),
    Part(
        "fairness",
        lambda at, rounds: fairness.measure(at, flood=10_000, quiet=60, rounds=rounds),
        lambda at: fairness.measure(at, flood=300, quiet=5, rounds=1, shapes=fairness.SHAPES[:1]),
    ),
    Part(
        "growth",
        lambda at, rounds: growth.measure(at, growth.FULL, rounds=rounds),
        lambda at: growth.measure(at, growth.QUICK, rounds=1),
    ),
    Part(
        "growth_large",
        lambda at, rounds: growth.measure(at, growth.LARGE, rounds=rounds),
        lambda at: growth.measure(at, growth.QUICK, rounds=1),
        long=True,
    ),
    Part(
        "idle",
        lambda at, _rounds: idle.measure(at, seconds=60, connections=(1, 100)),
        lambda at: idle.measure(at, seconds=3, connections=(1,), settle_seconds=2),
    ),
    Part(
        "scale_out",
        lambda at, rounds: scale_out.measure(at, delivered=2_400, applied=20_000, rounds=rounds),
        lambda at: scale_out.measure(at, delivered=80, applied=400, rounds=1),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit code 0 also where a goal was missed: the report says so."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: shows that everything works")
    parser.add_argument("--only", metavar="NAME", help="the part of that name: " + ", ".join(one.name for one in PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args(arguments)
    chosen = [one for one in PARTS if options.only == one.name or (options.only is None and not one.long)]
    if not chosen:
        parser.error(f"there is no part {options.only}")
    configure_logging(level="warning")  # what runs in this process is not to talk between the figures
    rows: list[Row] = []
    with place() as at:
        machine = describe(at)
        for one in chosen:
            _say(f"{one.name} …")
            # What is small and done once is not judged.
            quick = [replace(row, goal=None) for row in one.quick(at)] if options.quick else []
            found = quick or one.full(at, options.rounds)
            for row in found:
                _say(f"    {row.what}: {row.figure:.3g} ({row.verdict})")
            rows += found
    _say(f"written: {write_report(options.out, machine, rows, quick=options.quick)}")
    return 0


def _say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
