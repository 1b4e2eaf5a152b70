"""Valid messages of the contract, to be bent by tests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bss_sync.domain.errors import InvalidMessage
from bss_sync.pipeline.envelope import ParsedRequest, parse_request

JSON_HEADERS = {"content-type": "application/json"}
SUBSCRIPTION: dict[str, Any] = {
    "id": "sub-4711",
    "version": 7,
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
    "effective_at": "2026-03-01T00:00:00Z",
}
ACCOUNT: dict[str, Any] = {
    "id": "cust-x",
    "version": 3,
    "parent_id": "lite-1",
    "kind": "customer",
    "name": "Cloud Customer X",
    "number": "C-1001",
    "email": "it@customer-x.example",
}


def without(data: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in names}


def message(data: Any = SUBSCRIPTION, *, type: str = "subscription.updated", **members: Any) -> dict[str, Any]:  # noqa: A002 - the contract's member
    return {"type": type, "timestamp": "2026-03-02T10:15:00Z", "data": data, **members}


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


def parse(document: Any, **headers: str) -> ParsedRequest:
    return parse_request({**JSON_HEADERS, **headers}, encode(document), "msg_1")


def refusal(document: Any, **headers: str) -> tuple[int, str, list[str]]:
    return raw_refusal(encode(document), **headers)


def raw_refusal(body: bytes, **headers: str) -> tuple[int, str, list[str]]:
    with pytest.raises(InvalidMessage) as caught:
        parse_request({**JSON_HEADERS, **{k.replace("_", "-"): v for k, v in headers.items()}}, body, "msg_1")
    return caught.value.status, caught.value.problem_slug, [problem.field for problem in caught.value.fields]


def refused(field: str, value: Any, data: dict[str, Any] = SUBSCRIPTION) -> tuple[int, str, list[str]]:
    """The refusal of a message that is right but for this one value."""
    kind = "account" if data is ACCOUNT else "subscription"
    return refusal(message({**data, field: value}, type=f"{kind}.updated"))


def for_its(field: str) -> tuple[int, str, list[str]]:
    """The refusal of a message for this field of its data and no other."""
    return 422, "invalid-message", [f"data.{field}"]


def with_number(field: str, text: str) -> bytes:
    return encode(message({**SUBSCRIPTION, field: "@"})).replace(b'"@"', text.encode())
