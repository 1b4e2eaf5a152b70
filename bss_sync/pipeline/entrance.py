"""Entrance: what we have asked for enters the mirror, a chunk at a time. Pure, and by the rules of the line.

``enter``: what nobody has heard of

    settle    accounts, new ones and those that were out of scope and are needed now    (pipeline.line)
    enter     subscriptions that are plain: paid, of a product of ours, nothing unknown in them, no add-on, their
              account in the mirror. By far the most of a first load; for each the line would decide just this
    settle    the other subscriptions: add-ons, and what is out of scope

``follow``: subscriptions that are known

    settle    all; what is applied, and concerns nobody but itself, is the answer

What would wait, be held or buried is in neither answer: the inbox and its workers are for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from bss_sync.domain.change import Content, Kind, MessageState, stream_id
from bss_sync.domain.errors import UnknownValue
from bss_sync.domain.product import why_out_of_scope
from bss_sync.domain.subscription import FIELDS
from bss_sync.pipeline.settle import settle
from bss_sync.pipeline.translate import content_digest, translate
from bss_sync.ports.loading import Entered, New, NewBatch
from bss_sync.ports.streams import (
    Batch,
    ConnectionRules,
    Entity,
    InboxMessage,
    Relative,
    Settled,
    Standing,
    is_live,
)

_WORDS = frozenset(FIELDS)
_MIRRORED = Relative(Standing.MIRRORED)
_UNKNOWN = Relative(Standing.UNKNOWN)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A subscription that enters when its account is in the mirror."""

    new: New
    content: Content
    account_id: UUID | None


def enter(given: NewBatch) -> Entered:
    """Decide a chunk. The batch is a copy that nobody else sees."""
    batch, rules = given.batch, given.batch.rules[given.connection_id]
    candidates: dict[UUID, _Candidate] = {}
    others: dict[UUID, New] = {}
    accounts: dict[UUID, New] = {}
    for key, new in given.new.items():
        if new.change.kind is Kind.ACCOUNT:
            accounts[key] = new
            continue
        candidate = _candidate(given.connection_id, new, rules)
        if candidate is None:
            others[key] = new
        else:
            candidates[key] = candidate
    batch.needed |= {
        one.account_id
        for one in candidates.values()
        if one.account_id is not None
        and batch.relatives.get(one.account_id, _UNKNOWN).standing is not _MIRRORED.standing
    }
    settled = settle(_with(batch, dict(batch.entities), accounts, given))
    entering = [
        one
        for one in candidates.values()
        if one.account_id is None or batch.relatives.get(one.account_id, _UNKNOWN).standing is _MIRRORED.standing
    ]
    if others:
        batch.relatives.update((one.new.record_id, _MIRRORED) for one in entering)
        _join(settled, settle(_with(batch, {}, others, given)))
    return Entered(
        settled,
        [(one.new, one.content, content_digest(one.new.change.action, one.new.change.body)) for one in entering],
    )


def follow(batch: Batch) -> Settled:
    """Decide subscriptions that are known. The batch is a copy that nobody else sees.

    In the answer are those that are applied and concern nobody else: before and after they are live (the guard counts
    ends, in batches that take turns), have no parent, and are neither altered by hand nor taken over.
    """
    before = dict(batch.entities)
    settled = settle(batch)
    left = {stream for stream, verdict in settled.verdicts.values() if verdict.state is not MessageState.APPLIED}
    left |= {key for key, entity in settled.entities.items() if not _is_alone(before[key]) or not _is_alone(entity)}
    return settled.of(settled.entities.keys() - left) if left else settled


def _is_alone(entity: Entity) -> bool:
    mirrored = entity.mirrored
    return (
        mirrored is not None
        and is_live(mirrored)
        and mirrored.content["parent_id"] is None
        and not (entity.taken or entity.laid or entity.staged or entity.staged_end)
    )


def _candidate(connection_id: UUID, new: New, rules: ConnectionRules) -> _Candidate | None:
    """None where more than its account decides what becomes of it."""
    change = new.change
    body = change.body
    if body["parent_id"] is not None or rules.instance_id in change.passed or not body.keys() <= _WORDS:
        return None
    if why_out_of_scope(rules.catalogue.resolve(body["product"]), trial=body["trial"]) is not None:
        return None
    try:
        content = translate(Kind.SUBSCRIPTION, body, rules)
    except UnknownValue:
        return None
    account = body["account_id"]
    return _Candidate(new, content, None if account is None else stream_id(connection_id, Kind.ACCOUNT, account))


def _with(batch: Batch, entities: dict[UUID, Entity], new: Mapping[UUID, New], given: NewBatch) -> Batch:
    entities.update((key, _entity(one, given)) for key, one in new.items())
    return replace(batch, entities=entities)


def _entity(new: New, given: NewBatch) -> Entity:
    change = new.change
    message = InboxMessage(
        id=new.message,
        seq=0,
        message_id=change.message_id,
        origin=given.origin,
        action=change.action,
        order=change.order,
        version=change.version,
        sent_at=change.sent_at,
        effective_at=change.effective_at,
        received_at=given.batch.now,
        body=change.body,
        state=MessageState.PENDING,
        passed=change.passed,
    )
    return Entity(new.record_id, given.tenant_id, given.connection_id, change.kind, change.source_id, open=(message,))


def _join(settled: Settled, more: Settled) -> None:
    settled.entities |= more.entities
    settled.verdicts |= more.verdicts
    settled.history += more.history
    settled.fetches += more.fetches
    settled.entered |= more.entered
    settled.arrived |= more.arrived
    settled.moved |= more.moved
    settled.changed |= more.changed
    settled.needed |= more.needed
