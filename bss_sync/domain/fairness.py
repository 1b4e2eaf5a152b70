"""Fair shares: how much of one batch each connection gets, so that one reseller's flood is not the others' delay."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

PRIORITY_DEFAULT = 5
PRIORITY_MIN = 1
PRIORITY_MAX = 10

Party = TypeVar("Party", bound=Hashable)


def fair_shares(limit: int, priorities: Mapping[Party, int]) -> dict[Party, int]:
    """Split ``limit`` in proportion to the priorities, at least one each; the first get one more from the rest.

    Where there are more parties than ``limit``, the first ones get one each: order them by who has waited longest.
    """
    assert all(PRIORITY_MIN <= priority <= PRIORITY_MAX for priority in priorities.values()), "priorities are 1 to 10"
    parties = dict(list(priorities.items())[: max(limit, 0)])
    total = sum(parties.values())
    shares = {party: max(1, limit * priority // total) for party, priority in parties.items()}
    spare = limit - sum(shares.values())
    for party in parties:
        if spare == 0:
            break
        if spare > 0:
            shares[party] += 1
            spare -= 1
    for party in sorted(shares, key=lambda one: -shares[one]):
        # Those that were rounded up to one are paid for by the largest.
        taken = min(-spare, shares[party] - 1) if spare < 0 else 0
        shares[party] -= taken
        spare += taken
    return shares
