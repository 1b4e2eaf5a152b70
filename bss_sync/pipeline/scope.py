"""Scope: is an entity ours to mirror, and is everything here that it refers to? Pure (domain.md sections 3 and 6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID

from bss_sync.domain.change import Content, Kind, MessageState, WaitReason, stream_id
from bss_sync.domain.product import why_left_scope, why_out_of_scope
from bss_sync.pipeline.decision import Decision, World, verdict_on
from bss_sync.ports.streams import ConnectionRules, Entity, FetchRequest, InboxMessage, Standing, Verdict


@dataclass(frozen=True, slots=True)
class Obstacle:
    """The relative that a state cannot be applied without."""

    reason: WaitReason
    kind: Kind
    source_id: str
    record_id: UUID


def why_not_in_scope(entity: Entity, content: Content, message: InboxMessage, world: World) -> str | None:
    """Why an entity does not enter, or does not return; None when it does."""
    rules = world.rules(entity.connection_id)
    if entity.kind is Kind.ACCOUNT:
        return None if rules.accounts_at_once or world.is_needed(entity.id) else "no_paid_subscription"
    product = rules.catalogue.resolve(message.body["product"])
    if entity.mirrored is not None:
        return why_left_scope(product)
    return why_out_of_scope(product, trial=content["trial"])


def is_foreign(kind: Kind, message: InboxMessage, rules: ConnectionRules) -> bool:
    """Whether the message speaks of a product that is not in the catalogue."""
    if kind is Kind.ACCOUNT:
        return False
    return why_left_scope(rules.catalogue.resolve(message.body["product"])) is not None


def find_obstacle(entity: Entity, content: Content, world: World) -> Obstacle | None:
    """The first relative that the content cannot be applied without; None when all are here."""
    account = content.get("account_id")
    if account is not None:
        account_id = stream_id(entity.connection_id, Kind.ACCOUNT, account)
        if world.relative(account_id).standing is not Standing.MIRRORED:
            return Obstacle(WaitReason.ACCOUNT, Kind.ACCOUNT, account, account_id)
    parent = content["parent_id"]
    if parent is None:
        return None
    parent_id = stream_id(entity.connection_id, entity.kind, parent)
    standing = world.relative(parent_id).standing
    if standing is Standing.MIRRORED or parent_id == entity.id:
        if world.closes_cycle(entity.id, parent_id):
            return Obstacle(WaitReason.CYCLE, entity.kind, parent, parent_id)
        return None
    known_is_enough = entity.kind is Kind.SUBSCRIPTION and standing is not Standing.UNKNOWN
    return None if known_is_enough else Obstacle(WaitReason.PARENT, entity.kind, parent, parent_id)


def parent_of(entity: Entity, content: Content) -> UUID | None:
    """The record that the content names as parent, whether or not it is in the mirror."""
    parent = content["parent_id"]
    return None if parent is None else stream_id(entity.connection_id, entity.kind, parent)


def is_mirrored(record_id: UUID | None, world: World) -> bool:
    """Whether there is such a record in the mirror."""
    return record_id is not None and world.relative(record_id).standing is Standing.MIRRORED


def can_be_linked(entity: Entity, content: Content, world: World) -> bool:
    """Whether the named parent is in the mirror and the link closes no cycle."""
    parent = parent_of(entity, content)
    if parent is None or not is_mirrored(parent, world):
        return False
    return not world.closes_cycle(entity.id, parent)


def wait_for(entity: Entity, message: InboxMessage, obstacle: Obstacle, world: World) -> Decision:
    """Wait for the relative; past the deadline let it be fetched; only then a dead letter."""
    rules = world.rules(entity.connection_id)
    waited = message.state is MessageState.WAITING and message.wait_until is not None
    until = message.wait_until if waited else None
    asked, fetch = message.fetch_asked if waited else False, None
    if until is not None and world.now >= until:
        if asked or not rules.can_fetch:
            reason = "cycle_confirmed" if obstacle.reason is WaitReason.CYCLE else f"{obstacle.reason}_past_deadline"
            dead = replace(verdict_on(message, MessageState.DEAD, "dead", reason), waits_for=obstacle.record_id)
            return Decision(entity, (dead,))
        asked, until = True, None
        fetch = FetchRequest(
            obstacle.record_id, entity.connection_id, entity.tenant_id, obstacle.kind, obstacle.source_id, "waited_for"
        )
    if until is None:
        until = world.now + timedelta(seconds=rules.wait_seconds)
    verdict = Verdict(
        message.id,
        MessageState.WAITING,
        "waiting",
        f"{obstacle.reason}: {obstacle.kind} {obstacle.source_id}",
        waits_for=obstacle.record_id,
        wait_reason=obstacle.reason,
        wait_until=until,
        fetch_asked=asked,
    )
    needs = obstacle.record_id if obstacle.kind is Kind.ACCOUNT else None
    return Decision(entity, (verdict,), fetch=fetch, needs=needs)
