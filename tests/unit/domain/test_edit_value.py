"""Values that people write: taken as they are meant, or refused by name."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from bss_sync.domain.change import Kind
from bss_sync.domain.edit_value import own_value, plain_number, relation_value
from bss_sync.domain.errors import InvalidRequest
from bss_sync.domain.ownership import OWN
from bss_sync.domain.relation import FIELDS, Relation


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("9.90", {"amount": "9.90", "currency": "EUR"}),
        (Decimal("9.90"), {"amount": "9.90", "currency": "EUR"}),
        (7, {"amount": "7", "currency": "EUR"}),
        ({"amount": Decimal("0.000001")}, {"amount": "0.000001", "currency": "EUR"}),
        ({"amount": "1", "currency": "USD"}, {"amount": "1", "currency": "USD"}),
        (None, None),
    ],
)
def test_a_price_keeps_its_digits(given: Any, stored: Any) -> None:
    # Decimal writes very small numbers with an exponent; those are too small for a price anyway.
    assert own_value(Kind.SUBSCRIPTION, "price", given, currency="EUR") == stored


@pytest.mark.parametrize(
    "given", [-1, "-0.01", "1.2345678", "1e2", Decimal("1E+2"), "", " 1", True, [], {}, {"amount": None}, "1" * 14]
)
def test_a_price_that_is_none_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        own_value(Kind.SUBSCRIPTION, "price", given, currency="EUR")
    assert [problem.field for problem in caught.value.fields] == ["price"]


def test_null_clears_every_own_field() -> None:
    cleared = {field: own_value(kind, field, None, currency="EUR") for kind in Kind for field in OWN[kind]}
    assert cleared == {
        "notes": None,
        "tags": [],
        "responsible_user": None,
        "price": None,
        "bill_to_contact": None,
        "custom_fields": {},
    }


@pytest.mark.parametrize("given", ["a", [1], [""], ["x" * 256], ["x"] * 51, {"a": 1}])
def test_tags_are_a_short_list_of_texts(given: Any) -> None:
    with pytest.raises(InvalidRequest):
        own_value(Kind.ACCOUNT, "tags", given, currency="EUR")


@pytest.mark.parametrize("given", ["\x00", "\ud800"])
def test_text_that_cannot_be_stored_is_refused(given: str) -> None:
    for kind, field, value in (
        (Kind.ACCOUNT, "notes", given),
        (Kind.ACCOUNT, "tags", [given]),
        (Kind.SUBSCRIPTION, "custom_fields", {given: 1}),
        (Kind.SUBSCRIPTION, "custom_fields", {"a": given}),
    ):
        with pytest.raises(InvalidRequest):
            own_value(kind, field, value, currency="EUR")


def test_custom_fields_are_flat_and_bounded() -> None:
    flat = {"text": "a", "number": Decimal("1.50"), "whole": 3, "flag": False, "none": None}
    stored = own_value(Kind.SUBSCRIPTION, "custom_fields", flat, currency="EUR")
    assert stored == {"text": "a", "number": 1.5, "whole": 3, "flag": False, "none": None}
    too_odd: list[dict[str, Any]] = [
        {"a": []},
        {"a": {}},
        {"": 1},
        {"a": "x" * 70_000},
        {"a": 2**70},
        {"a": Decimal("1e999")},
    ]
    for wrong in too_odd:
        with pytest.raises(InvalidRequest):
            own_value(Kind.SUBSCRIPTION, "custom_fields", wrong, currency="EUR")


def test_a_number_becomes_what_jsonb_gives_back() -> None:
    assert plain_number(Decimal("2.0")) == 2
    assert isinstance(plain_number(Decimal("2.0")), int)
    assert plain_number(Decimal("0.1")) == 0.1
    assert plain_number("text") == "text"


@pytest.mark.parametrize(
    ("relation", "field", "given"),
    [
        (Relation.CONTACT, "name", None),
        (Relation.CONTACT, "name", "  "),
        (Relation.CONTACT, "email", "not an address"),
        (Relation.CONTACT, "phone", 49),
        (Relation.ACTIVITY, "kind", "party"),
        (Relation.ACTIVITY, "subject", ""),
        (Relation.ACTIVITY, "due_at", "soon"),
        (Relation.ACTIVITY, "due_at", 5),
    ],
)
def test_a_wrong_member_of_a_contact_or_activity_is_named(relation: Relation, field: str, given: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        relation_value(relation, field, given, zone="UTC")
    assert [problem.field for problem in caught.value.fields] == [field]


def test_every_field_of_every_relation_has_a_rule() -> None:
    fitting = {"name": "Ada", "email": "a@b.example", "phone": None, "kind": "case", "subject": "s", "body": None}
    for relation in Relation:
        for field in FIELDS[relation]:
            value = "2026-03-31" if field == "due_at" else fitting[field]
            assert relation_value(relation, field, value, zone="UTC") in (value, "2026-03-31T23:59:59.999999Z")
