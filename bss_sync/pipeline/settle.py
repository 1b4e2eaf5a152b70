"""The middle of the line, and pure: every open message of a batch of entities is decided.

    sequence  where does it stand in the order of its entity?            (pipeline.sequence)
    translate which canonical words does it mean?                        (pipeline.translate)
    merge     what does it change: apply, wait, stage, hold, supersede?  (pipeline.merge)

What a decision sets free inside the batch (a parent that arrived, an account that is needed now) is looked at again at
once; what it sets free elsewhere is woken by the write, and the sweeper finds what both missed.
"""

from __future__ import annotations

import math
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from bss_sync.domain.change import HELD, Kind, MessageState, stream_id
from bss_sync.domain.errors import BssSyncError
from bss_sync.domain.hierarchy import would_close_cycle
from bss_sync.pipeline.decision import Decision
from bss_sync.pipeline.merge import decide, reconsider
from bss_sync.pipeline.sequence import in_order, is_end
from bss_sync.ports.inbox import Origin
from bss_sync.ports.streams import (
    Batch,
    ConnectionRules,
    Entity,
    InboxMessage,
    Relative,
    Settled,
    Standing,
    Verdict,
    is_live,
)

UNKNOWN = Relative(Standing.UNKNOWN)


def settle(batch: Batch, chosen: frozenset[UUID] | None = None) -> Settled:
    """Decide every open message of a batch, or the chosen ones. Pure: the batch is a copy that nobody else sees."""
    desk = _Desk(batch, chosen)
    # Subscriptions first: each calls for its account, which is then decided once, knowing that it is needed.
    queue = deque(sorted(batch.entities, key=lambda key: (batch.entities[key].kind is Kind.ACCOUNT, key.int)))
    queued = set(queue)
    while queue:
        entity_id = queue.popleft()
        if entity_id not in queued:
            continue
        queued.discard(entity_id)
        try:
            desk.work_on(entity_id)
        except Exception as error:  # noqa: BLE001  a defect met by one entity must not stop the others (domain.md section 6)
            desk.bury(entity_id, _named(error), "".join(traceback.format_exception(error)))
        # At once: what others of the batch would wait for is there before their turn comes.
        woken = [key for key in desk.take_woken() if key in batch.entities]
        queue.extendleft(woken)
        queued.update(woken)
    return desk.settled


class MessageByMessage:
    """``alone.Rules``: the same rules for some messages of a stream."""

    def wants(self, message: InboxMessage) -> bool:
        """See Rules."""
        return _wants_decision(message)

    def decide(self, batch: Batch, chosen: frozenset[UUID]) -> Settled:
        """See Rules."""
        return settle(batch, chosen)

    def hold(self, batch: Batch, verdicts: Sequence[Verdict]) -> Settled:
        """See Rules."""
        desk = _Desk(batch)
        for entity_id in batch.entities:
            desk.hold(entity_id, verdicts)
        return desk.settled


