"""Drift: edits made behind the system's back in the distributor's external BSS are found, named and put back.

An echo, a record equal to what we last intended or confirmed, is dropped: by its content, never by its time. While a
delivery of a record is in flight its echo cannot be told from an edit, so the feed is read again a moment later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from bss_sync.domain.change import Json
from bss_sync.domain.circles import Circle
from bss_sync.domain.errors import BssSyncError
from bss_sync.pipeline.deliver import matches
from bss_sync.pipeline.read_pages import answered
from bss_sync.ports.breakers import FREE, Gate
from bss_sync.ports.connector import TargetClient, TargetRecord
from bss_sync.ports.delivery import Binding, DriftStore, OpenTarget, Targets, Violation

BUSY_SECONDS = 0.5
FAILED_SECONDS = 15.0


@dataclass
class DriftWatch:
    """Reads the target's change feed."""

    store: DriftStore
    targets: Targets

    def poll(self) -> int:
        """Read the feed to its end when it is due; returns how many edited fields were new."""
        poll = self.store.claim_feed()
        if poll is None:
            return 0
        found, cursor, due_seconds, error = 0, poll.cursor, FAILED_SECONDS, None
        gate: Gate = FREE
        try:
            target = self.targets.target()
            if target is not None:
                gate, due_seconds = target.gate, target.settings.poll_seconds
                more, circle = True, Circle()
                circle.closes(cursor)
                while more:
                    with answered():
                        records, following, more = target.client.changes(cursor)
                    new, busy = (0, False) if poll.unjudged else self._look_at(target, records)
                    found += new
                    if busy:
                        due_seconds, more = min(BUSY_SECONDS, due_seconds), False
                    else:
                        more = more and not circle.closes(following)
                        cursor = following
        except BssSyncError as problem:
            error = f"{problem.slug}: {problem.detail}"
            due_seconds = FAILED_SECONDS
        gate.close()
        self.store.finish_feed(poll, cursor, due_seconds=due_seconds, error=error)
        return found

    def _look_at(self, target: OpenTarget, records: Sequence[TargetRecord]) -> tuple[int, bool]:
        """(new edited fields, whether a delivery in flight hides the truth)."""
        by_id = {key: record for record in records if (key := _record_id(record)) is not None}
        bindings = self.store.bindings(list(by_id))
        suspects = [key for key, binding in bindings.items() if not is_echo(binding, by_id[key].fields)]
        self.store.settle_reported([key for key in bindings if key not in suspects])
        if not suspects:
            return 0, False
        # The feed may show an older state of ours than what was confirmed since: only the present counts.
        with answered():
            present = {key: target.client.look_up(by_id[key].kind, str(key)) for key in suspects}
        bindings = self.store.bindings(suspects)
        violations = [
            violation
            for key, record in present.items()
            if record is not None and not bindings[key].busy and (violation := violated(bindings[key], record))
        ]
        recorded = self.store.record(violations, policy=target.settings.drift_policy)
        return recorded, any(binding.busy for binding in bindings.values())


def is_echo(binding: Binding, found: Mapping[str, Json]) -> bool:
    """Whether the record holds what we last intended or confirmed."""
    return any(known is not None and matches(found, known) for known in (binding.confirmed, binding.intent))


def violated(binding: Binding, record: TargetRecord) -> Violation | None:
    """The locked fields that differ from what was confirmed, or None for an echo or an unbound record."""
    if binding.confirmed is None or is_echo(binding, record.fields):
        return None
    fields = {
        name: (value, record.fields.get(name))
        for name, value in binding.confirmed.items()
        if record.fields.get(name) != value
    }
    return Violation(binding, record, fields)


def vanished(client: TargetClient, binding: Binding) -> Violation | None:
    """The violation of a record that was removed there, or None when it is still found."""
    if binding.external_id is None or client.look_up(binding.kind, str(binding.record_id)) is not None:
        return None
    return Violation(binding, None, {})


def _record_id(record: TargetRecord) -> UUID | None:
    try:
        return UUID(record.reference)
    except ValueError:
        return None  # somebody else's reference
