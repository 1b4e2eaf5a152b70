"""Wishes, polls and what reconciliation compares with, in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

from bss_sync.domain.change import HELD, OPEN, Action, Kind, MessageState, stream_id
from bss_sync.domain.errors import LeaseLost
from bss_sync.domain.tenancy import PROCESSING
from bss_sync.ports.connector import Observation, RangeDigest, RangeForm
from bss_sync.ports.level_pages import AnsweredPage, LevelPage
from bss_sync.ports.reconciliation import Held, Listed, Undecided
from bss_sync.ports.sources import FetchTask, PollTask
from bss_sync.ports.streams import ConnectionRules, Entity
from bss_sync.testing.simulation.line import SimulatedLine, shown

POLL_LEASE_SECONDS = 30


@dataclass
class MemoryFetches:
    """``ports.sources.FetchStore`` over the line's wishes."""

    line: SimulatedLine

    def claim(self, limit: int) -> Sequence[FetchTask]:
        """See FetchStore."""
        if self.line.state not in PROCESSING:
            return []
        now, tasks = self.line.now, []
        for key, wish in self.line.wishes.items():
            if wish.due_at > now or (wish.lease_until is not None and wish.lease_until > now):
                continue
            wish.token += 1
            wish.attempts += 1
            wish.lease_until = now + timedelta(seconds=self.line.lease_seconds)
            entity = self.line.entities.get(key)
            connection_id = next(iter(self.line.rules)) if entity is None else entity.connection_id
            tasks.append(
                FetchTask(
                    stream_id=key,
                    tenant_id=self.line.tenants[connection_id],
                    connection_id=connection_id,
                    kind=wish.kind,
                    source_id=wish.source_id,
                    reason=wish.reason,
                    token=wish.token,
                    attempts=wish.attempts,
                    asked=wish.asked,
                    version=None if entity is None else entity.position.version,
                )
            )
            if len(tasks) == limit:
                break
        return tasks

    def _settle(self, task: FetchTask) -> bool:
        wish = self.line.wishes.get(task.stream_id)
        if wish is None or wish.token != task.token:
            return False
        if wish.asked == task.asked:
            del self.line.wishes[task.stream_id]
        else:
            wish.lease_until, wish.due_at, wish.attempts = None, self.line.now, 0
        return True

    def observed(self, task: FetchTask) -> bool:
        """See FetchStore."""
        ours = self._settle(task)
        if ours:
            self.line.fetched(task.stream_id)
        return ours

    def not_found(self, task: FetchTask) -> bool:
        """See FetchStore."""
        ours = self._settle(task)
        if ours:
            self.line.bury(task.stream_id)
        return ours

    def given_up(self, task: FetchTask, reason: str) -> None:
        """See FetchStore."""
        assert reason, "a reason is always given"
        self.not_found(task)

    def failed(self, task: FetchTask, error: str, delay_seconds: float, *, counted: bool = True) -> None:
        """See FetchStore."""
        assert error, "an error has words"
        assert counted, "no breaker stands between"
        wish = self.line.wishes.get(task.stream_id)
        if wish is not None and wish.token == task.token:
            wish.lease_until, wish.due_at = None, self.line.now + timedelta(seconds=delay_seconds)


@dataclass
class MemoryPolls:
    """``ports.sources.PollStore`` for one connection."""

    line: SimulatedLine
    connection_id: UUID
    cursor: str | None = None
    due_at: datetime | None = None
    lease_until: datetime | None = None
    failures: int = 0

    def claim(self) -> PollTask | None:
        """See PollStore."""
        now = self.line.now
        if self.line.state not in PROCESSING:
            return None
        if (self.due_at is not None and self.due_at > now) or (self.lease_until is not None and self.lease_until > now):
            return None
        lost = self.lease_until is not None
        self.lease_until = now + timedelta(seconds=POLL_LEASE_SECONDS)
        tenant = self.line.tenants[self.connection_id]
        return PollTask(self.connection_id, tenant, self.cursor, self.failures, self.lease_until, lost)

    def advanced(self, task: PollTask, cursor: str | None) -> PollTask:
        """See PollStore."""
        if not self._holds(task):
            raise LeaseLost("Another worker polls by now.")
        self.cursor = cursor
        self.lease_until = self.line.now + timedelta(seconds=POLL_LEASE_SECONDS)
        return replace(task, cursor=cursor, token=self.lease_until)

    def finished(self, task: PollTask, due_seconds: float) -> None:
        """See PollStore."""
        if self._holds(task):
            self._rest(due_seconds)
            self.failures = 0

    def failed(self, task: PollTask, error: str, due_seconds: float) -> None:
        """See PollStore."""
        assert error, "an error has words"
        if self._holds(task):
            self._rest(due_seconds)
            self.failures += 1

    def _holds(self, task: PollTask) -> bool:
        assert task.connection_id == self.connection_id, "there is one connection"
        return self.lease_until == task.token or not self.line.fencing

    def _rest(self, due_seconds: float) -> None:
        self.due_at, self.lease_until = self.line.now + timedelta(seconds=max(due_seconds, 0.1)), None


