"""Stripe's objects in the contract's shapes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from bss_sync.domain import account, subscription
from bss_sync.domain.errors import InvalidMessage
from bss_sync.domain.subscription import Status
from connectors.stripe import mapper
from connectors.stripe.config import StripeConfig
from tests.unit.connectors.stripe_account import item, resource
from tests.unit.connectors.stripe_account import subscription as stripe_subscription

CONFIG = StripeConfig()
MARCH_1 = 1_772_323_200  # 2026-03-01T00:00:00Z
APRIL_1 = 1_775_001_600
MAY_1 = 1_777_593_600


def mapped(source: dict[str, Any], config: StripeConfig = CONFIG) -> list[mapper.Mapped]:
    return mapper.subscriptions(source, mapper.ordered_items(source["items"]), config)


def body_of(source: dict[str, Any], config: StripeConfig = CONFIG) -> Any:
    return mapped(source, config)[0].body


def test_stripe_mocks_customer_has_every_member_of_an_account() -> None:
    customer = resource("customer", name="Cloud Customer X", email="it@customer-x.example")
    found = mapper.account(customer, CONFIG)
    assert found.source_id == customer["id"]
    assert found.body == {
        "name": "Cloud Customer X",
        "number": None,
        "email": "it@customer-x.example",
        "kind": "customer",
        "parent_id": None,
    }
    assert set(found.body) == set(account.FIELDS)


@pytest.mark.parametrize(
    ("members", "name"),
    [
        ({"name": "N", "description": "D", "email": "e@x.example"}, "N"),
        ({"name": "", "description": "D", "email": "e@x.example"}, "D"),
        ({"name": None, "description": None, "email": "e@x.example"}, "e@x.example"),
        ({"name": None, "description": None, "email": None}, "cus_QXg1o8vcGmoR32"),
    ],
)
def test_a_customer_without_a_name_is_called_by_the_next_best_thing(members: dict[str, Any], name: str) -> None:
    assert mapper.account(resource("customer", **members), CONFIG).body["name"] == name


def test_pasted_line_ends_and_what_cannot_be_stored_leave_the_texts() -> None:
    customer = resource(
        "customer", name=" \n", description="Cloud\tCustomer\r\nX\x00", metadata={"parent": " cus_lite "}
    )
    body = mapper.account(customer, CONFIG).body
    assert (body["name"], body["parent_id"]) == ("Cloud Customer X\ufffd", "cus_lite")
    source = stripe_subscription(item("si_a", MARCH_1, "p"), metadata={"note": "a\nb\ud800", "odd": {"x": 1}})
    assert body_of(source)["characteristics"] == {"note": "a\nb\ufffd"}


def test_metadata_places_a_customer_below_a_lite_reseller() -> None:
    customer = resource(
        "customer", metadata={"bss_parent": "cus_lite", "bss_kind": "reseller", "bss_number": "C-1", "parent": "no"}
    )
    body = mapper.account(customer, StripeConfig(metadata_prefix="bss_")).body
    assert (body["parent_id"], body["kind"], body["number"]) == ("cus_lite", "reseller", "C-1")


def test_stripe_mocks_subscription_has_every_member_of_a_subscription() -> None:
    source = stripe_subscription(
        item("si_a", MARCH_1, "prod_m365", 25, current_period_end=APRIL_1),
        start_date=MARCH_1,
        trial_end=None,
        metadata={"domain": "customer-x.example"},
    )
    assert body_of(source) == {
        "account_id": "cus_QXg1o8vcGmoR32",
        "parent_id": None,
        "product": "prod_m365",
        "status": "active",
        "source_status": "active",
        "trial": False,
        "start_date": "2026-03-01",
        "end_date": "2026-04-01",
        "activation_date": "2026-03-01",
        "cancellation_date": None,
        "auto_renew": True,
        "billing_cycle": "P1M",
        "term": None,
        "quantity": "25",
        "characteristics": {"domain": "customer-x.example"},
    }
    assert set(body_of(source)) == set(subscription.FIELDS)


def test_nothing_of_prices_cards_and_addresses_crosses() -> None:
    customer = resource("customer", name="X", phone="CANARY", address={"line1": "CANARY"}, sources={"data": ["CANARY"]})
    priced = item("si_a", MARCH_1, "prod_m365")
    priced["price"].update(unit_amount=987_654, unit_amount_decimal="987654", currency="CANARY", nickname="CANARY")
    source = stripe_subscription(priced, default_payment_method="CANARY", latest_invoice="CANARY", currency="CANARY")
    crossed = json.dumps([mapper.account(customer, CONFIG).body, *(one.body for one in mapped(source))])
    assert "CANARY" not in crossed
    assert "987654" not in crossed


@pytest.mark.parametrize(
    ("word", "status", "trial"),
    [
        ("incomplete", Status.PENDING_ACTIVE, False),
        ("incomplete_expired", Status.ABORTED, False),
        ("trialing", Status.ACTIVE, True),
        ("active", Status.ACTIVE, False),
        ("past_due", Status.ACTIVE, False),
        ("unpaid", Status.SUSPENDED, False),
        ("paused", Status.SUSPENDED, False),
        ("canceled", Status.CANCELLED, False),
    ],
)
def test_every_status_of_stripe_is_mapped_and_kept_beside(word: str, status: Status, trial: bool) -> None:
    body = body_of(stripe_subscription(item("si_a", MARCH_1, "p"), status=word))
    assert (body["status"], body["source_status"], body["trial"]) == (status.value, word, trial)


def test_words_that_stripe_has_added_since_stay_as_they_are_for_the_quarantine() -> None:
    odd = item("si_a", MARCH_1, "p")
    odd["price"]["recurring"]["interval"] = "fortnight"
    body = body_of(stripe_subscription(odd, status="hibernating"))
    assert (body["status"], body["source_status"], body["billing_cycle"]) == ("hibernating", "hibernating", "fortnight")


@pytest.mark.parametrize(
    ("interval", "count", "cycle"),
    [("day", 1, "P1D"), ("week", 2, "P2W"), ("month", 3, "P3M"), ("month", 12, "P12M"), ("year", 1, "P1Y")],
)
def test_billing_cycles_become_durations(interval: str, count: int, cycle: str) -> None:
    one = item("si_a", MARCH_1, "p")
    one["price"]["recurring"].update(interval=interval, interval_count=count)
    assert body_of(stripe_subscription(one))["billing_cycle"] == cycle


def test_the_product_can_be_the_price_or_its_lookup_key() -> None:
    one = item("si_a", MARCH_1, "prod_m365")
    one["price"].update(id="price_9", lookup_key="M365-BUS-PREM")
    source = stripe_subscription(one)
    assert body_of(source)["product"] == "prod_m365"
    assert body_of(source, StripeConfig(product_field="price"))["product"] == "price_9"
    assert body_of(source, StripeConfig(product_field="lookup_key"))["product"] == "M365-BUS-PREM"
    one["price"]["lookup_key"] = None
    assert body_of(source, StripeConfig(product_field="lookup_key"))["product"] == "price_9"


def test_expanded_references_are_read_like_ids() -> None:
    one = item("si_a", MARCH_1, "p")
    one["price"]["product"] = resource("product", id="prod_expanded")
    body = body_of(stripe_subscription(one, customer=resource("customer", id="cus_expanded")))
    assert (body["product"], body["account_id"]) == ("prod_expanded", "cus_expanded")


def test_the_older_shape_with_a_plan_and_the_period_on_the_subscription_is_read() -> None:
    old = {
        "id": "si_a",
        "created": MARCH_1,
        "quantity": 3,
        "plan": resource("plan", product="prod_old", interval="year"),
    }
    body = body_of(stripe_subscription(old, current_period_end=APRIL_1))
    assert (body["product"], body["billing_cycle"], body["quantity"]) == ("prod_old", "P1Y", "3")
    assert body["end_date"] == "2026-04-01"


def test_further_items_are_addons_below_the_oldest_item() -> None:
    source = stripe_subscription(
        item("si_young", APRIL_1, "prod_backup", 2, metadata={"zone": "eu"}),
        item("si_old", MARCH_1, "prod_m365", 25),
        start_date=MARCH_1,
        status="past_due",
        metadata={"domain": "x.example"},
    )
    main, addon = mapped(source)
    assert (main.source_id, main.body["product"], main.body["parent_id"]) == (source["id"], "prod_m365", None)
    assert addon.source_id == f"{source['id']}/si_young"
    assert addon.body["parent_id"] == source["id"]
    assert (addon.body["product"], addon.body["quantity"]) == ("prod_backup", "2")
    assert (addon.body["account_id"], addon.body["source_status"]) == (main.body["account_id"], "past_due")
    assert (main.body["start_date"], addon.body["start_date"]) == ("2026-03-01", "2026-04-01")
    assert (main.body["characteristics"], addon.body["characteristics"]) == ({"domain": "x.example"}, {"zone": "eu"})


def test_items_of_the_same_second_keep_the_order_that_stripe_gives() -> None:
    source = stripe_subscription(item("si_z", MARCH_1, "prod_first"), item("si_a", MARCH_1, "prod_second"))
    assert [one.body["product"] for one in mapped(source)] == ["prod_first", "prod_second"]


def test_a_trial_is_activated_when_it_ends() -> None:
    source = stripe_subscription(item("si_a", MARCH_1, "p"), start_date=MARCH_1, trial_end=APRIL_1, status="trialing")
    assert (body_of(source)["start_date"], body_of(source)["activation_date"]) == ("2026-03-01", "2026-04-01")


@pytest.mark.parametrize(
    ("members", "cancelled_on", "renews"),
    [
        ({}, None, True),
        ({"cancel_at_period_end": True, "canceled_at": MARCH_1}, "2026-03-01", False),
        ({"cancel_at": MAY_1}, "2026-05-01", False),
        ({"status": "canceled", "canceled_at": MARCH_1, "ended_at": APRIL_1}, "2026-03-01", False),
        ({"status": "canceled", "ended_at": APRIL_1}, "2026-04-01", False),
    ],
)
def test_a_cancellation_has_its_date_and_ends_renewal(
    members: dict[str, Any], cancelled_on: str | None, renews: bool
) -> None:
    body = body_of(stripe_subscription(item("si_a", MARCH_1, "p"), **members))
    assert (body["cancellation_date"], body["auto_renew"]) == (cancelled_on, renews)


def test_a_subscription_that_has_ended_ends_when_it_did_and_not_with_its_period() -> None:
    source = stripe_subscription(
        item("si_a", MARCH_1, "p", current_period_end=MAY_1), status="canceled", ended_at=APRIL_1
    )
    found = mapped(source)[0]
    assert found.body["end_date"] == "2026-04-01"
    assert found.ended_at == datetime(2026, 4, 1, tzinfo=UTC)


def test_a_metered_item_is_one_subscription_to_the_meter() -> None:
    metered = item("si_a", MARCH_1, "p")
    del metered["quantity"]
    assert body_of(stripe_subscription(metered))["quantity"] == "1"


def test_a_customer_of_the_second_api_is_never_taken_for_the_tenants_own_use() -> None:
    source = stripe_subscription(item("si_a", MARCH_1, "p"), customer=None, customer_account="acct_9")
    assert body_of(source)["account_id"] == "acct_9"


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda source: source.update(status=None), "status"),
        (lambda source: source["items"].update(data=[]), "price.product"),
        (lambda source: source["items"]["data"][0].update(quantity=-1), "quantity"),
        (lambda source: source["items"]["data"][0].update(quantity="many"), "quantity"),
        (lambda source: source["items"]["data"][0]["price"].update(recurring=None), "price.recurring.interval"),
    ],
)
def test_a_record_without_what_stripe_always_gives_is_an_error_that_names_it(spoil: Any, field: str) -> None:
    source = stripe_subscription(item("si_a", MARCH_1, "p"))
    spoil(source)
    with pytest.raises(InvalidMessage) as raised:
        mapped(source)
    assert [problem.field for problem in raised.value.fields] == [field]
    assert source["id"] in raised.value.detail


@pytest.mark.parametrize("value", [None, "1772323200", True, 10**30, -1, 1.5, {}])
def test_what_is_no_time_is_no_date(value: Any) -> None:
    assert mapper.moment(value) is None
