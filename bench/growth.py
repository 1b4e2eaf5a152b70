"""Growth: what an event costs in a mirror of 10,000 and of a million subscriptions, for one and for 2,000 resellers.

The cost is CPU: of PostgreSQL, of the door's part (storing the messages) and of the worker, for the same mix of changed
and new records. CPU is counted because it says the same on a busy machine as on a quiet one; wall time is in the notes.
Both mirrors live at the same time and take turns, seconds each: a machine that becomes slower meanwhile makes no ratio.
The same processes live through the whole growth, so that their memory can be told apart from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from bench.figures import Goal, Row, series
from bench.filling import reseller_of
from bench.load import ask
from bench.messages import account_body, change_of, subscription_body
from bench.places import Place
from bench.town import COST, MEBIBYTE, Town, by_turns, town_at
from bss_sync.domain.change import Change, Kind

DEEP = 50


@dataclass(frozen=True)
class Sizes:
    """How much is measured. ``levels``: mirrored subscriptions, the first of which the others are compared with."""

    levels: tuple[int, ...]
    resellers: tuple[int, ...]
    resellers_level: int
    events: int
    hot: int
    trees: int


FULL = Sizes((10_000, 100_000, 1_000_000), (1, 100, 2_000), 100_000, 5_000, 10_000, 20)
LARGE = Sizes((10_000, 1_000_000, 5_000_000), (), 0, 5_000, 10_000, 20)
"""Without resellers of its own: what many of them cost is measured at 100,000."""
QUICK = Sizes((200, 400), (1, 10), 200, 100, 400, 1)


def measure(at: Place, sizes: Sizes, *, rounds: int) -> list[Row]:
    """Rows on size, memory, number of resellers, a hot stream, deep trees."""
    rows = _by_size(at, sizes, rounds)
    if sizes.resellers:
        rows += _by_resellers(at, sizes, rounds)
    return rows


def _by_size(at: Place, sizes: Sizes, rounds: int) -> list[Row]:
    base, *levels = sizes.levels
    taken = {}
    with town_at(at, 8) as town:
        town.grow(base)
        town.cost(town.mix(sizes.events))
        town.note_memory()
        for level in levels:
            town.grow(level)
            # A new one for each level: its own events let it grow too.
            with town_at(at.beside, 8, ["worker", "scheduler"]) as small:
                small.grow(base)
                taken[level] = by_turns(town, small, sizes.events, rounds)
            town.note_memory()
        hot = _hot(town, sizes.hot, rounds)
        deep = _deep(town, sizes.trees, rounds)
        town.note_memory()
    rows = [
        Row(
            f"growth-{level}",
            f"Cost per event: {level:,} mirrored subscriptions beside {base:,}",
            turns.cost(f"{level:,} subscriptions"),
            Goal("≤ 1.2", 1.2, at_least=False),
            turns.cost_beside(f"{base:,} subscriptions"),
            (
                (
                    f"{sizes.events:,} events each, four of five about records all over the mirror, one new; "
                    f"8 resellers, one worker. Wall: {turns.wall:.2f} ms per event, "
                    f"{turns.wall_beside:.2f} ms at {base:,}."
                ),
            ),
        )
        for level, turns in taken.items()
    ]
    return [*rows, *_memory(town, sizes), *_shapes(hot, deep, taken[levels[-1]].costs, sizes)]


def _memory(town: Town, sizes: Sizes) -> list[Row]:
    first, last = town.memory[0], town.memory[-1]
    largest = max(last, key=lambda name: last[name])
    grown = max(last, key=lambda name: last[name] / first[name])
    told = "; ".join(f"{name}: {', '.join(f'{moment[name]:.0f}' for moment in town.memory)} MiB" for name in last)
    note = f"After each level of {', '.join(f'{one:,}' for one in sizes.levels)} subscriptions, and at the end: {told}."
    return [
        Row(
            "growth-memory",
            "Memory of the largest process after all of it",
            series(largest, "MiB", [last[largest]]),
            Goal("≤ 300 MB", 300e6 / MEBIBYTE, at_least=False),
            None,
            (note,),
        ),
        Row(
            "growth-memory-flat",
            "The same processes' memory, last beside first",
            series(grown, "MiB", [last[grown]]),
            Goal("≤ 1.2", 1.2, at_least=False),
            series(f"{grown}, at {sizes.levels[0]:,} subscriptions", "MiB", [first[grown]]),
            (note,),
        ),
    ]


def _shapes(
    hot: tuple[list[float], list[float]], deep: tuple[list[float], list[float]], usual: list[float], sizes: Sizes
) -> list[Row]:
    first, last = hot
    flat, tree = deep
    return [
        Row(
            "growth-hot",
            f"A hot stream: one subscription changes {sizes.hot:,} times",
            series("the last fifth of its changes", COST, last),
            Goal("≤ 1.2", 1.2, at_least=False),
            series("the first fifth", COST, first),
            (f"Changes of as many records cost {median(usual):.2f} ms each.",),
        ),
        Row(
            "growth-deep",
            f"Deep trees: accounts at {DEEP} levels move to another parent",
            series(f"{DEEP} levels", COST, tree),
            None,
            series("one level", COST, flat),
            (f"{sizes.trees} trees; every account of a tree moves. Each move looks at all that is above it.",),
        ),
    ]


def _hot(town: Town, changes: int, rounds: int) -> tuple[list[float], list[float]]:
    """The first and the last fifth of one subscription's changes."""
    first, last = [], []
    fifth = changes // 5
    for number in range(rounds):
        version = 1_000_000
        found = []
        for _ in range(5):
            bodies = [subscription_body(number, 0, version + place) for place in range(fifth)]
            version += fifth
            sent = [change_of(Kind.SUBSCRIPTION, body) for body in bodies]
            found.append(town.cost([(reseller_of(town.here, number), sent)])[0])
        first.append(found[0])
        last.append(found[-1])
    return first, last