@dataclass
class MemoryHoldings:
    """``ports.reconciliation.Holdings``. What a comparison has seen outlives whoever made it."""

    line: SimulatedLine
    seen: dict[UUID, set[UUID]] = field(default_factory=dict)
    ends: dict[UUID, dict[UUID, Observation]] = field(default_factory=dict)

    def rules(self, connection_id: UUID) -> ConnectionRules:
        """See Holdings."""
        return self.line.rules[connection_id]

    @contextmanager
    def listing(self, connection_id: UUID, run_id: UUID, started: datetime | None = None) -> Iterator[MemoryListing]:
        """See Holdings."""
        assert run_id != connection_id, "a run is no connection"
        seen, ends = self.seen.setdefault(run_id, set()), self.ends.setdefault(run_id, {})
        yield MemoryListing(self.line, connection_id, started or self.line.now, seen, ends)

    def wake(self, stream_ids: Sequence[UUID]) -> None:
        """See Holdings."""
        self.line.ready |= {key for key in stream_ids if key in self.line.entities}

    def unknown(self, connection_id: UUID, source_ids: Collection[str], kind: Kind | None = None) -> Sequence[str]:
        """See Holdings."""
        kinds = list(Kind) if kind is None else [kind]
        return [
            one
            for one in sorted(source_ids)
            if not any(stream_id(connection_id, each, one) in self.line.entities for each in kinds)
        ]

    def examples(self, connection_id: UUID, kind: Kind | None = None) -> Sequence[str]:
        """See Holdings."""
        own = (one for one in self.line.entities.values() if one.connection_id == connection_id)
        return sorted(one.source_id for one in own if kind is None or one.kind is kind)[:5]

    def begin_epoch(self, connection_id: UUID, kind: Kind, source_id: str, *, actor: str) -> bool:
        """See Holdings."""
        assert actor, "somebody accepts it"
        key = stream_id(connection_id, kind, source_id)
        if key not in self.line.entities:
            return False
        self.line.begin_epoch(key)
        return True


