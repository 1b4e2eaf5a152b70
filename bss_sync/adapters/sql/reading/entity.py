"""A record as the contract shows it. Pure: rows in, plain dictionaries out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from bss_sync.domain.change import Content, Json, Kind, OrderKind, version_timestamp
from bss_sync.domain.moment import rfc3339
from bss_sync.domain.ownership import MIRRORED, OWN, OwnershipPolicy
from bss_sync.domain.permissions import HIDDEN_FROM_RESELLER


@dataclass(frozen=True, slots=True)
class Record:
    """One record at one time.

    content  the mirrored fields in canonical form: account_id and parent_id are the source's ids, quantity is text
    own      the distributor's fields; None in answers about the past, because they have no history
    title    a subscription's name: end customer - product; None for an account
    """

    kind: Kind
    id: UUID
    tenant_id: UUID
    bill_to: str
    connection_id: UUID
    connection: str
    source_id: str
    version: int
    order: str
    content: Content
    own: Mapping[str, Json] | None
    account_record: UUID | None
    parent_record: UUID | None
    orphaned: bool
    title: str | None
    effective_at: datetime
    updated_at: datetime
    deleted_at: datetime | None
    ended_at: datetime | None
    ended_reason: str | None


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks: a reseller never sees the distributor's notes. ``distributor`` is its display name."""

    distributor: str
    is_reseller: bool


def show(record: Record, policy: OwnershipPolicy, taken: frozenset[str], viewer: Viewer) -> dict[str, Any]:
    """The contract's entity, with what has grown onto it."""
    shown: dict[str, Any] = {
        "id": str(record.id),
        "connection": record.connection,
        "connection_id": str(record.connection_id),
        "source_id": record.source_id,
        "version": show_version(record.version, record.order),
    }
    if record.title is not None:
        shown["name"] = record.title
    for field in MIRRORED[record.kind]:
        shown[field] = show_value(field, record.content.get(field))
    own = () if record.own is None else visible_own(record.kind, viewer)
    for field in own:
        assert record.own is not None, "own fields are shown of the present only"
        shown[field] = record.own[field]
    shown["ownership"] = {
        field: show_owner(record.kind, field, policy, taken, record.bill_to, viewer)
        for field in (*MIRRORED[record.kind], *own)
    }
    if record.kind is Kind.SUBSCRIPTION:
        shown["account_record"] = _text(record.account_record)
    return shown | {
        "parent_record": _text(record.parent_record),
        "bill_to": record.bill_to,
        "orphaned": record.orphaned,
        "effective_at": rfc3339(record.effective_at),
        "updated_at": rfc3339(record.updated_at),
        "deleted_at": show_moment(record.deleted_at),
        "ended_at": show_moment(record.ended_at),
        "ended_reason": record.ended_reason,
    }


def visible_own(kind: Kind, viewer: Viewer) -> tuple[str, ...]:
    """The distributor's fields that the viewer may see."""
    hidden = HIDDEN_FROM_RESELLER[kind] if viewer.is_reseller else ()
    return tuple(field for field in OWN[kind] if field not in hidden)


def show_owner(
    kind: Kind, field: str, policy: OwnershipPolicy, taken: frozenset[str], reseller: str, viewer: Viewer
) -> dict[str, Any]:
    """Who owns a field, by name, and whether the distributor's people are refused."""
    locked = policy.locked(kind, field, taken)
    return {"owner": reseller if locked else viewer.distributor, "locked": locked}


def show_version(version: int | None, order: str) -> int | str | None:
    """A number, or the source's change time where that is its order."""
    if version is None:
        return None
    return rfc3339(version_timestamp(version)) if order == OrderKind.TIMESTAMP else version


def show_value(field: str, value: Json) -> Json:
    """A mirrored field as a plain value; a quantity becomes a number."""
    if field == "quantity" and isinstance(value, str):
        number = Decimal(value)
        return int(number) if number == number.to_integral_value() else float(number)
    return value


def show_moment(moment: datetime | None) -> str | None:
    """A timestamp in UTC with Z, or null."""
    return None if moment is None else rfc3339(moment)


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)
