"""The simulator's records, put into the contract's shapes and into canonical form.

Canonical (the form that a message's body has once it was accepted): dates as YYYY-MM-DD, quantity as a plain decimal
string, only the members that the contract names, without id, versions and times, which travel beside the body.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from operator import itemgetter

from bss_sync.domain import account, subscription
from bss_sync.domain.change import Json, Kind, OrderKind, timestamp_version
from bss_sync.domain.errors import FieldProblem, InvalidMessage
from bss_sync.ports.connector import Observation, TargetRecord

MEMBERS: Mapping[Kind, tuple[str, ...]] = {
    Kind.ACCOUNT: account.FIELDS,
    # The source's own word for the status is added by the engine, it is no member of the contract.
    Kind.SUBSCRIPTION: tuple(name for name in subscription.FIELDS if name != "source_status"),
}
"""The members of ``data`` that become the body, by kind."""

_PICK = {kind: itemgetter(*names) for kind, names in MEMBERS.items()}
_DATES = ("start_date", "end_date", "activation_date", "cancellation_date")


def observation(kind: Kind, record: Mapping[str, Json], order: OrderKind) -> Observation:
    """What one record of the simulator says. ``deleted: true`` marks a record that is gone.

    Raises InvalidMessage, naming the field, for a record that lacks a member or holds one of the wrong form.
    """
    source_id = record.get("id")
    if not isinstance(source_id, str):
        raise _invalid(kind, "?", "id", "is not text")
    gone = record.get("deleted") is True
    return Observation(
        kind=kind,
        source_id=source_id,
        version=_version(kind, source_id, record, order),
        body=None if gone else body(kind, record),
        changed_at=_moment(kind, source_id, record, "changed_at"),
        effective_at=_moment(kind, source_id, record, "effective_at"),
    )


def body(kind: Kind, record: Mapping[str, Json]) -> dict[str, Json]:
    """The canonical body of a live record. Raises InvalidMessage for a missing or malformed member."""
    try:
        # Every member at once: a listing has a million of them.
        canonical: dict[str, Json] = dict(zip(MEMBERS[kind], _PICK[kind](record), strict=True))
    except KeyError as error:
        raise _invalid(kind, str(record.get("id")), str(error.args[0]), "is missing") from None
    if kind is Kind.SUBSCRIPTION:
        source_id = str(record.get("id"))
        for name in _DATES:
            value = canonical[name]
            if value is not None:
                canonical[name] = _date(kind, source_id, name, value)
        canonical["quantity"] = _quantity(kind, source_id, canonical["quantity"])
        canonical["characteristics"] = _characteristics(kind, source_id, canonical["characteristics"])
    return canonical


def target_record(record: Mapping[str, Json]) -> TargetRecord:
    """A record of the simulated distributor BSS. Raises InvalidMessage when it is malformed."""
    try:
        kind = Kind(record["kind"])
        external_id, reference, fields = record["id"], record["reference"], record["fields"]
    except (KeyError, ValueError) as error:
        raise InvalidMessage(f"The distributor's BSS answered with a malformed record: {error}") from error
    return TargetRecord(
        external_id=str(external_id),
        kind=kind,
        reference=str(reference or ""),
        fields=fields,
        changed_by=record.get("changed_by"),
        changed_at=_moment(kind, str(external_id), record, "changed_at"),
    )


def _version(kind: Kind, source_id: str, record: Mapping[str, Json], order: OrderKind) -> int | None:
    if order is OrderKind.OBSERVED:
        return None
    if order is OrderKind.TIMESTAMP:
        moment = _moment(kind, source_id, record, "source_updated_at")
        if moment is None:
            raise _invalid(kind, source_id, "source_updated_at", "is missing; does the simulator run in this order?")
        return timestamp_version(moment)
    version = record.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise _invalid(kind, source_id, "version", "is no integer; does the simulator run in this order?")
    return version


def _moment(kind: Kind, source_id: str, record: Mapping[str, Json], name: str) -> datetime | None:
    text = record.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise _invalid(kind, source_id, name, "is no RFC 3339 timestamp") from None
    if moment.tzinfo is None:
        raise _invalid(kind, source_id, name, "has no offset")
    return moment.astimezone(UTC)


def _date(kind: Kind, source_id: str, name: str, value: Json) -> str:
    try:
        return _iso_date(value)
    except (TypeError, ValueError):
        raise _invalid(kind, source_id, name, "is no date (YYYY-MM-DD)") from None


# There are fewer days than subscriptions.
@lru_cache(maxsize=8192)
def _iso_date(value: str) -> str:
    return date.fromisoformat(value).isoformat()


def _quantity(kind: Kind, source_id: str, value: Json) -> str:
    if type(value) is int and value >= 0:
        return str(value)
    # Through text: the shortest text of a float is what the sender wrote.
    number = Decimal(repr(value)) if _is_number(value) else Decimal("NaN")
    if not number.is_finite() or number < 0:
        raise _invalid(kind, source_id, "quantity", "is no number of zero or more")
    return subscription.canonical_quantity(number)


def _characteristics(kind: Kind, source_id: str, value: Json) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise _invalid(kind, source_id, "characteristics", "is no flat object")
    types = {type(member) for member in value.values()}
    if dict in types or list in types:
        raise _invalid(kind, source_id, "characteristics", "is no flat object")
    if float not in types:
        return value
    # 3.0 and 3 are one number, and must be one content.
    return {
        name: int(Decimal(repr(member))) if isinstance(member, float) and member.is_integer() else member
        for name, member in value.items()
    }


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _invalid(kind: Kind, source_id: str, field: str, detail: str) -> InvalidMessage:
    return InvalidMessage(f"{kind} {source_id!r}: {field} {detail}", fields=(FieldProblem(field, detail),))
