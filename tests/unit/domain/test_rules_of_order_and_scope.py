"""The small pure rules: ids, versions, quantities, periods, the catalogue and the hierarchy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_sync.domain.change import (
    SHARDS,
    Kind,
    shard_of,
    stream_id,
    timestamp_version,
    version_timestamp,
)
from bss_sync.domain.hierarchy import would_close_cycle
from bss_sync.domain.product import Catalogue, Standing, why_out_of_scope
from bss_sync.domain.subscription import canonical_quantity, is_period

ONE = UUID("00000000-0000-0000-0000-000000000001")


@given(st.integers(-(10**15), 10**17).map(version_timestamp))
def test_a_timestamp_version_keeps_every_microsecond(moment: datetime) -> None:
    assert moment.tzinfo is UTC
    assert version_timestamp(timestamp_version(moment)) == moment
    assert timestamp_version(moment + timedelta(microseconds=1)) == timestamp_version(moment) + 1


def test_a_binding_is_derived_and_therefore_the_same_after_a_restored_backup() -> None:
    assert stream_id(ONE, Kind.ACCOUNT, "x") == UUID("653941a4-b32c-59b4-947f-eeaa2ea3405f")
    different = {stream_id(ONE, kind, name) for kind in Kind for name in ("x", "X", "x ")}
    assert len(different | {stream_id(UUID(int=2), Kind.ACCOUNT, "x")}) == 7


@given(st.uuids())
def test_every_connection_has_a_shard(connection_id: UUID) -> None:
    assert 0 <= shard_of(connection_id) < SHARDS


@given(st.decimals(0, 10**12, places=6))
def test_a_canonical_quantity_is_plain_and_the_same_number(quantity: Decimal) -> None:
    text = canonical_quantity(quantity)
    assert Decimal(text) == quantity
    assert "E" not in text
    assert "." not in text or not text.endswith(("0", "."))


@pytest.mark.parametrize(("given_as", "text"), [("25.000", "25"), ("0.0", "0"), ("1E+2", "100"), ("2.50", "2.5")])
def test_quantities_that_mean_the_same_are_written_the_same(given_as: str, text: str) -> None:
    assert canonical_quantity(Decimal(given_as)) == text


@pytest.mark.parametrize("period", ["P1M", "P1Y", "P1Y2M3W4D", "PT1H", "P1DT12H", "one_time"])
def test_iso_durations_and_one_time_are_periods(period: str) -> None:
    assert is_period(period)


@pytest.mark.parametrize("period", ["", "P", "PT", "P1DT", "monthly", "1M", "P1M ", "p1m", "P-1M", "P1M\n"])
def test_everything_else_is_unknown_and_never_guessed(period: str) -> None:
    assert not is_period(period)


def test_a_mapped_code_is_the_distributors_and_an_unknown_one_is_foreign() -> None:
    catalogue = Catalogue({"OURS": False, "OLD": True}, {"theirs": "OURS", "lost": "GONE"})
    assert (catalogue.resolve("theirs").code, catalogue.resolve("theirs").standing) == ("OURS", Standing.OFFERED)
    assert catalogue.resolve("OLD").standing is Standing.RETIRED
    assert (catalogue.resolve("lost").code, catalogue.resolve("lost").standing) == ("lost", Standing.FOREIGN)


@pytest.mark.parametrize(
    ("code", "trial", "reason"),
    [
        ("OURS", False, None),
        ("OURS", True, "trial"),
        ("OLD", False, "product_retired"),
        ("OLD", True, "product_retired"),
        ("OTHER", True, "product_not_in_catalogue"),
    ],
)
def test_product_and_trial_flag_decide_what_enters(code: str, trial: bool, reason: str | None) -> None:
    product = Catalogue({"OURS": False, "OLD": True}, {}).resolve(code)
    assert why_out_of_scope(product, trial=trial) == reason


@given(st.lists(st.integers(0, 19), max_size=60))
def test_links_that_pass_the_check_never_close_a_cycle(targets: list[int]) -> None:
    nodes = [uuid4() for _node in range(20)]
    parents: dict[UUID, UUID] = {}
    for index, target in enumerate(targets):
        child, parent = nodes[(index * 7) % 20], nodes[target]
        if not would_close_cycle(child, parent, parents.get):
            parents[child] = parent
    for start in nodes:
        at, steps = start, 0
        while at in parents:
            at, steps = parents[at], steps + 1
            assert steps <= len(nodes)


def test_an_entity_is_above_itself() -> None:
    assert would_close_cycle(ONE, ONE, lambda _record: None)


def test_a_chain_of_a_hundred_thousand_levels_is_walked() -> None:
    parents = {UUID(int=level): UUID(int=level - 1) for level in range(2, 100_000)}
    assert would_close_cycle(UUID(int=1), UUID(int=99_999), parents.get)
    assert not would_close_cycle(UUID(int=100_000), UUID(int=99_999), parents.get)
