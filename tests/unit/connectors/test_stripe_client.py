"""Asking Stripe: retrieve, listings with paging, and listings that break off."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from bss_sync.domain.change import Action, Kind, OrderKind
from bss_sync.domain.errors import CannotFetch, ConfigurationError, RemoteRefused, Transient
from bss_sync.ports.connector import SourceClient
from connectors.stripe import CONNECTOR
from connectors.stripe.config import StripeConfig
from tests.unit.connectors.stripe_account import API_KEY, StripeAccount, item, resource, subscription

MARCH_1 = 1_772_323_200


def client_of(stripe: StripeAccount) -> SourceClient:
    client = CONNECTOR.source(StripeConfig(), {"api_key": SecretStr(API_KEY)}, stripe)
    assert client is not None
    return client


def test_the_connector_declares_what_it_can_do() -> None:
    can = CONNECTOR.capabilities
    assert (can.hooks, can.fetch, can.list, can.order) == (True, True, True, OrderKind.OBSERVED)
    assert (can.push, can.poll, can.target) == (False, False, False)
    assert CONNECTOR.target(StripeConfig(), {}, StripeAccount()) is None


@pytest.mark.parametrize("secrets", [{}, {"api_key": SecretStr("")}])
def test_a_connection_without_an_api_key_is_named(secrets: dict[str, SecretStr]) -> None:
    with pytest.raises(ConfigurationError, match=r"^api_key"):
        CONNECTOR.source(StripeConfig(), secrets, StripeAccount())


@pytest.mark.parametrize("address", ["ftp://x.example", "https://", "https://x.example?key=1", "api.stripe.com"])
def test_a_base_url_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValidationError):
        StripeConfig(base_url=address)


def test_a_customer_is_fetched() -> None:
    stripe = StripeAccount()
    stripe.objects["customers"] = [resource("customer", id="cus_x", name="Cloud Customer X")]
    found = client_of(stripe).fetch(Kind.ACCOUNT, "cus_x")
    assert found is not None
    assert found.body is not None
    assert (found.source_id, found.version, found.body["name"]) == ("cus_x", None, "Cloud Customer X")


def test_a_deleted_customer_is_gone_and_an_unknown_one_was_never_heard_of() -> None:
    stripe = StripeAccount()
    stripe.objects["customers"] = [resource("deleted_customer", id="cus_x")]
    found = client_of(stripe).fetch(Kind.ACCOUNT, "cus_x")
    assert found is not None
    assert found.action is Action.DELETED
    assert client_of(stripe).fetch(Kind.ACCOUNT, "cus_other") is None


def test_an_item_is_fetched_by_its_own_id_and_is_gone_after_its_removal() -> None:
    stripe = StripeAccount()
    main, addon = item("si_a", MARCH_1, "prod_a"), item("si_b", MARCH_1, "prod_b", 4)
    stripe.objects["subscriptions"] = [subscription(main, addon, id="sub_x")]
    client = client_of(stripe)
    found = client.fetch(Kind.SUBSCRIPTION, "sub_x/si_b")
    assert found is not None
    assert found.body is not None
    assert (found.body["product"], found.body["quantity"], found.body["parent_id"]) == ("prod_b", "4", "sub_x")
    stripe.objects["subscriptions"] = [subscription(main, id="sub_x")]
    removed = client.fetch(Kind.SUBSCRIPTION, "sub_x/si_b")
    assert removed is not None
    assert (removed.source_id, removed.action) == ("sub_x/si_b", Action.DELETED)
    assert client.fetch(Kind.SUBSCRIPTION, "sub_other/si_b") is None


def test_an_addon_that_becomes_the_first_item_is_gone_as_an_addon() -> None:
    stripe = StripeAccount()
    stripe.objects["subscriptions"] = [subscription(item("si_b", MARCH_1, "prod_b"), id="sub_x")]
    main = client_of(stripe).fetch(Kind.SUBSCRIPTION, "sub_x")
    addon = client_of(stripe).fetch(Kind.SUBSCRIPTION, "sub_x/si_b")
    assert main is not None
    assert main.body is not None
    assert main.body["product"] == "prod_b"
    assert addon is not None
    assert addon.action is Action.DELETED


def test_items_beyond_the_first_ten_are_listed_and_the_first_keeps_its_place() -> None:
    stripe = StripeAccount(page_size=4)
    items = [item(f"si_{n:02}", MARCH_1, f"prod_{n}", subscription="sub_x") for n in range(13)]
    stripe.objects["subscription_items"] = items
    stripe.objects["subscriptions"] = [subscription(*items[:10], has_more=True, id="sub_x")]
    found = [one.source_id for one in client_of(stripe).list_all()]
    assert found[0] == "sub_x"
    assert sorted(found[1:]) == [f"sub_x/si_{n:02}" for n in range(1, 13)]


def test_a_listing_reads_every_page_with_accounts_first_and_ended_subscriptions_too() -> None:
    stripe = StripeAccount(page_size=2)
    stripe.objects["customers"] = [resource("customer", id=f"cus_{n}") for n in range(5)]
    stripe.objects["customers"].append(resource("deleted_customer", id="cus_gone"))
    stripe.objects["subscriptions"] = [
        subscription(item(f"si_{n}", MARCH_1, "p"), id=f"sub_{n}", status="canceled" if n % 2 else "active")
        for n in range(5)
    ]
    found = [one.source_id for one in client_of(stripe).list_all()]
    assert found == [f"cus_{n}" for n in (4, 3, 2, 1, 0)] + [f"sub_{n}" for n in (4, 3, 2, 1, 0)]
    assert {params["limit"] for _, params in stripe.calls} == {"100"}


def test_a_listing_asks_for_a_page_only_when_it_is_needed() -> None:
    stripe = StripeAccount(page_size=1)
    stripe.objects["customers"] = [resource("customer", id=f"cus_{n}") for n in range(3)]
    listing = client_of(stripe).list_all()
    next(listing)
    assert len(stripe.calls) == 1


def test_a_customer_deleted_at_the_seam_of_two_pages_makes_the_listing_start_again() -> None:
    stripe = StripeAccount(page_size=1)
    stripe.objects["customers"] = [resource("customer", id=f"cus_{n}") for n in range(3)]
    listing = client_of(stripe).list_all()
    assert next(listing).source_id == "cus_2"
    stripe.objects["customers"].pop()
    with pytest.raises(Transient, match="cus_2"):
        list(listing)


def test_a_listing_that_promises_more_and_gives_nothing_raises_instead_of_ending() -> None:
    stripe = StripeAccount(page_size=0)
    stripe.objects["customers"] = [resource("customer")]
    with pytest.raises(Transient, match="promises more"):
        list(client_of(stripe).list_all())


def test_an_address_that_is_not_stripes_api_is_refused() -> None:
    stripe = StripeAccount()
    stripe.objects["customers"] = [{"object": "customer"}]
    with pytest.raises(RemoteRefused):
        client_of(stripe).check()


def test_the_check_reads_both_collections_and_shows_nobodys_name() -> None:
    stripe = StripeAccount()
    stripe.objects["customers"] = [resource("customer", name="CANARY")]
    seen = client_of(stripe).check()
    assert [path for path, _ in stripe.calls] == ["customers", "subscriptions"]
    assert seen == "Stripe at https://api.stripe.com: customers readable, subscriptions readable, none there"


@pytest.mark.parametrize("source_id", ["..", ".", "", "/", "../balance", "cus_x/../../balance", "\ud800"])
def test_an_id_never_leads_to_another_path(source_id: str) -> None:
    stripe = StripeAccount()
    for kind in Kind:
        assert client_of(stripe).fetch(kind, source_id) is None
    assert not [path for path, _ in stripe.calls if path.count("/") != 1 or path.endswith(("/", "/.", "/.."))]


def test_a_poll_says_that_there_is_no_feed() -> None:
    with pytest.raises(CannotFetch):
        client_of(StripeAccount()).poll(None)
