"""``python -m tests.simulation --schedules N --seed S``: play schedules, stop at the first that breaks a promise.

``--replay SEED`` plays one seed again and prints every step of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.simulation.memory_core import MemoryCore
from tests.simulation.oracles import Broken
from tests.simulation.profile import Profile
from tests.simulation.world import World, seeded


def memory_core(products: Sequence[str], profile: Profile) -> MemoryCore:
    """The stores in memory for a profile."""
    return MemoryCore(products, accounts_at_once=profile.accounts_at_once)


def play(seed: int) -> tuple[World, Broken | None]:
    """Play one seed in memory."""
    with seeded(seed):
        world = World(seed, memory_core)
        try:
            world.run()
        except Broken as broken:
            return world, broken
    return world, None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000, help="how many seeds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--replay", type=int, default=None, metavar="SEED", help="play one seed and print its steps")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        world, broken = play(options.replay)
        sys.stdout.write("\n".join(world.trace) + "\n")
        if broken is not None:
            sys.stdout.write(f"BROKEN: {broken}\n")
        return 0 if broken is None else 1
    started = time.monotonic()
    for number in range(options.schedules):
        seed = options.seed + number
        _world, broken = play(seed)
        if broken is not None:
            sys.stdout.write(f"seed {seed} after {number} schedules: {broken}\nreplay: --replay {seed}\n")
            return 1
        if (number + 1) % 500 == 0:
            rate = (number + 1) / (time.monotonic() - started)
            sys.stdout.write(f"{number + 1} schedules, {rate:.0f} a second\n")
            sys.stdout.flush()
    seconds = time.monotonic() - started
    sys.stdout.write(f"{options.schedules} schedules held in {seconds:.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
