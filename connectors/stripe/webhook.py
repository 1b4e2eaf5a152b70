"""Verifies and parses what Stripe pushes.

``Stripe-Signature: t=SECONDS,v1=HEX[,v1=HEX…]``: HMAC-SHA-256, keyed with the endpoint's secret *as it is shown*
(``whsec_…`` whole, as UTF-8), over ``SECONDS.BODY``. While a secret is being rolled there is one ``v1`` per secret.

An event carries an object, but neither a version nor a promise of order: it is taken as a notification, and the state
is fetched (docs/decisions/0010-stripe-is-observed.md).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from bss_sync.domain.change import Action, Change, Json, Kind, OrderKind
from bss_sync.domain.errors import FieldProblem, InvalidMessage, NotVerified
from connectors.stripe import mapper

TOLERANCE_SECONDS: Final = 300
HEADER_LENGTH_MAX: Final = 4_096

KINDS: Final[Mapping[str, Kind]] = {
    "customer.created": Kind.ACCOUNT,
    "customer.updated": Kind.ACCOUNT,
    "customer.deleted": Kind.ACCOUNT,
    "customer.subscription.created": Kind.SUBSCRIPTION,
    "customer.subscription.updated": Kind.SUBSCRIPTION,
    "customer.subscription.deleted": Kind.SUBSCRIPTION,
    "customer.subscription.paused": Kind.SUBSCRIPTION,
    "customer.subscription.resumed": Kind.SUBSCRIPTION,
    "customer.subscription.trial_will_end": Kind.SUBSCRIPTION,
    "customer.subscription.pending_update_applied": Kind.SUBSCRIPTION,
    "customer.subscription.pending_update_expired": Kind.SUBSCRIPTION,
}
"""The types of events that concern us; to be chosen for the endpoint in Stripe. Others are accepted and dropped."""

_SECONDS: Final = re.compile(r"[0-9]{1,12}")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}")
_ID: Final = re.compile(r"[!-~]{1,120}")  # two of them and a stroke stay below the contract's 255 characters


class StripeHooks:
    """The HookParser of Stripe's events (bss_sync/ports/connector.py)."""

    def parse(
        self, headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes], now: datetime
    ) -> Sequence[Change]:
        """One notification per entity that the event touches: the subscription first, then its add-ons.

        ``secrets`` are the UTF-8 bytes of the whole ``whsec_…`` texts. Raises NotVerified and nothing else before the
        signature holds; InvalidMessage (400 no JSON, 422 no event) afterwards.
        """
        verify(headers.get("stripe-signature", ""), body, secrets, now)
        event = _event(body)
        event_type = event.get("type")
        kind = KINDS.get(event_type) if isinstance(event_type, str) else None
        if kind is None:
            return ()
        return list(_changes(event, kind))


def verify(header: str, body: bytes, secrets: Sequence[bytes], now: datetime) -> None:
    """Raise NotVerified, its cause for the log, unless some ``v1`` is the body's signature under some secret, now."""
    if len(header) > HEADER_LENGTH_MAX:
        raise NotVerified(cause="Stripe-Signature is too long.")
    pairs = [part.strip().partition("=") for part in header.split(",")]
    times = [value for name, _, value in pairs if name == "t"]
    if len(times) != 1 or _SECONDS.fullmatch(times[0]) is None:
        raise NotVerified(cause="Stripe-Signature is missing or has no single time t=SECONDS.")
    signatures = [value.encode() for name, _, value in pairs if name == "v1" and _SIGNATURE.fullmatch(value)]
    signed = times[0].encode() + b"." + body
    verified = False
    for secret in secrets:
        if not secret:  # anybody can sign with an empty key
            continue
        expected = hmac.new(secret, signed, hashlib.sha256).hexdigest().encode()
        for signature in signatures:
            verified |= hmac.compare_digest(expected, signature)
    if not verified:
        raise NotVerified(cause="No signature v1 of Stripe-Signature fits the body and a secret of the connection.")
    offset_seconds = int(times[0]) - int(now.timestamp())
    if abs(offset_seconds) > TOLERANCE_SECONDS:
        raise NotVerified(cause=f"Stripe-Signature was made {offset_seconds:+d} s from now, outside the tolerance.")


def _event(body: bytes) -> Mapping[str, Json]:
    try:
        event = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        # Not chained: the decoder's error holds the whole body, and with it personal data.
        raise InvalidMessage("The body is not JSON.", status=400) from None
    if not isinstance(event, dict):
        raise InvalidMessage("The body is not a JSON object.", status=400)
    return event


def _changes(event: Mapping[str, Json], kind: Kind) -> Iterator[Change]:
    event_id = _checked_id(event.get("id"), "id")
    sent_at = mapper.moment(event.get("created"))
    if sent_at is None:
        raise _invalid("created", "is not a time in whole seconds since 1970")
    data = event.get("data")
    entity = data.get("object") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(entity, dict):
        raise _invalid("data.object", "is not an object")
    source_id = _checked_id(entity.get("id"), "data.object.id")

    def notified(message_id: str, of: str) -> Change:
        return Change(
            message_id=message_id,
            kind=kind,
            source_id=of,
            action=Action.NOTIFIED,
            version=None,
            sent_at=sent_at,
            effective_at=sent_at,
            body={},
            digest=_digest(event, of),
            order=OrderKind.OBSERVED,
        )

    yield notified(event_id, source_id)
    if kind is Kind.SUBSCRIPTION:
        for item in _further_items(entity, data.get("previous_attributes")):
            yield notified(f"{event_id}/{item}", f"{source_id}{mapper.ITEM_SEPARATOR}{item}")


def _further_items(entity: Mapping[str, Json], previous: Json) -> list[str]:
    """Ids of items that are add-ons now or were before: one that has vanished has to be fetched too."""
    before = previous.get("items") if isinstance(previous, dict) else None
    further = [*mapper.ordered_items(entity.get("items"))[1:], *mapper.ordered_items(before)[1:]]
    return list(dict.fromkeys(_checked_id(item["id"], "data.object.items") for item in further))


def _digest(event: Mapping[str, Json], source_id: str) -> bytes:
    """Of what is used, not of the raw body: Stripe changes ``pending_webhooks`` from one attempt to the next."""
    used = [event["id"], event["type"], event["created"], source_id]
    return hashlib.sha256(json.dumps(used, separators=(",", ":")).encode()).digest()


def _checked_id(value: Json, field: str) -> str:
    if not isinstance(value, str) or _ID.fullmatch(value) is None:
        raise _invalid(field, "is not an id of 1 to 120 printable characters")
    return value


def _invalid(field: str, detail: str) -> InvalidMessage:
    return InvalidMessage(f"{field} {detail}: not an event of Stripe.", fields=(FieldProblem(field, detail),))
