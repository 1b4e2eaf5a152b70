"""Observations into changes: what we asked for enters by the same inbox as what was sent. Pure."""

from __future__ import annotations

from datetime import datetime
from uuid import uuid4

from bss_sync.domain.change import Change, Kind, OrderKind
from bss_sync.domain.errors import InvalidMessage
from bss_sync.pipeline.json_text import digest
from bss_sync.ports.connector import Observation
from bss_sync.ports.inbox import Origin

_ONCE_EACH = frozenset({Origin.FETCH, Origin.RECONCILE})
"""Answers to a question of ours: each counts as a new message, also when it repeats an older one."""


def change_of(
    observation: Observation,
    *,
    origin: Origin,
    order: OrderKind,
    now: datetime,
    known_version: int | None = None,
    attempt: str = "",
) -> Change:
    """The message that an observation makes.

    A poll, a backfill or an import that is repeated gives the same message id, so that the inbox knows it again; an
    observed state has no version that would tell repetition from return, and gets an id of its own. A deletion whose
    version the source does not tell takes ``known_version``: being asked for, it has the last word at that version.
    ``attempt`` names who asks: what one attempt tells twice, because it was carried on after a kill, is one message.

    InvalidMessage for a state without a version from a source that counts.
    """
    if observation.version is None:
        order, version = _without_version(observation, order, known_version)
    else:
        version = observation.version
    sent_at = observation.changed_at or now
    content = {
        "kind": str(observation.kind),
        "id": observation.source_id,
        "version": version,
        "action": str(observation.action),
        "body": None if observation.body is None else dict(observation.body),
    }
    fingerprint = digest(content, "observation")
    return Change(
        message_id=_message_id(observation, origin, version, fingerprint, attempt),
        kind=observation.kind,
        source_id=observation.source_id,
        action=observation.action,
        version=version,
        sent_at=sent_at,
        effective_at=observation.effective_at or sent_at,
        body=observation.body or {},
        digest=fingerprint,
        order=order,
        passed=observation.passed,
    )


def _without_version(
    observation: Observation, order: OrderKind, known_version: int | None
) -> tuple[OrderKind, int | None]:
    if order is OrderKind.OBSERVED:
        return order, None
    if observation.body is None and known_version is not None:
        return order, known_version
    raise InvalidMessage(f"The source gave {_named(observation.kind, observation.source_id)} without a version.")


def _message_id(observation: Observation, origin: Origin, version: int | None, fingerprint: bytes, attempt: str) -> str:
    if attempt:
        # The id of the entity is in the fingerprint.
        return f"{origin}:{attempt}:{fingerprint[:16].hex()}"
    if origin in _ONCE_EACH or version is None:
        return f"{origin}:{uuid4()}"
    return f"{origin}:{observation.kind}:{observation.source_id}:{version}:{fingerprint[:8].hex()}"


def _named(kind: Kind, source_id: str) -> str:
    return f"{kind} {source_id}"
