from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bss_sync.pipeline.envelope import parse_request
from bss_sync.pipeline.message_model import parse_timestamp
from tests.unit.pipeline.messages import (
    ACCOUNT,
    JSON_HEADERS,
    SUBSCRIPTION,
    for_its,
    message,
    parse,
    raw_refusal,
    refusal,
    refused,
    with_number,
)

NAUGHTY = json.loads((Path(__file__).parents[2] / "fixtures/third_party/text/blns.json").read_text("utf-8"))
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def quantity_of(text: str) -> str:
    stored = parse_request(JSON_HEADERS, with_number("quantity", text), "m").changes[0].body["quantity"]
    assert isinstance(stored, str)
    return stored


@pytest.mark.parametrize("value", ["", "x" * 256, "a\nb", "a\x7fb", "a\u200bb", "a\u2028b", 5, True, [], {}])
@pytest.mark.parametrize("name", ["id", "account_id", "parent_id", "product", "status", "billing_cycle", "term"])
def test_ids_and_words_are_printable_text_of_1_to_255_characters(name: str, value: Any) -> None:
    assert refused(name, value) == for_its(name)


@pytest.mark.parametrize("value", [" sub ", "ÄÖ-大-😀", "x" * 255, "A", "a"])
def test_ids_are_kept_exactly(value: str) -> None:
    assert parse(message({**SUBSCRIPTION, "id": value, "account_id": value})).changes[0].source_id == value


@pytest.mark.parametrize("name", ["status", "billing_cycle", "term"])
def test_unknown_words_pass_the_door(name: str) -> None:
    assert parse(message({**SUBSCRIPTION, name: "frobnicated "})).changes[0].body[name] == "frobnicated "


@pytest.mark.parametrize("value", [True, 7.0, 7.5, "7", -1, 2**63, [], {}])
def test_a_version_is_an_integer_of_64_bits(value: Any) -> None:
    assert refused("version", value) == for_its("version")


def test_the_largest_version_is_taken() -> None:
    assert parse(message({**SUBSCRIPTION, "version": 2**63 - 1})).changes[0].version == 2**63 - 1


@pytest.mark.parametrize("name", ["trial", "auto_renew"])
@pytest.mark.parametrize("value", [0, 1, "true", "no", 1.0])
def test_booleans_are_booleans(name: str, value: Any) -> None:
    assert refused(name, value) == for_its(name)


@pytest.mark.parametrize(
    "value",
    [
        "2026-02-30",
        "2026-2-3",
        "20260203",
        "2026-W01-1",
        "2026-01-01T00:00:00Z",
        "0000-01-01",
        "",
        20260101,
        "٢٠٢٦-٠١-٠١",
    ],
)
def test_dates_are_days_of_the_calendar(value: Any) -> None:
    assert refused("end_date", value) == for_its("end_date")


@pytest.mark.parametrize("value", ["9999-12-31", "9999-12-10", "1969-12-31", "2024-02-29"])
def test_far_dates_are_dates(value: str) -> None:
    assert parse(message({**SUBSCRIPTION, "end_date": value})).changes[0].body["end_date"] == value


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("25", "25"),
        ("25.000", "25"),
        ("2.5", "2.5"),
        ("0.1", "0.1"),
        ("0", "0"),
        ("-0.0", "0"),
        ("-0", "0"),
        ("1e3", "1000"),
        ("0.000001", "0.000001"),
        ("1E-6", "0.000001"),
        ("999999999999.999999", "999999999999.999999"),
        ("1000000000000", "1000000000000"),
        ("0e99999", "0"),
        ("1.0000000000", "1"),
    ],
)
def test_quantities_are_stored_as_plain_decimals(text: str, stored: str) -> None:
    assert quantity_of(text) == stored


