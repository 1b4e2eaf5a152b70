"""Merge: one message of one entity → what it changes. Pure: it decides and returns, it writes nothing.

The decision depends on the message's rank in its entity's order (``sequence``), on scope (domain.md section 3), and on
its relatives: an account or a parent that is not in the mirror yet is waited for. The path:

    decide
    ├── it passed this instance       → dead: a loop
    ├── a notification                → wait for the fetch
    ├── no newer than what is known   → superseded, or held as a version conflict
    ├── below what is known           → late: into history, never into the present
    └── above everything known        → the present:
        ├── a deletion                → tombstone
        ├── bound, product now foreign→ the mirror ends: left_scope
        ├── unbound, out of scope     → staged
        ├── a relative is missing     → waits
        └── otherwise                 → applied (and entered, when unbound)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from bss_sync.domain.change import Action, Content, Kind, MessageState, WaitReason, stream_id
from bss_sync.domain.errors import UnknownValue
from bss_sync.domain.product import Standing as ProductStanding
from bss_sync.domain.product import why_out_of_scope
from bss_sync.domain.subscription import Status
from bss_sync.pipeline.sequence import AUTHORITATIVE, Rank, evidence, is_end, missing_versions, rank, version_of
from bss_sync.pipeline.translate import content_digest, translate
from bss_sync.ports.inbox import Origin
from bss_sync.ports.streams import (
    ConnectionRules,
    Entity,
    FetchRequest,
    Gap,
    HistoryRow,
    InboxMessage,
    Mirrored,
    Position,
    Relative,
    Standing,
    Verdict,
)

LEFT_SCOPE = "left_scope"
LOOP = "loop"


class World(Protocol):
    """What a decision may ask about everything but its own entity."""

    now: datetime

    def rules(self, connection_id: UUID) -> ConnectionRules:
        """Today's rules of the connection."""
        ...

    def relative(self, record_id: UUID) -> Relative:
        """How another entity stands."""
        ...

    def is_needed(self, account_id: UUID) -> bool:
        """Whether a message waits for this account."""
        ...

    def closes_cycle(self, kind: Kind, child: UUID, parent: UUID) -> bool:
        """Whether linking child below parent would close a cycle."""
        ...


@dataclass(frozen=True, slots=True)
class Decision:
    """What one step changes. ``entity`` is the entity afterwards; ``changed``: its row in the mirror is to be written."""

    entity: Entity
    verdicts: tuple[Verdict, ...] = ()
    history: tuple[HistoryRow, ...] = ()
    gap: Gap | None = None
    closed_gap: tuple[int, str] | None = None
    confirmed: int | None = None
    fetch: FetchRequest | None = None
    changed: bool = False
    needs: UUID | None = None


@dataclass(frozen=True, slots=True)
class Obstacle:
    """The relative that a state cannot be applied without."""

    reason: WaitReason
    kind: Kind
    source_id: str
    record_id: UUID


def decide(entity: Entity, message: InboxMessage, world: World) -> Decision:
    """Decide one open message of an entity by today's rules."""
    rules = world.rules(entity.connection_id)
    if rules.instance_id in message.passed:
        return Decision(entity, (_verdict(message, MessageState.DEAD, "dead", LOOP),))
    if message.action is Action.NOTIFIED:
        return _notified(entity, message, rules)
    digest = content_digest(message.action, message.body)
    standing = rank(entity.position, message, digest)
    if standing is Rank.FORMER:
        return _superseded(entity, message, "former_epoch")
    if standing is Rank.SAME and not _is_astray(entity, message, rules):
        return _same(entity, message)
    if standing is Rank.CONFLICT:
        return _conflict(entity, message, rules)
    try:
        content = None if is_end(message) else translate(entity.kind, message.body, rules)
    except UnknownValue as error:
        if standing is Rank.LATE:
            return replace(_superseded(entity, message, "late_unknown_value"), closed_gap=_closed(message))
        return _quarantined(entity, message, error)
    if standing is Rank.LATE:
        known = message.version in entity.versions
        return replace(_late(entity, message, content, world), closed_gap=None if known else _closed(message))
    return replace(_newer(entity, message, content, digest, world), confirmed=_answered(message))


