"""Comparing source, mirror and target: what each holds, and what differs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from bss_sync.domain.change import Content, Json, Kind
from bss_sync.domain.moment import rfc3339
from bss_sync.ports.connector import Observation, RangeDigest, RangeForm
from bss_sync.ports.level_pages import AnsweredPage, LevelPage
from bss_sync.ports.streams import ConnectionRules


class Problem(StrEnum):
    """How two places differ about one record."""

    MISSING = "missing"  # in scope at the source, not in the mirror
    EXTRA = "extra"  # live in the mirror, gone at the source
    DIFFERING = "differing"  # the same version, another value
    STALE = "stale"  # the mirror holds an older version
    MIS_PARENTED = "mis_parented"  # another account or parent
    ORPHANED = "orphaned"  # its account or parent is mirrored, the link is not
    UNKNOWN_VALUE = "unknown_value"  # the source says a word that nobody has mapped
    VERSION_REGRESSED = "version_regressed"  # it counts below what the mirror holds: only --accept-source takes it
    TARGET_MISSING = "target_missing"  # in the mirror, not in the distributor's BSS
    TARGET_DIFFERS = "target_differs"  # the distributor's BSS holds another value
    TARGET_DUPLICATE = "target_duplicate"  # two records there carry one reference
    TARGET_EXTRA = "target_extra"  # a record there carries a reference that nothing here has


class Cause(StrEnum):
    """Why two places differ, as far as what we hold tells."""

    NEVER_RECEIVED = "never_received"  # no message about it has ever come
    MESSAGE_LOST = "message_lost"  # the source is ahead, and no message about that has come
    UNDECIDED = "undecided"  # a message of it is pending or waiting
    HELD = "held"  # a message of it is quarantined or dead
    UNCOUNTED = "uncounted"  # the source changed it without counting a version
    OVERWRITTEN = "overwritten"  # the mirror was written past the line, or its values are mapped otherwise by now
    COUNTED_ANEW = "counted_anew"  # the source counts below what it counted before
    NOT_LINKED = "not_linked"  # its relative came, the link was not made
    EDITED = "edited"  # somebody edited it in the distributor's BSS
    NOT_DELIVERED = "not_delivered"  # our last word has not arrived there
    REMOVED = "removed"  # somebody removed it there
    UNVERIFIED = "unverified"  # not listed, and it could not be asked for: nothing was ended
    UNKNOWN_REFERENCE = "unknown_reference"  # made by a later state of this mirror, or by somebody else


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference. ``place``: ``mirror`` against the source, ``target`` against the mirror.

    ``expected`` is what the source (the mirror) says, ``found`` what the mirror (the target) holds, ``since`` when.
    """

    problem: Problem
    place: str
    kind: Kind
    source_id: str
    record_id: UUID
    field: str | None = None
    expected: Json = None
    found: Json = None
    cause: Cause | None = None
    since: datetime | None = None

    def as_json(self) -> dict[str, Json]:
        """The difference as it is printed and kept."""
        return {
            "problem": str(self.problem),
            "place": self.place,
            "kind": str(self.kind),
            "source_id": self.source_id,
            "record_id": str(self.record_id),
            "field": self.field,
            "expected": self.expected,
            "found": self.found,
            "cause": None if self.cause is None else str(self.cause),
            "since": None if self.since is None else rfc3339(self.since),
        }


@dataclass(frozen=True, slots=True)
class Undecided:
    """The newest state of an entity that is in the inbox and not decided for good: it waits, or is held.

    ``dead``: it is a dead letter, which nobody decides anew unasked.
    """

    version: int | None
    body: Mapping[str, Json]
    dead: bool


@dataclass(frozen=True, slots=True)
class Held:
    """What we hold of one entity.

    content     what the mirror shows, in canonical words; None where it is staged only
    version     the highest version known; None for an entity that was only heard of, or is counted anew
    digest      of what the source said at that version
    deleted     its deletion is the last that is known
    taken       fields that the distributor has taken over
    changed     since the comparison began: what the listing says of it may be older
    stopped     a message of it is quarantined or dead
    waiting     a message of it is pending or waiting
    recorded    what the mirror keeps as the source's last word; its columns show that, but for what is taken over
    shown_version  the version that the mirror shows; another than ``version`` was written past the line
    known_deleted  whether the stream knows it as deleted; otherwise than ``deleted``: written past the line
    once_mirrored  history has it
    undecided   what of it is in the inbox
    """

    stream_id: UUID
    kind: Kind
    source_id: str
    mirrored: bool
    version: int | None
    digest: bytes | None
    deleted: bool
    content: Content | None
    ended_reason: str | None = None
    taken: frozenset[str] = field(default_factory=frozenset)
    changed: bool = False
    stopped: bool = False
    waiting: bool = False
    recorded: Content | None = None
    shown_version: int | None = None
    known_deleted: bool = False
    once_mirrored: bool = False
    undecided: Undecided | None = None

    @property
    def last_version(self) -> int | None:
        """Where an end stands that nobody counts: at the highest known version, or at that of the former epoch."""
        return self.shown_version if self.version is None else self.version


