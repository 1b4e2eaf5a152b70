"""``python -m bench [--quick] [--only NAME] [--rounds N] [--out FOLDER]``: measure, and write the report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import apply, door
from bench.figures import Row
from bench.machine import describe
from bench.places import Place, place
from bench.report import write_report


@dataclass(frozen=True)
class Part:
    """Some rows of the report, in full size and in small."""

    name: str
    full: Callable[[Place, int], list[Row]]
    quick: Callable[[Place], list[Row]]


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
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit code 0 also where a goal was missed: the report says so."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: shows that everything works")
    parser.add_argument("--only", metavar="NAME", help="the part of that name: " + ", ".join(one.name for one in PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args(arguments)
    chosen = [one for one in PARTS if options.only in (None, one.name)]
    if not chosen:
        parser.error(f"there is no part {options.only}")
    rows: list[Row] = []
    with place() as at:
        machine = describe(at.postgres_version(), at.redis_version())
        for one in chosen:
            _say(f"{one.name} …")
            found = one.quick(at) if options.quick else one.full(at, options.rounds)
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
