from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
import rfc8785

from bss_sync.domain import account, subscription
from bss_sync.domain.change import Action, Kind, OrderKind
from bss_sync.domain.errors import InvalidMessage
from bss_sync.pipeline.envelope import DROPPED_MAX, Form, check_length
from bss_sync.pipeline.message_model import MESSAGE_TYPES, message_schemas
from tests.unit.pipeline.messages import (
    ACCOUNT,
    SUBSCRIPTION,
    encode,
    for_its,
    message,
    parse,
    raw_refusal,
    refusal,
    refused,
    without,
)

NULLABLE = [
    *(("subscription", name) for name in ("account_id", "parent_id", "term", "effective_at")),
    *(("subscription", f"{name}_date") for name in ("start", "end", "activation", "cancellation")),
    *(("account", name) for name in ("parent_id", "number", "email")),
]


def test_the_contract_example_of_a_subscription_is_a_change() -> None:
    parsed = parse(message())
    (change,) = parsed.changes
    assert parsed.form is Form.PLAIN
    assert (change.message_id, change.kind, change.source_id) == ("msg_1", Kind.SUBSCRIPTION, "sub-4711")
    assert (change.action, change.version, change.order) == (Action.STATE, 7, OrderKind.SEQUENCE)
    assert change.sent_at == datetime(2026, 3, 2, 10, 15, tzinfo=UTC)
    assert change.effective_at == datetime(2026, 3, 1, tzinfo=UTC)
    assert change.digest == hashlib.sha256(encode(message())).digest()
    assert change.body == {**without(SUBSCRIPTION, "id", "version", "effective_at"), "quantity": "25"}
    assert change.dropped == ()


def test_the_contract_example_of_an_account_is_a_change() -> None:
    (change,) = parse(message(ACCOUNT, type="account.created")).changes
    assert (change.kind, change.source_id, change.version) == (Kind.ACCOUNT, "cust-x", 3)
    assert change.body == without(ACCOUNT, "id", "version")
    assert change.effective_at == change.sent_at


def test_bodies_hold_exactly_the_mirrored_fields() -> None:
    assert set(parse(message()).changes[0].body) == set(subscription.FIELDS) - {"source_status"}
    assert set(parse(message(ACCOUNT, type="account.updated")).changes[0].body) == set(account.FIELDS)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_deletion_needs_only_id_and_version_and_a_full_body_is_fine(kind: Kind) -> None:
    short = {"id": "x", "version": 9}
    for data in (short, {**SUBSCRIPTION, **short}, {**ACCOUNT, **short, "name": 5}):
        (change,) = parse(message(data, type=f"{kind}.deleted")).changes
        assert (change.action, change.kind, change.source_id, change.version) == (Action.DELETED, kind, "x", 9)
        assert change.body == {}
    assert refusal(message({"id": "x"}, type=f"{kind}.deleted"))[2] == ["data.version"]
    assert refusal(message({"version": 1}, type=f"{kind}.deleted"))[2] == ["data.id"]


@pytest.mark.parametrize("kind", list(Kind))
def test_a_notification_needs_only_the_id(kind: Kind) -> None:
    (change,) = parse(message({"id": "x", "version": "ignored"}, type=f"{kind}.notified")).changes
    assert (change.action, change.kind, change.version, change.body) == (Action.NOTIFIED, kind, None, {})
    assert refusal(message({}, type=f"{kind}.notified"))[2] == ["data.id"]


def test_a_timestamp_source_is_ordered_by_microseconds() -> None:
    data = {**without(SUBSCRIPTION, "version"), "source_updated_at": "2026-03-02T11:15:00.123456789+01:00"}
    (change,) = parse(message(data)).changes
    assert (change.order, change.version) == (OrderKind.TIMESTAMP, 1_772_446_500_123_456)


def test_exactly_one_order_is_sent() -> None:
    assert refusal(message(without(SUBSCRIPTION, "version")))[2] == ["data.version"]
    assert refused("source_updated_at", "2026-03-02T10:15:00Z") == for_its("source_updated_at")
    assert refusal(message({**SUBSCRIPTION, "version": None}))[2] == ["data.version"]
    timestamps = {**without(SUBSCRIPTION, "version"), "source_updated_at": None}
    assert refusal(message(timestamps))[2] == ["data.source_updated_at"]


