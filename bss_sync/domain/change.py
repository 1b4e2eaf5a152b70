"""A change: what one message says about one entity, and what became of the message.

Source of the rules: domain.md sections 3 and 6; the names are the contract's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid5

from bss_sync.domain.made_quickly import made_quickly

Json = Any
"""What json.loads gives. Checked by the message models at the door, so that the rules need not."""

Content = Mapping[str, Json]
"""The mirrored fields of one entity in canonical form: dates as YYYY-MM-DD, quantity as a plain decimal string."""


class Kind(StrEnum):
    """The two kinds of entity that are mirrored."""

    ACCOUNT = "account"
    SUBSCRIPTION = "subscription"


class Action(StrEnum):
    """What a message carries."""

    STATE = "state"  # the whole state of the entity
    DELETED = "deleted"  # the entity is gone at this version
    NOTIFIED = "notified"  # only the id: the state has to be fetched


class OrderKind(StrEnum):
    """How versions of one entity are ordered; the connector declares it (domain.md section 6)."""

    SEQUENCE = "sequence"  # an integer version counted by the source
    TIMESTAMP = "timestamp"  # the source's change time, in microseconds since 1970
    OBSERVED = "observed"  # our count of fetches that differed


class MessageState(StrEnum):
    """Where a message stands. The names are the contract's."""

    PENDING = "pending"  # accepted, not decided yet
    WAITING = "waiting"  # needs something that is not here yet: a parent, an account, a fetch
    APPLIED = "applied"  # its state is, or was, the present of the mirror
    SUPERSEDED = "superseded"  # a newer or equal version had been applied
    OUT_OF_SCOPE = "out_of_scope"  # recorded with the reason, not mirrored
    QUARANTINED = "quarantined"  # unknown value, version conflict, guard, process killer: an admin decides
    DEAD = "dead"  # cannot be processed: reason, stack and payload are kept
    DISCARDED = "discarded"  # given up by an admin, with a reason


HELD = frozenset({MessageState.QUARANTINED, MessageState.DEAD})
"""Held messages stop only their own entity, which keeps its last good state."""

PASSED_HELD = ("overtaken", "late_unknown_value")
"""Verdicts on states that stood below the present before anybody could read them: they are in no history yet."""

OPEN = frozenset({MessageState.PENDING, MessageState.WAITING})
"""Messages that still want a decision."""


class WaitReason(StrEnum):
    """Why a message waits."""

    PARENT = "parent_unknown"  # the parent has not arrived
    ACCOUNT = "account_unknown"  # the account that holds the subscription has not arrived
    CYCLE = "cycle"  # the new parent is a descendant: nothing is linked meanwhile
    FETCH = "fetch"  # a notification: the connector fetches the state


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp_version(moment: datetime) -> int:
    """The version of a timestamp source: whole microseconds since 1970-01-01 UTC."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def version_timestamp(version: int) -> datetime:
    """The moment behind a timestamp version."""
    return EPOCH + timedelta(microseconds=version)


@made_quickly
@dataclass(frozen=True, slots=True)
class Change:
    """One message about one entity, verified and checked, as it enters the inbox.

    message_id    the sender's id: the deduplication key within the connection, survives retries
    version       the order within the entity (``OrderKind``); None for a notification or an observed state
    sent_at       the envelope's timestamp; aware UTC
    effective_at  when the change took effect; aware UTC; default ``sent_at``
    body          the contract's ``data`` with its named members only; a mapper may add ``source_status``
    dropped       names of members that were removed before anything was stored
    digest        SHA-256 of the raw body, or of the element's RFC 8785 form
    """

    message_id: str
    kind: Kind
    source_id: str
    action: Action
    version: int | None
    sent_at: datetime
    effective_at: datetime
    body: Mapping[str, Json]
    digest: bytes
    order: OrderKind = OrderKind.SEQUENCE
    dropped: tuple[str, ...] = field(default=())
    passed: tuple[str, ...] = field(default=())
    """The instances that a chained message went through; one's own is refused (domain.md section 2)."""


SHARDS = 16
"""Wake-ups are grouped by shard: every connection belongs to one."""

_NAMESPACE = UUID("6e1f3f0a-5d0b-5d3c-9a55-0c1d9e1b7a42")


@lru_cache(maxsize=16_384)
def stream_id(connection_id: UUID, kind: Kind, source_id: str) -> UUID:
    """The id of an entity's stream and of its record: derived from (connection, kind, source id).

    The binding is therefore unique in both directions by construction and the same after a restored backup
    (domain.md section 3, 1:1).
    """
    return uuid5(_NAMESPACE, f"{connection_id}/{kind}/{source_id}")


def shard_of(connection_id: UUID) -> int:
    """The shard of a connection: 0 to SHARDS - 1."""
    return connection_id.int % SHARDS
