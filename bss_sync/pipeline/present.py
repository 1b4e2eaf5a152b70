"""The present: what a message above everything known makes of its entity. Pure; ``merge`` has the branches."""

from __future__ import annotations

from dataclasses import replace

from bss_sync.domain.change import Content, MessageState
from bss_sync.domain.product import LEFT_SCOPE
from bss_sync.domain.subscription import Status
from bss_sync.pipeline.decision import Decision, World, verdict_on
from bss_sync.pipeline.scope import is_mirrored, parent_of
from bss_sync.pipeline.sequence import end_digest, evidence
from bss_sync.ports.streams import Entity, HistoryRow, InboxMessage, Mirrored, Position


def applied(
    entity: Entity, message: InboxMessage, content: Content, version: int, digest: bytes, world: World
) -> Decision:
    """The content becomes the present: an entry where the entity was not bound yet."""
    position = _advanced(entity.position, message, version, digest, deleted=False)
    mirrored = Mirrored(
        content=content,
        version=version,
        epoch=position.epoch,
        order=message.order,
        effective_at=message.effective_at,
        message=message.id,
        passed=message.passed,
        parent_linked=is_mirrored(parent_of(entity, content), world),
    )
    row = history_row(entity, message, version, content)
    word = "entered" if entity.mirrored is None else "updated"
    # Said in full: this is what nearly every message comes to, and a copy with changes takes twice as long.
    after = Entity(
        id=entity.id,
        tenant_id=entity.tenant_id,
        connection_id=entity.connection_id,
        kind=entity.kind,
        source_id=entity.source_id,
        position=position,
        mirrored=mirrored,
        open=entity.open,
        versions=entity.versions | {version},
        held=entity.held,
        taken=entity.taken,
        laid=entity.taken,
    )
    return Decision(after, (verdict_on(message, MessageState.APPLIED, word),), (row,), changed=True)


def ended(entity: Entity, message: InboxMessage, version: int, digest: bytes) -> Decision:
    """A deletion: a tombstone in the mirror, or the knowledge that it is gone."""
    position = _advanced(entity.position, message, version, end_digest(entity.position, message, digest), deleted=True)
    if entity.mirrored is None:
        after = replace(entity, position=position, staged_end=message)
        reason = "never_mirrored"
        return Decision(after, (verdict_on(message, MessageState.OUT_OF_SCOPE, reason, reason),))
    mirrored = replace(_moved(entity.mirrored, message, position), deleted_at=message.effective_at)
    row = history_row(entity, message, version, entity.mirrored.content, deleted=True)
    after = replace(entity, position=position, mirrored=mirrored, versions=entity.versions | {version}, staged=None)
    return Decision(after, (verdict_on(message, MessageState.APPLIED, "deleted"),), (row,), changed=True)


def left_scope(entity: Entity, message: InboxMessage, version: int, digest: bytes) -> Decision:
    """The mirror ends on the day of the change; the binding stays."""
    assert entity.mirrored is not None, "only what is bound can leave scope"
    position = _advanced(entity.position, message, version, digest, deleted=False)
    content = terminated(entity.mirrored.content)
    mirrored = replace(
        _moved(entity.mirrored, message, position),
        content=content,
        deleted_at=None,
        ended_at=message.effective_at,
        ended_reason=LEFT_SCOPE,
    )
    row = history_row(entity, message, version, content, ended_reason=LEFT_SCOPE)
    after = replace(entity, position=position, mirrored=mirrored, staged=message, versions=entity.versions | {version})
    return Decision(after, (verdict_on(message, MessageState.APPLIED, "ended", LEFT_SCOPE),), (row,), changed=True)


def staged_as(entity: Entity, message: InboxMessage, version: int, digest: bytes, reason: str) -> Decision:
    """Known, out of scope: kept where only the engine reads it."""
    position = _advanced(entity.position, message, version, digest, deleted=False)
    after = replace(entity, position=position, staged=message, staged_end=None)
    return Decision(after, (verdict_on(message, MessageState.OUT_OF_SCOPE, reason, reason),))


def terminated(content: Content) -> Content:
    """Content as it stands once the mirror has ended."""
    return {**content, "status": Status.TERMINATED.value}


def history_row(
    entity: Entity,
    message: InboxMessage,
    version: int,
    state: Content,
    *,
    deleted: bool = False,
    ended_reason: str | None = None,
    late: bool = False,
) -> HistoryRow:
    """The state as history keeps it: effective when the source says, with the message as evidence."""
    return HistoryRow(
        record_id=entity.id,
        epoch=entity.position.epoch,
        version=version,
        effective_at=message.effective_at,
        state=state,
        deleted=deleted,
        message=message.id,
        ended_reason=ended_reason,
        late=late,
    )


def _moved(mirrored: Mirrored, message: InboxMessage, position: Position) -> Mirrored:
    assert position.version is not None, "what was advanced has a version"
    return replace(
        mirrored,
        version=position.version,
        epoch=position.epoch,
        order=message.order,
        effective_at=message.effective_at,
        message=message.id,
        passed=message.passed,
    )


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