@pytest.mark.parametrize("name", [name for name in SUBSCRIPTION if name not in ("effective_at", "version")])
def test_an_absent_subscription_field_is_named(name: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        parse(message(without(SUBSCRIPTION, name)))
    assert [(problem.field, problem.detail) for problem in caught.value.fields] == [(f"data.{name}", "is required")]


@pytest.mark.parametrize("name", [name for name in ACCOUNT if name != "version"])
def test_an_absent_account_field_is_named(name: str) -> None:
    assert refusal(message(without(ACCOUNT, name), type="account.updated"))[2] == [f"data.{name}"]


@pytest.mark.parametrize("name", [*SUBSCRIPTION, *(f"account {name}" for name in ACCOUNT)])
def test_only_what_a_real_record_may_lack_may_be_null(name: str) -> None:
    kind, _, field = ("subscription " + name if " " not in name else name).partition(" ")
    data = ACCOUNT if kind == "account" else SUBSCRIPTION
    if (kind, field) in NULLABLE:
        assert len(parse(message({**data, field: None}, type=f"{kind}.updated")).changes) == 1
    else:
        assert refused(field, None, data) == for_its(field)


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "\ude00\ud83d"])
def test_text_that_cannot_be_stored_is_refused_anywhere(text: str) -> None:
    assert refusal(message({**SUBSCRIPTION, "product": text}))[2] == ["data.product"]
    assert refusal(message(foreign={"deep": [text]}))[2] == ["foreign.deep[0]"]
    assert refusal([message(id="a"), message(id=text)])[2] == ["[1].id"]
    assert refusal(message({**SUBSCRIPTION, "characteristics": {text: 1}}))[0] == 422
    assert len(parse(message({**SUBSCRIPTION, "product": r"\u0000 \ud800"})).changes) == 1


def test_unknown_members_are_dropped_and_named_but_never_shown() -> None:
    (change,) = parse(message({**SUBSCRIPTION, "price": "secret-9.99", "a\nb": 1}, id="x", trace={})).changes
    assert change.dropped == (r"data.a\nb", "data.price", "id", "trace")
    assert "secret" not in repr(change)


def test_names_of_dropped_members_are_bounded() -> None:
    (change,) = parse(message({**SUBSCRIPTION, **{f"{i:03}" + "x" * 500: i for i in range(200)}})).changes
    assert len(change.dropped) == DROPPED_MAX
    assert change.dropped[-1] == "… and 151 more"
    assert max(len(name) for name in change.dropped) <= 105


def test_an_array_keeps_order_ids_and_digests_of_its_elements() -> None:
    first, second = message(id="a"), message(ACCOUNT, type="account.created", id="b é")
    parsed = parse([first, second, dict(reversed(first.items()))])
    assert parsed.form is Form.ARRAY
    assert [change.message_id for change in parsed.changes] == ["a", "b é", "a"]
    assert [change.digest for change in parsed.changes[:2]] == [
        hashlib.sha256(rfc8785.dumps(element)).digest() for element in (first, second)
    ]
    assert parsed.changes[0] == parsed.changes[2]


def test_an_empty_array_is_no_change() -> None:
    assert parse([]).changes == ()


def test_every_wrong_element_is_named_by_index() -> None:
    document = [
        message(id="a"),
        message(),
        message({**SUBSCRIPTION, "quantity": -1}, id="c"),
        5,
        message(id="d", type="x.y"),
    ]
    assert refusal(document) == (422, "invalid-message", ["[1].id", "[3]", "[2].data.quantity", "[4].type"])
    assert refusal([message(id="a"), message(id="d", type="x.y")]) == (422, "unknown-type", ["[1].type"])
    assert refusal([message(id="x" * 256)])[2] == ["[0].id"]


def test_two_elements_of_one_id_and_different_content_have_digests_that_differ() -> None:
    first, _other, second = parse(
        [message(id="a"), message(id="b"), message({**SUBSCRIPTION, "version": 8}, id="a")]
    ).changes
    assert (first.message_id, first.digest != second.digest) == (second.message_id, True)


def test_versions_beyond_a_double_are_told_apart() -> None:
    def versioned(version: int) -> dict[str, Any]:
        return message({**SUBSCRIPTION, "version": version, "quantity": 2.5}, id="a")

    digests = [change.digest for change in parse([versioned(2**53), versioned(2**53 + 1), versioned(2**53)]).changes]
    assert digests[0] == digests[2] != digests[1]


