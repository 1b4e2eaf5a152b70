"""Appends to and verifies the audit chains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.direct import PLANNED_ONCE, Statements
from bss_sync.adapters.sql.records import id_array, record_set
from bss_sync.domain.audit import AuditEntry, ChainedEntry, chain, first_break

# In the order of their ids, also those that are new.
_LOCK_HEADS = text(
    """insert into audit_head (chain_id, tenant_id)
       select r.chain_id, r.tenant_id from unnest(cast(:chains as uuid[]), cast(:tenants as uuid[]))
           as r (chain_id, tenant_id) order by r.chain_id
       on conflict (chain_id) do update set seq = audit_head.seq
       returning chain_id, seq, hash, clock_timestamp() as at"""
)
_INSERT = text(
    """insert into audit (chain_id, seq, tenant_id, connection_id, at, actor, action, kind, record_id, message,
                          detail, salt, digest, hash)
       select r.chain_id, r.seq, r.tenant_id, r.connection_id, r.at, r.actor, r.action, r.kind, r.record_id, r.message,
              r.detail, decode(r.salt, 'hex'), decode(r.digest, 'hex'), decode(r.hash, 'hex')
       from jsonb_to_recordset(cast(:rows as jsonb)) as r (chain_id uuid, seq bigint, tenant_id uuid,
            connection_id uuid, at timestamptz, actor text, action text, kind text, record_id uuid, message uuid,
            detail jsonb, salt text, digest text, hash text)"""
).execution_options(**PLANNED_ONCE)
_MOVE_HEADS = text(
    """update audit_head h set seq = r.seq, hash = decode(r.hash, 'hex')
       from jsonb_to_recordset(cast(:rows as jsonb)) as r (chain_id uuid, seq bigint, hash text)
       where h.chain_id = r.chain_id"""
)


def append_audit(connection: Statements, entries: Iterable[AuditEntry]) -> None:
    """Append to the chains, at the end of a transaction: the heads' row locks are held until it commits.

    Chains are taken in the order of their ids, so that two transactions never wait for each other crosswise. Three
    statements, however many chains there are.
    """
    by_chain: dict[UUID, list[AuditEntry]] = defaultdict(list)
    for entry in entries:
        by_chain[entry.chain_id].append(entry)
    if not by_chain:
        return
    tenants = [group[0].tenant_id for group in by_chain.values()]
    heads = connection.execute(_LOCK_HEADS, {"chains": id_array(by_chain), "tenants": id_array(tenants)}).all()
    rows: list[dict[str, object]] = []
    moved: list[dict[str, object]] = []
    for head in heads:
        group = by_chain[head.chain_id]
        chained = chain(group, seq=head.seq, previous=bytes(head.hash), at=head.at)
        shared = {"chain_id": head.chain_id, "tenant_id": group[0].tenant_id, "at": head.at.isoformat()}
        rows += [_row(item) | shared for item in chained]
        moved.append({"chain_id": head.chain_id, "seq": chained[-1].seq, "hash": chained[-1].hash.hex()})
    connection.execute(_INSERT, {"rows": record_set(rows)})
    connection.execute(_MOVE_HEADS, {"rows": record_set(moved)})


def _row(item: ChainedEntry) -> dict[str, object]:
    entry = item.entry
    return {
        "seq": item.seq,
        "connection_id": entry.connection_id,
        "actor": entry.actor,
        "action": entry.action,
        "kind": entry.kind,
        "record_id": entry.record_id,
        "message": entry.message,
        "detail": entry.detail,
        "salt": item.salt.hex(),
        "digest": item.digest.hex(),
        "hash": item.hash.hex(),
    }


# Head and entries in one statement: of one moment, whoever appends meanwhile.
_WHOLE = text(
    """select h.seq as head_seq, a.* from audit_head h left join audit a on a.chain_id = h.chain_id
       where h.chain_id = :chain order by a.seq"""
)


def verify_chains(connection: Connection) -> dict[UUID, int | None]:
    """For each chain the seq of the first broken entry, or None. A cut-off end is found by the head."""
    broken: dict[UUID, int | None] = {}
    for chain_id in connection.execute(text("select chain_id from audit_head order by chain_id")).scalars().all():
        rows = connection.execution_options(yield_per=1000).execute(_WHOLE, {"chain": chain_id})
        erased: set[int] = set()
        items = []
        end = 0
        for row in rows:
            end = row.head_seq
            if row.seq is None:
                continue
            if row.salt is None:
                erased.add(row.seq)
            entry = AuditEntry(
                chain_id=row.chain_id,
                tenant_id=row.tenant_id,
                actor=row.actor,
                action=row.action,
                detail=row.detail or {},
                connection_id=row.connection_id,
                kind=row.kind,
                record_id=row.record_id,
                message=row.message,
            )
            items.append(
                ChainedEntry(row.seq, row.at, entry, bytes(row.salt or b""), bytes(row.digest), bytes(row.hash))
            )
        found = first_break(items, erased=frozenset(erased))
        if found is None and (items[-1].seq if items else 0) != end:
            found = (items[-1].seq if items else 0) + 1
        broken[chain_id] = found
    return broken


@dataclass(frozen=True, slots=True)
class Lost:
    """A chain that does not go on from a head that was kept elsewhere.

    ``entry`` is the first of the kept history that is not here. ``restored``: the chain itself says that a backup was
    restored at or before it; None: it does not, and entries were cut off or written anew.
    """

    chain_id: UUID
    entry: int
    restored: datetime | None


def heads(connection: Connection) -> list[dict[str, object]]:
    """Each chain's last entry and hash: what is worth keeping elsewhere, a few bytes per connection."""
    rows = connection.execute(text("select chain_id, seq, hash from audit_head order by chain_id")).all()
    return [{"chain": str(row.chain_id), "entry": row.seq, "hash": bytes(row.hash).hex()} for row in rows]


_AT = text("select hash from audit where chain_id = :chain and seq = :seq")
_RESTORED = text(
    """select seq, at from audit where chain_id = :chain and action = 'database.restored' and seq <= :seq
       order by seq desc limit 1"""
)


def compare_heads(connection: Connection, kept: Iterable[tuple[UUID, int, bytes]]) -> list[Lost]:
    """The chains that have lost something since their heads were kept (chain, entry, hash)."""
    lost: list[Lost] = []
    for chain_id, seq, wanted in kept:
        present = connection.execute(_AT, {"chain": chain_id, "seq": seq}).scalar()
        if seq == 0 or (present is not None and bytes(present) == wanted):
            continue
        told = connection.execute(_RESTORED, {"chain": chain_id, "seq": seq}).one_or_none()
        last = connection.execute(
            text("select coalesce(max(seq), 0) from audit where chain_id = :chain and seq <= :seq"),
            {"chain": chain_id, "seq": seq},
        ).scalar_one()
        entry = told.seq if told is not None else min(last + 1, seq)
        lost.append(Lost(chain_id, entry, None if told is None else told.at))
    return lost
