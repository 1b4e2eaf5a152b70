"""A chain of three real processes: whichever is killed, and wherever, a change at the bottom has one effect at the top.

The short round; ``python -m tests.chaos.tiers`` plays every point in every tier.
"""

from __future__ import annotations

import pytest

from tests.chaos import tiers
from tests.servers import PostgresServer

pytestmark = pytest.mark.slow

SEED = 3
POINTS = ((1, "poll.advanced"), (2, "poll.accepted"), (0, "decided.committed"), (2, "remote.written"))


def test_whichever_tier_is_killed_every_change_has_one_effect_at_the_top(postgres_server: PostgresServer) -> None:
    assert tiers.play(postgres_server, SEED, POINTS, random_kills=1) == []
