"""``python -m tests.simulation --schedules N --seed S``: play schedules, stop at the first that breaks a promise.

``--replay SEED`` plays one seed again and prints every step of it; ``--postgres N`` plays N schedules on PostgreSQL;
``--without PROTECTION`` takes a protection out, to see how soon the simulation notices.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tests.simulation.memory_core import MemoryCore
from tests.simulation.oracles import Broken
from tests.simulation.profile import Profile
from tests.simulation.sabotage import PROTECTIONS, sabotaged_core
from tests.simulation.world import World, seeded

PROGRESS = 500
CHUNK = 20


def play(seed: int, without: str | None = None) -> tuple[World, Broken | None]:
    """Play one seed in memory, perhaps without one of the protections."""

    def core(products: Sequence[str], profile: Profile) -> MemoryCore:
        return sabotaged_core(products, profile, without)

    with seeded(seed):
        world = World(seed, core, looks_up=without != "look-up before create")
        try:
            world.run()
        except Broken as broken:
            return world, broken
    return world, None


@dataclass(frozen=True, slots=True)
class Played:
    """One schedule: its seed, what it broke, and how often what was done in it."""

    seed: int
    broken: str | None
    acts: Counter[str]


def _played(seed: int, without: str | None) -> Played:
    world, broken = play(seed, without)
    return Played(seed, None if broken is None else str(broken), world.acts)


def explore(seeds: Sequence[int], workers: int, without: str | None) -> Iterator[Played]:
    """Each seed, in order."""
    if workers == 1:
        yield from (_played(seed, without) for seed in seeds)
        return
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield from pool.imap(partial(_played, without=without), seeds, chunksize=CHUNK)


def _explore(seeds: Sequence[int], workers: int, without: str | None) -> int:
    started = time.monotonic()
    acts: Counter[str] = Counter()
    for number, one in enumerate(explore(seeds, workers, without), start=1):
        acts.update(one.acts)
        if one.broken is not None:
            _say(f"seed {one.seed}, schedule {number} of {len(seeds)}: {one.broken}")
            again = f" --without '{without}'" if without else ""
            _say(f"every step: python -m tests.simulation --replay {one.seed}{again}")
            return 1
        if number % PROGRESS == 0:
            _say(f"{number} schedules held, {number / (time.monotonic() - started):.0f} a second")
    seconds = time.monotonic() - started
    _say(f"{len(seeds)} schedules held in {seconds:.1f} s ({workers} processes, {len(seeds) / seconds:.0f} a second)")
    _say("done in them: " + ", ".join(f"{act} {count}" for act, count in sorted(acts.items())))
    return 0


def _replay(seed: int, without: str | None) -> int:
    world, broken = play(seed, without)
    for line in world.trace:
        _say(line)
    _say("every promise held" if broken is None else f"BROKEN: {broken}")
    return 0 if broken is None else 1


def _on_postgres(seeds: Sequence[int]) -> int:
    from bss_sync.adapters.sql.database import Database
    from tests.servers import embedded_postgres
    from tests.simulation.postgres_core import PostgresCore, install_clock

    started = time.monotonic()
    with embedded_postgres() as server, server.database() as fresh:
        install_clock(fresh)
        database = Database(fresh.login_url, pool_size=12)
        try:
            for number, seed in enumerate(seeds, start=1):
                with seeded(seed):
                    make = partial(PostgresCore, database)
                    world = World(seed, make, tag=f"-{seed}")
                    try:
                        world.run()
                    except Broken as broken:
                        _say("\n".join(world.trace))
                        _say(f"seed {seed} on PostgreSQL: {broken}")
                        return 1
                if number % 20 == 0:
                    _say(f"{number} schedules held on PostgreSQL")
        finally:
            database.dispose()
    _say(f"{len(seeds)} schedules held on PostgreSQL in {time.monotonic() - started:.1f} s")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000, help="how many seeds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--replay", type=int, default=None, metavar="SEED", help="play one seed and print its steps")
    parser.add_argument("--postgres", type=int, default=0, metavar="N", help="play N schedules on PostgreSQL")
    parser.add_argument("--without", choices=sorted(PROTECTIONS), default=None, help="take a protection out")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return _replay(options.replay, options.without)
    if options.postgres:
        return _on_postgres(range(options.seed, options.seed + options.postgres))
    return _explore(range(options.seed, options.seed + options.schedules), options.workers, options.without)


if __name__ == "__main__":
    sys.exit(main())
