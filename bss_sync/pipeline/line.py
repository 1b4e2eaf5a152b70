"""The line: the whole path of a message, from the door to the audit, with every transaction boundary.

    accept    verified changes → inbox rows                                                    → commit → 202
    process   claim streams: lease, fencing token, attempt + 1                                 → commit
              lock → load → settle → mirror, history, staging, audit, outbox                   → commit
    deliver   claim outbox rows, write the intent                                              → commit
              look up / call the distributor's BSS                      (pipeline.deliver)
              binding, confirmation, audit                                                     → commit

``settle`` is the middle of it, and pure (pipeline.settle).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from bss_sync.domain.change import HELD, MessageState
from bss_sync.domain.errors import LeaseLost, MessageConflict, Transient
from bss_sync.pipeline.alone import Alone
from bss_sync.pipeline.settle import MessageByMessage, settle
from bss_sync.ports.inbox import Accepted, Arrival, InboxStore, Stale
from bss_sync.ports.streams import SHARED_STREAMS, Batch, Claim, Settled, StreamStore

BATCH_STREAMS = 500
"""Streams per claim: one transaction each."""


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """What one call of ``process`` did, and what has work now."""

    decided: int
    more: bool
    wake_shards: frozenset[int] = frozenset()
    deliveries: bool = False
    fetches: bool = False


def accept(inbox: InboxStore, arrivals: Sequence[Arrival]) -> list[Accepted | MessageConflict | Stale]:
    """Store verified arrivals; every way in ends here. Returns after the commit, one answer per arrival."""
    return inbox.accept(arrivals) if arrivals else []


def process(streams: StreamStore, shard: int, *, limit: int = BATCH_STREAMS) -> ProcessResult:
    """Decide what is open in a shard, one batch. Transient when a dependency is down: leases run out by themselves."""
    claims = streams.claim(shard, limit)
    if not claims:
        return ProcessResult(0, more=False)
    if claims[0].again:
        return _alone(streams, claims[0])
    done = _work(streams, claims)
    full = len(claims) >= min(limit, SHARED_STREAMS) or claims[0].alone
    return replace(done, more=done.more or full or shard in done.wake_shards)


def process_little(
    streams: StreamStore, shards: Sequence[int], *, limit: int = SHARED_STREAMS
) -> tuple[ProcessResult, frozenset[int]]:
    """Decide what is pending of connections that have little, in all these shards, one batch.

    Returns what was done and the shards that have work besides. There may be ``more`` whenever anything was decided:
    what came for a stream of the batch while it was under way is nobody else's.
    """
    little = streams.claim_little(shards, limit)
    if not little.claims:
        return ProcessResult(0, more=False), little.behind
    done = _work(streams, little.claims)
    # What could not be decided together is claimed alone, and that is no little work.
    return replace(done, more=True), little.behind if done.decided else frozenset(shards)


def _work(streams: StreamStore, claims: Sequence[Claim]) -> ProcessResult:
    try:
        settled, written = streams.work(claims, settle)
    except LeaseLost:
        return ProcessResult(0, more=True)
    except Transient:
        raise
    except Exception:  # noqa: BLE001  whatever it is, it belongs to one stream of the batch: find out which
        return _isolate(streams, claims)
    return ProcessResult(len(settled.verdicts), False, written.wake_shards, written.deliveries, written.fetches)


def _isolate(streams: StreamStore, claims: Sequence[Claim]) -> ProcessResult:
    """A batch that cannot be written: alone, each stream shows whether it is the one."""
    if len(claims) == 1:
        return _alone(streams, claims[0])
    streams.release(claims)
    return ProcessResult(0, more=True)


def _alone(streams: StreamStore, claim: Claim) -> ProcessResult:
    """Message by message, so that what cannot be decided, or ends the process, is held and nothing beside it."""
    alone = Alone(streams, claim, MessageByMessage())
    alone.run()
    return ProcessResult(alone.decided, True, frozenset(alone.wake_shards), alone.deliveries, alone.fetches)


def rehearse(streams: StreamStore, message_ids: Sequence[UUID]) -> Settled:
    """What ``process`` would decide if these messages were pending now, in ``Settled.verdicts``. Writes nothing."""
    return streams.rehearse(message_ids, _with_overtaken)


def _with_overtaken(batch: Batch) -> Settled:
    """As ``settle``, and what it holds and the write of the same batch overtakes."""
    before = dict(batch.entities)
    settled = settle(batch)
    for entity in before.values():
        if (reach := settled.reach(entity)) is None:
            continue
        for message in entity.open:
            verdict = settled.verdicts[message.id][1] if message.id in settled.verdicts else None
            if verdict is not None and verdict.state in HELD and reach.covers(message):
                overtaken = replace(verdict, state=MessageState.SUPERSEDED, verdict="overtaken")
                settled.verdicts[message.id] = (entity.id, overtaken)
    return settled