class _Desk:
    """The world of one batch while it is being settled (``merge.World``), and the heap of what was decided."""

    def __init__(self, batch: Batch, chosen: frozenset[UUID] | None = None) -> None:
        self.now = batch.now
        self.settled = Settled()
        self._batch = batch
        self._chosen = chosen
        self._needed = set(batch.needed)
        self._waiters: dict[UUID, set[UUID]] = {}
        self._cycle_waiters: set[UUID] = set()
        self._passed: dict[UUID, list[InboxMessage]] = {}
        self._woken: set[UUID] = set()
        self._apart = {key for key, entity in batch.entities.items() if _stands_apart(entity)}

    def rules(self, connection_id: UUID) -> ConnectionRules:
        """Today's rules of the connection."""
        return self._batch.rules[connection_id]

    def relative(self, record_id: UUID) -> Relative:
        """How another entity stands, this batch's decisions included."""
        return self._batch.relatives.get(record_id, UNKNOWN)

    def is_needed(self, account_id: UUID) -> bool:
        """Whether a message waits for this account."""
        return account_id in self._needed

    def closes_cycle(self, child: UUID, parent: UUID) -> bool:
        """Whether linking child below parent would close a cycle in the mirror as this batch leaves it."""
        return would_close_cycle(child, parent, lambda record_id: self.relative(record_id).parent_id)

    def take_woken(self) -> set[UUID]:
        """The entities to look at again; each is returned once."""
        woken, self._woken = self._woken, set()
        return woken

    def work_on(self, entity_id: UUID) -> None:
        """Decide the open messages of one entity, then look at what is staged, unlinked or taken over."""
        opened = [
            message
            for message in in_order(self._batch.entities[entity_id].open)
            if _wants_decision(message) and self._is_chosen(message)
        ]
        skipped = [message for message in opened if not self._decide_unless_staged(entity_id, message)]
        for message in skipped:  # a newer one may have entered meanwhile: what was staged is history then
            self._decide_unless_staged(entity_id, message)
        entity = self._batch.entities[entity_id]
        decision = reconsider(entity, self)
        if decision is not None:
            self._take(decision)
            entity = decision.entity
        end = entity.staged_end
        if end is not None and _is_open(entity, end) and self._is_chosen(end):
            verdict = Verdict(end.id, MessageState.OUT_OF_SCOPE, "never_mirrored", "never_mirrored")
            self._take(Decision(entity, (verdict,)))
        if entity_id in self._passed:
            self._decide_again(entity_id)
        self.settled.entities[entity_id] = self._batch.entities[entity_id]

    def _decide_again(self, entity_id: UUID) -> None:
        """What this batch found out of scope before its entity entered with a lower version is history now.

        What that writes may be lower still (an end of before); and what is not above it may be by the next entry.
        """
        lowest = math.inf
        while (since := self.settled.known_since().get(entity_id, math.inf)) < lowest:
            lowest, passed = since, in_order(tuple(self._passed.pop(entity_id)))
            self._passed[entity_id] = [message for message in passed if not _is_since(message, since)]
            for message in passed:
                if _is_since(message, since) and self._decide_unless_staged(entity_id, message):
                    self._keep_waiting(entity_id, message)

    def _keep_waiting(self, entity_id: UUID, message: InboxMessage) -> None:
        """What was out of scope is not open any more: it is again, where it waits now for what this batch may bring."""
        verdict, entity = self.settled.verdicts[message.id][1], self._batch.entities[entity_id]
        if verdict.state is MessageState.WAITING:
            opened = (*entity.open, *_with_verdicts((message,), (verdict,)))
            self._batch.entities[entity_id] = replace(entity, open=opened)

    def _is_chosen(self, message: InboxMessage) -> bool:
        return self._chosen is None or message.id in self._chosen

    def _decide_unless_staged(self, entity_id: UUID, message: InboxMessage) -> bool:
        entity = self._batch.entities[entity_id]
        staged, end = entity.staged, entity.staged_end
        if (staged is not None and staged.id == message.id) or (end is not None and end.id == message.id):
            return False
        try:
            decision = self._guarded(entity, message, decide(entity, message, self))
        except Exception as error:  # noqa: BLE001  a defect met by one message must not stop the others
            decision = Decision(entity, (_dead(message, error),))
        self._take(decision)
        if self.settled.verdicts[message.id][1].state is MessageState.OUT_OF_SCOPE:
            self._passed.setdefault(entity_id, []).append(message)
        return True

    def _guarded(self, entity: Entity, message: InboxMessage, decision: Decision) -> Decision:
        """The decision, or its message held where it would end more than the guard lets pass unasked.

        What a reconciliation ends has been counted in its own run.
        """
        ends = is_live(entity.mirrored) and not is_live(decision.entity.mirrored)
        if not ends or message.cleared or (message.origin is Origin.RECONCILE and is_end(message)):
            return decision
        of, counts = entity.connection_id, self.settled.ends
        guard = self._batch.guards.get(of)
        if guard is not None and not guard.admits(counts.get(of, 0) + 1):
            self.settled.guarded[of] = self.settled.guarded.get(of, 0) + 1
            return Decision(entity, (Verdict(message.id, MessageState.QUARANTINED, "held", "guard"),))
        counts[of] = counts.get(of, 0) + 1
        return decision

    def bury(self, entity_id: UUID, reason: str, stack: str | None) -> None:
        """Dead-letter what is open of one entity: it keeps its last good state."""
        entity = self._batch.entities[entity_id]
        self.hold(
            entity_id,
            [
                Verdict(message.id, MessageState.DEAD, "dead", reason, stack=stack)
                for message in entity.open
                if message.state not in HELD and self._is_chosen(message)
            ],
        )

    def hold(self, entity_id: UUID, verdicts: Sequence[Verdict]) -> None:
        """Give messages of one entity these verdicts, whatever they say."""
        self._take(Decision(self._batch.entities[entity_id], tuple(verdicts)))
        self.settled.entities[entity_id] = self._batch.entities[entity_id]

    def _take(self, decision: Decision) -> None:
        before, after = self._batch.entities[decision.entity.id], decision.entity
        settled = self.settled
        for verdict in decision.verdicts:
            settled.verdicts[verdict.message] = (after.id, verdict)
            if verdict.state is MessageState.WAITING and verdict.waits_for is not None:
                self._waiters.setdefault(verdict.waits_for, set()).add(after.id)
                if verdict.wait_reason == "cycle":
                    self._cycle_waiters.add(after.id)
        settled.history.extend(decision.history)
        if decision.gap is not None:
            settled.gaps.append(decision.gap)
        if decision.closed_gap is not None:
            settled.closed_gaps.append((after.id, *decision.closed_gap))
        if decision.confirmed is not None:
            settled.confirmed[after.id] = max(decision.confirmed, settled.confirmed.get(after.id, 0))
        if decision.fetch is not None:
            settled.fetches.append(decision.fetch)
        if decision.needs is not None and decision.needs not in self._needed:
            self._needed.add(decision.needs)
            settled.needed.add(decision.needs)
            self._woken.add(decision.needs)
        after = _as_decided(after, decision.verdicts)
        self._batch.entities[after.id] = after
        if decision.changed:
            self._mirror_changed(before, after)
        elif after.mirrored is None and (after.staged is not None or after.staged_end is not None):
            standing = Standing.STAGED if after.staged is not None else Standing.GONE
            self._batch.relatives[after.id] = Relative(standing)
            if before.staged is None and before.staged_end is None:
                # Once only: two that wait for each other would wake each other for ever.
                settled.arrived.add(after.id)
                self._woken |= self._waiters.get(after.id, set())

    def _mirror_changed(self, before: Entity, after: Entity) -> None:
        self.settled.changed.add(after.id)
        assert after.mirrored is not None, "only a mirrored record changes"
        link = link_of(after) if after.mirrored.parent_linked else None
        known = self.relative(after.id)
        (self._apart.add if _stands_apart(after) else self._apart.discard)(after.id)
        self._batch.relatives[after.id] = Relative(Standing.MIRRORED, link)
        if before.mirrored is None:
            self.settled.entered.add(after.id)
            self._woken |= self._waiters.get(after.id, set()) | self._unlinked()
        if known.parent_id != link or before.mirrored is None:
            self.settled.moved.add(after.id)
            self._woken |= self._cycle_waiters | self._unlinked()

    def _unlinked(self) -> set[UUID]:
        """Records of this batch that stand without the link to a parent which is in the mirror."""
        return {
            key
            for key in self._apart
            if (parent := link_of(self._batch.entities[key])) is not None
            and self.relative(parent).standing is Standing.MIRRORED
        }


