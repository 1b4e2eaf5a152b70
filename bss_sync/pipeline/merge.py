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

from dataclasses import replace

from bss_sync.domain.change import Action, Content, Kind, MessageState, WaitReason
from bss_sync.domain.errors import UnknownValue
from bss_sync.domain.product import LEFT_SCOPE
from bss_sync.pipeline.decision import Decision, World, fetch_of, passed_unread, quarantined, superseded, verdict_on
from bss_sync.pipeline.present import applied, ended, history_row, left_scope, staged_as, terminated
from bss_sync.pipeline.scope import can_be_linked, find_obstacle, is_foreign, wait_for, why_not_in_scope
from bss_sync.pipeline.sequence import AUTHORITATIVE, Rank, evidence, is_end, missing_versions, rank, version_of
from bss_sync.pipeline.translate import content_digest, translate
from bss_sync.ports.inbox import Origin
from bss_sync.ports.streams import ConnectionRules, Entity, Gap, InboxMessage, Verdict

LOOP = "loop"


def decide(entity: Entity, message: InboxMessage, world: World) -> Decision:
    """Decide one open message of an entity by today's rules."""
    rules = world.rules(entity.connection_id)
    if rules.instance_id in message.passed:
        return Decision(entity, (verdict_on(message, MessageState.DEAD, "dead", LOOP),))
    if message.action is Action.NOTIFIED:
        return _notified(entity, message, rules)
    digest = content_digest(message.action, message.body)
    standing = rank(entity.position, message, digest)
    unmoving = _unmoving(standing, entity, message, rules)
    if unmoving is not None:
        return unmoving
    try:
        content = None if is_end(message) else translate(entity.kind, message.body, rules)
    except UnknownValue as error:
        if standing is Rank.LATE:
            return replace(passed_unread(entity, message, error), closed_gap=_closed(message))
        return quarantined(entity, message, error)
    if standing is Rank.LATE:
        known = message.counted or message.version in entity.versions
        return replace(_late(entity, message, content, world), closed_gap=None if known else _closed(message))
    decision = _newer(entity, message, content, digest, world)
    answered = _answered(message)
    return decision if answered is None else replace(decision, confirmed=answered)


def _unmoving(standing: Rank, entity: Entity, message: InboxMessage, rules: ConnectionRules) -> Decision | None:
    """The decision where the rank alone says that nothing moves; None where the content matters."""
    if standing is Rank.FORMER:
        return superseded(entity, message, "former_epoch")
    if standing is Rank.SAME and not _is_astray(entity, message, rules):
        return _same(entity, message)
    if standing is Rank.CONFLICT:
        return _conflict(entity, message, rules)
    return None


def reconsider(entity: Entity, world: World) -> Decision | None:
    """Look at an entity again without a new message: its staged state, its parent, its fields taken over.

    Returns None when nothing changes. A staged message that is open (replayed, or waiting) always gets a verdict.
    """
    decision = None
    if entity.staged is not None and (entity.mirrored is None or entity.mirrored.ended_reason == LEFT_SCOPE):
        decision = _reconsider_staged(entity, entity.staged, world)
        entity = entity if decision is None else decision.entity
    if entity.mirrored is None:
        return decision
    # All in one: the entity was woken once, whatever it was woken for.
    linked = entity.mirrored.parent_linked or can_be_linked(entity, entity.mirrored.content, world)
    shown = {name: value for name, value in entity.taken.items() if value != entity.mirrored.content[name]}
    if linked is entity.mirrored.parent_linked and shown == dict(entity.laid):
        return decision
    anew = replace(entity, mirrored=replace(entity.mirrored, parent_linked=linked), laid=shown)
    return replace(decision or Decision(anew), entity=anew, changed=True)


