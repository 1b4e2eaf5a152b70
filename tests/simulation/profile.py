"""What kind of reseller, network and bad luck a seed stands for."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from bss_sync.domain.change import OrderKind
from bss_sync.ports.connector import Capabilities

OURS, RETIRING, LATER, FOREIGN = "OURS", "RETIRING", "LATER", "FOREIGN"
GUARD = (0, 0.2)
"""Count and share of a guarded connection."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Drawn once per schedule.

    catalogue_changes  an admin offers LATER and retires RETIRING on the way
    odd                the share of subscriptions whose status nobody has mapped yet
    takeovers          an admin takes fields over and gives them back
    replays            an admin replays and discards messages, beside everything else
    moves              an admin pauses the connection, puts it into shadow and back
    forgetful          deduplication memory is pruned, feeds begin anew, old messages come again
    lies               the share of messages that come again with their version and other content
    skewed             each process has a clock of its own, up to ten minutes off
    recounts           the source counts some of its entities anew, and an admin accepts that
    parts              some comparisons are of a subtree only, or of what has changed since the last
    loads              an admin takes in the source's whole listing, again and again
    guarded            ends wait for the yes of an admin
    """

    order: OrderKind
    capabilities: Capabilities
    notified: float
    accounts_at_once: bool
    loss: float
    doubled: float
    faults: float
    steps: int
    catalogue_changes: bool
    odd: float = 0.0
    takeovers: bool = False
    replays: bool = False
    moves: bool = False
    forgetful: bool = False
    lies: float = 0.0
    skewed: bool = False
    guarded: bool = False
    recounts: bool = False
    parts: bool = False
    loads: bool = False

    @property
    def every_version_arrives(self) -> bool:
        """The feed tells every version, whatever the network lost."""
        return self.capabilities.poll


def draw_profile(chance: Random, of_late: Random) -> Profile:
    """A profile from the seed's chance. What was added later is drawn apart: a seed plays what it has always played."""
    order = chance.choice((OrderKind.SEQUENCE, OrderKind.SEQUENCE, OrderKind.TIMESTAMP, OrderKind.OBSERVED))
    # The plainer a schedule, the closer it looks at races; the others are full of everything.
    full = chance.random() < 0.6
    poll = order is not OrderKind.OBSERVED and chance.random() < 0.6
    return Profile(
        order=order,
        capabilities=Capabilities(push=True, fetch=True, list=True, poll=poll, target=False, order=order),
        notified=1.0 if order is OrderKind.OBSERVED else chance.choice((0.0, 0.0, 0.3, 1.0)),
        accounts_at_once=chance.random() < 0.25,
        loss=chance.choice((0.0, 0.0, 0.1, 0.4)),
        doubled=chance.choice((0.0, 0.2)),
        faults=chance.choice((0.0, 0.05, 0.12)),
        steps=chance.randrange(50, 150),
        catalogue_changes=chance.random() < 0.3,
        odd=chance.choice((0.0, 0.15)) if full else 0.0,
        takeovers=full and chance.random() < 0.4,
        replays=full and chance.random() < 0.5,
        moves=full and chance.random() < 0.3,
        forgetful=full and chance.random() < 0.4,
        lies=chance.choice((0.0, 0.0, 0.1)) if full and order is OrderKind.SEQUENCE else 0.0,
        skewed=full and chance.random() < 0.4,
        guarded=full and of_late.random() < 0.3,
        recounts=full and order is OrderKind.SEQUENCE and of_late.random() < 0.3,
        parts=of_late.random() < 0.4,
        loads=of_late.random() < 0.4,
    )
