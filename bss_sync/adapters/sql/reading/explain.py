"""Explains a record's fields: who owns each, what wrote its present value, what was refused (domain.md section 4).

``written_by.value`` is what that message said; it differs from ``value`` only in a field that was taken over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.reading.context import read_installation, read_policies, read_taken
from bss_sync.adapters.sql.reading.entity import Record, show_moment, show_owner, show_value, show_version, visible_own
from bss_sync.adapters.sql.reading.reach import Reach
from bss_sync.adapters.sql.reading.records import find_record, viewer_of
from bss_sync.domain.change import Kind
from bss_sync.domain.errors import FieldProblem, InvalidRequest
from bss_sync.domain.moment import rfc3339
from bss_sync.domain.ownership import MIRRORED

REFUSALS_MAX = 100

# Late rows never were the present, so they wrote nothing of it.
_WRITTEN = text(
    """select h.version, h.effective_at, h.recorded_at, h.state, h.message, m.message_id
       from history h left join message m on m.id = h.message
       where h.record_id = :id and not h.late order by h.epoch desc, h.version desc, h.id desc"""
).execution_options(yield_per=200)
_TAKEOVERS = text(
    """select field, value, reason, taken_by, taken_at from takeover where record_id = :id and released_at is null"""
)
_EDITS = text(
    """select distinct on (f.field) f.field, a.at, a.actor
       from audit a, jsonb_object_keys(a.detail -> 'changes') f(field)
       where a.record_id = :id and a.action = 'field.edited' order by f.field, a.at desc"""
)
_REFUSED = text(
    """select at, actor, action, detail from audit
       where record_id = :id and action in ('field.refused', 'operation.refused') order by at desc limit :row_count"""
)
_VIOLATIONS = text(
    """select field, expected, found, changed_by, changed_at, action, found_at, settled_at from drift
       where record_id = :id and place = 'target' order by found_at desc limit :row_count"""
)


def explain(
    connection: Connection, reach: Reach, kind: Kind, record_id: UUID, field: str | None = None
) -> dict[str, Any]:
    """All fields of a record, or one. NotFound outside the reach, InvalidRequest for a field that is none.

    A reseller sees its mirrored fields and its price, and nothing of the distributor's attempts.
    """
    record = find_record(connection, reach, kind, record_id)
    viewer = viewer_of(reach, read_installation(connection))
    known = (*MIRRORED[kind], *visible_own(kind, viewer))
    if field is not None and field not in known:
        problem = FieldProblem("field", f"known fields: {', '.join(known)}")
        raise InvalidRequest(f"{field!r} is no field of {kind}.", fields=(problem,))
    fields = known if field is None else (field,)
    policy = read_policies(connection, {record.connection_id})[record.connection_id]
    taken = read_taken(connection, {record.id}).get(record.id, frozenset())
    written = _written_by(connection, record, fields)
    takeovers = {row.field: row for row in connection.execute(_TAKEOVERS, {"id": record.id})}
    explained = []
    for name in fields:
        item = {
            "field": name,
            **show_owner(kind, name, policy, taken, record.bill_to, viewer),
            "value": _value(record, name),
            "written_by": written.get(name),
            "taken_over": _takeover(name, takeovers.get(name), written, reach),
        }
        explained.append(item)
    answer: dict[str, Any] = {
        "id": str(record.id),
        "kind": str(kind),
        "connection": record.connection,
        "source_id": record.source_id,
        "version": show_version(record.version, record.order),
        "fields": explained,
    }
    if not reach.is_reseller:
        _add_attempts(connection, record, explained, answer)
    return answer


def _value(record: Record, field: str) -> Any:
    if field in MIRRORED[record.kind]:
        return show_value(field, record.content.get(field))
    assert record.own is not None, "the present has own fields"
    return record.own[field]


def _written_by(connection: Connection, record: Record, fields: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each field the state that first said its present value, without a break since; for own fields the edit."""
    mirrored = [field for field in fields if field in MIRRORED[record.kind]]
    written: dict[str, dict[str, Any]] = {}
    open_fields = set(mirrored)
    newest: Mapping[str, Any] | None = None
    rows = connection.execute(_WRITTEN, {"id": record.id})
    for row in rows:
        newest = row.state if newest is None else newest
        open_fields = {field for field in open_fields if row.state.get(field) == newest.get(field)}
        written |= {field: _by_message(record, field, row) for field in open_fields}
        if not open_fields:
            break
    rows.close()
    if len(mirrored) < len(fields):
        for row in connection.execute(_EDITS, {"id": record.id}):
            if row.field not in MIRRORED[record.kind]:
                written[row.field] = {"actor": row.actor, "at": rfc3339(row.at)}
    return written


def _by_message(record: Record, field: str, row: Row[Any]) -> dict[str, Any]:
    return {
        "message": {"id": str(row.message), "message_id": row.message_id},
        "version": show_version(row.version, record.order),
        "effective_at": rfc3339(row.effective_at),
        "recorded_at": rfc3339(row.recorded_at),
        "value": show_value(field, row.state.get(field)),
    }


def _takeover(
    field: str, row: Row[Any] | None, written: Mapping[str, dict[str, Any]], reach: Reach
) -> dict[str, Any] | None:
    if row is None:
        return None
    told = {
        "value": show_value(field, row.value),
        "taken_at": rfc3339(row.taken_at),
        "source_value": written.get(field, {}).get("value"),
    }
    return told if reach.is_reseller else {**told, "taken_by": row.taken_by, "reason": row.reason}


def _add_attempts(
    connection: Connection, record: Record, explained: Sequence[dict[str, Any]], answer: dict[str, Any]
) -> None:
    parameters = {"id": record.id, "row_count": REFUSALS_MAX}
    refused = connection.execute(_REFUSED, parameters).all()
    violations = connection.execute(_VIOLATIONS, parameters).all()
    for item in explained:
        item["refused"] = [
            {
                "at": rfc3339(row.at),
                "actor": row.actor,
                "value": ((row.detail or {}).get("fields") or {}).get(item["field"]),
            }
            for row in refused
            if row.action == "field.refused" and item["field"] in ((row.detail or {}).get("fields") or {})
        ]
        item["lock_violations"] = [_violation(row) for row in violations if row.field == item["field"]]
    answer["refused_operations"] = [
        {"at": rfc3339(row.at), "actor": row.actor, "operation": (row.detail or {}).get("operation")}
        for row in refused
        if row.action == "operation.refused"
    ]


def _violation(row: Row[Any]) -> dict[str, Any]:
    return {
        "found_at": rfc3339(row.found_at),
        "expected": row.expected,
        "found": row.found,
        "changed_by": row.changed_by,
        "changed_at": show_moment(row.changed_at),
        "action": row.action,
        "settled_at": show_moment(row.settled_at),
    }