def _is_astray(entity: Entity, message: InboxMessage, rules: ConnectionRules) -> bool:
    """Whether reconcile has found a mirror that shows otherwise than its stream says: it was written past the line.

    Then the source's word is applied once more at its version. What the mirror once held and has lost enters again.
    """
    mirrored = entity.mirrored
    if message.origin is not Origin.RECONCILE:
        return False
    if mirrored is None:
        return not is_end(message) and entity.staged is None
    if is_end(message):
        return mirrored.deleted_at is None
    if _is_foreign(entity.kind, message, rules):
        return mirrored.ended_at is None
    try:
        content = translate(entity.kind, message.body, rules)
    except UnknownValue:
        return False
    columns = {name: value for name, value in entity.taken.items() if value != mirrored.content.get(name)}
    ended = mirrored.deleted_at is not None or mirrored.ended_at is not None
    astray = content != mirrored.content or dict(entity.laid) != columns or mirrored.version != entity.position.version
    return astray or (ended and entity.staged is None)


def reconsider(entity: Entity, world: World) -> Decision | None:
    """Look at an entity again without a new message: is its staged state in scope now, its parent here, a field taken?

    Returns None when nothing changes. A staged message that is open (replayed, or waiting) always gets a verdict.
    """
    if entity.staged is not None and (entity.mirrored is None or entity.mirrored.ended_reason == LEFT_SCOPE):
        decision = _reconsider_staged(entity, entity.staged, world)
        if decision is not None:
            return decision
    mirrored = entity.mirrored
    if mirrored is None:
        return None
    if not mirrored.parent_linked and _can_be_linked(entity, mirrored.content, world):
        return Decision(replace(entity, mirrored=replace(mirrored, parent_linked=True)), changed=True)
    shown = {name: value for name, value in entity.taken.items() if value != mirrored.content[name]}
    if shown != dict(entity.laid):
        return Decision(replace(entity, laid=shown), changed=True)
    return None


def _reconsider_staged(entity: Entity, staged: InboxMessage, world: World) -> Decision | None:
    rules = world.rules(entity.connection_id)
    open_now = any(message.id == staged.id for message in entity.open)
    try:
        content = translate(entity.kind, staged.body, rules)
    except UnknownValue as error:
        return _quarantined(entity, staged, error) if open_now else None
    reason = _scope_reason(entity, content, staged, world)
    if reason is not None:
        return Decision(entity, (_verdict(staged, MessageState.OUT_OF_SCOPE, reason, reason),)) if open_now else None
    obstacle = _obstacle(entity, content, world)
    if obstacle is not None:
        return _wait(entity, staged, obstacle, world)
    return _enter(entity, [staged, *([entity.staged_end] if entity.staged_end else [])], world)


# --- above everything known -------------------------------------------------------------------------------------------


def _newer(entity: Entity, message: InboxMessage, content: Content | None, digest: bytes, world: World) -> Decision:
    version = version_of(entity.position, message)
    rules = world.rules(entity.connection_id)
    here = frozenset(other.version for other in entity.open if other.version is not None and other.id != message.id)
    jumped = missing_versions(entity.position, message, here | entity.held)
    if content is None:
        decision = _ended(entity, message, version, digest)
    elif entity.mirrored is not None and _is_foreign(entity.kind, message, rules):
        decision = _left_scope(entity, message, version, digest)
    else:
        # What history has at this version was mirrored and got lost: it is bound for ever, in scope or not.
        bound = entity.mirrored is not None or entity.position.version in entity.versions
        reason = None if bound else _scope_reason(entity, content, message, world)
        if reason is not None:
            decision = _staged(entity, message, version, digest, reason)
        elif (obstacle := _obstacle(entity, content, world)) is not None:
            return _wait(entity, message, obstacle, world)
        else:
            decision = _applied(entity, message, content, version, digest, world)
    if jumped is None:
        return decision
    gap = Gap(entity.id, *jumped)
    fetch = _fetch(entity, "gap") if rules.can_fetch and message.origin != "fetch" else None
    return replace(decision, gap=gap, fetch=fetch)