def _newer(entity: Entity, message: InboxMessage, content: Content | None, digest: bytes, world: World) -> Decision:
    version = version_of(entity.position, message)
    rules = world.rules(entity.connection_id)
    here = frozenset(other.version for other in entity.open if other.version is not None and other.id != message.id)
    jumped = missing_versions(entity.position, message, here | entity.held)
    if content is None:
        decision = ended(entity, message, version, digest)
    elif entity.mirrored is not None and is_foreign(entity.kind, message, rules):
        decision = left_scope(entity, message, version, digest)
    else:
        # What history has at this version was mirrored and got lost: it is bound for ever, in scope or not.
        bound = entity.mirrored is not None or entity.position.version in entity.versions
        reason = None if bound else why_not_in_scope(entity, content, message, world)
        if reason is not None:
            decision = staged_as(entity, message, version, digest, reason)
        elif (obstacle := find_obstacle(entity, content, world)) is not None:
            return wait_for(entity, message, obstacle, world)
        else:
            decision = applied(entity, message, content, version, digest, world)
    if jumped is None:
        return decision
    gap = Gap(entity.id, *jumped)
    fetch = fetch_of(entity, "gap") if rules.can_fetch and message.origin != "fetch" else None
    return replace(decision, gap=gap, fetch=fetch)


def _late(entity: Entity, message: InboxMessage, content: Content | None, world: World) -> Decision:
    if entity.mirrored is not None:
        return _late_into_history(entity, message, content, world)
    if content is None:
        verdict = verdict_on(message, MessageState.OUT_OF_SCOPE, "never_mirrored", "never_mirrored")
        return Decision(entity, (verdict,))
    below_staged = entity.staged is not None and not _follows(message, entity.staged)
    if why_not_in_scope(entity, content, message, world) is None and (
        entity.kind is Kind.SUBSCRIPTION or not below_staged
    ):
        obstacle = find_obstacle(entity, content, world)
        if obstacle is not None:
            return wait_for(entity, message, obstacle, world)
        later = [known for known in (entity.staged, entity.staged_end) if known and _follows(known, message)]
        return _enter(entity, [message, *later], world)
    if below_staged and entity.kind is Kind.ACCOUNT:
        return superseded(entity, message, "late")
    if below_staged:
        # Should a still lower version enter, this one belongs to its history: it must be found again.
        return Decision(entity, (verdict_on(message, MessageState.OUT_OF_SCOPE, "late", "late"),))
    reason = why_not_in_scope(entity, content, message, world) or "late"
    return Decision(replace(entity, staged=message), (verdict_on(message, MessageState.OUT_OF_SCOPE, reason, reason),))


def _late_into_history(entity: Entity, message: InboxMessage, content: Content | None, world: World) -> Decision:
    assert entity.mirrored is not None, "a late state of what was never mirrored is staged"
    assert message.version is not None, "an observed state is never late"
    if message.version in entity.versions:
        return superseded(entity, message, "late_known")
    foreign = content is not None and is_foreign(entity.kind, message, world.rules(entity.connection_id))
    if foreign:
        state: Content = terminated(entity.mirrored.content)
    else:
        state = content if content is not None else entity.mirrored.content
    ended_reason = LEFT_SCOPE if foreign else None
    row = history_row(
        entity, message, message.version, state, deleted=content is None, ended_reason=ended_reason, late=True
    )
    after = replace(entity, versions=entity.versions | {message.version})
    return Decision(after, (verdict_on(message, MessageState.SUPERSEDED, "late"),), (row,))


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
    decision = applied(start, first, content, version, digest, world)
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
        verdicts[0] = verdict_on(first, MessageState.SUPERSEDED, "entered_late")
        history[0] = replace(history[0], late=True)
    return Decision(after, tuple(verdicts), tuple(history), changed=True, needs=needs, fetch=fetch)


