"""The Stripe connector keeps the contract of connectors, with Stripe's own paging, add-ons and more than ten items."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from bss_sync.testing.connector_contract import CHECKS, Check, Subject
from connectors.stripe import CONNECTOR
from connectors.stripe.config import StripeConfig
from tests.unit.connectors.stripe_account import API_KEY, StripeAccount, item, resource, subscription

MARCH_1 = 1_772_323_200


@pytest.fixture
def subject() -> Subject:
    stripe = StripeAccount(page_size=3)
    stripe.objects["customers"] = [resource("customer", id=f"cus_{n}", name=f"Customer {n}") for n in range(7)]
    many = [item(f"si_{n:02}", MARCH_1 + n // 3, f"prod_{n}", subscription="sub_many") for n in range(13)]
    stripe.objects["subscription_items"] = many
    stripe.objects["subscriptions"] = [
        subscription(item("si_one", MARCH_1, "prod_a", 25), id="sub_one", status="trialing"),
        subscription(item("si_a", MARCH_1, "prod_a"), item("si_b", MARCH_1, "prod_b"), id="sub_two"),
        subscription(*many[:10], has_more=True, id="sub_many"),
        subscription(item("si_end", MARCH_1, "prod_a"), id="sub_end", status="canceled", ended_at=MARCH_1),
    ]
    return Subject(
        spec=CONNECTOR,
        package="connectors.stripe",
        config=StripeConfig(),
        http=stripe,
        secrets={"api_key": SecretStr(API_KEY)},
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_contract_of_connectors(check: Check, subject: Subject) -> None:
    check(subject)