@pytest.mark.parametrize(
    "text",
    [
        "-1",
        "-0.5",
        "0.0000001",
        "1.0000001",
        "1000000000000.1",
        "1e13",
        "1e-400000",
        '"25"',
        "true",
        "null",
        "[]",
        "1." + "0" * 60 + "1",
    ],
)
def test_other_quantities_are_refused(text: str) -> None:
    assert raw_refusal(with_number("quantity", text)) == (422, "invalid-message", ["data.quantity"])


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "01", "1.", "0x1", "1e99999999999999999999"])
def test_what_is_no_json_number_is_malformed(text: str) -> None:
    assert raw_refusal(with_number("quantity", text))[0] == 400


def test_characteristics_come_back_from_json_as_they_were_stored() -> None:
    text = '{"a":1,"b":1.0,"c":0.1,"d":0.12345678901234567890123,"e":true,"f":null,"g":"x\\ny","h":1e22,"i":-0.0}'
    body = parse_request(JSON_HEADERS, with_number("characteristics", text), "m").changes[0].body
    stored = body["characteristics"]
    assert stored == {
        "a": 1,
        "b": 1,
        "c": 0.1,
        "d": "0.12345678901234567890123",
        "e": True,
        "f": None,
        "g": "x\ny",
        "h": 10**22,
        "i": 0,
    }
    assert json.loads(json.dumps(stored)) == stored
    assert [type(value) for value in stored.values()] == [int, int, float, str, bool, type(None), str, int, int]


@pytest.mark.parametrize(
    "value", [[], "x", 5, {"a": {}}, {"a": []}, {"k" * 256: 1}, {"a": "x" * 65_536}, {"a": 10**400}]
)
def test_characteristics_are_flat_and_bounded(value: Any) -> None:
    assert refused("characteristics", value) == for_its("characteristics")


@pytest.mark.parametrize("name", ["name", "number", "email"])
@pytest.mark.parametrize("value", ["a\nb", "x" * 1001, 5, False])
def test_texts_of_an_account_are_one_line(name: str, value: Any) -> None:
    assert refused(name, value, ACCOUNT) == for_its(name)


@pytest.mark.parametrize("name", NAUGHTY, ids=range(len(NAUGHTY)))
def test_difficult_text_is_kept_exactly_or_refused_by_name(name: str) -> None:
    if not name or CONTROL.search(name) is not None:
        assert refused("name", name, ACCOUNT) == for_its("name")
    else:
        assert parse(message({**ACCOUNT, "name": name}, type="account.updated")).changes[0].body["name"] == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-02T10:15:00Z", datetime(2026, 3, 2, 10, 15, tzinfo=UTC)),
        ("2026-03-02t10:15:00.5z", datetime(2026, 3, 2, 10, 15, 0, 500_000, tzinfo=UTC)),
        ("2026-03-02T10:15:00.123456999-05:30", datetime(2026, 3, 2, 15, 45, 0, 123_456, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2016, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("2017-01-01T00:59:60+01:00", datetime(2016, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("1970-01-01T00:00:00Z", datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_timestamps_become_utc(text: str, expected: datetime) -> None:
    assert parse_timestamp(text) == expected
    assert parse_timestamp(text).tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-02T10:15:00",
        "2026-03-02 10:15:00Z",
        "2026-03-02",
        "2026-03-02T10:15Z",
        "2026-02-30T00:00:00Z",
        "2026-03-02T24:00:00Z",
        "2026-03-02T10:15:60Z",
        "2026-03-02T10:15:61Z",
        "1969-12-31T23:59:59Z",
        "1970-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "2026-03-02T10:15:00+24:00",
        "2026-03-02T10:15:00+01:60",
        "2026-03-02T10:15:00.Z",
        "2026-03-02T10:15:00.1234567890Z",
        "",
        "٢٠٢٦",
    ],
)
def test_other_timestamps_are_refused_by_name(text: str) -> None:
    assert refusal({**message(), "timestamp": text})[2] == ["timestamp"]
    assert refused("effective_at", text) == for_its("effective_at")
