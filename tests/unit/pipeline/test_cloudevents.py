from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent as OfficialEvent

from bss_sync.domain.change import Action, Kind
from bss_sync.domain.errors import InvalidMessage
from bss_sync.pipeline.cloudevents import BATCH, STRUCTURED, media_type, parse_batch, parse_cloudevent
from bss_sync.pipeline.envelope import Form, ParsedRequest, parse_request
from tests.unit.pipeline.messages import SUBSCRIPTION, encode, without

VECTORS = json.loads((Path(__file__).parents[2] / "fixtures/third_party/cloudevents/vectors.json").read_text("utf-8"))
SINGLE = [case for case in VECTORS["cases"] if case["mode"] != "batch"]
BATCHES = [case for case in VECTORS["cases"] if case["mode"] == "batch"]
TYPE = "com.example.bss.subscription.updated"
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "type": TYPE,
    "source": "/bss/7",
    "id": "e-1",
    "time": "2026-03-02T10:15:00Z",
    "data": SUBSCRIPTION,
}
BINARY = {
    "content-type": "application/json",
    "ce-specversion": "1.0",
    "ce-type": TYPE,
    "ce-source": "/bss/7",
    "ce-id": "e-1",
    "ce-time": "2026-03-02T10:15:00Z",
}


def structured(event: Any, content_type: str = STRUCTURED) -> ParsedRequest:
    return parse_request({"content-type": content_type}, encode(event), "msg_1")


def refusal(event: Any, content_type: str = STRUCTURED) -> tuple[int, str, list[str]]:
    with pytest.raises(InvalidMessage) as caught:
        structured(event, content_type)
    return caught.value.status, caught.value.problem_slug, [problem.field for problem in caught.value.fields]


def binary_refusal(body: bytes = encode(SUBSCRIPTION), **headers: str | None) -> tuple[int, str, list[str]]:
    changed = {**BINARY, **{name.replace("_", "-"): value for name, value in headers.items()}}
    with pytest.raises(InvalidMessage) as caught:
        parse_request({name: value for name, value in changed.items() if value is not None}, body, "msg_1")
    return caught.value.status, caught.value.problem_slug, [problem.field for problem in caught.value.fields]


def official(message: HTTPMessage) -> ParsedRequest:
    return parse_request({name.lower(): value for name, value in message.headers.items()}, message.body, "msg_1")


@pytest.mark.parametrize("case", SINGLE, ids=[case["name"] for case in SINGLE])
def test_official_single_cases(case: dict[str, Any]) -> None:
    body = case["body"].encode()
    if case.get("expect_error"):
        with pytest.raises(InvalidMessage) as caught:
            parse_cloudevent(case["headers"], body)
        assert caught.value.status == 400
        return
    event = parse_cloudevent(case["headers"], body)
    for name, value in case["expect"]["attributes"].items():
        assert event.attributes.get(name) == value
    if "data" in case["expect"]:
        assert event.data == case["expect"]["data"]
    else:
        assert event.data == base64.b64decode(case["expect"]["data_base64"])


@pytest.mark.parametrize("case", BATCHES, ids=[case["name"] for case in BATCHES])
def test_official_batches(case: dict[str, Any]) -> None:
    events = parse_batch(case["body"].encode())
    assert [event.attributes["id"] for event in events] == case["expect"]["ids"]
    assert len(events) == case["expect"]["count"]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=[case["name"] for case in VECTORS["cases"]])
def test_at_the_door_a_well_formed_event_of_a_foreign_type_is_an_unknown_type(case: dict[str, Any]) -> None:
    if case["name"] == "empty batch":
        assert parse_request(case["headers"], case["body"].encode(), "msg_1").changes == ()
        return
    with pytest.raises(InvalidMessage) as caught:
        parse_request(case["headers"], case["body"].encode(), "msg_1")
    expected = (400, "invalid-message") if case.get("expect_error") else (422, "unknown-type")
    assert (caught.value.status, caught.value.problem_slug) == expected


