"""Sequence: where a message stands in the order of its entity. Pure (domain.md section 6, "Order")."""

from __future__ import annotations

import hashlib
from datetime import datetime
from enum import StrEnum

from bss_sync.domain.change import Action, OrderKind
from bss_sync.ports.inbox import Origin
from bss_sync.ports.streams import InboxMessage, Position

AUTHORITATIVE = frozenset({Origin.FETCH, Origin.RECONCILE})
"""We asked the source: at an equal version its answer is the correction, not a conflict."""


class Rank(StrEnum):
    """A message against what is known of its entity."""

    NEWER = "newer"  # above everything known: it becomes the present
    SAME = "same"  # equal version and content, or a lost tie: changes nothing
    LATE = "late"  # below what is known: belongs to history, never changes the present
    FORMER = "former"  # from before the source was accepted to count anew
    CONFLICT = "conflict"  # equal sequence, other content


def rank(position: Position, message: InboxMessage, digest: bytes) -> Rank:
    """The rank of a message. ``digest`` is the message's content digest."""
    if position.epoch_at is not None and message.received_at < position.epoch_at:
        return Rank.FORMER
    if position.version is None:
        return Rank.NEWER
    same_content = digest == position.digest or (is_found_absent(position) and is_end(message))
    if message.order is OrderKind.OBSERVED:
        overtaken = position.seq is not None and message.seq < position.seq
        return Rank.SAME if same_content or overtaken else Rank.NEWER
    assert message.version is not None, "only observed states come without a version"
    if message.version != position.version:
        return Rank.NEWER if message.version > position.version else Rank.LATE
    return Rank.SAME if same_content else _rank_at_equal_version(position, message)


def _rank_at_equal_version(position: Position, message: InboxMessage) -> Rank:
    """Of another content than what is known at its version."""
    if message.origin in AUTHORITATIVE:
        return Rank.NEWER
    if message.order is OrderKind.TIMESTAMP:
        return Rank.NEWER if _wins_tie(position, message) else Rank.SAME
    if is_found_absent(position) and _wins_tie(position, message):
        # Said after we had found it absent: the source's word against our finding. What is older is asked about.
        return Rank.NEWER
    return Rank.CONFLICT


FOUND_ABSENT = hashlib.sha256(b"found absent").digest()
"""Instead of the digest of a deletion, where no version tells it: we have asked, and it was not there."""


def end_digest(position: Position, message: InboxMessage, digest: bytes) -> bytes:
    """The digest that a tombstone keeps.

    At the very version at which it was known alive nobody has counted a deletion: it was found absent, by a listing, a
    snapshot or a look. Such a tombstone gives way to a state of the same version that the source shows later.
    """
    uncounted = message.version is not None and message.version == position.version
    return FOUND_ABSENT if uncounted and message.origin in AUTHORITATIVE else digest


def is_found_absent(position: Position) -> bool:
    """Whether its tombstone was made by absence."""
    return position.deleted and position.digest == FOUND_ABSENT


def _wins_tie(position: Position, message: InboxMessage) -> bool:
    assert position.sent_at is not None, "a known version has its evidence"
    assert position.message_id is not None, "a known version has its evidence"
    return evidence(message) > (position.sent_at, position.message_id)


def evidence(message: InboxMessage) -> tuple[datetime, str]:
    """What decides between messages of an equal timestamp: the greater wins.

    An answer to a question of ours tells how things stood when we asked, however old the change: what was sent before
    that cannot undo it (domain.md: reconciliation has the last word).
    """
    asked = message.origin in AUTHORITATIVE
    return max(message.sent_at, message.received_at) if asked else message.sent_at, message.message_id


def version_of(position: Position, message: InboxMessage) -> int:
    """The version that a newer message brings: its own, or our next count for an observed state."""
    if message.version is not None and message.order is not OrderKind.OBSERVED:
        return message.version
    return (position.version or 0) + 1


def missing_versions(position: Position, message: InboxMessage, here: frozenset[int]) -> tuple[int, int, int] | None:
    """(from, to, how many are not here) for the versions that a newer sequence message jumps over, or None.

    ``here`` are versions of the entity's open and held messages: these have arrived. First contact with an
    entity is no gap: where its source began to count is unknown. A chained message is no gap either: the tier below
    tells its present and never each revision.
    """
    if message.passed:
        return None
    if message.order is not OrderKind.SEQUENCE or position.version is None or message.version is None:
        return None
    first, last = position.version + 1, message.version - 1
    missing = last - first + 1 - sum(1 for version in here if first <= version <= last)
    return (first, last, missing) if missing > 0 else None


def in_order(messages: tuple[InboxMessage, ...]) -> list[InboxMessage]:
    """Open messages in the order in which they are decided: by version where they have one, else as they came."""
    return sorted(messages, key=lambda m: (m.version is None, m.version or 0, m.sent_at, m.message_id, m.seq))


def is_end(message: InboxMessage) -> bool:
    """Whether the message says that the entity is gone."""
    return message.action is Action.DELETED
