"""A Stripe account in memory behind the HttpClient port: retrieve, and lists with Stripe's own paging rules."""

from __future__ import annotations

import json as json_codec
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bss_sync.domain.errors import RemoteRefused
from bss_sync.ports.http import HttpResponse

FIXTURES = Path(__file__).parents[2] / "fixtures/third_party/stripe/fixtures3_subset.json"
API_KEY = "rk_test_canary"


def resource(name: str, /, **changes: Any) -> dict[str, Any]:
    """A copy of one of stripe-mock's resources with some members changed."""
    resources: dict[str, Any] = json_codec.loads(FIXTURES.read_text())["resources"]
    return {**deepcopy(resources[name]), **changes}


def item(item_id: str, created: int, product: str, quantity: int = 1, **changes: Any) -> dict[str, Any]:
    """A subscription item with a price for the product."""
    made = resource("subscription_item", id=item_id, created=created, quantity=quantity, **changes)
    made["price"]["product"] = product
    return made


def subscription(*items: dict[str, Any], has_more: bool = False, **changes: Any) -> dict[str, Any]:
    """A running subscription of stripe-mock's customer with these items."""
    running = {"ended_at": None, "cancel_at": None, "canceled_at": None, "cancel_at_period_end": False}
    listed = {"object": "list", "data": list(items), "has_more": has_more}
    return resource("subscription", **{**running, "items": listed, **changes})


class StripeAccount:
    """What Stripe holds. Lists come newest first, at most ``page_size`` per page whatever is asked for."""

    def __init__(self, page_size: int = 100) -> None:
        self.objects: dict[str, list[dict[str, Any]]] = {"customers": [], "subscriptions": [], "subscription_items": []}
        self.page_size = page_size
        self.calls: list[tuple[str, dict[str, str]]] = []

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,  # noqa: ARG002 - the port's signature
        params: Mapping[str, str] | None = None,
        json: Any = None,  # noqa: ARG002 - likewise
        form: Mapping[str, str] | None = None,  # noqa: ARG002 - likewise
        body: bytes | None = None,  # noqa: ARG002 - likewise
        auth: tuple[str, str] | None = None,
        idempotency_key: str | None = None,  # noqa: ARG002 - likewise
        allow_http_private: bool = False,
        may_retry: Any = None,  # noqa: ARG002 - likewise
        end_by: float | None = None,  # noqa: ARG002 - likewise
    ) -> HttpResponse:
        """Answer as Stripe would."""
        assert (method, auth, allow_http_private) == ("GET", (API_KEY, ""), False)
        path = urlsplit(url).path.removeprefix("/v1/")
        asked = dict(params or {})
        self.calls.append((path, asked))
        if path in self.objects:
            return self._list(path, asked)
        collection, _, object_id = path.partition("/")
        for held in self.objects[collection]:
            if held["id"] == unquote(object_id):
                return _answer(200, held)
        return _answer(404, {"error": {"code": "resource_missing"}})

    def _list(self, collection: str, asked: dict[str, str]) -> HttpResponse:
        held = [one for one in reversed(self.objects[collection]) if not one.get("deleted")]
        if collection == "subscriptions" and asked.get("status") != "all":
            held = [one for one in held if one["status"] != "canceled"]
        if collection == "subscription_items":
            held = [one for one in held if one["subscription"] == asked["subscription"]]
        if "starting_after" in asked:
            ids = [one["id"] for one in held]
            if asked["starting_after"] not in ids:
                raise RemoteRefused("No such object", status=400)
            held = held[ids.index(asked["starting_after"]) + 1 :]
        page = held[: min(self.page_size, int(asked["limit"]))]
        return _answer(200, {"object": "list", "data": page, "has_more": len(page) < len(held)})


def _answer(status: int, content: Any) -> HttpResponse:
    return HttpResponse(status, {"content-type": "application/json"}, json_codec.dumps(content).encode())
