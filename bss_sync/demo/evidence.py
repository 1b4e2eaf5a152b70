"""The end: what can be proved about all that happened."""

from __future__ import annotations

from collections import Counter
from statistics import median

from bss_sync.demo.stage import DISTRIBUTOR
from bss_sync.demo.world import World, check


def prove(world: World) -> None:
    """Every connection is compared with its source, messages are counted by state, the audit's chains recomputed."""
    narrator = world.narrator
    narrator.chapter("The evidence")
    connections = {one["name"]: one["display_name"] for one in world.items("/v1/connections")}
    *compared, verified = world.stage.administer_all(
        *(("reconcile", name) for name in connections), ("audit", "verify")
    )
    for (name, display_name), found in zip(connections.items(), compared, strict=True):
        narrator.act(
            f"bss-sync reconcile {name}",
            f"{found['listed']} records of {display_name}, mirror, {DISTRIBUTOR}'s own BSS: all equal",
        )
    states = Counter((one["connection"], one["state"]) for one in world.items("/v1/messages"))
    held = {
        state: count for (_, state), count in states.items() if state in ("pending", "waiting", "quarantined", "dead")
    }
    check("messages that are not decided", {}, held)
    check("the audit's hash chains are whole", True, verified["whole"])
    narrator.act("bss-sync audit verify", f"{verified['chains']} hash chains recomputed, all whole")
    narrator.gap()
    narrator.table(
        ["messages of", "state", "count#"],
        [[connections[name], state, str(count)] for (name, state), count in sorted(states.items())],
    )


def sum_up(world: World) -> None:
    """The counts, and what could not be run."""
    narrator, tally = world.narrator, world.narrator.tally
    narrator.chapter("In short")
    times = tally.mirror_milliseconds
    narrator.table(
        ["what", "count#"],
        [
            ["acts that came out as they should", str(tally.acts)],
            ["acts that were refused, as they should be", str(tally.refused)],
            ["edits behind the back that were put back", str(tally.healed)],
            ["chapters that were not run", str(len(tally.not_run))],
            [f"from a reseller's act to {DISTRIBUTOR}'s mirror, median of {len(times)}", f"{median(times):.0f} ms"],
            ["seconds in all", f"{narrator.seconds:.0f}"],
        ],
    )
    for reason in tally.not_run:
        narrator.say(f"Not run: {reason}")