@pytest.mark.parametrize("send", [to_binary_event, to_structured_event], ids=["binary", "structured"])
def test_an_event_of_the_official_library_is_a_change(send: Any) -> None:
    attributes = {"type": TYPE, "source": "/bss/7", "id": "é 1", "time": datetime(2026, 3, 2, 10, 15, tzinfo=UTC)}
    parsed = official(send(OfficialEvent({**attributes, "specversion": "1.0", "partition": "a b"}, SUBSCRIPTION)))
    (change,) = parsed.changes
    assert (change.kind, change.action, change.source_id) == (Kind.SUBSCRIPTION, Action.STATE, "sub-4711")
    assert change.message_id == "/bss/7 é 1"
    assert change.sent_at == datetime(2026, 3, 2, 10, 15, tzinfo=UTC)
    assert change.dropped == ("partition",)
    assert parsed.form in (Form.CLOUDEVENT_BINARY, Form.CLOUDEVENT_STRUCTURED)


@pytest.mark.parametrize("event_type", ["subscription.updated", "acme.subscription.updated", TYPE])
def test_our_type_is_recognised_bare_and_behind_a_prefix(event_type: str) -> None:
    assert structured({**EVENT, "type": event_type}).changes[0].kind is Kind.SUBSCRIPTION


@pytest.mark.parametrize(
    "event_type",
    ["xsubscription.updated", ".subscription.updated", "a..subscription.updated", "subscription.updated.v1"],
)
def test_what_only_resembles_our_type_is_unknown(event_type: str) -> None:
    assert refusal({**EVENT, "type": event_type}) == (422, "unknown-type", ["type"])


@pytest.mark.parametrize("name", ["id", "source", "specversion", "type"])
def test_a_missing_null_or_empty_required_attribute_is_malformed(name: str) -> None:
    for event in (without(EVENT, name), {**EVENT, name: None}, {**EVENT, name: ""}, {**EVENT, name: 1}):
        assert refusal(event) == (400, "invalid-message", [name])
    assert refusal([without(EVENT, name)], BATCH) == (400, "invalid-message", [f"[0].{name}"])
    assert binary_refusal(encode(SUBSCRIPTION), **{f"ce_{name}": None}) == (400, "invalid-message", [f"ce-{name}"])


@pytest.mark.parametrize("time", [None, "2026-03-02T10:15:00", "yesterday"])
def test_our_types_need_a_time(time: str | None) -> None:
    assert refusal({**EVENT, "time": time}) == (422, "invalid-message", ["time"])
    assert binary_refusal(ce_time=time) == (422, "invalid-message", ["time"])


def test_only_version_1_0_is_spoken() -> None:
    assert refusal({**EVENT, "specversion": "0.3"}) == (400, "invalid-message", ["specversion"])


def test_string_data_is_not_parsed_again() -> None:
    assert refusal({**EVENT, "data": json.dumps(SUBSCRIPTION)}) == (422, "invalid-message", ["data"])


def test_missing_data_is_named() -> None:
    assert refusal(without(EVENT, "data")) == (422, "invalid-message", ["data"])
    assert binary_refusal(b"") == (422, "invalid-message", ["data"])


def test_json_data_in_base64_is_read() -> None:
    event = {**without(EVENT, "data"), "data_base64": base64.b64encode(encode(SUBSCRIPTION)).decode()}
    assert structured(event).changes[0].body == structured(EVENT).changes[0].body
    assert refusal({**event, "datacontenttype": "image/png"}) == (422, "invalid-message", ["data"])


@pytest.mark.parametrize("encoded", ["*", "AAA", 5, "é", {}, [], True])
def test_broken_base64_is_malformed(encoded: Any) -> None:
    assert refusal({**without(EVENT, "data"), "data_base64": encoded}) == (400, "invalid-message", ["data_base64"])


def test_data_and_base64_exclude_each_other() -> None:
    assert refusal({**EVENT, "data_base64": "e30="}) == (400, "invalid-message", ["data_base64"])