def _reconsider_staged(entity: Entity, staged: InboxMessage, world: World) -> Decision | None:
    rules = world.rules(entity.connection_id)
    open_now = any(message.id == staged.id for message in entity.open)
    try:
        content = translate(entity.kind, staged.body, rules)
    except UnknownValue as error:
        return quarantined(entity, staged, error) if open_now else None
    reason = why_not_in_scope(entity, content, staged, world)
    if reason is not None:
        return Decision(entity, (verdict_on(staged, MessageState.OUT_OF_SCOPE, reason, reason),)) if open_now else None
    obstacle = find_obstacle(entity, content, world)
    if obstacle is not None:
        return wait_for(entity, staged, obstacle, world)
    return _enter(entity, [staged, *([entity.staged_end] if entity.staged_end else [])], world)


def _is_astray(entity: Entity, message: InboxMessage, rules: ConnectionRules) -> bool:
    """Whether the source's word is applied once more at its version: what was known of it here is gone or altered.

    What was staged may have been dropped or given up, and the mirror's row taken away: whoever was asked tells it
    anew. A mirror that was written past the line, and shows otherwise than its stream says, is found by reconcile; what
    is laid on it is none of this: a takeover may have come just now, and ``reconsider`` lays it out.
    """
    mirrored = entity.mirrored
    if mirrored is None:
        # What is staged may be older than what was given up: it came late, and found the place empty.
        given_up = entity.staged is None or (entity.staged.version or 0) < (message.version or 0)
        return message.origin in AUTHORITATIVE and not is_end(message) and given_up
    if message.origin is not Origin.RECONCILE:
        return False
    if is_end(message):
        return mirrored.deleted_at is None
    if is_foreign(entity.kind, message, rules):
        return mirrored.ended_at is None
    try:
        content = translate(entity.kind, message.body, rules)
    except UnknownValue:
        return False
    ended = mirrored.deleted_at is not None or mirrored.ended_at is not None
    astray = content != mirrored.content or mirrored.version != entity.position.version
    return astray or (ended and entity.staged is None)


def _staged_version(entity: Entity, first: InboxMessage, count: int) -> int:
    if first.version is not None:
        return first.version
    assert entity.position.version is not None, "what is staged has a position"
    return entity.position.version - (count - 1)


def _notified(entity: Entity, message: InboxMessage, rules: ConnectionRules) -> Decision:
    if not rules.can_fetch:
        return Decision(entity, (verdict_on(message, MessageState.DEAD, "dead", "cannot_fetch"),))
    verdict = Verdict(
        message.id, MessageState.WAITING, "waiting", "the state is being fetched", wait_reason=WaitReason.FETCH
    )
    return Decision(entity, (verdict,), fetch=fetch_of(entity, "notified"))


def _conflict(entity: Entity, message: InboxMessage, rules: ConnectionRules) -> Decision:
    verdict = verdict_on(message, MessageState.QUARANTINED, "held", "version_conflict")
    return Decision(entity, (verdict,), fetch=fetch_of(entity, "version_conflict") if rules.can_fetch else None)


def _same(entity: Entity, message: InboxMessage) -> Decision:
    """Nothing changes but the evidence: the greatest of equal states stands for them all in a tie."""
    position = entity.position
    assert position.sent_at is not None, "a known version has its evidence"
    assert position.message_id is not None, "a known version has its evidence"
    sent_at, message_id = max((position.sent_at, position.message_id), evidence(message))
    seq = max(position.seq or 0, message.seq)
    after = replace(entity, position=replace(position, sent_at=sent_at, message_id=message_id, seq=seq))
    return replace(superseded(after, message, "no_change"), confirmed=_answered(message))


def _answered(message: InboxMessage) -> int | None:
    return message.version if message.origin in AUTHORITATIVE else None


def _closed(message: InboxMessage) -> tuple[int, str] | None:
    return None if message.version is None else (message.version, message.message_id)


def _follows(one: InboxMessage, other: InboxMessage) -> bool:
    return (one.version or 0, one.sent_at, one.message_id) > (other.version or 0, other.sent_at, other.message_id)
