"""Whatever arrives, the door answers with an error of its own; and what is valid comes through unchanged."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook

from bss_sync.domain.errors import BssSyncError, NotVerified
from bss_sync.domain.subscription import canonical_quantity
from bss_sync.pipeline.envelope import ParsedRequest, parse_request
from bss_sync.pipeline.json_text import canonical_bytes, digest, read_json
from bss_sync.pipeline.verify import SigningKey, parse_secret, verify_standard_webhook
from tests.unit.pipeline.messages import JSON_HEADERS, SUBSCRIPTION, encode, message

NOW = datetime(2026, 3, 2, 10, 15, tzinfo=UTC)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEYS = [SigningKey.symmetric(parse_secret(SECRET)), SigningKey.public(bytes(range(32)))]

texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
any_texts = st.text(st.characters(), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
documents = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))
media_types = st.sampled_from(
    [
        "application/json",
        "application/cloudevents+json",
        "application/cloudevents-batch+json",
        "text/plain",
        "a;charset=",
    ]
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "content-type": media_types | any_texts,
        "content-encoding": st.sampled_from(["", "identity", "gzip"]) | any_texts,
        "ce-specversion": st.just("1.0") | any_texts,
        "ce-type": st.sampled_from(["a.subscription.updated", "x.y"]) | any_texts,
        "ce-source": st.just("/a") | any_texts,
        "ce-id": st.just("1") | any_texts,
        "ce-time": st.just("2026-03-02T10:15:00Z") | any_texts,
        "ce-" + "x": any_texts,
    },
)
values = scalars | documents | any_texts
bent_data = st.dictionaries(st.sampled_from([*SUBSCRIPTION, "source_updated_at", "other"]), values).map(
    lambda changes: {**SUBSCRIPTION, **changes}
)
bent_messages = st.builds(
    lambda data, changes: {**message(data), **changes},
    bent_data | values,
    st.dictionaries(
        st.sampled_from(["id", "type", "timestamp", "specversion", "source", "time", "data_base64", "other"]), values
    ),
)
bodies = st.one_of(
    st.binary(max_size=200),
    documents.map(encode),
    bent_messages.map(encode),
    st.lists(bent_messages, max_size=3).map(encode),
)


@settings(max_examples=600, deadline=None)
@given(headers=headers, body=bodies)
def test_parsing_ends_in_changes_or_in_an_error_of_ours(headers: dict[str, str], body: bytes) -> None:
    outcome = outcome_of(headers, body)
    if isinstance(outcome, BssSyncError):
        assert getattr(outcome, "status", 409) in (400, 409, 413, 415, 422)
        json.dumps([outcome.detail, [(problem.field, problem.detail) for problem in outcome.fields]]).encode("ascii")
    else:
        for change in outcome.changes:
            assert json.loads(json.dumps(change.body)) == change.body
            assert all(name.isprintable() for name in change.dropped)


def outcome_of(headers: dict[str, str], body: bytes) -> ParsedRequest | BssSyncError:
    try:
        return parse_request(headers, body, "msg_1")
    except BssSyncError as error:
        return error


webhook_headers = st.fixed_dictionaries(
    {},
    optional={
        "webhook-id": st.just("msg_1") | any_texts,
        "webhook-timestamp": st.just(str(int(NOW.timestamp()))) | any_texts,
        "webhook-signature": st.sampled_from(["v1,", "v1a,AAAA", "v1,x v1,y"])
        | any_texts
        | any_texts.map("v1,{}".format),
    },
)


@settings(max_examples=400, deadline=None)
@given(headers=webhook_headers, body=st.binary(max_size=50))
def test_without_the_secret_nothing_but_not_verified_is_learnt(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(NotVerified):
        verify_standard_webhook(headers, body, KEYS, NOW)


@settings(deadline=None)
@given(body=st.text(st.characters(codec="utf-8")), webhook_id=st.from_regex(r"[!-\-/-~]{1,255}", fullmatch=True))
def test_whatever_the_official_library_signs_is_verified(body: str, webhook_id: str) -> None:
    signed = {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(NOW.timestamp())),
        "webhook-signature": Webhook(SECRET).sign(webhook_id, NOW, body),
    }
    assert verify_standard_webhook(signed, body.encode(), KEYS, NOW) == webhook_id
    with pytest.raises(NotVerified):
        verify_standard_webhook(signed, body.encode() + b"x", KEYS, NOW)


def shuffled(value: Any, data: st.DataObject) -> Any:
    if isinstance(value, dict):
        names = data.draw(st.permutations(list(value)))
        return {name: shuffled(value[name], data) for name in names}
    return [shuffled(element, data) for element in value] if isinstance(value, list) else value


@settings(deadline=None)
@given(document=documents, data=st.data())
def test_the_order_of_members_and_blanks_do_not_change_an_element_digest(document: Any, data: st.DataObject) -> None:
    first = read_json(json.dumps(document).encode(), 100)
    second = read_json(json.dumps(shuffled(document, data), indent=2, ensure_ascii=False).encode(), 100)
    assert digest(first, "x") == digest(second, "x")


safe = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False) | texts | st.booleans()


@settings(max_examples=300, deadline=None)
@given(
    document=st.recursive(safe, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5))
)
def test_the_canonical_form_is_the_package_s(document: Any) -> None:
    assert canonical_bytes(read_json(json.dumps(document).encode(), 100)) == rfc8785.dumps(document)


numbers = st.integers() | st.floats(-1e290, 1e290).filter(lambda number: number == 0 or abs(number) > 1e-290)
quantities = st.decimals(0, 10**12, places=6, allow_nan=False)


@settings(deadline=None)
@given(
    quantity=quantities,
    source_id=st.text(st.characters(codec="utf-8").filter(str.isprintable), min_size=1, max_size=255),
    characteristics=st.dictionaries(texts, st.none() | st.booleans() | texts | numbers, max_size=5),
    version=st.integers(0, 2**63 - 1),
)
def test_a_valid_message_comes_through(
    quantity: Decimal, source_id: str, characteristics: dict[str, Any], version: int
) -> None:
    state = {**SUBSCRIPTION, "id": source_id, "version": version, "characteristics": characteristics, "quantity": "@"}
    body = encode(message(state)).replace(b'"quantity": "@"', f'"quantity": {quantity:f}'.encode())
    (change,) = parse_request(JSON_HEADERS, body, "msg_1").changes
    assert (change.source_id, change.version) == (source_id, version)
    assert change.body["quantity"] == canonical_quantity(quantity)
    assert Decimal(change.body["quantity"]) == quantity
    stored = change.body["characteristics"]
    assert json.loads(json.dumps(stored), parse_float=Decimal) == json.loads(
        json.dumps(characteristics), parse_float=Decimal
    )
