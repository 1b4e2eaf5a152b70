"""Taking a locked field over by force, and giving it back: an admin's act, with a reason (domain.md section 4)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.admin.acts import record_act, wake_stream
from bss_sync.adapters.sql.reading.context import read_policies, read_taken
from bss_sync.adapters.sql.streams_load import HIERARCHY_LOCK
from bss_sync.domain.account import AccountKind
from bss_sync.domain.change import Json, Kind
from bss_sync.domain.errors import FieldProblem, InvalidRequest, NotFound, StateConflict
from bss_sync.domain.ownership import OWN, Owner
from bss_sync.domain.subscription import Status, canonical_quantity, is_period


@dataclass(frozen=True, slots=True)
class Taken:
    """A field that was taken, set or released, and the shard to wake after the commit."""

    record_id: UUID
    kind: Kind
    field: str
    value: Json
    shard: int


@dataclass(frozen=True, slots=True)
class _Held:
    id: UUID
    tenant_id: UUID
    connection_id: UUID
    values: dict[str, Any]


_COLUMNS = {"parent_id": "parent_source_id", "account_id": "account_source_id"}
"""A record refers to others by the source's own ids; the links follow from them."""


def take(connection: Connection, kind: Kind, record_id: UUID, field: str, *, reason: str, actor: str) -> Taken:
    """Make the distributor the owner of one field; it keeps its present value until it is set.

    NotFound, InvalidRequest for a field that is none or is the distributor's anyway, StateConflict when taken already.
    """
    _check_reason(reason)
    held = _lock(connection, kind, record_id)
    policy = read_policies(connection, {held.connection_id})[held.connection_id]
    if field in OWN[kind] or policy.owner(kind, field) is Owner.DISTRIBUTOR:
        raise InvalidRequest(
            f"{field} is the distributor's already.", fields=(FieldProblem(field, "may be edited as it is"),)
        )
    if field in read_taken(connection, {record_id}).get(record_id, frozenset()):
        raise StateConflict(
            f"{field} is taken already.", next_step=f"Set it: bss-sync {kind} set {record_id} {field}=VALUE"
        )
    value = held.values[_COLUMNS.get(field, field)]
    if field == "quantity":
        value = canonical_quantity(Decimal(str(value)))
    connection.execute(
        text(
            """insert into takeover (id, tenant_id, connection_id, record_id, kind, field, value, reason, taken_by)
               values (:id, :tenant_id, :connection_id, :record_id, :kind, :field, cast(:value as jsonb), :reason,
                       :actor)"""
        ),
        {
            "id": uuid4(),
            "tenant_id": held.tenant_id,
            "connection_id": held.connection_id,
            "record_id": record_id,
            "kind": kind,
            "field": field,
            "value": json.dumps(value),
            "reason": reason,
            "actor": actor,
        },
    )
    return _done(connection, held, kind, field, value, actor, "field.taken", {"reason": reason})


def set_value(connection: Connection, kind: Kind, record_id: UUID, field: str, value: Json, *, actor: str) -> Taken:
    """Give a taken field another value. NotFound unless it is taken, InvalidRequest when the value does not fit."""
    value = check_value(kind, field, value)
    held = _lock(connection, kind, record_id)
    _check_reference(connection, kind, held, field, value)
    done = connection.execute(
        text(
            """update takeover set value = cast(:value as jsonb)
               where record_id = :id and field = :field and released_at is null returning id"""
        ),
        {"id": record_id, "field": field, "value": json.dumps(value)},
    ).first()
    if done is None:
        raise NotFound(f"{field} is not taken.", next_step=f"Take it: bss-sync field take {kind} {record_id} {field}")
    return _done(connection, held, kind, field, value, actor, "field.set", {})


def release(connection: Connection, kind: Kind, record_id: UUID, field: str, *, reason: str, actor: str) -> Taken:
    """Give a field back to the reseller's BSS: it returns to the latest source value. NotFound unless it is taken."""
    _check_reason(reason)
    held = _lock(connection, kind, record_id)
    row = connection.execute(
        text(
            """update takeover set released_at = now(), released_by = :actor, release_reason = :reason
               where record_id = :id and field = :field and released_at is null returning value"""
        ),
        {"id": record_id, "field": field, "actor": actor, "reason": reason},
    ).one_or_none()
    if row is None:
        raise NotFound(
            f"{field} of this {kind} is not taken.", next_step=f"See: bss-sync explain {kind} {record_id} {field}"
        )
    return _done(connection, held, kind, field, row.value, actor, "field.released", {"reason": reason})


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise InvalidRequest("A reason is needed.", fields=(FieldProblem("reason", "say why, for the audit"),))


def _lock(connection: Connection, kind: Kind, record_id: UUID) -> _Held:
    """The record, and its stream locked: no worker decides about it meanwhile."""
    connection.execute(text("select 1 from stream where id = :id for no key update"), {"id": record_id})
    row: Row[Any] | None = connection.execute(
        text(f"select id, tenant_id, connection_id, to_jsonb(r) as held from {kind} r where id = :id"),  # noqa: S608  an enum's value
        {"id": record_id},
    ).one_or_none()
    if row is None:
        raise NotFound(f"There is no {kind} {record_id}.")
    return _Held(row.id, row.tenant_id, row.connection_id, row.held)


