"""What the distributor's people may write on a mirrored record, and the refusal of what they may not.

A refusal is an outcome, not an exception: its audit entry must be committed although nothing else changes. The
caller commits, then raises ``Refused.error``. Connections are inside a transaction of role ``api``; changing a field
that was taken over needs role ``engine``, because no other may touch what becomes a mirrored column.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.admin.takeovers import check_value, set_value
from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.reading.context import read_installation, read_policies, read_taken
from bss_sync.adapters.sql.reading.entity import Record
from bss_sync.adapters.sql.reading.reach import Reach
from bss_sync.adapters.sql.reading.records import find_record
from bss_sync.adapters.sql.reading.relations import get_relation
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import Json, Kind
from bss_sync.domain.edit_value import own_value, plain_number, relation_value
from bss_sync.domain.errors import (
    FieldLocked,
    FieldProblem,
    InvalidRequest,
    NotPermitted,
    OperationRefused,
    StateConflict,
)
from bss_sync.domain.ownership import MIRRORED, OWN
from bss_sync.domain.permissions import refuse_operation
from bss_sync.domain.relation import FIELDS, REQUIRED, Relation

_LOCK: Mapping[Kind, str] = {
    Kind.ACCOUNT: "select 1 from account where id = :id for update",
    Kind.SUBSCRIPTION: "select 1 from subscription where id = :id for update",
}
_SET: Mapping[str, str] = {
    "notes": "notes = :notes",
    "tags": "tags = cast(:tags as text[])",
    "responsible_user": "responsible_user = :responsible_user",
    "price": "price = cast(:price as jsonb)",
    "bill_to_contact": "bill_to_contact = :bill_to_contact",
    "custom_fields": "custom_fields = cast(:custom_fields as jsonb)",
}
_JSON_FIELDS = frozenset({"price", "custom_fields"})
_LOCK_STREAM = text("select 1 from stream where id = :id for no key update")


@dataclass(frozen=True, slots=True)
class Refused:
    """The write was refused and recorded; nothing else changed. Commit, then raise ``error``."""

    error: FieldLocked | OperationRefused


@dataclass(frozen=True, slots=True)
class Edited:
    """What changed. ``wake_shard``: the mirror follows a taken field once this shard was processed."""

    fields: tuple[str, ...]
    wake_shard: int | None = None


def edit_fields(
    connection: Connection,
    reach: Reach,
    actor: str,
    kind: Kind,
    record_id: UUID,
    changes: Mapping[str, Json],
    *,
    may_edit_taken: bool = False,
) -> Edited | Refused:
    """Set own fields of a record; null clears. All of ``changes`` or nothing.

    One locked field among them refuses everything and names each locked field with its owner. A field that was taken
    over is the distributor's: its value changes where ``may_edit_taken`` (an admin, role ``engine``), else
    NotPermitted. NotFound, InvalidRequest for unknown fields or wrong values, StateConflict on a deleted record.
    """
    if may_edit_taken:
        # In the order of the workers: the stream before its record.
        connection.execute(_LOCK_STREAM, {"id": record_id})
    connection.execute(text(_LOCK[kind]), {"id": record_id})
    record = find_record(connection, reach, kind, record_id)
    policy = read_policies(connection, {record.connection_id})[record.connection_id]
    taken = read_taken(connection, {record_id}).get(record_id, frozenset())
    known = {*MIRRORED[kind], *OWN[kind]}
    try:
        policy.check_write(kind, [field for field in changes if field in known], reseller=record.bill_to, taken=taken)
    except FieldLocked as refusal:
        attempted = {problem.field: _told(changes[problem.field]) for problem in refusal.fields}
        detail = {"fields": attempted, "owner": record.bill_to}
        append_audit(connection, [_entry(record, actor, "field.refused", detail)])
        return Refused(refusal)
    _refuse_unknown(changes, known, OWN[kind])
    mirrored = [field for field in changes if field in MIRRORED[kind]]
    if mirrored and not may_edit_taken:
        raise NotPermitted(f"{', '.join(mirrored)}: taken over by an admin, and only an admin may change it.")
    if record.deleted_at is not None:
        raise StateConflict(f"This {kind} is deleted; its fields stay as they were.")
    currency = read_installation(connection).currency
    values = {
        field: own_value(kind, field, value, currency=currency)
        if field in OWN[kind]
        else check_value(kind, field, _plain(value))
        for field, value in changes.items()
    }
    return _write(connection, record, actor, values)


def _refuse_unknown(changes: Mapping[str, Json], known: set[str], editable: tuple[str, ...]) -> None:
    unknown = [field for field in changes if field not in known]
    if unknown:
        detail = f"is no field that can be edited; these can: {', '.join(editable)}"
        fields = tuple(FieldProblem(field[:100], detail) for field in unknown)
        raise InvalidRequest(f"Unknown fields: {', '.join(field[:100] for field in unknown[:20])}.", fields=fields)


def _write(connection: Connection, record: Record, actor: str, values: Mapping[str, Json]) -> Edited:
    assert record.own is not None, "the present has own fields"
    present = {**record.content, **record.own}
    changed = {field: value for field, value in values.items() if present[field] != value}
    own = {field: value for field, value in changed.items() if field in OWN[record.kind]}
    if own:
        assignments = ", ".join(_SET[field] for field in own)
        stored = {field: _stored(field, value) for field, value in own.items()}
        statement = f"{assignments}, updated_at = now(), change_xid = pg_current_xact_id() where id = :id"
        connection.execute(
            text(f"update {record.kind} set {statement}"),  # noqa: S608  our own names
            {**stored, "id": record.id},
        )
    if own:
        told = {field: {"from": _told(present[field]), "to": _told(value)} for field, value in own.items()}
        append_audit(connection, [_entry(record, actor, "field.edited", {"changes": told})])
    shard = None
    for field in changed.keys() - own.keys():
        shard = set_value(connection, record.kind, record.id, field, changed[field], actor=actor).shard
    return Edited(tuple(changed), shard)


def _plain(value: Json) -> Json:
    if isinstance(value, dict):
        return {name: plain_number(member) for name, member in value.items()}
    return plain_number(value)


def _stored(field: str, value: Json) -> Json:
    return json.dumps(value) if field in _JSON_FIELDS and value is not None else value


def refuse(connection: Connection, reach: Reach, actor: str, kind: Kind, record_id: UUID, operation: str) -> Refused:
    """Refuse an operation that only the tenant reseller may do, and record the attempt.

    NotFound, InvalidRequest for an operation that does not exist.
    """
    record = find_record(connection, reach, kind, record_id)
    error = refuse_operation(kind, operation, reseller=record.bill_to)
    detail = {"operation": operation, "owner": record.bill_to}
    append_audit(connection, [_entry(record, actor, "operation.refused", detail)])
    return Refused(error)


def create_relation(
    connection: Connection,
    reach: Reach,
    actor: str,
    relation: Relation,
    account_id: UUID,
    given: Mapping[str, Json],
) -> dict[str, Any]:
    """A new contact or activity of an account, as it was stored. NotFound, InvalidRequest, StateConflict if deleted."""
    account = _open_account(connection, reach, account_id)
    missing = [field for field in REQUIRED[relation] if field not in given]
    if missing:
        fields = tuple(FieldProblem(field, "is required") for field in missing)
        raise InvalidRequest(f"{', '.join(missing)}: required.", fields=fields)
    values = _relation_values(connection, relation, given)
    complete = {field: values.get(field) for field in FIELDS[relation]}
    relation_id = uuid4()
    columns = ", ".join(complete)
    places = ", ".join(_place(field) for field in complete)
    connection.execute(
        text(
            f"insert into {relation} (id, tenant_id, account_id, created_by, {columns}) "  # noqa: S608  our own names
            f"values (:id, :tenant_id, :account_id, :actor, {places})"
        ),
        {**complete, "id": relation_id, "tenant_id": account.tenant_id, "account_id": account_id, "actor": actor},
    )
    detail = {"id": str(relation_id), "fields": sorted(values)}
    append_audit(connection, [_entry(account, actor, f"{relation}.created", detail)])
    return get_relation(connection, reach, relation, account_id, relation_id)


def edit_relation(
    connection: Connection,
    reach: Reach,
    actor: str,
    relation: Relation,
    account_id: UUID,
    relation_id: UUID,
    given: Mapping[str, Json],
) -> dict[str, Any]:
    """Change fields of a contact or an activity; null clears what is not required."""
    account = _open_account(connection, reach, account_id)
    before = get_relation(connection, reach, relation, account_id, relation_id)
    values = _relation_values(connection, relation, given)
    changed = {field: value for field, value in values.items() if before[field] != value}
    if not changed:
        return before
    assignments = ", ".join(f"{field} = {_place(field)}" for field in changed)
    connection.execute(
        text(f"update {relation} set {assignments}, updated_at = now() where id = :id"),  # noqa: S608  our own names
        {**changed, "id": relation_id},
    )
    detail = {"id": str(relation_id), "fields": sorted(changed)}
    append_audit(connection, [_entry(account, actor, f"{relation}.edited", detail)])
    return get_relation(connection, reach, relation, account_id, relation_id)


def delete_relation(
    connection: Connection, reach: Reach, actor: str, relation: Relation, account_id: UUID, relation_id: UUID
) -> None:
    """Take a contact or an activity out of sight; NotFound when it is out of sight already."""
    account = find_record(connection, reach, Kind.ACCOUNT, account_id)
    get_relation(connection, reach, relation, account_id, relation_id)
    connection.execute(
        text(f"update {relation} set deleted_at = now(), updated_at = now() where id = :id"),  # noqa: S608  our own names
        {"id": relation_id},
    )
    append_audit(connection, [_entry(account, actor, f"{relation}.deleted", {"id": str(relation_id)})])


def _open_account(connection: Connection, reach: Reach, account_id: UUID) -> Record:
    account = find_record(connection, reach, Kind.ACCOUNT, account_id)
    if account.deleted_at is not None:
        raise StateConflict("This account is deleted; nothing can be added to it.")
    return account


def _relation_values(connection: Connection, relation: Relation, given: Mapping[str, Json]) -> dict[str, Json]:
    known = FIELDS[relation]
    _refuse_unknown(given, set(known), known)
    zone = read_installation(connection).time_zone
    return {field: relation_value(relation, field, value, zone=zone) for field, value in given.items()}


def _place(field: str) -> str:
    return "cast(:due_at as timestamptz)" if field == "due_at" else f":{field}"


def _entry(record: Record, actor: str, action: str, detail: Mapping[str, Any]) -> AuditEntry:
    return AuditEntry(
        chain_id=record.connection_id,
        tenant_id=record.tenant_id,
        actor=actor,
        action=action,
        detail=detail,
        connection_id=record.connection_id,
        kind=str(record.kind),
        record_id=record.id,
    )


def _told(value: Json) -> Json:
    """A value as the trail keeps it: what jsonb might write otherwise (numbers, objects) as its JSON text."""
    return value if value is None or isinstance(value, str | bool) else json.dumps(value, default=str, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Once:
    """An Idempotency-Key with the digest of its request; keys are a token's own."""

    token_id: UUID
    key: str
    digest: bytes


