"""The Stripe connector on input that nobody here wrote: localstripe, driven by the official stripe library."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import stripe
from pydantic import SecretStr

from bss_sync.adapters.http import RequestsHttpClient
from bss_sync.domain.change import Action, Change, Kind
from bss_sync.domain.errors import NotVerified
from bss_sync.ports.connector import Observation, SourceClient
from bss_sync.ports.http import HttpClient
from bss_sync.testing.connector_contract import CHECKS, Check, Subject
from bss_sync.testing.localstripe import API_KEY, LocalStripe
from connectors.stripe import CONNECTOR
from connectors.stripe.config import StripeConfig

SECRET = "whsec_of_the_endpoint"
PICKLE = Path("/tmp/localstripe.pickle")  # noqa: S108 - where localstripe's own command would write
"""Never written by the wrapper."""


class Door:
    """A web server on 127.0.0.1 that keeps what is pushed to it."""

    def __init__(self) -> None:
        self._pushed: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue()
        pushed = self._pushed

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                pushed.put(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(202)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/connections/c/hooks"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def next_about(self, source_id: str) -> tuple[dict[str, str], bytes]:
        """The next request whose event is about this object; others are passed over. Fails after 10 s."""
        deadline = time.monotonic() + 10
        while True:
            headers, body = self._pushed.get(timeout=max(0.01, deadline - time.monotonic()))
            if json.loads(body)["data"]["object"].get("id") == source_id:
                return headers, body


class Reseller:
    """A reseller who uses Stripe: the official library, and the connector beside it."""

    def __init__(self, server: LocalStripe, door: Door, http: HttpClient) -> None:
        self.door = door
        self.api = stripe.StripeClient(API_KEY, base_addresses={"api": server.url})
        config = StripeConfig(base_url=server.url, allow_http_private=True)
        self.subject = Subject(CONNECTOR, "connectors.stripe", config, http, {"api_key": SecretStr(API_KEY)})
        source, hooks = self.subject.source, CONNECTOR.hooks(config)
        assert source is not None
        assert hooks is not None
        self.source: SourceClient = source
        self.hooks = hooks
        product = self.api.v1.products.create({"name": "Microsoft 365", "id": f"M365-{time.monotonic_ns()}"})
        self.product = product.id
        self.plan = self.api.v1.plans.create(
            {"product": product.id, "amount": 2000, "currency": "eur", "interval": "month"}
        ).id

    def customer(self, **members: Any) -> str:
        """A customer who can pay."""
        card: Any = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2040, "cvc": "123"}
        method = self.api.v1.payment_methods.create({"type": "card", "card": card}).id
        params: Any = {"payment_method": method, "invoice_settings": {"default_payment_method": method}, **members}
        return self.api.v1.customers.create(params).id

    def subscribe(self, customer: str, quantity: int) -> str:
        return self.api.v1.subscriptions.create(
            {"customer": customer, "items": [{"plan": self.plan, "quantity": quantity}]}
        ).id

    def notified(self, source_id: str) -> Change:
        """The one change of the next event about an object."""
        headers, body = self.door.next_about(source_id)
        (change,) = self.hooks.parse(headers, body, [SECRET.encode()], datetime.now(UTC))
        return change

    def listed(self) -> dict[str, Observation]:
        return {one.source_id: one for one in self.source.list_all()}


@pytest.fixture(scope="module")
def server() -> Iterator[LocalStripe]:
    with LocalStripe() as running:
        yield running


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    opened = Door()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def reseller(server: LocalStripe, door: Door) -> Iterator[Reseller]:
    server.send_webhooks_to(door.url, SECRET)
    http = RequestsHttpClient()
    yield Reseller(server, door, http)
    http.close()


def body(observation: Observation | None) -> Mapping[str, Any]:
    assert observation is not None
    assert observation.body is not None
    return observation.body


def test_a_new_customer_and_its_subscription_are_notified_and_fetched(reseller: Reseller) -> None:
    customer = reseller.customer(name="Cloud Customer X", email="it@customer-x.example", metadata={"number": "C-1001"})
    subscription = reseller.subscribe(customer, 25)

    change = reseller.notified(customer)
    assert (change.kind, change.source_id, change.action) == (Kind.ACCOUNT, customer, Action.NOTIFIED)
    account = body(reseller.source.fetch(change.kind, change.source_id))
    assert (account["name"], account["number"]) == ("Cloud Customer X", "C-1001")

    change = reseller.notified(subscription)
    assert (change.kind, change.source_id, change.action) == (Kind.SUBSCRIPTION, subscription, Action.NOTIFIED)
    held = body(reseller.source.fetch(change.kind, change.source_id))
    assert (held["account_id"], held["product"], held["quantity"]) == (customer, reseller.product, "25")
    assert (held["status"], held["trial"], held["billing_cycle"], held["auto_renew"]) == ("active", False, "P1M", True)
    assert held["start_date"] < held["end_date"]


def test_what_localstripe_signs_is_refused_under_another_secret_and_after_a_change(reseller: Reseller) -> None:
    headers, pushed = reseller.door.next_about(reseller.customer(name="Cloud Customer Y"))
    now = datetime.now(UTC)
    assert reseller.hooks.parse(headers, pushed, [b"whsec_other", SECRET.encode()], now)
    for secret, content in ((b"whsec_other", pushed), (SECRET.encode(), pushed + b" ")):
        with pytest.raises(NotVerified):
            reseller.hooks.parse(headers, content, [secret], now)


def test_a_quantity_change_is_found_by_listing(reseller: Reseller) -> None:
    subscription = reseller.subscribe(reseller.customer(name="Cloud Customer Z"), 3)
    before = reseller.listed()[subscription]
    item = reseller.api.v1.subscriptions.retrieve(subscription)["items"].data[0].id
    reseller.api.v1.subscriptions.update(subscription, {"items": [{"id": item, "quantity": 30}]})
    after = reseller.listed()[subscription]
    # localstripe replaces the item behind a changed quantity: the identity must not hang on it.
    assert reseller.api.v1.subscriptions.retrieve(subscription)["items"].data[0].id != item
    assert {name for name in body(before) if body(before)[name] != body(after)[name]} == {"quantity"}
    assert (body(before)["quantity"], body(after)["quantity"]) == ("3", "30")


def test_a_cancelled_subscription_stays_listed_with_its_end(reseller: Reseller) -> None:
    subscription = reseller.subscribe(reseller.customer(name="Cloud Customer W"), 1)
    reseller.notified(subscription)
    reseller.api.v1.subscriptions.cancel(subscription)
    change = reseller.notified(subscription)
    fetched = reseller.source.fetch(change.kind, change.source_id)
    assert (body(fetched)["status"], body(fetched)["source_status"]) == ("cancelled", "canceled")
    assert body(fetched)["cancellation_date"] == body(fetched)["end_date"]
    assert body(fetched)["auto_renew"] is False
    assert fetched == reseller.listed()[subscription]


def test_a_deleted_customer_is_notified_and_no_longer_listed(reseller: Reseller) -> None:
    customer = reseller.customer(name="Cloud Customer V")
    reseller.notified(customer)
    assert customer in reseller.listed()
    reseller.api.v1.customers.delete(customer)
    change = reseller.notified(customer)
    assert (change.action, change.source_id) == (Action.NOTIFIED, customer)
    # Stripe itself would answer "deleted"; localstripe forgets the customer.
    assert reseller.source.fetch(Kind.ACCOUNT, customer) is None
    assert customer not in reseller.listed()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_contract_of_connectors(check: Check, reseller: Reseller) -> None:
    reseller.subscribe(reseller.customer(name="Cloud Customer U"), 2)
    check(reseller.subject)


def test_a_listing_of_several_pages_is_complete_with_accounts_first(reseller: Reseller) -> None:
    made = {reseller.api.v1.customers.create({"name": f"Customer {n}"}).id for n in range(120)}
    subscription = reseller.subscribe(reseller.customer(name="Last"), 1)
    found = [(one.kind, one.source_id) for one in reseller.source.list_all()]
    assert len(found) == len(set(found))
    assert made | {subscription} <= {source_id for _, source_id in found}
    kinds = [kind for kind, _ in found]
    assert kinds == sorted(kinds, key=[Kind.ACCOUNT, Kind.SUBSCRIPTION].index)


def test_the_check_proves_address_and_key(reseller: Reseller, server: LocalStripe) -> None:
    assert server.url in reseller.source.check()


def test_the_server_listens_on_the_loopback_only_and_writes_no_file(reseller: Reseller, server: LocalStripe) -> None:
    before = PICKLE.stat().st_mtime_ns if PICKLE.exists() else None
    reseller.customer(name="Unwritten")
    assert (PICKLE.stat().st_mtime_ns if PICKLE.exists() else None) == before
    listening = [one.laddr.ip for one in psutil.Process(server.pid).net_connections("inet") if one.status == "LISTEN"]
    assert listening == ["127.0.0.1"]


def test_the_server_ends_with_the_process_that_started_it_also_when_that_is_killed() -> None:
    code = (
        "import time; from bss_sync.testing.localstripe import LocalStripe; "
        "server = LocalStripe().start(); print(server.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        started = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    started.wait(timeout=10)
    assert not started.is_running()
