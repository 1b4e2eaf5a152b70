"""Fairness: what one reseller's flood by webhook costs the others, who send a few messages a second.

Latency is from the request's first byte to the change being visible in the mirror. Quiet periods before and after the
flood are the reference, in the same run on the same processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.figures import Goal, Row, series
from bench.places import Place
from tests.flood import Town, over, p95, town

PAUSE_SECONDS = 0.05
"""Between two messages of the others: together they send some twelve a second."""


@dataclass(frozen=True)
class Shape:
    """How the flood comes: messages of one request, requests at one time, whether all share a shard."""

    name: str
    each: int
    threads: int
    one_shard: bool


SHAPES = (
    Shape("single messages", 1, 16, one_shard=False),
    Shape("arrays of 50", 50, 4, one_shard=False),
    Shape("arrays of 500, one shard", 500, 4, one_shard=True),
)


def measure(at: Place, *, flood: int, quiet: int, rounds: int, shapes: Sequence[Shape] = SHAPES) -> list[Row]:
    """One row per shape: the others' 95th percentile during a flood of so many messages, and without one."""
    return [_row(at, shape, flood, quiet, rounds) for shape in shapes]


def _row(at: Place, shape: Shape, flood: int, quiet: int, rounds: int) -> Row:
    during, without, numbers = [], [], []
    for number in range(rounds):
        folder = at.folder / f"fairness-{shape.each}-{number}"
        folder.mkdir()
        with (
            at.postgres.database() as database,
            town(database, at.redis, folder, resellers=4, workers=2, one_shard=shape.one_shard) as one,
        ):
            one.latencies("warm", number=20, pause=PAUSE_SECONDS)
            before = _seconds(one, "before", number=quiet)
            with one.flooding("flood", flood // shape.each, shape.each, threads=shape.threads) as sending:
                seconds = _seconds(one, "during", until=over(one, sending))
            after = _seconds(one, "after", number=quiet)
        during.append(p95(seconds) * 1000)
        without.append(p95([*before, *after]) * 1000)
        numbers.append(len(seconds))
    return Row(
        f"flood-{shape.each}",
        f"Beside a flood of {flood:,} messages ({shape.name}): the others' p95",
        series("beside the flood", "ms", during),
        Goal("≤ 2", 2.0, at_least=False),
        series("without", "ms", without),
        (f"Three other resellers in turn, from request to visible; {sum(numbers)} messages beside the flood.",),
    )


def _seconds(
    one: Town, name: str, *, number: int | None = None, until: Callable[[], bool] | None = None
) -> list[float]:
    answered, visible = one.latencies(name, number=number, until=until, pause=PAUSE_SECONDS)
    return [sum(pair) for pair in zip(answered, visible, strict=True)]