def _applied(
    entity: Entity, message: InboxMessage, content: Content, version: int, digest: bytes, world: World
) -> Decision:
    position = _advanced(entity.position, message, version, digest, deleted=False)
    mirrored = Mirrored(
        content=content,
        version=version,
        epoch=position.epoch,
        order=message.order,
        effective_at=message.effective_at,
        message=message.id,
        passed=message.passed,
        parent_linked=_is_mirrored(_parent_id(entity, content), world),
    )
    row = HistoryRow(
        entity.id, position.epoch, version, message.effective_at, content, deleted=False, message=message.id
    )
    word = "entered" if entity.mirrored is None else "updated"
    after = replace(
        entity,
        position=position,
        mirrored=mirrored,
        staged=None,
        staged_end=None,
        versions=entity.versions | {version},
        laid=entity.taken,
    )
    return Decision(after, (_verdict(message, MessageState.APPLIED, word),), (row,), changed=True)


def _ended(entity: Entity, message: InboxMessage, version: int, digest: bytes) -> Decision:
    position = _advanced(entity.position, message, version, digest, deleted=True)
    if entity.mirrored is None:
        after = replace(entity, position=position, staged_end=message)
        reason = "never_mirrored"
        return Decision(after, (_verdict(message, MessageState.OUT_OF_SCOPE, reason, reason),))
    mirrored = replace(
        entity.mirrored,
        version=version,
        epoch=position.epoch,
        order=message.order,
        effective_at=message.effective_at,
        message=message.id,
        passed=message.passed,
        deleted_at=message.effective_at,
    )
    row = HistoryRow(
        entity.id,
        position.epoch,
        version,
        message.effective_at,
        entity.mirrored.content,
        deleted=True,
        message=message.id,
    )
    after = replace(entity, position=position, mirrored=mirrored, versions=entity.versions | {version}, staged=None)
    return Decision(after, (_verdict(message, MessageState.APPLIED, "deleted"),), (row,), changed=True)


def _left_scope(entity: Entity, message: InboxMessage, version: int, digest: bytes) -> Decision:
    assert entity.mirrored is not None, "only what is bound can leave scope"
    position = _advanced(entity.position, message, version, digest, deleted=False)
    content = _terminated(entity.mirrored.content)
    mirrored = replace(
        entity.mirrored,
        content=content,
        version=version,
        epoch=position.epoch,
        order=message.order,
        effective_at=message.effective_at,
        message=message.id,
        passed=message.passed,
        deleted_at=None,
        ended_at=message.effective_at,
        ended_reason=LEFT_SCOPE,
    )
    row = HistoryRow(
        entity.id,
        position.epoch,
        version,
        message.effective_at,
        content,
        deleted=False,
        message=message.id,
        ended_reason=LEFT_SCOPE,
    )
    after = replace(entity, position=position, mirrored=mirrored, staged=message, versions=entity.versions | {version})
    return Decision(after, (_verdict(message, MessageState.APPLIED, "ended", LEFT_SCOPE),), (row,), changed=True)


def _staged(entity: Entity, message: InboxMessage, version: int, digest: bytes, reason: str) -> Decision:
    position = _advanced(entity.position, message, version, digest, deleted=False)
    after = replace(entity, position=position, staged=message, staged_end=None)
    return Decision(after, (_verdict(message, MessageState.OUT_OF_SCOPE, reason, reason),))


# --- below what is known ----------------------------------------------------------------------------------------------


def _late(entity: Entity, message: InboxMessage, content: Content | None, world: World) -> Decision:
    if entity.mirrored is not None:
        return _late_into_history(entity, message, content, world)
    if content is None:
        verdict = _verdict(message, MessageState.OUT_OF_SCOPE, "never_mirrored", "never_mirrored")
        return Decision(entity, (verdict,))
    below_staged = entity.staged is not None and not _follows(message, entity.staged)
    if _scope_reason(entity, content, message, world) is None and (
        entity.kind is Kind.SUBSCRIPTION or not below_staged
    ):
        obstacle = _obstacle(entity, content, world)
        if obstacle is not None:
            return _wait(entity, message, obstacle, world)
        later = [known for known in (entity.staged, entity.staged_end) if known and _follows(known, message)]
        return _enter(entity, [message, *later], world)
    if below_staged and entity.kind is Kind.ACCOUNT:
        return _superseded(entity, message, "late")
    if below_staged:
        # Should a still lower version enter, this one belongs to its history: it must be found again.
        return Decision(entity, (_verdict(message, MessageState.OUT_OF_SCOPE, "late", "late"),))
    reason = _scope_reason(entity, content, message, world) or "late"
    return Decision(replace(entity, staged=message), (_verdict(message, MessageState.OUT_OF_SCOPE, reason, reason),))