_THERE = "select id from {table} where connection_id = :connection and source_id = :source_id and deleted_at is null"
_ABOVE = """
    with recursive up as (
        select id, parent_id from {table} where id = :parent
        union select r.id, r.parent_id from {table} r join up on r.id = up.parent_id)
    select exists (select from up where id = :id)"""


def _check_reference(connection: Connection, kind: Kind, held: _Held, field: str, value: Json) -> None:
    """InvalidRequest unless the other record is in the mirror, and a parent is none of the record's own descendants."""
    if field not in _COLUMNS or value is None:
        return
    other = Kind.ACCOUNT if field == "account_id" else kind
    found = connection.execute(
        text(_THERE.format(table=other)), {"connection": held.connection_id, "source_id": value}
    ).scalar_one_or_none()
    if found is None:
        raise InvalidRequest(
            f"There is no {other} {value!r} of this connection in the mirror.",
            fields=(FieldProblem(field, f"must be the source's id of an {other} that is mirrored and not deleted"),),
            next_step=f"See which there are: bss-sync tree, or GET /v1/{other}s?source_id=…",
        )
    if field == "parent_id":
        _check_cycle(connection, kind, held, found, value)


def _check_cycle(connection: Connection, kind: Kind, held: _Held, parent: UUID, value: str) -> None:
    # As the workers do: one writer of links per connection at a time.
    connection.execute(HIERARCHY_LOCK, {"connection_id": str(held.connection_id)})
    beneath = connection.execute(text(_ABOVE.format(table=kind)), {"parent": parent, "id": held.id}).scalar_one()
    if beneath:
        raise InvalidRequest(
            f"{value!r} stands below this {kind}, or is it: that would be a cycle.",
            fields=(FieldProblem("parent_id", "must not be the record itself or below it"),),
        )


def _done(
    connection: Connection,
    held: _Held,
    kind: Kind,
    field: str,
    value: Json,
    actor: str,
    action: str,
    detail: dict[str, str],
) -> Taken:
    shard = wake_stream(connection, held.id)
    record_act(
        connection,
        actor,
        action,
        {"field": field, "value": json.dumps(value, ensure_ascii=False), **detail},
        tenant_id=held.tenant_id,
        connection_id=held.connection_id,
        kind=kind,
        record_id=held.id,
    )
    return Taken(held.id, kind, field, value, shard)


def check_value(kind: Kind, field: str, value: Json) -> Json:
    """The canonical form of a mirrored field's value; InvalidRequest when it is none."""
    checks = _ACCOUNT if kind is Kind.ACCOUNT else _SUBSCRIPTION
    if field not in checks:
        raise InvalidRequest(
            f"{field!r} is no mirrored field of {kind}.", fields=(FieldProblem(field, f"known: {', '.join(checks)}"),)
        )
    nullable, canonical, allowed = checks[field]
    if value is None and nullable:
        return None
    try:
        return canonical(value)
    except (ValueError, TypeError, InvalidOperation):
        raise InvalidRequest(
            f"{value!r} is no {field}.", fields=(FieldProblem(field, f"must be {allowed}" + " or null" * nullable),)
        ) from None


def _text(value: Json) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _word(*known: str) -> Callable[[Json], Json]:
    def check(value: Json) -> Json:
        if value not in known:
            raise ValueError
        return value

    return check


def _period(value: Json) -> str:
    if not is_period(_text(value)):
        raise ValueError
    return _text(value)


def _date(value: Json) -> str:
    return date.fromisoformat(_text(value)).isoformat()


def _flag(value: Json) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _quantity(value: Json) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = Decimal(str(value))
    if not number.is_finite() or number < 0 or round(number, 6) != number:
        raise ValueError
    return canonical_quantity(number)


def _object(value: Json) -> dict[str, Json]:
    if not isinstance(value, dict) or any(isinstance(member, dict | list) for member in value.values()):
        raise TypeError
    return value


_Check = tuple[bool, Callable[[Json], Json], str]
_DATE_CHECK: _Check = (True, _date, "a date, YYYY-MM-DD")
_ID_CHECK: _Check = (True, _text, "the source's id of the other record")
_ACCOUNT: dict[str, _Check] = {
    "name": (False, _text, "a text"),
    "number": (True, _text, "a text"),
    "email": (True, _text, "a text"),
    "kind": (False, _word(*AccountKind), f"one of {', '.join(AccountKind)}"),
    "parent_id": _ID_CHECK,
}
_SUBSCRIPTION: dict[str, _Check] = {
    "account_id": _ID_CHECK,
    "parent_id": _ID_CHECK,
    "product": (False, _text, "a product code"),
    "status": (False, _word(*Status), f"one of {', '.join(Status)}"),
    "source_status": (False, _text, "a text"),
    "trial": (False, _flag, "true or false"),
    "start_date": _DATE_CHECK,
    "end_date": _DATE_CHECK,
    "activation_date": _DATE_CHECK,
    "cancellation_date": _DATE_CHECK,
    "auto_renew": (False, _flag, "true or false"),
    "billing_cycle": (False, _period, "an ISO 8601 duration such as P1M, or one_time"),
    "term": (True, _period, "an ISO 8601 duration such as P1Y, or one_time"),
    "quantity": (False, _quantity, "a number of at least 0 with up to 6 decimals"),
    "characteristics": (False, _object, "a flat object"),
}
"""Field → whether it may be null, its canonical form, and how to say what it takes."""
