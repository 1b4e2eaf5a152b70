"""The blast-radius guard: over the count and over the share."""

from __future__ import annotations

import pytest

from bss_sync.domain.guard import Guard, exceeds


@pytest.mark.parametrize(
    ("ends", "records", "over"),
    [(20, 20, False), (21, 21, True), (21, 210, False), (21, 209, True), (22, 210, True), (100, 1_000, False)],
    ids=["at the count", "all of few", "at the share", "just over the share", "over both", "a tenth of many"],
)
def test_it_takes_more_than_the_count_and_more_than_the_share(ends: int, records: int, over: bool) -> None:
    assert exceeds(ends, records, count=20, share=0.10) is over
    assert Guard(20, 0.10, records, ended=ends - 1).admits(1) is not over


def test_once_it_has_stopped_nothing_passes() -> None:
    assert not Guard(20, 0.10, 1_000_000, ended=0, stopped=True).admits(1)
