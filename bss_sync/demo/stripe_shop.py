"""Input that nobody here wrote: localstripe as a reseller's BSS, driven by the official ``stripe`` library."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bss_sync.demo.narration import Narrator
from bss_sync.demo.stage import DISTRIBUTOR
from bss_sync.demo.world import PREMIUM, World, check
from bss_sync.domain.change import Kind
from bss_sync.testing.localstripe import API_KEY, send_webhooks

if TYPE_CHECKING:
    from stripe import StripeClient

RESELLER, CONNECTION = "Stripe Shop", "stripe-shop"
PACKAGES = ("localstripe", "stripe")
PRODUCT = "prod_m365"
"""What the shop calls Business Premium."""
SECRET = "whsec_demo_endpoint"  # noqa: S105 - of a server that lives for seconds


def on_strange_input(world: World) -> None:
    """The same line on Stripe's signed events and answers; said plainly where the two packages are missing."""
    narrator = world.narrator
    narrator.chapter(
        "The same line on input that nobody here wrote",
        "A second reseller sells with localstripe, a Stripe-compatible server by others; the stripe library acts.",
    )
    missing = missing_packages(PACKAGES)
    if missing:
        not_run(narrator, missing)
        return
    import stripe

    shop = world.stage.localstripe()
    client = stripe.StripeClient(API_KEY, base_addresses={"api": shop.url})
    plan = _catalogue(client)
    _connect(world, shop.url)
    customer, subscription = _sell(world, client, plan)
    _change_quantity(world, client, subscription)
    _cancel(world, client, subscription)
    check(
        "the shop's customer in the mirror",
        "Stripe Customer S",
        (_record(world, Kind.ACCOUNT, customer) or {}).get("name"),
    )
    _show_origins(world, customer, subscription)


def missing_packages(names: Sequence[str]) -> list[str]:
    """Those that cannot be imported here: an installation without the development dependencies has neither."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def not_run(narrator: Narrator, missing: Sequence[str]) -> None:
    """Say plainly that the chapter is left out, and count it."""
    reason = f"the Stripe chapter needs {' and '.join(missing)}, development dependencies: make setup"
    narrator.tally.not_run.append(reason)
    narrator.say(f"NOT RUN: {reason}")


def _catalogue(client: StripeClient) -> str:
    product = client.v1.products.create({"name": "Microsoft 365 Business Premium", "id": PRODUCT})
    plan = client.v1.plans.create({"product": product.id, "amount": 2_000, "currency": "eur", "interval": "month"})
    return plan.id


def _connect(world: World, url: str) -> None:
    """The connection, the product's name there, and the webhook. Not polled yet: what comes now, came by webhook."""
    options = ["--connector", "stripe", "--set", f"base_url={url}", "--set", "allow_http_private=true"]
    options += ["--set", "poll_seconds=0", "--display-name", RESELLER, "--activate"]
    secrets = ["--secret", "api_key=-", "--secret", "webhook_secret=-"]
    made = world.stage.administer("connection", "add", CONNECTION, *options, *secrets, typed=f"{API_KEY}\n{SECRET}\n")
    world.stage.administer("product", "map", CONNECTION, PRODUCT, PREMIUM)
    send_webhooks(url, made["url"].removesuffix("messages") + "hooks", SECRET)
    world.narrator.act(f"the admin connects {RESELLER}", f"live; its {PRODUCT} is {PREMIUM} here")


def _sell(world: World, client: StripeClient, plan: str) -> tuple[str, str]:
    began = time.monotonic()
    card: Any = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2040, "cvc": "123"}
    method = client.v1.payment_methods.create({"type": "card", "card": card}).id
    customer = client.v1.customers.create(
        {
            "name": "Stripe Customer S",
            "email": "it@customer-s.example",
            "payment_method": method,
            "invoice_settings": {"default_payment_method": method},
        }
    ).id
    subscription = client.v1.subscriptions.create({"customer": customer, "items": [{"plan": plan, "quantity": 8}]}).id
    expected = {"product": PREMIUM, "quantity": 8, "status": "active", "account_id": customer}
    external = {"product": PREMIUM, "quantity": "8", "status": "active"}
    milliseconds = world.arrives(
        Kind.SUBSCRIPTION, subscription, expected, since=began, connection=CONNECTION, external=external
    )
    world.narrator.act(
        "stripe: a customer, 8 × Business Premium",
        "signed webhook (sent 1 s later), fetched",
        *milliseconds,
    )
    return customer, subscription


def _change_quantity(world: World, client: StripeClient, subscription: str) -> None:
    """Nobody is told about a changed quantity by localstripe: polling finds it."""
    before = len(_messages(world))
    item = client.v1.subscriptions.retrieve(subscription)["items"].data[0].id
    client.v1.subscriptions.update(subscription, {"items": [{"id": item, "quantity": 30}]})
    check("the quantity in the mirror", 8, (_record(world, Kind.SUBSCRIPTION, subscription) or {})["quantity"])
    world.stage.administer("connection", "set", CONNECTION, "poll_seconds=1")
    milliseconds = world.arrives(Kind.SUBSCRIPTION, subscription, {"quantity": 30}, connection=CONNECTION)
    found = [one for one in _messages(world)[before:] if one["source_id"] == subscription and one["state"] == "applied"]
    # Stripe has no feed of changes: a poll lists everything and compares, as a reconciliation does.
    check("how the changed quantity was found", ["reconcile"], [one["origin"] for one in found])
    world.narrator.act("stripe: quantity from 8 to 30; no event tells of it", "30, found by polling", *milliseconds)


def _cancel(world: World, client: StripeClient, subscription: str) -> None:
    client.v1.subscriptions.cancel(subscription)
    milliseconds = world.arrives(
        Kind.SUBSCRIPTION, subscription, {"status": "cancelled", "source_status": "canceled"}, connection=CONNECTION
    )
    world.narrator.act("stripe: cancels it", "cancelled (its own word: canceled)", *milliseconds)


def _show_origins(world: World, customer: str, subscription: str) -> None:
    names = {customer: "customer", subscription: "subscription"}
    rows = [
        [
            one["received_at"][11:23],
            one["origin"],
            names.get(one["source_id"], one["source_id"]),
            one["action"],
            one["state"],
            str(one["verdict"]),
        ]
        for one in sorted(_messages(world), key=lambda one: str(one["received_at"]))
        if one["source_id"] in names and one["state"] == "applied"
    ]
    world.narrator.gap()
    world.narrator.say(f"What {DISTRIBUTOR} applied of it, and how it came")
    world.narrator.table(["received", "came by", "about", "carried", "state", "verdict"], rows)


def _messages(world: World) -> list[dict[str, Any]]:
    return world.items("/v1/messages", connection=CONNECTION)


def _record(world: World, kind: Kind, source_id: str) -> dict[str, Any] | None:
    return world.record(kind, source_id, CONNECTION)
