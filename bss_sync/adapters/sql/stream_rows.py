"""Rows of PostgreSQL as the rules see them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Row

from bss_sync.adapters.sql.chain_places import Place
from bss_sync.domain.account import FIELDS as ACCOUNT_FIELDS
from bss_sync.domain.change import PASSED_HELD, Action, Content, Kind, MessageState, OrderKind, WaitReason, stream_id
from bss_sync.domain.subscription import FIELDS as SUBSCRIPTION_FIELDS
from bss_sync.ports.inbox import Origin
from bss_sync.ports.streams import InboxMessage, Mirrored, Position

KINDS = {kind.value: kind for kind in Kind}
_ORIGINS = {origin.value: origin for origin in Origin}
_ACTIONS = {action.value: action for action in Action}
_ORDERS = {order.value: order for order in OrderKind}
_STATES = {state.value: state for state in MessageState}


def place_of(row: Row[Any]) -> Place:
    """The place of a record's present in the order that the tier above is told."""
    # Rows of the previous release have none: the tier above was told their revisions then.
    told = max(row.version, row.revision) if row.chain_version is None else row.chain_version
    return Place(max(told, row.version) + row.leap, row.chain_effective_at)


def message_of(row: Row[Any], *, pending: bool = False) -> InboxMessage:
    """An open message; ``pending``: as if nothing had been decided of it."""
    return InboxMessage(
        id=row.id,
        seq=row.seq,
        message_id=row.message_id,
        origin=_ORIGINS[row.origin],
        action=_ACTIONS[row.action],
        order=_ORDERS[row.order_kind],
        version=row.version,
        sent_at=row.sent_at,
        effective_at=row.effective_at,
        received_at=row.received_at,
        body=row.body,
        state=MessageState.PENDING if pending else _STATES[row.state],
        wait_reason=None if row.wait_reason is None or pending else WaitReason(row.wait_reason),
        wait_until=row.wait_until,
        fetch_asked=row.fetch_asked,
        passed=tuple(row.passed),
        trace=row.trace,
        cleared=row.cleared,
        counted=row.verdict in PASSED_HELD,
    )


def staged_message_of(row: Row[Any], stored: Row[Any] | None) -> InboxMessage:
    """What staging keeps; ``stored`` is its row of the inbox, if that is there still."""
    return InboxMessage(
        id=row.message,
        seq=0 if stored is None else stored.seq,
        message_id=row.message_id,
        origin=Origin.DOOR if stored is None else Origin(stored.origin),
        action=Action(row.action),
        order=OrderKind(row.order_kind),
        version=row.version,
        sent_at=row.sent_at,
        effective_at=row.effective_at,
        received_at=row.staged_at if stored is None else stored.received_at,
        body=row.body,
        state=MessageState.OUT_OF_SCOPE if stored is None else MessageState(stored.state),
        wait_reason=None if stored is None or stored.wait_reason is None else WaitReason(stored.wait_reason),
        wait_until=None if stored is None else stored.wait_until,
        fetch_asked=stored is not None and stored.fetch_asked,
        passed=tuple(row.passed),
    )


def position_of(row: Row[Any]) -> Position:
    """How far a stream has come."""
    return Position(
        epoch=row.epoch,
        epoch_at=row.epoch_at,
        version=row.version,
        sent_at=row.version_sent_at,
        message_id=row.version_message_id,
        seq=row.version_seq,
        digest=None if row.digest is None else bytes(row.digest),
        deleted=row.deleted,
    )


def _linked(row: Row[Any], kind: Kind, source_id: str | None) -> UUID | None:
    return None if source_id is None else stream_id(row.connection_id, kind, source_id)


def mirrored_of(kind: Kind, row: Row[Any]) -> Mirrored:
    """The present of a mirrored record."""
    return Mirrored(
        content=row.source,
        version=row.version,
        epoch=row.epoch,
        order=_ORDERS[row.order_kind],
        effective_at=row.effective_at,
        message=row.message,
        deleted_at=row.deleted_at,
        ended_at=row.ended_at,
        ended_reason=row.ended_reason,
        parent_linked=row.parent_id is not None and row.parent_id == _linked(row, kind, row.source.get("parent_id")),
        passed=tuple(row.passed),
    )


def shown_content(kind: Kind, row: Row[Any]) -> Content:
    """The mirrored columns of a row in canonical form (keys are the domain's FIELDS)."""
    if kind is Kind.ACCOUNT:
        return {name: getattr(row, "parent_source_id" if name == "parent_id" else name) for name in ACCOUNT_FIELDS}
    shown: dict[str, Any] = {}
    for name in SUBSCRIPTION_FIELDS:
        value = getattr(row, name.replace("_id", "_source_id") if name in ("account_id", "parent_id") else name)
        if name.endswith("_date") and value is not None:
            value = value.isoformat()
        shown[name] = f"{value:f}" if name == "quantity" else value
    return shown


def laid_of(kind: Kind, row: Row[Any]) -> dict[str, Any]:
    """The values in which the columns of a record differ from what its source said."""
    shown, source = row.shown, row.source
    laid = {} if shown is None else {name: value for name, value in shown.items() if value != source.get(name)}
    # A link that was bent by hand is put right like a column.
    if kind is Kind.SUBSCRIPTION and row.account_id != _linked(row, Kind.ACCOUNT, source.get("account_id")):
        laid["account_id"] = None if row.account_id is None else str(row.account_id)
    return laid
