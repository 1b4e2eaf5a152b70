"""A reseller's BSS in memory: accounts, subscriptions, their versions, and a feed of every change."""

from __future__ import annotations

import threading
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from bss_sync.domain.change import Json, Kind, OrderKind

_DEFAULTS: Mapping[Kind, Mapping[str, Json]] = {
    Kind.ACCOUNT: {"parent_id": None, "kind": "customer", "name": "", "number": None, "email": None},
    Kind.SUBSCRIPTION: {
        "account_id": None,
        "parent_id": None,
        "product": "",
        "status": "active",
        "trial": False,
        "start_date": None,
        "end_date": None,
        "activation_date": None,
        "cancellation_date": None,
        "auto_renew": True,
        "billing_cycle": "P1M",
        "term": None,
        "quantity": 1,
        "characteristics": {},
    },
}

_ABOUT_ONE_CHANGE = ("version", "source_updated_at", "effective_at")
"""Members that a caller may set for one change; they are no part of the entity's content."""


class Refused(Exception):
    """The BSS refuses a call: an HTTP status, what is wrong, and further members of the answer."""

    def __init__(self, status: int, detail: str, content: Mapping[str, Json] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.content = content or {}


@dataclass(frozen=True, slots=True)
class Revision:
    """One state of one entity. ``content`` is None when it was deleted with this version."""

    kind: Kind
    id: str
    version: int
    changed_at: datetime
    effective_at: str | None
    content: Mapping[str, Json] | None
    first: bool

    def data(self, order: OrderKind) -> dict[str, Json]:
        """The contract's ``data``: the whole state, or id and version of a deleted one."""
        data: dict[str, Json] = {"id": self.id}
        if order is OrderKind.SEQUENCE:
            data["version"] = self.version
        elif order is OrderKind.TIMESTAMP:
            data["source_updated_at"] = timestamp_text(self.changed_at)
        if self.content is not None:
            data |= self.content
        if self.effective_at is not None:
            data["effective_at"] = self.effective_at
        return data

    def record(self, order: OrderKind) -> dict[str, Json]:
        """What the REST interface answers: ``data``, when it changed, and whether it is gone."""
        record = self.data(order) | {"changed_at": timestamp_text(self.changed_at)}
        if self.content is None:
            record["deleted"] = True
        return record

    @property
    def action(self) -> str:
        """The last part of the message type."""
        if self.content is None:
            return "deleted"
        return "created" if self.first else "updated"


def timestamp_text(moment: datetime) -> str:
    """RFC 3339 in UTC, with microseconds and Z."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class ResellerBss:
    """Every change increments the entity's version, is appended to the feed and handed to ``listener``.

    Thread-safe. A caller may set ``version`` or ``source_updated_at`` in a change, to play a restored backup or
    equal timestamps, and ``effective_at``.
    """

    def __init__(self, order: OrderKind = OrderKind.SEQUENCE, now: Callable[[], datetime] | None = None) -> None:
        self.order = order
        self.listener: Callable[[Revision], None] | None = None
        self._now = now or (lambda: datetime.now(UTC))
        self._lock = threading.RLock()
        self._present: dict[Kind, dict[str, Revision]] = {kind: {} for kind in Kind}
        self._live_ids: dict[Kind, list[str]] = {kind: [] for kind in Kind}
        self._feed: list[Revision] = []

    def put(self, kind: Kind, entity_id: str, content: Mapping[str, Json], *, push: bool = True) -> dict[str, Json]:
        """Create or replace. Members that are not given take the defaults; unknown members are kept."""
        base = dict(_DEFAULTS[kind])
        if kind is Kind.ACCOUNT:
            base["name"] = entity_id
        return self._change(kind, entity_id, base | dict(content), push)

    def patch(self, kind: Kind, entity_id: str, changes: Mapping[str, Json], *, push: bool = True) -> dict[str, Json]:
        """Change some members of a live entity. Refused with 404 or 410 when there is none."""
        with self._lock:
            present = self._live(kind, entity_id)
            return self._change(kind, entity_id, {**(present.content or {}), **changes}, push)

    def delete(
        self, kind: Kind, entity_id: str, about: Mapping[str, Json] | None = None, *, push: bool = True
    ) -> dict[str, Json]:
        """Delete a live entity; it leaves a version behind."""
        with self._lock:
            self._live(kind, entity_id)
            return self._change(kind, entity_id, dict(about or {}), push, gone=True)

    def get(self, kind: Kind, entity_id: str) -> dict[str, Json]:
        """The present record, ``deleted`` among its members when it is gone. Refused with 404 when never heard of."""
        with self._lock:
            present = self._present[kind].get(entity_id)
        if present is None:
            raise Refused(404, f"There is no {kind} {entity_id!r}.")
        return present.record(self.order)

    def page(self, kind: Kind, after: str, limit: int) -> dict[str, Json]:
        """Live entities in the order of their ids: ``{"items", "next"}``; ``next`` is null at the end."""
        with self._lock:
            ids = self._live_ids[kind]
            start = bisect_right(ids, after) if after else 0
            chosen = ids[start : start + limit]
            revisions = [self._present[kind][entity_id] for entity_id in chosen]
            more = start + limit < len(ids)
        return {"items": [one.record(self.order) for one in revisions], "next": chosen[-1] if more else None}

    def changes(self, cursor: int, limit: int) -> dict[str, Json]:
        """The feed after ``cursor`` (the count of changes already read), oldest first."""
        with self._lock:
            if not 0 <= cursor <= len(self._feed):
                raise Refused(400, f"The cursor {cursor} is not one of this feed.")
            chosen = self._feed[cursor : cursor + limit]
            more = cursor + limit < len(self._feed)
        return {
            "changes": [{"kind": str(one.kind), "record": one.record(self.order)} for one in chosen],
            "cursor": str(cursor + len(chosen)),
            "more": more,
        }

    def live(self, kind: Kind) -> dict[str, Mapping[str, Json]]:
        """The content of every live entity by id: what a mirror has to equal in the end."""
        with self._lock:
            return {entity_id: self._present[kind][entity_id].content or {} for entity_id in self._live_ids[kind]}

    def revisions(self) -> list[Revision]:
        """Every change so far, oldest first."""
        with self._lock:
            return list(self._feed)

    def announce(self, kinds: Iterable[Kind] = tuple(Kind)) -> int:
        """Hand the present state of every live entity to the listener again; returns how many."""
        with self._lock:
            revisions = [self._present[kind][entity_id] for kind in kinds for entity_id in self._live_ids[kind]]
        for revision in revisions:
            self._tell(revision)
        return len(revisions)

    def counts(self) -> dict[str, int]:
        """How many live entities there are, and how many changes there were."""
        with self._lock:
            return {
                "accounts": len(self._live_ids[Kind.ACCOUNT]),
                "subscriptions": len(self._live_ids[Kind.SUBSCRIPTION]),
                "changes": len(self._feed),
            }

    def _live(self, kind: Kind, entity_id: str) -> Revision:
        present = self._present[kind].get(entity_id)
        if present is None:
            raise Refused(404, f"There is no {kind} {entity_id!r}.")
        if present.content is None:
            raise Refused(410, f"The {kind} {entity_id!r} is gone.")
        return present

    def _change(
        self, kind: Kind, entity_id: str, content: dict[str, Json], push: bool, *, gone: bool = False
    ) -> dict[str, Json]:
        content.pop("id", None)
        about = {name: content.pop(name, None) for name in _ABOUT_ONE_CHANGE}
        with self._lock:
            before = self._present[kind].get(entity_id)
            revision = Revision(
                kind=kind,
                id=entity_id,
                version=_version(before, about["version"]),
                changed_at=self._changed_at(before, about["source_updated_at"]),
                effective_at=about["effective_at"],
                content=None if gone else content,
                first=before is None,
            )
            self._present[kind][entity_id] = revision
            self._feed.append(revision)
            self._keep_ids(kind, entity_id, was_live=before is not None and before.content is not None, live=not gone)
            # Inside the lock, so that messages are queued in the order of the changes.
            if push:
                self._tell(revision)
        return revision.record(self.order)

    def _tell(self, revision: Revision) -> None:
        if self.listener is not None:
            self.listener(revision)

    def _keep_ids(self, kind: Kind, entity_id: str, *, was_live: bool, live: bool) -> None:
        ids = self._live_ids[kind]
        if live and not was_live:
            insort(ids, entity_id)
        elif was_live and not live:
            del ids[bisect_right(ids, entity_id) - 1]

    def _changed_at(self, before: Revision | None, wanted: Json) -> datetime:
        if wanted is not None:
            try:
                return datetime.fromisoformat(wanted).astimezone(UTC)
            except (TypeError, ValueError):
                raise Refused(422, "source_updated_at is no RFC 3339 timestamp.") from None
        # Two changes of one entity never share a time by accident, however coarse the clock is.
        earliest = before.changed_at + timedelta(microseconds=1) if before else self._now()
        return max(self._now(), earliest)


def _version(before: Revision | None, wanted: Json) -> int:
    if wanted is None:
        return before.version + 1 if before else 1
    if not isinstance(wanted, int) or isinstance(wanted, bool):
        raise Refused(422, "version is no integer.")
    return wanted
