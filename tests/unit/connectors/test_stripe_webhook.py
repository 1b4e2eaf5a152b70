"""Stripe's signed events: verification, and what they notify of."""

from __future__ import annotations

import hashlib
import hmac
import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from bss_sync.domain.change import Action, Change, Kind, OrderKind
from bss_sync.domain.errors import InvalidMessage, NotVerified
from connectors.stripe.webhook import KINDS, TOLERANCE_SECONDS, StripeHooks, verify
from tests.unit.connectors.stripe_account import item, resource, subscription

SECRET = b"whsec_test"
NOW = datetime(2026, 3, 2, 10, 15, tzinfo=UTC)
SECONDS = int(NOW.timestamp())


def signature(body: bytes, secret: bytes = SECRET, seconds: int = SECONDS) -> str:
    return hmac.new(secret, b"%d." % seconds + body, hashlib.sha256).hexdigest()


def signed(body: bytes) -> dict[str, str]:
    return {"stripe-signature": f"t={SECONDS},v1={signature(body)}"}


def event(event_type: str, entity: Any, **changes: Any) -> dict[str, Any]:
    data = {"object": entity, **changes.pop("data", {})}
    return resource("event", **{"id": "evt_1", "type": event_type, "created": SECONDS - 5, "data": data, **changes})


def parse(content: Any) -> list[Change]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return list(StripeHooks().parse(signed(body), body, [SECRET], NOW))


def test_the_signature_of_the_official_library_is_accepted() -> None:
    body = json.dumps(event("customer.created", resource("customer"))).encode()
    official = stripe.WebhookSignature._compute_signature(f"{SECONDS}.{body.decode()}", SECRET.decode())
    header = f"t={SECONDS},v1={official},v0={'0' * 64}"
    assert StripeHooks().parse({"stripe-signature": header}, body, [SECRET], NOW)


def test_every_secret_and_every_signature_counts_while_a_secret_is_rolled() -> None:
    old, new = signature(b"{}", b"whsec_old"), signature(b"{}", b"whsec_new")
    both = f"t={SECONDS},v1={old},v1={new}"
    verify(both, b"{}", [b"whsec_new"], NOW)
    verify(both, b"{}", [b"whsec_old"], NOW)
    verify(f"t={SECONDS},v1={new}", b"{}", [b"whsec_old", b"whsec_new"], NOW)


@pytest.mark.parametrize("offset", [-TOLERANCE_SECONDS, TOLERANCE_SECONDS])
def test_five_minutes_either_way_are_allowed(offset: int) -> None:
    at = SECONDS + offset
    verify(f"t={at},v1={signature(b'{}', seconds=at)}", b"{}", [SECRET], NOW)


@pytest.mark.parametrize("offset", [-TOLERANCE_SECONDS - 1, TOLERANCE_SECONDS + 1])
def test_more_than_five_minutes_are_not_and_the_offset_is_for_the_log_only(offset: int) -> None:
    at = SECONDS + offset
    with pytest.raises(NotVerified) as raised:
        verify(f"t={at},v1={signature(b'{}', seconds=at)}", b"{}", [SECRET], NOW)
    assert f"{offset:+d} s" in raised.value.cause
    assert str(TOLERANCE_SECONDS) not in raised.value.detail


GOOD = signature(b"{}")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"t={SECONDS}",
        f"v1={GOOD}",
        f"t=,v1={GOOD}",
        f"t=soon,v1={GOOD}",
        f"t=١٢٣,v1={GOOD}",
        f"t={SECONDS},t={SECONDS},v1={GOOD}",
        f"t={SECONDS},v0={GOOD}",
        f"t={SECONDS},v1={GOOD[:-1]}",
        f"t={SECONDS},v1={'é' * 64}",
        f"t={SECONDS},v1={'0' * 64}",
        f"t={SECONDS + 1},v1={GOOD}",
        f"t={SECONDS},v1={GOOD}" + "," * 5_000,
        "t=" + "9" * 4_000,
    ],
)
def test_a_header_that_does_not_fit_is_not_verified(header: str) -> None:
    with pytest.raises(NotVerified):
        verify(header, b"{}", [SECRET], NOW)


def test_another_body_another_secret_no_secret_and_an_empty_one_are_not_verified() -> None:
    empty = f"t={SECONDS},v1={signature(b'{}', b'')}"
    cases: list[tuple[str, bytes, list[bytes]]] = [
        (signed(b"{}")["stripe-signature"], b"{ }", [SECRET]),
        (signed(b"{}")["stripe-signature"], b"{}", [b"whsec_other"]),
        (signed(b"{}")["stripe-signature"], b"{}", []),
        (empty, b"{}", [b""]),
    ]
    for header, body, secrets in cases:
        with pytest.raises(NotVerified):
            verify(header, body, secrets, NOW)