@dataclass(frozen=True, slots=True)
class Listed:
    """One entity of a listing: its version (None: not to be compared) and its content in canonical words."""

    source_id: str
    version: int | None
    content: Content


class Listing(Protocol):
    """One comparison of a connection with a listing.

    Which records were seen, and which would end, is kept under the run's id and survives this process and PostgreSQL's.
    What has changed since ``started`` is left alone.
    """

    started: datetime

    def unlike(self, kind: Kind, seen: Sequence[Listed], page: AnsweredPage | None = None) -> frozenset[str]:
        """Note that these were listed; returns the ids that need a look.

        What is live in the mirror at the same version and equal field by field is level: it never leaves the database.
        With ``page`` these are all that it holds: where all are level it is remembered, with the stretch of the mirror
        that they were compared with.
        """
        ...

    def settle(self, page: AnsweredPage) -> None:
        """What was unlike on this page had a look, and is as it should be: remember the page as it was compared."""
        ...

    def level_pages(self, rules: bytes) -> Mapping[str, LevelPage]:
        """The pages that are remembered under these rules, by cursor."""
        ...

    def still_level(self, known: LevelPage) -> bool:
        """Whether the mirror's stretch of a remembered page is untouched; its records then count as listed."""
        ...

    def look(self, kind: Kind, source_ids: Sequence[str]) -> Mapping[str, Held]:
        """What we hold of these."""
        ...

    def ranges(self, form: RangeForm) -> Mapping[str, RangeDigest] | None:
        """What each range of ids comes to by the versions that we know, in scope or not.

        None when an id that we know is none of a chain: then everything is to be listed.
        """
        ...

    def narrow(self, ranges: Sequence[str]) -> None:
        """Only these ranges are listed: what is in others is not absent."""
        ...

    def below(self, source_id: str) -> None:
        """Only this account and all below it in the mirror: what is elsewhere is not absent."""
        ...

    def inside(self, record_ids: Sequence[UUID]) -> frozenset[UUID]:
        """Which of these the mirror has there."""
        ...

    def astray(self) -> Iterator[Sequence[Held]]:
        """Records whose columns do not show what the mirror keeps as the source's last word, in chunks."""
        ...

    def live(self) -> int:
        """How many live records the mirror holds of the connection."""
        ...

    def unseen_count(self) -> int:
        """How many live records were not listed and have not changed since the comparison began."""
        ...

    def unseen(self) -> Iterator[Sequence[Held]]:
        """Those records, in chunks."""
        ...

    def note(self, kind: Kind, source_ids: Sequence[str]) -> None:
        """Note that these were listed, whatever they are like."""
        ...

    def forget(self) -> None:
        """Whatever was listed is to be listed anew."""
        ...

    def end(self, gone: Sequence[Observation]) -> None:
        """Note that these are gone at the source; they wait until all that would end is known."""
        ...

    def ends_count(self) -> int:
        """How many records would end."""
        ...

    def ends(self) -> Iterator[Sequence[Observation]]:
        """Those, in chunks, subscriptions first."""
        ...

    def unlinked(self) -> Iterator[Sequence[tuple[Held, str, str | None]]]:
        """Live records not linked to their account or parent, in chunks.

        With each the field, and the source id that it is linked to; None: the relative is mirrored, and the record
        stands without it.
        """
        ...


class Holdings(Protocol):
    """What the mirror and the staging hold."""

    def rules(self, connection_id: UUID) -> ConnectionRules:
        """Today's rules of the connection, with its whole catalogue."""
        ...

    def listing(
        self, connection_id: UUID, run_id: UUID, started: datetime | None = None
    ) -> AbstractContextManager[Listing]:
        """Begin a comparison, or go on with that which began at ``started``."""
        ...

    def wake(self, stream_ids: Sequence[UUID]) -> None:
        """Let the line look at these entities again."""
        ...

    def unknown(self, connection_id: UUID, source_ids: Collection[str], kind: Kind | None = None) -> Sequence[str]:
        """Those of these that nothing is known of, as records of that kind where it is given."""
        ...

    def examples(self, connection_id: UUID, kind: Kind | None = None) -> Sequence[str]:
        """A few that there are."""
        ...

    def begin_epoch(self, connection_id: UUID, kind: Kind, source_id: str, *, actor: str) -> bool:
        """Accept that the source counts anew for one entity: what was received before belongs to a former epoch.

        False when nothing is known of the entity.
        """
        ...
