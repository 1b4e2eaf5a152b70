"""A distributor's BSS in memory: records with a reference of ours, and a log of every effect."""

from __future__ import annotations

import json
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from bss_sync.domain.change import Json, Kind
from connectors.simulator.reseller import Refused, timestamp_text

OWN_USER = "bss_sync"
"""Who has written when a call names nobody."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the BSS holds it. ``change_number`` is its last place in the change feed."""

    id: str
    kind: str
    reference: str | None
    fields: Mapping[str, Json]
    changed_by: str
    changed_at: datetime
    change_number: int
    findable_at: float

    def view(self) -> dict[str, Json]:
        """What the REST interface answers."""
        return {
            "id": self.id,
            "kind": self.kind,
            "reference": self.reference,
            "fields": dict(self.fields),
            "changed_by": self.changed_by,
            "changed_at": timestamp_text(self.changed_at),
        }


class DistributorBss:
    """Stores fields verbatim. A reference may occur twice: that is what a second create would show.

    Thread-safe. ``lookup_lag_seconds`` delays until a new record is found by its reference. An effect is
    ``{number, at, action, id, kind, reference, changed_by, idempotency_key, before, after, changed}`` with the action
    create, update, edit or remove.
    """

    def __init__(self, now: Callable[[], datetime] | None = None) -> None:
        self.lookup_lag_seconds = 0.0
        self._now = now or (lambda: datetime.now(UTC))
        self._lock = threading.RLock()
        self._records: dict[str, Record] = {}
        # In the order of creation, which is also the order of the text.
        self._ids: list[str] = []
        self._by_reference: dict[tuple[str, str], list[str]] = {}
        self._answers: dict[str, tuple[str, dict[str, Json]]] = {}
        self._effects: list[dict[str, Json]] = []
        self._feed: list[str] = []
        self._created = 0

    def create(self, content: Mapping[str, Json], *, user: str = OWN_USER, key: str | None = None) -> dict[str, Json]:
        """A new record from ``{kind, reference, fields}``. The same key gives the same answer, without effect."""
        request = _fingerprint("create", content)
        with self._lock:
            answered = self._answered(key, request)
            if answered is not None:
                return answered
            kind, fields = content.get("kind"), content.get("fields")
            if kind not in set(Kind) or not isinstance(fields, dict):
                raise Refused(422, "A record needs a kind (account, subscription) and fields.")
            self._created += 1
            record = Record(
                id=f"d-{self._created:09}",
                kind=str(kind),
                reference=content.get("reference"),
                fields=dict(fields),
                changed_by=user,
                changed_at=self._now(),
                change_number=0,
                findable_at=time.monotonic() + self.lookup_lag_seconds,
            )
            if record.reference:
                self._by_reference.setdefault((record.kind, record.reference), []).append(record.id)
            self._ids.append(record.id)
            return self._store("create", None, record, key, request)

    def update(
        self, record_id: str, fields: Mapping[str, Json], *, user: str = OWN_USER, key: str | None = None
    ) -> dict[str, Json]:
        """Replace the fields of a record. The same key gives the same answer, without effect."""
        request = _fingerprint(record_id, fields)
        with self._lock:
            answered = self._answered(key, request)
            if answered is not None:
                return answered
            before = self._record(record_id)
            after = replace(before, fields=dict(fields), changed_by=user, changed_at=self._now())
            return self._store("update", before, after, key, request)

    def edit(self, record_id: str, changes: Mapping[str, Json], *, user: str) -> dict[str, Json]:
        """What a person does behind the system's back: some fields of a record are changed."""
        with self._lock:
            before = self._record(record_id)
            after = replace(before, fields={**before.fields, **changes}, changed_by=user, changed_at=self._now())
            return self._store("edit", before, after, None, "")

    def remove(self, record_id: str, *, user: str) -> None:
        """A person removes a record. It is not in the feed any more: only a look-up or a listing shows it."""
        with self._lock:
            before = self._records.pop(record_id, None)
            if before is None:
                raise Refused(404, f"There is no record {record_id!r}.")
            del self._ids[bisect_right(self._ids, record_id) - 1]
            if before.reference:
                self._by_reference[before.kind, before.reference].remove(record_id)
            self._log("remove", before, None, user, None)

    def get(self, record_id: str) -> dict[str, Json]:
        """One record. Refused with 404."""
        with self._lock:
            return self._record(record_id).view()

    def look_up(self, reference: str, kind: str | None) -> dict[str, Json]:
        """The records that carry ``reference``, oldest first."""
        with self._lock:
            kinds = [kind] if kind else [str(one) for one in Kind]
            found = [self._records[one] for each in kinds for one in self._by_reference.get((each, reference), ())]
        return {"items": [one.view() for one in found if one.findable_at <= time.monotonic()], "next": None}

    def page(self, after: str, limit: int) -> dict[str, Json]:
        """Records in the order of their creation."""
        with self._lock:
            start = bisect_right(self._ids, after)
            chosen = [self._records[one] for one in self._ids[start : start + limit]]
            more = start + limit < len(self._ids)
        return {"items": [one.view() for one in chosen], "next": chosen[-1].id if more else None}

    def changes(self, cursor: int, limit: int) -> dict[str, Json]:
        """Records changed after ``cursor``, each once and as it is now."""
        with self._lock:
            if not 0 <= cursor <= len(self._feed):
                raise Refused(400, f"The cursor {cursor} is not one of this feed.")
            chosen = self._feed[cursor : cursor + limit]
            # Only its last place counts, so that an older state is never taken for the present one.
            records = [
                self._records[one]
                for number, one in enumerate(chosen, start=cursor + 1)
                if one in self._records and self._records[one].change_number == number
            ]
            more = cursor + limit < len(self._feed)
        return {"items": [one.view() for one in records], "cursor": str(cursor + len(chosen)), "more": more}

    def effects(self, after: int = 0, limit: int | None = None) -> list[dict[str, Json]]:
        """The log of effects from number ``after`` + 1 on."""
        with self._lock:
            return self._effects[after : None if limit is None else after + limit]

    def records(self) -> list[dict[str, Json]]:
        """Every record."""
        with self._lock:
            return [one.view() for one in self._records.values()]

    def counts(self) -> dict[str, int]:
        """How many records and effects there are."""
        with self._lock:
            return {"records": len(self._records), "effects": len(self._effects)}

    def _record(self, record_id: str) -> Record:
        record = self._records.get(record_id)
        if record is None:
            raise Refused(404, f"There is no record {record_id!r}.")
        return record

    def _answered(self, key: str | None, request: str) -> dict[str, Json] | None:
        if key is None or key not in self._answers:
            return None
        first_request, answer = self._answers[key]
        if first_request != request:
            raise Refused(409, "This idempotency key was used for another request.")
        return answer

    def _store(
        self, action: str, before: Record | None, after: Record, key: str | None, request: str
    ) -> dict[str, Json]:
        changed = before is None or before.fields != after.fields
        if changed:
            self._feed.append(after.id)
            after = replace(after, change_number=len(self._feed))
        elif before is not None:
            after = before
        self._records[after.id] = after
        self._log(action, before, after, after.changed_by, key)
        answer = after.view()
        if key is not None:
            self._answers[key] = (request, answer)
        return answer

    def _log(self, action: str, before: Record | None, after: Record | None, user: str, key: str | None) -> None:
        record = after or before
        assert record is not None, "an effect is on a record"
        self._effects.append(
            {
                "number": len(self._effects) + 1,
                "at": timestamp_text(self._now()),
                "action": action,
                "id": record.id,
                "kind": record.kind,
                "reference": record.reference,
                "changed_by": user,
                "idempotency_key": key,
                "before": before and dict(before.fields),
                "after": after and dict(after.fields),
                "changed": before is None or after is None or before.fields != after.fields,
            }
        )


def _fingerprint(what: str, content: Mapping[str, Json]) -> str:
    return what + json.dumps(content, sort_keys=True)