@pytest.mark.parametrize("value", ["%", "%2", "%zz", "%ff", "%C0%A0", "%ED%A0%80", "%00", "%0A", "é", "a\nb"])
def test_a_header_that_is_not_encoded_properly_is_malformed(value: str) -> None:
    assert binary_refusal(ce_subject=value) == (400, "invalid-message", ["ce-subject"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a%20b", "a b"),
        ('"a b"', "a b"),
        (r'"a \"b\" \\ c"', 'a "b" \\ c'),
        ("%2541", "%41"),
        ("a b", "a b"),
        ("a+b", "a+b"),
    ],
)
def test_headers_are_unquoted_and_decoded_exactly_once(value: str, expected: str) -> None:
    assert parse_cloudevent({**BINARY, "ce-subject": value}, b"{}").attributes["subject"] == expected


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "application/json; charset=utf-16"])
def test_our_types_in_binary_mode_need_json(content_type: str) -> None:
    assert binary_refusal(content_type=content_type)[0] == 415


def test_in_binary_mode_json_is_the_default_of_our_types() -> None:
    assert len(parse_request(without(BINARY, "content-type"), encode(SUBSCRIPTION), "m").changes) == 1
    assert binary_refusal(b"{", content_type=None)[0] == 400


def test_a_suffix_type_is_json_too() -> None:
    assert (
        len(parse_request({**BINARY, "content-type": "application/vnd.bss+json"}, encode(SUBSCRIPTION), "m").changes)
        == 1
    )


def test_source_and_id_are_bounded_and_joined_without_ambiguity() -> None:
    assert structured({**EVENT, "id": "a b"}).changes[0].message_id == "/bss/7 a b"
    assert refusal({**EVENT, "source": "/bss 7"}) == (422, "invalid-message", ["source"])
    assert refusal({**EVENT, "source": "s" * 256, "id": "i" * 256}) == (422, "invalid-message", ["source", "id"])


def test_extensions_are_tolerated_and_named_and_null_ones_are_unset() -> None:
    (change,) = structured({**EVENT, "zeta": 5, "unset": None, "alpha": True, "subject": "s"}).changes
    assert change.dropped == ("alpha", "zeta")


def test_a_batch_keeps_order_and_hashes_each_element_by_content() -> None:
    second = {**EVENT, "id": "e-2"}
    parsed = structured([EVENT, second, dict(reversed(EVENT.items()))], BATCH)
    assert parsed.form is Form.CLOUDEVENT_BATCH
    assert [change.message_id for change in parsed.changes] == ["/bss/7 e-1", "/bss/7 e-2", "/bss/7 e-1"]
    assert parsed.changes[0].digest == parsed.changes[2].digest != parsed.changes[1].digest


def test_one_source_and_id_with_two_contents_differ_by_digest_and_another_source_is_another_message() -> None:
    changed = {**EVENT, "data": {**SUBSCRIPTION, "version": 8}}
    first, second = structured([EVENT, changed], BATCH).changes
    assert (first.message_id, first.digest != second.digest) == (second.message_id, True)
    assert len(structured([EVENT, {**changed, "source": "/bss/8"}], BATCH).changes) == 2


def test_a_batch_that_is_no_array_is_malformed_and_a_wrong_field_is_named_by_index() -> None:
    assert refusal(EVENT, BATCH)[0] == 400
    assert refusal([5], BATCH) == (400, "invalid-message", ["[0]"])
    wrong = {**EVENT, "data": {**SUBSCRIPTION, "quantity": -1}}
    assert refusal([EVENT, wrong], BATCH) == (422, "invalid-message", ["[1].data.quantity"])


@pytest.mark.parametrize(
    ("header", "essence", "charset"),
    [
        ("Application/JSON ; Charset=UTF-8", "application/json", "utf-8"),
        ('application/json;charset="utf-8";x', "application/json", "utf-8"),
        ("", "", ""),
        (";;=", "", ""),
    ],
)
def test_content_types_are_read_leniently(header: str, essence: str, charset: str) -> None:
    parsed = media_type(header)
    assert (parsed.essence, parsed.charset) == (essence, charset)
