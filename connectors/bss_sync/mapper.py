"""Entities of the tier below, put into the contract's shape. They are in canonical form there already; it is checked.

Raises InvalidMessage, naming the field, for an entity that lacks a member or holds one of the wrong form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from uuid import UUID

from bss_sync.domain import account, subscription
from bss_sync.domain.change import Json, Kind
from bss_sync.domain.errors import FieldProblem, InvalidMessage
from bss_sync.ports.connector import Observation, RangeDigest, RangeForm

PASSED_MAX = 32
"""Instances that an entity may have come through: a longer chain is a mistake."""

_MEMBERS: Mapping[Kind, frozenset[str]] = {
    Kind.ACCOUNT: frozenset(account.FIELDS),
    Kind.SUBSCRIPTION: frozenset(subscription.FIELDS),
}
_QUANTITY = re.compile(r"(0|[1-9]\d*)(\.\d{0,5}[1-9])?")
_DATES = ("start_date", "end_date", "activation_date", "cancellation_date")
_TEXTS: Mapping[Kind, tuple[str, ...]] = {
    Kind.ACCOUNT: ("kind",),
    Kind.SUBSCRIPTION: ("product", "status", "source_status"),
}
_TEXTS_OR_NULL: Mapping[Kind, tuple[str, ...]] = {
    Kind.ACCOUNT: ("name", "number", "email", "parent_id"),
    Kind.SUBSCRIPTION: ("account_id", "parent_id", "billing_cycle", "term"),
}


def observation(item: Json) -> Observation:
    """What one entity of the tier below says."""
    return _observed(item, deleted=_member(item, "deleted", bool))


def observations(item: Json) -> list[Observation]:
    """The same for what changed: of a deleted account without history also its last state, one version below.

    A deletion never cascades: its customers' subscriptions live on, and a tier above that hears of the account only now
    needs it to hang them on. Who knows that state already takes it for a repetition.
    """
    seen = observation(item)
    if seen.body is None and seen.kind is Kind.ACCOUNT and not (isinstance(item, dict) and item.get("past")):
        return [_observed(item, deleted=False, version=_member(item, "version", int) - 1), seen]
    return [seen]


def range_digests(answer: Mapping[str, Json]) -> dict[str, RangeDigest]:
    """Range → what it comes to."""
    found: dict[str, RangeDigest] = {}
    # The release before does not say.
    form = RangeForm.TEXT if answer.get("of") == RangeForm.TEXT else RangeForm.UUID
    ranges = answer.get("ranges")
    if not isinstance(ranges, dict):
        raise _invalid("ranges", "is no object")
    for name, pair in ranges.items():
        match pair:
            case [int(count), str(sums)]:
                found[name] = RangeDigest(count, sums, form)
            case _:
                raise _invalid(f"ranges.{name}", "is not a count and sums")
    return found


def _observed(item: Json, *, deleted: bool, version: int | None = None) -> Observation:
    kind, source_id = _kind(item), _uuid(item, "id")
    return Observation(
        kind=kind,
        source_id=source_id,
        version=_member(item, "version", int) if version is None else version,
        body=None if deleted else _body(kind, _member(item, "body", dict)),
        changed_at=_moment(item, "changed_at"),
        effective_at=_moment(item, "effective_at"),
        passed=_passed(item),
    )


def _body(kind: Kind, body: Mapping[str, Json]) -> dict[str, Json]:
    # What a newer instance may add is not the contract's, and is left behind.
    lacking = sorted(_MEMBERS[kind] - body.keys())
    if lacking:
        raise _invalid(lacking[0], "is missing")
    _check_texts(kind, body)
    if kind is Kind.SUBSCRIPTION:
        _check_subscription(body)
    return {name: body[name] for name in sorted(_MEMBERS[kind])}


def _check_texts(kind: Kind, body: Mapping[str, Json]) -> None:
    for name in _TEXTS[kind]:
        if not isinstance(body[name], str):
            raise _invalid(name, "is not text")
    for name in _TEXTS_OR_NULL[kind]:
        if body[name] is not None and not isinstance(body[name], str):
            raise _invalid(name, "is neither text nor null")


def _check_subscription(body: Mapping[str, Json]) -> None:
    if not isinstance(body["quantity"], str) or not _QUANTITY.fullmatch(body["quantity"]):
        raise _invalid("quantity", "is no decimal text")
    if not isinstance(body["trial"], bool):
        raise _invalid("trial", "is neither true nor false")
    if body["auto_renew"] is not None and not isinstance(body["auto_renew"], bool):
        raise _invalid("auto_renew", "is neither true, false nor null")
    if not isinstance(body["characteristics"], dict):
        raise _invalid("characteristics", "is no object")
    for name in _DATES:
        try:
            right = body[name] is None or date.fromisoformat(body[name]).isoformat() == body[name]
        except (TypeError, ValueError):
            right = False
        if not right:
            raise _invalid(name, "is no date (YYYY-MM-DD)")


def _kind(item: Json) -> Kind:
    word = _member(item, "kind", str)
    if word not in list(Kind):
        raise _invalid("kind", "is neither account nor subscription")
    return Kind(word)


def _uuid(item: Json, name: str) -> str:
    word: str = _member(item, name, str)
    try:
        canonical: str | None = str(UUID(word))
    except ValueError:
        canonical = None
    if canonical != word:
        raise _invalid(name, "is no id (UUID)")
    return word


def _passed(item: Json) -> tuple[str, ...]:
    passed: Sequence[Json] = _member(item, "passed", list)
    if not 1 <= len(passed) <= PASSED_MAX or not all(isinstance(one, str) for one in passed):
        raise _invalid("passed", f"is not 1 to {PASSED_MAX} ids of instances")
    return tuple(passed)


def _moment(item: Mapping[str, Json], name: str) -> datetime | None:
    words = item.get(name)
    if words is None:
        return None
    try:
        moment = datetime.fromisoformat(words)
    except (TypeError, ValueError):
        raise _invalid(name, "is no RFC 3339 timestamp") from None
    if moment.tzinfo is None:
        raise _invalid(name, "has no offset")
    return moment.astimezone(UTC)


def _member(item: Json, name: str, kind: type) -> Json:
    if not isinstance(item, dict) or not isinstance(item.get(name), kind):
        raise _invalid(name, "is missing or of another type")
    if kind is int and isinstance(item[name], bool):
        raise _invalid(name, "is no number")
    return item[name]


def _invalid(name: str, detail: str) -> InvalidMessage:
    return InvalidMessage(
        f"The tier below answered with an entity whose {name} {detail}.", fields=(FieldProblem(name, detail),)
    )
