"""The audit trail's hash chain: pure (domain.md section 7, guarantee 5).

One chain per connection; an act that belongs to no connection is chained per tenant. Each entry's digest covers its
detail and a random salt, the chain covers the digest: erasing a person's detail and salt leaves the chain provable.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from bss_sync.domain.made_quickly import made_quickly

SALT_BYTES = 16
_SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@made_quickly
@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One act, before it is chained.

    chain_id  the connection's id, or the tenant's for acts on no connection
    actor     ``system``, ``sender:<connection name>``, ``cli:<user>`` or ``token:<name>``
    action    a fixed event name: ``message.applied``, ``field.refused``, ``connection.activated``, …
    detail    what happened, in values that may be erased later; JSON-able
    """

    chain_id: UUID
    tenant_id: UUID
    actor: str
    action: str
    detail: Mapping[str, Any]
    connection_id: UUID | None = None
    kind: str | None = None
    record_id: UUID | None = None
    message: UUID | None = None


@made_quickly
@dataclass(frozen=True, slots=True)
class ChainedEntry:
    """An entry with its place in the chain."""

    seq: int
    at: datetime
    entry: AuditEntry
    salt: bytes
    digest: bytes
    hash: bytes


def detail_digest(salt: bytes, detail: Mapping[str, Any]) -> bytes:
    """SHA-256 over the salt and the detail's sorted JSON."""
    return hashlib.sha256(salt + _told(detail)).digest()


def _told(detail: Mapping[str, Any]) -> bytes:
    return _SORTED.encode(detail).encode("utf-8", "surrogatepass")


def chain_hash(previous: bytes, seq: int, at: str, entry: AuditEntry, digest: bytes) -> bytes:
    """SHA-256 over the previous hash and everything of the entry but its detail, which the digest stands for.

    ``at`` is the entry's moment in ISO 8601.
    """
    parts = (
        str(seq),
        at,
        str(entry.tenant_id),
        entry.actor,
        entry.action,
        entry.kind or "",
        str(entry.record_id or ""),
        str(entry.message or ""),
    )
    return hashlib.sha256(previous + "\x1f".join(parts).encode() + digest).digest()


def chain(entries: Iterable[AuditEntry], *, seq: int, previous: bytes, at: datetime) -> list[ChainedEntry]:
    """Chain entries behind (seq, previous). ``at`` is aware UTC with microseconds, as PostgreSQL keeps it."""
    chained: list[ChainedEntry] = []
    # A thousand entries of a batch say a few things only and share them: each is written down once.
    told: dict[int, bytes] = {}
    listed, written_at = list(entries), at.isoformat()
    # Asked for at once: every call into the system lets other threads in.
    salts = secrets.token_bytes(SALT_BYTES * len(listed))
    for place, entry in enumerate(listed):
        seq += 1
        salt = salts[place * SALT_BYTES : (place + 1) * SALT_BYTES]
        words = told.get(id(entry.detail))
        if words is None:
            words = told[id(entry.detail)] = _told(entry.detail)
        digest = hashlib.sha256(salt + words).digest()
        previous = chain_hash(previous, seq, written_at, entry, digest)
        chained.append(ChainedEntry(seq, at, entry, salt, digest, previous))
    return chained


def first_break(entries: Iterable[ChainedEntry], *, erased: frozenset[int] = frozenset()) -> int | None:
    """The seq of the first entry that does not fit the chain, or None when all is whole.

    ``erased`` are the entries whose detail was erased on purpose: their digest stands, their detail is not compared.
    """
    previous, expected = b"", 1
    for item in entries:
        if item.seq != expected:
            return expected
        if item.seq not in erased and detail_digest(item.salt, item.entry.detail) != item.digest:
            return item.seq
        if chain_hash(previous, item.seq, item.at.isoformat(), item.entry, item.digest) != item.hash:
            return item.seq
        previous, expected = item.hash, expected + 1
    return None