def _late_into_history(entity: Entity, message: InboxMessage, content: Content | None, world: World) -> Decision:
    assert entity.mirrored is not None and message.version is not None, "late states have a version and a binding"
    if message.version in entity.versions:
        return _superseded(entity, message, "late_known")
    foreign = content is not None and _is_foreign(entity.kind, message, world.rules(entity.connection_id))
    if foreign:
        state: Content = _terminated(entity.mirrored.content)
    else:
        state = content if content is not None else entity.mirrored.content
    row = HistoryRow(
        entity.id,
        entity.position.epoch,
        message.version,
        message.effective_at,
        state,
        deleted=content is None,
        message=message.id,
        ended_reason=LEFT_SCOPE if foreign else None,
        late=True,
    )
    after = replace(entity, versions=entity.versions | {message.version})
    return Decision(after, (_verdict(message, MessageState.SUPERSEDED, "late"),), (row,))


def _enter(entity: Entity, messages: list[InboxMessage], world: World) -> Decision:
    """Enter with the first message, then apply the later ones that are known already, each at its own version.

    However the messages were shuffled, the mirror and its history come out as if they had come in order.
    """
    first = messages[0]
    digest = content_digest(first.action, first.body)
    version = _staged_version(entity, first, len(messages))
    rules = world.rules(entity.connection_id)
    content = translate(entity.kind, first.body, rules)
    was_late = entity.staged is None or first.id != entity.staged.id
    start = replace(entity, position=replace(entity.position, version=None), staged=None, staged_end=None)
    decision = _applied(start, first, content, version, digest, world)
    verdicts, history, after = list(decision.verdicts), list(decision.history), decision.entity
    needs, fetch = None, None
    for message in messages[1:]:
        following = decide(after, message, world)
        verdicts.extend(following.verdicts)
        history.extend(following.history)
        after, needs, fetch = following.entity, following.needs or needs, following.fetch or fetch
        if following.verdicts[-1].state is MessageState.WAITING:
            after = replace(after, open=(*after.open, message))
    if was_late and len(messages) > 1:
        verdicts[0] = _verdict(first, MessageState.SUPERSEDED, "entered_late")
        history[0] = replace(history[0], late=True)
    return Decision(after, tuple(verdicts), tuple(history), changed=True, needs=needs, fetch=fetch)


def _staged_version(entity: Entity, first: InboxMessage, count: int) -> int:
    if first.version is not None:
        return first.version
    assert entity.position.version is not None, "what is staged has a position"
    return entity.position.version - (count - 1)


# --- scope and relatives ----------------------------------------------------------------------------------------------


def _scope_reason(entity: Entity, content: Content, message: InboxMessage, world: World) -> str | None:
    rules = world.rules(entity.connection_id)
    if entity.kind is Kind.ACCOUNT:
        return None if rules.accounts_at_once or world.is_needed(entity.id) else "no_paid_subscription"
    product = rules.catalogue.resolve(message.body["product"])
    if entity.mirrored is not None:
        return "product_not_in_catalogue" if product.standing is ProductStanding.FOREIGN else None
    return why_out_of_scope(product, trial=content["trial"])


def _is_foreign(kind: Kind, message: InboxMessage, rules: ConnectionRules) -> bool:
    if kind is Kind.ACCOUNT:
        return False
    return rules.catalogue.resolve(message.body["product"]).standing is ProductStanding.FOREIGN


def _obstacle(entity: Entity, content: Content, world: World) -> Obstacle | None:
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
        if world.closes_cycle(entity.kind, entity.id, parent_id):
            return Obstacle(WaitReason.CYCLE, entity.kind, parent, parent_id)
        return None
    known_is_enough = entity.kind is Kind.SUBSCRIPTION and standing is not Standing.UNKNOWN
    return None if known_is_enough else Obstacle(WaitReason.PARENT, entity.kind, parent, parent_id)


def _parent_id(entity: Entity, content: Content) -> UUID | None:
    parent = content["parent_id"]
    return None if parent is None else stream_id(entity.connection_id, entity.kind, parent)