_RECALL = text("select request_digest, response from idempotency where token_id = :token_id and key = :key")
_REMEMBER = text(
    """insert into idempotency (token_id, key, tenant_id, request_digest, status, response)
       values (:token_id, :key, :tenant_id, :digest, 201, cast(:response as jsonb)) on conflict do nothing"""
)


def answer_once(
    connection: Connection, once: Once | None, tenant_id: UUID, create: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Create, or give the answer that the same request got before. StateConflict when the key was another request's.

    Two equal requests at once: the later waits for the earlier, undoes its own work and gives the earlier's answer.
    """
    if once is None:
        return create()
    remembered = _recall(connection, once)
    if remembered is not None:
        return remembered
    savepoint = connection.begin_nested()
    response = create()
    values = {"token_id": once.token_id, "key": once.key, "tenant_id": tenant_id, "digest": once.digest}
    done = connection.execute(_REMEMBER, {**values, "response": json.dumps(response)})
    if done.rowcount == 1:
        savepoint.commit()
        return response
    savepoint.rollback()
    remembered = _recall(connection, once)
    assert remembered is not None, "the key was taken, so its answer is there"
    return remembered


def _recall(connection: Connection, once: Once) -> dict[str, Any] | None:
    row = connection.execute(_RECALL, {"token_id": once.token_id, "key": once.key}).one_or_none()
    if row is None:
        return None
    if bytes(row.request_digest) != once.digest:
        raise StateConflict(
            "This Idempotency-Key was used for another request.",
            fields=(FieldProblem("Idempotency-Key", "was used for another request"),),
            next_step="Give each new request a key of its own.",
        )
    response: dict[str, Any] = row.response
    return response


def tenant_of_account(connection: Connection, reach: Reach, account_id: UUID) -> UUID:
    """The tenant that an account belongs to; NotFound when it is not within reach."""
    return find_record(connection, reach, Kind.ACCOUNT, account_id).tenant_id
