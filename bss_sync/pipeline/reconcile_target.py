"""The distributor's external BSS against the mirror: the second half of a reconciliation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

from bss_sync.domain.errors import BssSyncError
from bss_sync.pipeline.deliver import matches
from bss_sync.pipeline.reconcile import Request, Result
from bss_sync.ports.connector import TargetRecord
from bss_sync.ports.delivery import Binding, Desired, DriftStore, OpenTarget, Targets, Violation
from bss_sync.ports.reconciliation import Difference, Problem, TargetHoldings, TargetListing
from bss_sync.ports.runtime import WakeUps

CHUNK = 500


@dataclass
class TargetComparison:
    """Compares the target's whole listing with what the mirror wants there."""

    targets: Targets
    holdings: TargetHoldings
    drift: DriftStore
    wake: WakeUps

    def __call__(self, request: Request, result: Result) -> None:
        """Add the differences to the result. An error of the target is in the result: nothing is missing by it."""
        try:
            target = self.targets.target()
            if target is None:
                return
            with closing(target.gate), self.holdings.target_listing(request.connection_id) as listing:
                records = target.client.list_all()
                while chunk := list(islice(records, CHUNK)):
                    self._take(request, result, target, listing, chunk)
                self._absent(request, result, target, listing)
        except BssSyncError as error:
            result.target_error = f"{error.slug}: {error.detail}"
        if not request.dry_run:
            self.wake.deliver()

    def _take(
        self,
        request: Request,
        result: Result,
        target: OpenTarget,
        listing: TargetListing,
        chunk: Sequence[TargetRecord],
    ) -> None:
        records = [(key, record) for record in chunk if (key := _uuid(record.reference)) is not None]
        wanted = listing.look([key for key, _record in records])
        twice = set(listing.note([key for key, _record in records if key in wanted]))
        violations: list[Violation] = []
        due: list[UUID] = []
        once: set[UUID] = set()
        for key, record in records:
            if key not in wanted:
                continue
            binding, desired = wanted[key]
            if key in twice or key in once:
                result.add([_difference(Problem.TARGET_DUPLICATE, binding, "external_id", None, record.external_id)])
                continue
            once.add(key)
            if binding.busy or matches(record.fields, desired.fields):
                continue
            fields = _differing(record, desired)
            result.add(_difference(Problem.TARGET_DIFFERS, binding, name, *pair) for name, pair in fields.items())
            if binding.confirmed is not None and matches(record.fields, binding.confirmed):
                # Nobody edited it: our own last word has not arrived yet.
                due.append(key)
            else:
                violations.append(Violation(binding, record, fields))
        self._repair(request, result, target, violations, due)

    def _absent(self, request: Request, result: Result, target: OpenTarget, listing: TargetListing) -> None:
        """The listing is complete: what it lacks was removed there or never arrived."""
        for chunk in listing.unseen():
            removed = [
                Violation(binding, None, {})
                for binding, _desired in chunk
                if binding.external_id is not None and not binding.busy and _is_removed(target, binding)
            ]
            never = [binding for binding, _desired in chunk if binding.external_id is None and not binding.busy]
            result.add(_difference(Problem.TARGET_MISSING, one.binding) for one in removed)
            result.add(_difference(Problem.TARGET_MISSING, binding) for binding in never)
            self._repair(request, result, target, removed, [binding.record_id for binding in never])

    def _repair(
        self, request: Request, result: Result, target: OpenTarget, violations: Sequence[Violation], due: list[UUID]
    ) -> None:
        if request.dry_run:
            return
        if violations:
            self.drift.record(violations, policy=target.settings.drift_policy, run_id=result.run_id)
        if due:
            self.holdings.make_due(due)
        result.repaired += len(due) + (len(violations) if target.settings.drift_policy == "repair" else 0)


def _is_removed(target: OpenTarget, binding: Binding) -> bool:
    return target.client.look_up(binding.kind, str(binding.record_id)) is None


def _differing(record: TargetRecord, desired: Desired) -> Mapping[str, tuple[object, object]]:
    return {
        name: (value, record.fields.get(name))
        for name, value in desired.fields.items()
        if record.fields.get(name) != value
    }


def _difference(
    problem: Problem, binding: Binding, field: str | None = None, expected: object = None, found: object = None
) -> Difference:
    return Difference(problem, "target", binding.kind, binding.source_id, binding.record_id, field, expected, found)


def _uuid(reference: str) -> UUID | None:
    try:
        return UUID(reference)
    except ValueError:
        return None  # somebody else's record