def test_a_number_that_has_no_canonical_form_is_refused_by_index() -> None:
    body = encode([message(id="a"), message(id="b", extra="@")]).replace(b'"@"', b"1e999")
    assert raw_refusal(body) == (422, "invalid-message", ["[1]"])


def test_the_limits_of_the_contract_hold() -> None:
    assert raw_refusal(b" " * (1024 * 1024 + 1))[0] == 413
    assert raw_refusal(b" " * (1024 * 1024))[0] == 400
    assert len(parse([message(id=str(index)) for index in range(500)]).changes) == 500
    assert refusal([message(id=str(index)) for index in range(501)])[0] == 413
    assert refusal(message(deep=json.loads("[" * 20 + "]" * 20)))[0] == 413
    assert len(parse(message(deep=json.loads("[" * 19 + "]" * 19))).changes) == 1
    assert len(parse(message(flat=["[[[[" * 20, '"[[[[\\"' * 20] + [[]] * 50)).changes) == 1
    check_length(1024 * 1024)
    with pytest.raises(InvalidMessage):
        check_length(1024 * 1024 + 1)


@pytest.mark.parametrize(
    "body", [b"[" * 500_000, b"[" + b"{}," * 300_000, b'{"a":' * 100_000, b'["' + b'\\"' * 500_000]
)
def test_hostile_nesting_is_answered_not_suffered(body: bytes) -> None:
    assert raw_refusal(body)[0] in (400, 413)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{}x",
        b"nul",
        b"\xff",
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b'{"a":1,"a":1}',
        b"{'a':1}",
        b'{"a":1,}',
        b'"a\nb"',
        b'"\xed\xa0\x80"',
        b"[1,]",
        b"9" * 5000,
    ],
)
def test_malformed_bodies_are_400(body: bytes) -> None:
    assert raw_refusal(body)[:2] == (400, "invalid-message")


@pytest.mark.parametrize("document", [None, 5, "text", True, 1.5])
def test_json_that_is_no_message_is_422(document: Any) -> None:
    assert refusal(document)[0] == 422


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "text/json", "application/xml", "application/json; charset=latin-1"]
)
def test_other_media_types_are_415(content_type: str) -> None:
    assert refusal(message(), content_type=content_type)[0] == 415


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip", "x"])
def test_nothing_is_inflated(encoding: str) -> None:
    assert refusal(message(), content_encoding=encoding)[0] == 415
    assert len(parse(message(), **{"content-encoding": "identity"}).changes) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("type", None), ("type", 5), ("timestamp", None), ("timestamp", 5), ("data", None), ("data", [])],
)
def test_a_wrong_envelope_is_named(name: str, value: Any) -> None:
    assert refusal({**message(), name: value}) == (422, "invalid-message", [name])
    assert refusal(without(message(), name)) == (422, "invalid-message", [name])


@pytest.mark.parametrize(
    "name", ["", "subscription", "Subscription.updated", "invoice.created", "com.example.subscription.updated"]
)
def test_other_types_are_unknown(name: str) -> None:
    assert refusal(message(type=name)) == (422, "unknown-type", ["type"])


def test_all_wrong_fields_are_named_at_once() -> None:
    fields = refusal({**message({**SUBSCRIPTION, "quantity": "1", "trial": 0}), "timestamp": "x"})[2]
    assert sorted(fields) == ["data.quantity", "data.trial", "timestamp"]


def test_no_refusal_repeats_a_value() -> None:
    with pytest.raises(InvalidMessage) as caught:
        parse(message(dict.fromkeys(SUBSCRIPTION, "secret\nvalue")))
    assert "secret" not in caught.value.detail + repr(caught.value.fields)


def test_there_is_a_schema_for_each_type_of_the_contract() -> None:
    schemas = message_schemas()
    assert (
        set(schemas)
        == set(MESSAGE_TYPES)
        == {
            f"{kind}.{verb}"
            for kind in ("account", "subscription")
            for verb in ("created", "updated", "deleted", "notified")
        }
    )
    data = schemas["subscription.updated"]["properties"]["data"]
    assert set(data["properties"]) == {*SUBSCRIPTION, "source_updated_at"}
    assert set(data["required"]) == set(SUBSCRIPTION) - {"version", "effective_at"}
    assert data["oneOf"] == [{"required": ["version"]}, {"required": ["source_updated_at"]}]
    assert schemas["account.deleted"]["properties"]["data"]["required"] == ["id"]
    assert json.loads(json.dumps(schemas)) == schemas