def _stands_apart(entity: Entity) -> bool:
    """Whether a mirrored record names a parent that it is not linked to."""
    mirrored = entity.mirrored
    return mirrored is not None and not mirrored.parent_linked and mirrored.content["parent_id"] is not None


def link_of(entity: Entity) -> UUID | None:
    """The record that an entity's parent would be, whether or not it is in the mirror."""
    assert entity.mirrored is not None, "only a mirrored record has a link"
    parent = entity.mirrored.content["parent_id"]
    return None if parent is None else stream_id(entity.connection_id, entity.kind, parent)


def _dead(message: InboxMessage, error: Exception) -> Verdict:
    stack = "".join(traceback.format_exception(error))
    return Verdict(message.id, MessageState.DEAD, "dead", _named(error), stack=stack)


def _named(error: Exception) -> str:
    return error.slug if isinstance(error, BssSyncError) else type(error).__name__


def _wants_decision(message: InboxMessage) -> bool:
    return message.state is MessageState.PENDING or (
        message.state is MessageState.WAITING and message.wait_reason != "fetch"
    )


def _is_since(message: InboxMessage, version: float) -> bool:
    """Whether it tells of what came after that version. An end counts wherever it stands."""
    return is_end(message) or (message.version is not None and message.version > version)


def _is_open(entity: Entity, message: InboxMessage) -> bool:
    return any(item.id == message.id and item.state is MessageState.PENDING for item in entity.open)


def _as_decided(entity: Entity, verdicts: tuple[Verdict, ...]) -> Entity:
    """The entity with what is still open of it. Said in full: a copy with changes takes twice as long."""
    held = entity.held
    if now_held := {verdict.message for verdict in verdicts if verdict.state in HELD}:
        held |= {one.version for one in entity.open if one.id in now_held and one.version is not None}
    return Entity(
        id=entity.id,
        tenant_id=entity.tenant_id,
        connection_id=entity.connection_id,
        kind=entity.kind,
        source_id=entity.source_id,
        position=entity.position,
        mirrored=entity.mirrored,
        staged=entity.staged,
        staged_end=entity.staged_end,
        open=_with_verdicts(entity.open, verdicts),
        versions=entity.versions,
        held=held,
        taken=entity.taken,
        laid=entity.laid,
    )


def _with_verdicts(messages: tuple[InboxMessage, ...], verdicts: tuple[Verdict, ...]) -> tuple[InboxMessage, ...]:
    decided = {verdict.message: verdict for verdict in verdicts}
    kept = []
    for message in messages:
        verdict = decided.get(message.id)
        if verdict is None:
            kept.append(message)
        elif verdict.state is MessageState.WAITING:
            kept.append(
                replace(
                    message,
                    state=verdict.state,
                    wait_reason=verdict.wait_reason,
                    wait_until=verdict.wait_until,
                    fetch_asked=verdict.fetch_asked,
                )
            )
    return tuple(kept)