def _is_mirrored(record_id: UUID | None, world: World) -> bool:
    return record_id is not None and world.relative(record_id).standing is Standing.MIRRORED


def _can_be_linked(entity: Entity, content: Content, world: World) -> bool:
    parent = _parent_id(entity, content)
    if parent is None or not _is_mirrored(parent, world):
        return False
    return not world.closes_cycle(entity.kind, entity.id, parent)


def _wait(entity: Entity, message: InboxMessage, obstacle: Obstacle, world: World) -> Decision:
    rules = world.rules(entity.connection_id)
    waited = message.state is MessageState.WAITING and message.wait_until is not None
    until = message.wait_until if waited else None
    asked, fetch = message.fetch_asked if waited else False, None
    if until is not None and world.now >= until:
        if asked or not rules.can_fetch:
            reason = "cycle_confirmed" if obstacle.reason is WaitReason.CYCLE else f"{obstacle.reason}_past_deadline"
            dead = replace(_verdict(message, MessageState.DEAD, "dead", reason), waits_for=obstacle.record_id)
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


# --- small steps ------------------------------------------------------------------------------------------------------


def _notified(entity: Entity, message: InboxMessage, rules: ConnectionRules) -> Decision:
    if not rules.can_fetch:
        return Decision(entity, (_verdict(message, MessageState.DEAD, "dead", "cannot_fetch"),))
    verdict = Verdict(
        message.id, MessageState.WAITING, "waiting", "the state is being fetched", wait_reason=WaitReason.FETCH
    )
    return Decision(entity, (verdict,), fetch=_fetch(entity, "notified"))


def _conflict(entity: Entity, message: InboxMessage, rules: ConnectionRules) -> Decision:
    verdict = _verdict(message, MessageState.QUARANTINED, "held", "version_conflict")
    return Decision(entity, (verdict,), fetch=_fetch(entity, "version_conflict") if rules.can_fetch else None)


def _quarantined(entity: Entity, message: InboxMessage, error: UnknownValue) -> Decision:
    verdict = replace(
        _verdict(message, MessageState.QUARANTINED, "held", f"unknown_{error.field}"),
        held_field=error.field,
        held_value=error.value,
    )
    return Decision(entity, (verdict,))


def _same(entity: Entity, message: InboxMessage) -> Decision:
    """Nothing changes but the evidence: the greatest of equal states stands for them all in a tie."""
    position = entity.position
    assert position.sent_at is not None, "a known version has its evidence"
    assert position.message_id is not None, "a known version has its evidence"
    sent_at, message_id = max((position.sent_at, position.message_id), evidence(message))
    seq = max(position.seq or 0, message.seq)
    after = replace(entity, position=replace(position, sent_at=sent_at, message_id=message_id, seq=seq))
    return replace(_superseded(after, message, "no_change"), confirmed=_answered(message))


def _answered(message: InboxMessage) -> int | None:
    return message.version if message.origin in AUTHORITATIVE else None


def _superseded(entity: Entity, message: InboxMessage, word: str) -> Decision:
    return Decision(entity, (_verdict(message, MessageState.SUPERSEDED, word),))


def _verdict(message: InboxMessage, state: MessageState, word: str, reason: str | None = None) -> Verdict:
    return Verdict(message.id, state, word, reason)


def _fetch(entity: Entity, reason: str) -> FetchRequest:
    return FetchRequest(entity.id, entity.connection_id, entity.tenant_id, entity.kind, entity.source_id, reason)


def _closed(message: InboxMessage) -> tuple[int, str] | None:
    return None if message.version is None else (message.version, message.message_id)


def _follows(one: InboxMessage, other: InboxMessage) -> bool:
    return (one.version or 0, one.sent_at, one.message_id) > (other.version or 0, other.sent_at, other.message_id)


def _terminated(content: Content) -> Content:
    return {**content, "status": Status.TERMINATED.value}


def _advanced(position: Position, message: InboxMessage, version: int, digest: bytes, *, deleted: bool) -> Position:
    sent_at, message_id = evidence(message)
    return Position(
        epoch=position.epoch,
        epoch_at=position.epoch_at,
        version=version,
        sent_at=sent_at,
        message_id=message_id,
        seq=message.seq,
        digest=digest,
        deleted=deleted,
    )
