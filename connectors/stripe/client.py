"""Asks Stripe: one entity, or all of them. Reads only; a restricted key with read access to both is enough.

Stripe has no versions, so every answer is an observation (OrderKind.OBSERVED), and no feed of states, so a poll is a
listing. Customers that were deleted answer ``{"deleted": true}`` and are not listed; subscriptions that have ended
stay listed with ``status=all``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import quote

from pydantic import SecretStr

from bss_sync.domain.change import Json, Kind
from bss_sync.domain.errors import CannotFetch, RemoteRefused, Transient
from bss_sync.ports.connector import Observation, Page
from bss_sync.ports.http import HttpClient
from connectors.stripe import mapper
from connectors.stripe.config import StripeConfig

PAGE_SIZE: Final = 100
"""Objects per page: the most that Stripe gives."""

_CURSOR_GONE_STATUSES: Final = frozenset({400, 404})


class StripeClient:
    """A reseller's Stripe account as a SourceClient (bss_sync/ports/connector.py)."""

    def __init__(self, config: StripeConfig, api_key: SecretStr, http: HttpClient) -> None:
        self._config = config
        self._api_key = api_key
        self._http = http

    def check(self) -> str:
        """Read one customer and one subscription: proves the address, the key and both rights that are needed."""
        seen = {}
        for collection in ("customers", "subscriptions"):
            data = self._page(collection, {"limit": "1"})["data"]
            seen[collection] = "readable" if data else "readable, none there"
        return f"Stripe at {self._config.base_url}: " + ", ".join(f"{name} {what}" for name, what in seen.items())

    def fetch(self, kind: Kind, source_id: str) -> Observation | None:
        """The present state of a customer, a subscription or (``sub_…/si_…``) one further item of it."""
        if kind is Kind.ACCOUNT:
            customer = self._retrieve("customers", source_id)
            return None if customer is None else self._account(customer)
        subscription_id, separator, _ = source_id.partition(mapper.ITEM_SEPARATOR)
        subscription = self._retrieve("subscriptions", subscription_id)
        if subscription is None:
            return None
        for observation in self._subscriptions(subscription):
            if observation.source_id == source_id:
                return observation
        # The subscription is there without this item (or the item has become its first one): the add-on is gone.
        return Observation(kind, source_id, None, None) if separator else None

    def list_all(self) -> Iterator[Observation]:
        """Every customer, then every subscription with its add-ons behind it, one page in memory at a time."""
        for customer in self._list("customers", {}):
            yield self._account(customer)
        for subscription in self._list("subscriptions", {"status": "all"}):
            yield from self._subscriptions(subscription)

    def poll(self, cursor: str | None) -> Page:  # noqa: ARG002 - the port's signature
        """Stripe lists no changes; Capabilities.poll says so, and a poll lists everything instead."""
        raise CannotFetch("Stripe has no list of changed states.", next_step="List everything instead of polling.")

    def _account(self, customer: Mapping[str, Json]) -> Observation:
        if customer.get("deleted") is True:
            return Observation(Kind.ACCOUNT, str(customer["id"]), None, None)
        mapped = mapper.account(customer, self._config)
        return Observation(Kind.ACCOUNT, mapped.source_id, None, mapped.body)

    def _subscriptions(self, subscription: Mapping[str, Json]) -> list[Observation]:
        mapped = mapper.subscriptions(subscription, self._items(subscription), self._config)
        return [
            Observation(Kind.SUBSCRIPTION, one.source_id, None, one.body, effective_at=one.ended_at) for one in mapped
        ]

    def _items(self, subscription: Mapping[str, Json]) -> list[Mapping[str, Json]]:
        """All items, also those beyond the ten that Stripe puts into the subscription."""
        embedded = subscription.get("items")
        if not (isinstance(embedded, Mapping) and embedded.get("has_more")):
            return mapper.ordered_items(embedded)
        items = list(embedded.get("data") or [])
        known = {item["id"] for item in mapper.ordered_items(embedded)}
        # The listing may come in another order: those that are embedded keep their places.
        listed = self._list("subscription_items", {"subscription": str(subscription["id"])})
        items += [item for item in listed if item["id"] not in known]
        return mapper.ordered_items(items)

    def _list(self, collection: str, filters: Mapping[str, str]) -> Iterator[Mapping[str, Json]]:
        """Every object of a collection, page by page. A page that leads nowhere raises instead of ending."""
        cursor: str | None = None
        while True:
            params = {"limit": str(PAGE_SIZE), **filters}
            if cursor is not None:
                params["starting_after"] = cursor
            page = self._page(collection, params)
            yield from page["data"]
            if not page.get("has_more"):
                return
            last = str(page["data"][-1]["id"]) if page["data"] else cursor
            if last == cursor:
                raise Transient(f"Stripe's list of {collection} promises more after {cursor} but gives nothing.")
            cursor = last

    def _page(self, collection: str, params: Mapping[str, str]) -> dict[str, Json]:
        """One page of a list object, checked: ``data`` holds objects that have an id."""
        try:
            page = self._get(collection, params)
        except RemoteRefused as refusal:
            if "starting_after" in params and refusal.status in _CURSOR_GONE_STATUSES:
                raise self._cursor_gone(collection, params) from refusal
            raise
        if page is None:
            if "starting_after" in params:
                raise self._cursor_gone(collection, params)
            raise RemoteRefused(f"{self._config.base_url} has no list of {collection}: not Stripe's API.", status=404)
        data = page.get("data")
        if not isinstance(data, list) or not all(
            isinstance(one, dict) and isinstance(one.get("id"), str) for one in data
        ):
            raise RemoteRefused(f"The list of {collection} has no data member with objects.", status=200)
        return page

    @staticmethod
    def _cursor_gone(collection: str, params: Mapping[str, str]) -> Transient:
        return Transient(f"{params['starting_after']} was deleted while {collection} were being listed: start again.")

    def _retrieve(self, collection: str, object_id: str) -> dict[str, Json] | None:
        if object_id in {"", ".", ".."}:  # quoting leaves dots, and these two would name another path
            return None
        found = self._get(f"{collection}/{quote(object_id, safe='', errors='replace')}", {})
        if found is not None and found.get("id") != object_id:
            raise RemoteRefused(f"Stripe was asked for {object_id} and answered with another object.", status=200)
        return found

    def _get(self, path: str, params: Mapping[str, str]) -> dict[str, Json] | None:
        """The JSON object at a path of the API; None when there is none (404)."""
        response = self._http.request(
            "GET",
            f"{self._config.base_url}/v1/{path}",
            params=params or None,
            auth=(self._api_key.get_secret_value(), ""),
            allow_http_private=self._config.allow_http_private,
        )
        if response.status == 404:
            return None
        answer = response.json()
        if response.status != 200 or not isinstance(answer, dict):
            raise RemoteRefused(f"Stripe answered {response.status} without an object.", status=response.status)
        return answer
