"""Fair shares: everybody gets some, nobody's share grows with what it has waiting, nothing of the batch is wasted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bss_sync.domain.fairness import fair_shares


def test_equal_priorities_share_equally_and_one_alone_has_everything() -> None:
    assert fair_shares(500, {"a": 5}) == {"a": 500}
    assert fair_shares(128, {"a": 5, "b": 5}) == {"a": 64, "b": 64}


def test_a_higher_priority_gets_more_in_proportion() -> None:
    assert fair_shares(110, {"a": 1, "b": 10}) == {"a": 10, "b": 100}


def test_where_more_wait_than_fit_those_who_come_first_get_one_each() -> None:
    assert fair_shares(2, {"a": 1, "b": 10, "c": 10}) == {"a": 1, "b": 1}


@given(st.integers(0, 600), st.dictionaries(st.integers(), st.integers(1, 10), max_size=200))
def test_the_whole_batch_is_shared_out_and_everybody_within_it_gets_some(limit: int, parties: dict[int, int]) -> None:
    shares = fair_shares(limit, parties)
    assert len(shares) == min(limit, len(parties))
    assert all(share >= 1 for share in shares.values())
    assert sum(shares.values()) == (limit if shares else 0)