@dataclass
class MemoryListing:
    """``ports.reconciliation.Listing``."""

    line: SimulatedLine
    connection_id: UUID
    started: datetime
    _seen: set[UUID]
    _ends: dict[UUID, Observation]
    _inside: frozenset[UUID] | None = None

    def forget(self) -> None:
        """See Listing."""
        self._seen.clear()

    def end(self, gone: Sequence[Observation]) -> None:
        """See Listing."""
        self._ends.update((stream_id(self.connection_id, one.kind, one.source_id), one) for one in gone)

    def ends_count(self) -> int:
        """See Listing."""
        return len(self._ends)

    def ends(self) -> Iterator[Sequence[Observation]]:
        """See Listing."""
        if self._ends:
            yield sorted(self._ends.values(), key=lambda one: (one.kind is Kind.ACCOUNT, one.source_id))

    def note(self, kind: Kind, source_ids: Sequence[str]) -> None:
        """See Listing."""
        self._seen.update(stream_id(self.connection_id, kind, source_id) for source_id in source_ids)

    def level_pages(self, rules: bytes) -> Mapping[str, LevelPage]:  # noqa: ARG002  the shape is Listing's
        """See Listing: nothing is remembered."""
        return {}

    def still_level(self, known: LevelPage) -> bool:
        """See Listing."""
        raise AssertionError(f"{known} was never remembered")

    def settle(self, page: AnsweredPage) -> None:
        """See Listing: nothing is remembered."""

    def unlike(
        self,
        kind: Kind,
        seen: Sequence[Listed],
        page: AnsweredPage | None = None,  # noqa: ARG002  the shape is Listing's
    ) -> frozenset[str]:
        """See Listing."""
        unlike = set()
        for one in seen:
            key = stream_id(self.connection_id, kind, one.source_id)
            self._seen.add(key)
            entity = self.line.entities.get(key)
            level = (
                entity is not None
                and entity.mirrored is not None
                and entity.mirrored.deleted_at is None
                and entity.mirrored.ended_at is None
                and not entity.position.deleted
                and entity.mirrored.content == one.content
                and one.version in (None, entity.position.version)
            )
            if not level:
                unlike.add(one.source_id)
        return frozenset(unlike)

    def look(self, kind: Kind, source_ids: Sequence[str]) -> Mapping[str, Held]:
        """See Listing."""
        return {one: self._held(kind, one) for one in source_ids}

    def _held(self, kind: Kind, source_id: str) -> Held:
        key = stream_id(self.connection_id, kind, source_id)
        entity = self.line.entities.get(key)
        if entity is None:
            return Held(key, kind, source_id, False, None, None, False, None)
        mirrored = entity.mirrored
        return Held(
            stream_id=key,
            kind=kind,
            source_id=source_id,
            mirrored=mirrored is not None,
            version=entity.position.version,
            digest=entity.position.digest,
            deleted=entity.position.deleted if mirrored is None else mirrored.deleted_at is not None,
            content=None if mirrored is None else shown(entity),
            ended_reason=None if mirrored is None else mirrored.ended_reason,
            taken=frozenset(entity.taken),
            changed=self._changed(entity),
            stopped=self.line.held(key),
            waiting=self.line.waits(key),
            recorded=None if mirrored is None else mirrored.content,
            shown_version=None if mirrored is None else mirrored.version,
            known_deleted=entity.position.deleted,
            once_mirrored=mirrored is not None,
            undecided=self._undecided(key),
        )

    def _undecided(self, key: UUID) -> Undecided | None:
        messages = [item.message for item in self.line.messages.values() if item.stream == key]
        states = [one for one in messages if one.action is Action.STATE and one.state in OPEN | HELD]
        newest = max(states, key=lambda one: (one.version or 0, one.seq), default=None)
        return None if newest is None else Undecided(newest.version, newest.body, newest.state is MessageState.DEAD)

    def _changed(self, entity: Entity) -> bool:
        if entity.mirrored is not None:
            return self.line.changed_at[entity.id] >= self.started
        received = [m.message.received_at for m in self.line.messages.values() if m.stream == entity.id]
        return any(moment >= self.started for moment in received)

    def ranges(self, form: RangeForm) -> Mapping[str, RangeDigest] | None:
        """See Listing: the source tells nothing of ranges."""

    def narrow(self, ranges: Sequence[str]) -> None:
        """See Listing: everything is listed."""
        assert not ranges, "the source tells nothing of ranges"

    def below(self, source_id: str) -> None:
        """See Listing."""
        self._inside = self.line.below(self.connection_id, source_id)

    def inside(self, record_ids: Sequence[UUID]) -> frozenset[UUID]:
        """See Listing."""
        return frozenset(record_ids) if self._inside is None else self._inside.intersection(record_ids)

    def astray(self) -> Iterator[Sequence[Held]]:
        """See Listing: the source can be listed."""
        yield from ()

    def live(self) -> int:
        """See Listing."""
        return len(self._live())

    def _live(self) -> list[Entity]:
        return [
            entity
            for entity in self.line.entities.values()
            if entity.mirrored is not None and entity.mirrored.deleted_at is None and entity.mirrored.ended_at is None
        ]

    def _unseen(self) -> list[Entity]:
        absent = [
            entity
            for entity in self._live()
            if entity.id not in self._seen
            and self.line.changed_at[entity.id] < self.started
            and (self._inside is None or entity.id in self._inside)
        ]
        return sorted(absent, key=lambda entity: (entity.kind is Kind.ACCOUNT, entity.id))

    def unseen_count(self) -> int:
        """See Listing."""
        return len(self._unseen())

    def unseen(self) -> Iterator[Sequence[Held]]:
        """See Listing."""
        absent = self._unseen()
        if absent:
            yield [self._held(entity.kind, entity.source_id) for entity in absent]

    def unlinked(self) -> Iterator[Sequence[tuple[Held, str, str | None]]]:
        """See Listing."""
        found = []
        for entity in self._live():
            if self._inside is not None and entity.id not in self._inside:
                continue
            mirrored = entity.mirrored
            assert mirrored is not None, "what lives is mirrored"
            parent = mirrored.content["parent_id"]
            if parent is None or mirrored.parent_linked or self.line.changed_at[entity.id] >= self.started:
                continue
            relative = self.line.entities.get(stream_id(entity.connection_id, entity.kind, parent))
            if relative is not None and relative.mirrored is not None:
                found.append((self._held(entity.kind, entity.source_id), "parent_id", None))
        if found:
            yield found
