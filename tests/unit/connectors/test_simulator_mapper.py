"""The simulator's mapper: the same canonical form as the webhook door, and refusals that name the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_sync.domain.change import Kind, OrderKind
from bss_sync.domain.errors import InvalidMessage
from bss_sync.pipeline.envelope import parse_request
from connectors.simulator.config import SimulatorConfig
from connectors.simulator.mapper import observation, target_record

ACCOUNT = {"parent_id": "lite-1", "kind": "customer", "name": "Cloud Customer X", "number": "C-1001", "email": None}
SUBSCRIPTION = {
    "account_id": "cust-x",
    "parent_id": None,
    "product": "M365-BUS-PREM",
    "status": "active",
    "trial": False,
    "start_date": "2026-01-01",
    "end_date": "2026-12-31",
    "activation_date": "2026-01-01",
    "cancellation_date": None,
    "auto_renew": True,
    "billing_cycle": "P1M",
    "term": "P1Y",
    "quantity": 25,
    "characteristics": {"domain": "customer-x.example"},
}


def record(kind: Kind, **changes: Any) -> dict[str, Any]:
    state = ACCOUNT if kind is Kind.ACCOUNT else SUBSCRIPTION
    return {"id": "e-1", "version": 7, **state, **changes}


def through_the_door(kind: Kind, data: dict[str, Any]) -> Any:
    """The body that the same data has once it was accepted as a message."""
    message = {"type": f"{kind}.updated", "timestamp": "2026-03-02T10:15:00Z", "data": data}
    parsed = parse_request({"content-type": "application/json"}, json.dumps(message).encode(), "msg_1")
    return parsed.changes[0].body


@pytest.mark.parametrize("kind", list(Kind))
def test_a_fetched_body_equals_the_body_of_a_message(kind: Kind) -> None:
    data = record(kind, sales_price="9.90", effective_at="2026-03-01T00:00:00+02:00")
    seen = observation(kind, data, OrderKind.SEQUENCE)
    assert seen.body == through_the_door(kind, data)
    assert seen.body is not None
    assert "sales_price" not in seen.body
    assert seen.version == 7
    assert str(seen.effective_at) == "2026-02-28 22:00:00+00:00"


# The door takes numbers down to 1e-300.
DOUBLES = st.floats(-1e30, 1e30).filter(lambda number: number == 0 or abs(number) > 1e-290)


@given(
    quantity=st.one_of(
        st.integers(0, 10**12), st.decimals(0, 10**6, places=6).map(float), st.sampled_from([25.0, 1e-06, 0.1, 1e12])
    ),
    number=st.one_of(st.integers(-(10**18), 10**18), DOUBLES, st.sampled_from([3.0, 0.5, -0.0, 1e22])),
)
def test_numbers_take_the_form_that_the_door_gives_them(quantity: float, number: float) -> None:
    data = record(Kind.SUBSCRIPTION, quantity=quantity, characteristics={"n": number, "flag": True, "text": "3.0"})
    seen = observation(Kind.SUBSCRIPTION, data, OrderKind.SEQUENCE)
    expected = through_the_door(Kind.SUBSCRIPTION, data)
    assert seen.body == expected
    assert json.dumps(seen.body) == json.dumps(expected)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"quantity": -1}, "quantity"),
        ({"quantity": "25"}, "quantity"),
        ({"quantity": True}, "quantity"),
        ({"start_date": "01.01.2026"}, "start_date"),
        ({"start_date": 20260101}, "start_date"),
        ({"characteristics": {"nested": {}}}, "characteristics"),
        ({"version": "7"}, "version"),
        ({"version": True}, "version"),
        ({"effective_at": "2026-03-01T00:00:00"}, "effective_at"),
        ({"id": 4711}, "id"),
    ],
)
def test_a_malformed_member_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        observation(Kind.SUBSCRIPTION, record(Kind.SUBSCRIPTION, **changes), OrderKind.SEQUENCE)
    assert [problem.field for problem in caught.value.fields] == [field]


def test_a_missing_member_is_named() -> None:
    whole = record(Kind.ACCOUNT)
    del whole["email"]
    with pytest.raises(InvalidMessage, match="email is missing"):
        observation(Kind.ACCOUNT, whole, OrderKind.SEQUENCE)


def test_a_deleted_record_has_a_version_and_no_body() -> None:
    seen = observation(Kind.ACCOUNT, {"id": "a", "version": 9, "deleted": True}, OrderKind.SEQUENCE)
    assert (seen.version, seen.body, str(seen.action)) == (9, None, "deleted")


def test_each_order_reads_its_own_member() -> None:
    timed = record(Kind.ACCOUNT, source_updated_at="1970-01-01T00:00:01.000002Z")
    assert observation(Kind.ACCOUNT, timed, OrderKind.TIMESTAMP).version == 1_000_002
    assert observation(Kind.ACCOUNT, timed, OrderKind.OBSERVED).version is None
    with pytest.raises(InvalidMessage, match="source_updated_at"):
        observation(Kind.ACCOUNT, record(Kind.ACCOUNT), OrderKind.TIMESTAMP)


def test_a_malformed_target_record_is_an_error_of_our_tree() -> None:
    for wrong in ({}, {"id": "d-1", "kind": "invoice", "reference": "r", "fields": {}}):
        with pytest.raises(InvalidMessage):
            target_record(wrong)


def test_the_address_is_checked_and_kept_without_a_trailing_slash() -> None:
    config = SimulatorConfig.model_validate({"base_url": "http://127.0.0.1:9000/"})
    assert config.base_url == "http://127.0.0.1:9000"
    for wrong in ("127.0.0.1:9000", "ftp://bss.example", "https://bss.example/?x=1", "https://"):
        with pytest.raises(ValueError, match="base_url"):
            SimulatorConfig.model_validate({"base_url": wrong})