def _deep(town: Town, trees: int, rounds: int) -> tuple[list[float], list[float]]:
    """Accounts that move between two parents at one level, and in trees of ``DEEP`` levels."""
    owner = town.here.resellers[0]
    flat: list[float] = []
    deep: list[float] = []
    for levels, found in ((1, flat), (DEEP, deep)):
        for number in range(rounds + 1):
            moved = []
            for tree in range(trees):
                for place in range(DEEP):
                    # Down each tree the accounts of one colour hang below each other; each round changes the colour.
                    level = place % levels
                    parent = f"tree-{levels}-{tree}-{place - 1}" if level else f"root-{levels}-{number % 2}"
                    moved.append(_member(f"tree-{levels}-{tree}-{place}", parent, number + 2))
            roots = [_member(f"root-{levels}-{colour}", None, 1) for colour in (0, 1)] if number == 0 else []
            cost, _ = town.cost([(owner, [*roots, *moved])])
            if number:
                found.append(cost)
    return flat, deep


def _member(name: str, parent: str | None, version: int) -> Change:
    body = account_body(0, version) | {
        "id": name,
        "name": f"{name}, {version}",
        "kind": "reseller",
        "parent_id": parent,
    }
    return change_of(Kind.ACCOUNT, body)


def _by_resellers(at: Place, sizes: Sizes, rounds: int) -> list[Row]:
    base, *numbers = sizes.resellers
    taken = {}
    with _sending(at, base, sizes.resellers_level) as one:
        for number in numbers:
            with _sending(at.beside, number, sizes.resellers_level) as many:
                taken[number] = by_turns(many, one, sizes.events, rounds)
    return [
        Row(
            f"growth-resellers-{number}",
            f"Cost per event: {number:,} connections beside {base:,}",
            turns.cost(f"{number:,} connections"),
            Goal("≤ 1.2", 1.2, at_least=False),
            turns.cost_beside(f"{base:,} connection"),
            (
                (
                    f"{sizes.resellers_level:,} subscriptions, {sizes.events:,} events of all connections. Wall: "
                    f"{turns.wall:.2f} ms per event, {turns.wall_beside:.2f} ms with {base:,}."
                ),
            ),
        )
        for number, turns in taken.items()
    ]


@contextmanager
def _sending(at: Place, resellers: int, subscriptions: int) -> Iterator[Town]:
    """So many resellers that send and cannot be polled: that this is so is found out now and then, not by events."""
    # The scheduler finds who waits for what another batch brought at the same moment.
    with town_at(at, resellers, ["worker", "scheduler"]) as town:
        town.grow(subscriptions)
        ask(town.here, "update connection set poll_due_at = 'infinity'")
        yield town