@pytest.mark.parametrize("event_type", sorted(KINDS))
def test_every_event_that_concerns_us_is_a_notification_to_fetch(event_type: str) -> None:
    kind = KINDS[event_type]
    entity = resource("customer", id="e_1") if kind is Kind.ACCOUNT else subscription(item("si_a", 1, "p"), id="e_1")
    (change,) = parse(event(event_type, entity))
    assert (change.message_id, change.kind, change.source_id) == ("evt_1", kind, "e_1")
    assert (change.action, change.version, change.order) == (Action.NOTIFIED, None, OrderKind.OBSERVED)
    assert change.effective_at == change.sent_at == datetime(2026, 3, 2, 10, 14, 55, tzinfo=UTC)
    assert change.body == {}


@pytest.mark.parametrize(
    "event_type", ["invoice.created", "plan.created", "v2.core.event", "", None, 7, ["customer.created"]]
)
def test_other_events_are_accepted_and_give_nothing(event_type: Any) -> None:
    assert parse({"id": "evt_1", "object": "event", "type": event_type}) == []


def test_an_event_about_a_subscription_notifies_of_its_addons_and_of_those_that_vanished() -> None:
    a, b, c, d = (item(f"si_{name}", n, "p") for n, name in enumerate("abcd"))
    now = subscription(a, c, d, id="sub_x")
    before = {"items": {"object": "list", "data": [a, b, c]}}
    changes = parse(event("customer.subscription.updated", now, data={"previous_attributes": before}))
    assert [(change.message_id, change.source_id) for change in changes] == [
        ("evt_1", "sub_x"),
        ("evt_1/si_c", "sub_x/si_c"),
        ("evt_1/si_d", "sub_x/si_d"),
        ("evt_1/si_b", "sub_x/si_b"),
    ]
    assert len({change.digest for change in changes}) == 4


def test_an_addon_that_became_the_first_item_is_notified_under_both_ids() -> None:
    a, b = item("si_a", 1, "p"), item("si_b", 2, "q")
    before = {"items": {"data": [a, b]}}
    changes = parse(
        event("customer.subscription.updated", subscription(b, id="sub_x"), data={"previous_attributes": before})
    )
    assert [change.source_id for change in changes] == ["sub_x", "sub_x/si_b"]


def test_a_repeated_delivery_is_the_same_message_although_stripe_counts_down_in_it() -> None:
    first = event("customer.updated", resource("customer"), pending_webhooks=2)
    (once,), (again,) = parse(first), parse({**first, "pending_webhooks": 1})
    assert (once.message_id, once.digest) == (again.message_id, again.digest)
    (other,) = parse({**first, "created": SECONDS - 4})
    assert other.digest != once.digest


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"[]", b'"text"', b"1" * 5_000, b"[" * 100_000, b'{"a":' * 100_000]
)
def test_a_signed_body_that_is_no_json_object_is_malformed(body: bytes) -> None:
    with pytest.raises(InvalidMessage) as raised:
        parse(body)
    assert raised.value.status == 400


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"id": None}, "id"),
        ({"id": "evt 1"}, "id"),
        ({"id": "e" * 121}, "id"),
        ({"created": "yesterday"}, "created"),
        ({"created": 10**20}, "created"),
        ({"data": None}, "data.object"),
        ({"data": {"object": []}}, "data.object"),
        ({"data": {"object": {"id": ""}}}, "data.object.id"),
        ({"data": {"object": {"id": "sub_x", "items": {"data": [{"id": "a"}, {"id": "\n"}]}}}}, "data.object.items"),
    ],
)
def test_an_event_without_what_is_needed_is_invalid_and_the_member_is_named(changes: Any, field: str) -> None:
    content = {
        "id": "evt_1",
        "type": "customer.subscription.updated",
        "created": SECONDS,
        "data": {"object": {"id": "x"}},
    }
    with pytest.raises(InvalidMessage) as raised:
        parse({**content, **changes})
    assert raised.value.status == 422
    assert [problem.field for problem in raised.value.fields] == [field]


@given(header=st.text(max_size=200) | st.from_regex(r"t=[0-9]{1,11},v1=[0-9a-f]{64}"), body=st.binary(max_size=200))
def test_whatever_arrives_without_a_signature_is_not_verified_and_nothing_else(header: str, body: bytes) -> None:
    with pytest.raises(NotVerified):
        StripeHooks().parse({"stripe-signature": header}, body, [SECRET], NOW)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "data", "items", "object"]), inner)
    ),
    max_leaves=8,
)


@given(
    content=st.fixed_dictionaries(
        {"type": st.sampled_from(sorted(KINDS)) | JSON},
        optional={
            "id": st.just("evt_1") | JSON,
            "created": st.integers() | JSON,
            "data": JSON
            | st.fixed_dictionaries(
                {"object": st.fixed_dictionaries({"id": st.just("sub_x") | JSON}, optional={"items": JSON})},
                optional={"previous_attributes": JSON},
            ),
        },
    )
)
def test_a_signed_body_gives_notifications_or_an_invalid_message_and_nothing_else(content: dict[str, Any]) -> None:
    changes: list[Change] = []
    with suppress(InvalidMessage):
        changes = parse(content)
    assert all(change.action is Action.NOTIFIED and change.body == {} for change in changes)
