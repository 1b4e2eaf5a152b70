"""Stripe's customers and subscriptions in the contract's shapes. Pure; decides nothing about scope.

One Stripe subscription has up to 20 items. The first item is the subscription itself, under the subscription's id;
each further item is an add-on with the id ``sub_…/si_…`` whose parent is the subscription
(docs/decisions/0010-stripe-is-observed.md). "First" is the oldest; items of one second keep Stripe's order.

Both shapes of Stripe's API are read: ``price`` and the older ``plan``; the period on the items (since 2025) and on the
subscription (before). No amount, currency, card, address or invoice is ever read: only the members named here are.

A body is in canonical form: the mirrored fields, dates as YYYY-MM-DD, the quantity as a plain decimal string. Unknown
words (status, kind, interval) stay as they are: the engine quarantines them. A record without what Stripe always gives
(a price, a status) raises InvalidMessage: a listing then ends with an error, and never looks like a deletion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from bss_sync.domain.change import Json
from bss_sync.domain.errors import FieldProblem, InvalidMessage
from bss_sync.domain.subscription import ONE_TIME, Status, canonical_quantity
from connectors.stripe.config import StripeConfig

ITEM_SEPARATOR: Final = "/"

STATUSES: Final[Mapping[str, Status]] = {
    "incomplete": Status.PENDING_ACTIVE,  # the first payment is outstanding
    "incomplete_expired": Status.ABORTED,  # the first payment never came
    "trialing": Status.ACTIVE,  # and ``trial`` is true
    "active": Status.ACTIVE,
    "past_due": Status.ACTIVE,  # a payment is late, the service runs
    "unpaid": Status.SUSPENDED,  # payments given up, invoices stay drafts
    "paused": Status.SUSPENDED,  # a trial ended without a way to pay
    "canceled": Status.CANCELLED,  # final: Stripe never revives it
}

_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_PERIOD_LETTERS: Final[Mapping[str, str]] = {"day": "D", "week": "W", "month": "M", "year": "Y"}


@dataclass(frozen=True, slots=True)
class Mapped:
    """One entity: its source id and its body in the contract's shape."""

    source_id: str
    body: Mapping[str, Json]
    ended_at: datetime | None = None


def account(customer: Mapping[str, Json], config: StripeConfig) -> Mapped:
    """The account behind a customer. Its id is the customer's."""
    metadata = _mapping(customer.get("metadata"))

    def from_metadata(key: str) -> str | None:
        return _line(metadata.get(config.metadata_prefix + key))

    source_id = str(customer["id"])
    name = next(filter(None, (_line(customer.get(key)) for key in ("name", "description", "email"))), source_id)
    return Mapped(
        source_id,
        {
            "parent_id": from_metadata("parent"),
            "kind": from_metadata("kind") or "customer",
            "name": name,
            "number": from_metadata("number"),
            "email": _line(customer.get("email")),
        },
    )


def subscriptions(
    subscription: Mapping[str, Json], items: Sequence[Mapping[str, Json]], config: StripeConfig
) -> list[Mapped]:
    """The subscription, then one add-on per further item. ``items`` come from ``ordered_items``."""
    first, *further = items or [subscription]
    main = _subscription(subscription, first, None, config)
    return [main, *(_subscription(subscription, item, main.source_id, config) for item in further)]


def ordered_items(listed: Json) -> list[Mapping[str, Json]]:
    """The items of Stripe's list object (or its ``data``), oldest first; what has no id is left out."""
    data = listed.get("data") if isinstance(listed, Mapping) else listed
    if not isinstance(data, list):
        return []
    items = [item for item in data if isinstance(item, Mapping) and _text(item.get("id"))]
    return sorted(items, key=lambda item: _integer(item.get("created")) or 0)


def item_id(subscription_id: str, item: Mapping[str, Json]) -> str:
    """The source id of the add-on behind a further item."""
    return f"{subscription_id}{ITEM_SEPARATOR}{item['id']}"


def reference(value: Json) -> str | None:
    """The id in a member that holds either an id or the expanded object."""
    return _text(value.get("id") if isinstance(value, Mapping) else value)


