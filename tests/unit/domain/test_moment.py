"""Moments as people write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bss_sync.domain.errors import InvalidRequest
from bss_sync.domain.moment import parse_as_of, parse_moment, parse_since, rfc3339

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "zone", "moment"),
    [
        ("2026-03-31", "UTC", "2026-03-31T23:59:59.999999Z"),
        ("2026-03-31", "Europe/Berlin", "2026-03-31T21:59:59.999999Z"),
        ("2026-03-28", "Europe/Berlin", "2026-03-28T22:59:59.999999Z"),
        ("2026-10-25", "Europe/Berlin", "2026-10-25T22:59:59.999999Z"),
        ("2026-03-31", "Pacific/Auckland", "2026-03-31T10:59:59.999999Z"),
        ("2026-03-31T12:00:00Z", "Europe/Berlin", "2026-03-31T12:00:00Z"),
        ("2026-03-31t12:00:00.5z", "UTC", "2026-03-31T12:00:00.500000Z"),
        ("2026-03-31T12:00:00+02:00", "UTC", "2026-03-31T10:00:00Z"),
        ("2026-03-31T12:00:00 02:00", "UTC", "2026-03-31T10:00:00Z"),
        ("2026-03-31T12:00:00-05:30", "UTC", "2026-03-31T17:30:00Z"),
    ],
)
def test_a_date_is_the_end_of_its_day_in_the_zone_and_a_timestamp_is_itself(text: str, zone: str, moment: str) -> None:
    assert rfc3339(parse_moment(text, zone, field="as_of")) == moment


def test_since_a_date_is_since_its_beginning() -> None:
    assert rfc3339(parse_since("2026-03-31", "Europe/Berlin", field="updated_since")) == "2026-03-30T22:00:00Z"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-02-30",
        "9999-12-31",
        "2026-3-1",
        "2026-03-31T12:00:00",
        "2026-03-31 12:00:00Z",
        "2026-03-31T25:00:00Z",
        "0001-01-01T00:00:00+23:00",
        "2026-03-31T12:00:00Z\n",
        "２０２６-03-31",
    ],
)
def test_what_is_no_moment_is_refused_by_the_name_of_its_field(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_moment(text, "UTC", field="as_of")
    assert [problem.field for problem in caught.value.fields] == ["as_of"]


def test_one_question_without_the_other_means_now_for_it() -> None:
    assert parse_as_of(None, None, "UTC", NOW) is None
    only_effective = parse_as_of("2026-03-31T00:00:00Z", None, "UTC", NOW)
    assert only_effective is not None
    assert only_effective.recorded == NOW
    only_recorded = parse_as_of(None, "2026-03-31T00:00:00Z", "UTC", NOW)
    assert only_recorded is not None
    assert only_recorded.effective == NOW
