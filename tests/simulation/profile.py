"""What kind of reseller, network and bad luck a seed stands for."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from bss_sync.domain.change import OrderKind
from bss_sync.ports.connector import Capabilities

OURS, RETIRING, LATER, FOREIGN = "OURS", "RETIRING", "LATER", "FOREIGN"


@dataclass(frozen=True, slots=True)
class Profile:
    """Drawn once per schedule. ``catalogue_changes``: an admin offers LATER and retires RETIRING on the way."""

    order: OrderKind
    capabilities: Capabilities
    notified: float
    accounts_at_once: bool
    loss: float
    doubled: float
    faults: float
    steps: int
    catalogue_changes: bool

    @property
    def every_version_arrives(self) -> bool:
        """The feed tells every version, whatever the network lost."""
        return self.capabilities.poll


def draw_profile(chance: Random) -> Profile:
    """A profile from the seed's chance."""
    order = chance.choice((OrderKind.SEQUENCE, OrderKind.SEQUENCE, OrderKind.TIMESTAMP, OrderKind.OBSERVED))
    poll = order is not OrderKind.OBSERVED and chance.random() < 0.6
    return Profile(
        order=order,
        capabilities=Capabilities(push=True, fetch=True, list=True, poll=poll, target=False, order=order),
        notified=1.0 if order is OrderKind.OBSERVED else chance.choice((0.0, 0.0, 0.3, 1.0)),
        accounts_at_once=chance.random() < 0.25,
        loss=chance.choice((0.0, 0.0, 0.1, 0.4)),
        doubled=chance.choice((0.0, 0.2)),
        faults=chance.choice((0.0, 0.05, 0.12)),
        steps=chance.randrange(40, 130),
        catalogue_changes=chance.random() < 0.3,
    )