def moment(value: Json) -> datetime | None:
    """Stripe's time, whole seconds since 1970, as aware UTC; None when there is none."""
    seconds = _integer(value)
    if seconds is None or seconds < 0:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def _subscription(
    subscription: Mapping[str, Json], item: Mapping[str, Json], parent_id: str | None, config: StripeConfig
) -> Mapped:
    """One item as a subscription of its own; status, account and cancellation are those of Stripe's subscription."""
    source_id = str(subscription["id"]) if parent_id is None else item_id(parent_id, item)
    started = (
        subscription.get("start_date") or subscription.get("created") if parent_id is None else item.get("created")
    )
    period_end = item.get("current_period_end") or subscription.get("current_period_end")
    ended_at = moment(subscription.get("ended_at"))
    status = _text(subscription.get("status"))
    cancel_at = subscription.get("cancel_at")
    canceled_at = subscription.get("canceled_at") or (subscription.get("ended_at") if status == "canceled" else None)
    body = {
        # A customer that is kept as an account of Stripe's second API has its id in another member.
        "account_id": reference(subscription.get("customer")) or _text(subscription.get("customer_account")),
        "parent_id": parent_id,
        "product": _required(source_id, "price.product", _product(item, config)),
        "status": _required(source_id, "status", _status(status)),
        "source_status": status,
        "trial": status == "trialing",
        "start_date": _date(started),
        "end_date": _date(subscription.get("ended_at") or period_end),
        "activation_date": _later(_date(started), _date(subscription.get("trial_end"))),
        "cancellation_date": _date(canceled_at or cancel_at),
        "auto_renew": not subscription.get("cancel_at_period_end") and cancel_at is None and ended_at is None,
        "billing_cycle": _required(source_id, "price.recurring.interval", _billing_cycle(item)),
        "term": None,
        "quantity": _required(source_id, "quantity", _quantity(item)),
        "characteristics": _characteristics(subscription, item, is_addon=parent_id is not None),
    }
    return Mapped(source_id, body, ended_at)


def _status(word: str | None) -> str | None:
    """The canonical status; a word that Stripe has added since stays as it is."""
    known = STATUSES.get(word or "")
    return word if known is None else known.value


def _product(item: Mapping[str, Json], config: StripeConfig) -> str | None:
    price = _price(item)
    price_id = _text(price.get("id"))
    if config.product_field == "product":
        return reference(price.get("product"))
    if config.product_field == "lookup_key":
        # A price without a lookup key is named by its id: nobody's catalogue has it, so the reason can be read.
        return _text(price.get("lookup_key")) or price_id
    return price_id


def _billing_cycle(item: Mapping[str, Json]) -> str | None:
    price = _price(item)
    if price.get("type") == ONE_TIME:
        return ONE_TIME
    recurring = _mapping(price.get("recurring")) or price
    interval = _text(recurring.get("interval"))
    letter = _PERIOD_LETTERS.get(interval or "")
    if letter is None:
        return interval
    return f"P{_integer(recurring.get('interval_count')) or 1}{letter}"


def _quantity(item: Mapping[str, Json]) -> str | None:
    """A metered item has no quantity in Stripe: what is held is one subscription to the meter."""
    quantity = item.get("quantity")
    count = 1 if quantity is None else _integer(quantity)
    return None if count is None or count < 0 else canonical_quantity(Decimal(count))


def _characteristics(subscription: Mapping[str, Json], item: Mapping[str, Json], *, is_addon: bool) -> dict[str, Json]:
    """Stripe's metadata: flat, text only. Those of the subscription go before those of its first item."""
    own = _mapping(item.get("metadata"))
    metadata = own if is_addon else {**own, **_mapping(subscription.get("metadata"))}
    return {_storable(key): _storable(value) for key, value in metadata.items() if isinstance(value, str)}


def _price(item: Mapping[str, Json]) -> Mapping[str, Json]:
    return _mapping(item.get("price")) or _mapping(item.get("plan"))


def _required(source_id: str, member: str, value: str | None) -> str:
    if value is None:
        detail = "is missing or malformed"
        raise InvalidMessage(f"Stripe's {source_id}: {member} {detail}.", fields=(FieldProblem(member, detail),))
    return value


def _later(first: str | None, second: str | None) -> str | None:
    """The later of two dates YYYY-MM-DD; they order as text."""
    return max(filter(None, (first, second)), default=None)


def _date(value: Json) -> str | None:
    at = moment(value)
    return at.date().isoformat() if at else None


def _integer(value: Json) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Json) -> str | None:
    return value if isinstance(value, str) and value else None


def _line(value: Json) -> str | None:
    """Free text as one line: people paste tabs and line ends into names, and no record may hold them."""
    text = _text(value)
    return None if text is None else " ".join(_CONTROL.sub(" ", _storable(text)).split()) or None


def _storable(text: str) -> str:
    """Text without what PostgreSQL cannot hold."""
    return _UNSTORABLE.sub("\ufffd", text)


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, Mapping) else {}
