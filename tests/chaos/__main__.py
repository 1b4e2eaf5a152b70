"""``python -m tests.chaos --seed S --rounds N``: every scenario in full size, N times, each on a stack of its own.

Prints what each came to. Exit code 1 when a promise was not kept; the seed plays the same faults again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from bss_sync.telemetry import configure_logging
from tests.chaos import full_disk, restored, scenarios, tiers, upgrade
from tests.chaos.hosts import running_hosts
from tests.chaos.hosts import why_not as why_no_hosts
from tests.chaos.scenarios import HELD, Figures, Round
from tests.chaos.small_disk import small_disk, why_not
from tests.chaos.stack import running_stack
from tests.chaos.verdict import Way, verify
from tests.releases import previous_release, this_release, why_no_previous_release
from tests.servers import embedded_postgres, short_folder

LEVEL_SECONDS_MAX = 120.0
SHORT_LEASE_SECONDS = 2.0
DEFAULT_LEASE_SECONDS = 30.0
UPGRADE_SECONDS = 15.0
RESTORE_SECONDS = 15.0
TIER_KILLS = 20


@dataclass(frozen=True)
class Act:
    """A scenario, how often it strikes in full size, and what its stack is like."""

    play: Callable[[Round], Figures]
    size: int
    rows: str
    """The rows of the reliability table that it shows."""
    lease_seconds: float = SHORT_LEASE_SECONDS
    level_seconds_max: float = LEVEL_SECONDS_MAX
    on_hosts: bool = False
    """Whether workers and schedulers run on hosts of their own."""


ACTS = (
    Act(scenarios.worker_dies_at_points, 3, "1, 2"),
    Act(scenarios.processes_are_killed, 30, "1"),
    Act(scenarios.processes_are_killed, 5, "1, with leases of 30 s", DEFAULT_LEASE_SECONDS),
    Act(scenarios.redis_is_lost, 10, "4, 5"),
    Act(scenarios.postgres_is_restarted, 5_000, "6"),
    Act(scenarios.the_scheduler_is_killed, 1, "7"),
    Act(scenarios.a_worker_sleeps_beyond_its_lease, 5, "8"),
    Act(scenarios.a_message_kills_its_process, 2, "9"),
    Act(scenarios.processes_are_terminated, 50, "22"),
    # What had no answer waits for its share of the retries: a tenth of the calls, or twenty a minute.
    Act(scenarios.the_network_is_bad, 12, "26", level_seconds_max=600.0),
    Act(scenarios.a_host_is_cut_off, 6, "scale out", on_hosts=True),
)


def play(act: Act, seed: int) -> list[str]:
    """One act on a stack of its own; the promises that were not kept."""
    started = time.monotonic()
    with ExitStack() as cleanup:
        hosts = cleanup.enter_context(running_hosts(2)) if act.on_hosts else None
        stack = cleanup.enter_context(running_stack(seed, lease_seconds=act.lease_seconds, hosts=hosts))
        load = stack.load(seed, "e", pairs=60, pause_seconds=0.01)
        turn = Round(stack, load, random.Random(seed), act.size)
        load.start()
        try:
            figures = act.play(turn)
            load.end(LEVEL_SECONDS_MAX)
            _say(f"    {figures}")
            found = verify(stack, [load], seconds_max=act.level_seconds_max, held=HELD)
            broken = [*turn.broken, *found.faults]
            _say(f"    {found.messages} messages, {found.entities} entities, {found.effects} effects")
            _say(f"    level {found.level_seconds:.1f} s after the last answer; answers {dict(load.statuses)}")
            _say(f"    {load.lost} requests without an answer, sent again")
            if act.play is scenarios.processes_are_terminated and any(status >= 500 for status in load.statuses):
                broken.append(f"SIGTERM made 5xx: {dict(load.statuses)}")
        except AssertionError as error:
            broken = [str(error), *stack.crew.unexpected()]
        finally:
            load.abandon()
    _say(f"    {'held' if not broken else 'BROKEN'} in {time.monotonic() - started:.0f} s")
    return broken


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", metavar="NAME", help="scenarios whose name contains this")
    parser.add_argument("--share", type=float, default=1.0, help="of the full sizes, 0 to 1")
    options = parser.parse_args(arguments)
    configure_logging(level="error")
    broken: list[str] = []
    for number in range(options.rounds):
        seed = options.seed + number
        for act in ACTS:
            name = act.play.__name__
            if options.only and options.only not in name:
                continue
            if act.on_hosts and (reason := why_no_hosts()) is not None:
                _say(f"{name} ({act.rows}), not run: {reason}")
                continue
            size = max(1, round(act.size * options.share))
            _say(f"{name} ({act.rows}), size {size}, seed {seed}")
            smaller = replace(act, size=size)
            broken += [f"{name}, seed {seed}: {words}" for words in play(smaller, seed)]
        if not options.only or options.only in "full_disk":
            broken += _fill(seed)
        if not options.only or options.only in "yesterdays_backup":
            broken += _restore(seed, max(1.0, RESTORE_SECONDS * options.share))
        if not options.only or options.only in "there_and_back":
            broken += _upgrade(seed, max(1.0, UPGRADE_SECONDS * options.share))
        if not options.only or options.only in "a_chain_of_tiers":
            broken += _chain(seed, options.share)
    for words in broken:
        _say(f"BROKEN {words}")
    _say("every promise was kept" if not broken else f"{len(broken)} promises were broken")
    return 1 if broken else 0


def _chain(seed: int, share: float) -> list[str]:
    points = tiers.every_point()
    random.Random(seed).shuffle(points)
    points = points[: max(1, round(len(points) * share))]
    kills = round(TIER_KILLS * share)
    _say(f"a_chain_of_tiers (1, 2), {len(points)} points and {kills} kills at random, seed {seed}")
    with embedded_postgres() as server:
        found = tiers.play(server, seed, points, kills)
    _say(f"    {'held' if not found else 'BROKEN'}")
    return [f"a_chain_of_tiers, seed {seed}: {words}" for words in found]


def _fill(seed: int) -> list[str]:
    reason = why_not()
    if reason is not None:
        _say(f"full_disk (24), not run: {reason}")
        return []
    _say("full_disk (24)")
    try:
        _say(f"    held; {_disk_figures()}")
    except AssertionError as error:
        return [f"full_disk, seed {seed}: {error}"]
    return []


def _restore(seed: int, seconds: float) -> list[str]:
    broken = []
    for way in Way:
        _say(f"yesterdays_backup (27), {way}, {seconds:.0f} s in each stage, seed {seed}")
        with short_folder() as folder, running_stack(seed) as stack:
            figures, found = restored.play(stack, seed, folder, way, seconds=seconds)
        _say(f"    {figures}")
        _say(f"    {'held' if not found else 'BROKEN'}")
        broken += [f"yesterdays_backup, {way}, seed {seed}: {words}" for words in found]
    return broken


def _upgrade(seed: int, seconds: float) -> list[str]:
    reason = why_no_previous_release()
    if reason is not None:
        _say(f"there_and_back (an upgrade), not run: {reason}")
        return []
    _say(f"there_and_back (an upgrade), {seconds:.0f} s in each stage, seed {seed}")
    with short_folder() as before, short_folder() as now:
        old, new = previous_release(before), this_release(now)
        with upgrade.journey(seed, old, new, workers=2) as one:
            try:
                _say(f"    {upgrade.there_and_back(one, seconds=seconds)}")
            except AssertionError as error:
                one.broken.append(str(error))
    _say(f"    {'held' if not one.broken else 'BROKEN'}")
    return [f"there_and_back, seed {seed}: {words}" for words in one.broken]


def _disk_figures() -> dict[str, int]:
    with short_folder() as home, small_disk(home):
        return full_disk.fill_the_disk(home)


def _say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
