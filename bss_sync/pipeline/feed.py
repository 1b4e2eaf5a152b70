"""Feed: what we have asked for goes into the inbox, like anything that was sent."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from bss_sync.domain.change import Change
from bss_sync.domain.errors import StateConflict
from bss_sync.ports.inbox import Accepted, Arrival, InboxStore, Origin, Stale
from bss_sync.ports.runtime import WakeUps

CHUNK = 500
"""Messages per inbox transaction."""


def feed(
    inbox: InboxStore, wake: WakeUps, tenant_id: UUID, connection_id: UUID, origin: Origin, changes: Sequence[Change]
) -> Accepted:
    """Put our own changes into the inbox and hint at their shard. StateConflict when the connection is closed."""
    if not changes:
        return Accepted(0, 0, None)
    answer = inbox.accept([Arrival(tenant_id, connection_id, None, origin, changes)])[0]
    if isinstance(answer, Stale):
        raise StateConflict("The connection is closed and takes nothing any more.")
    if not isinstance(answer, Accepted):
        raise answer
    if answer.accepted and answer.shard is not None:
        wake.process(answer.shard)
    return answer
