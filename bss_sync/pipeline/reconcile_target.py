"""The distributor's external BSS against the mirror: the second half of a reconciliation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from uuid import UUID

from bss_sync.domain.errors import BssSyncError
from bss_sync.pipeline.deliver import matches
from bss_sync.pipeline.read_pages import answered, listed
from bss_sync.pipeline.reconcile_result import Request, Result
from bss_sync.ports.connector import TargetRecord
from bss_sync.ports.delivery import Binding, Desired, DriftStore, OpenTarget, Targets, Violation
from bss_sync.ports.reconciliation import Cause, Difference, Problem
from bss_sync.ports.runtime import WakeUps
from bss_sync.ports.target_holdings import TargetHoldings, TargetListing

CHUNK = 500


@dataclass
class TargetComparison:
    """Compares the target's whole listing with what the mirror wants there."""

    targets: Targets
    holdings: TargetHoldings
    drift: DriftStore
    wake: WakeUps

    def __call__(self, request: Request, result: Result, beat: Callable[[], None]) -> None:
        """Add the differences to the result. An error of the target is in the result: nothing is missing by it.

        ``beat`` is called with every chunk: the run is alive.
        """
        try:
            target = self.targets.target()
            if target is None:
                return
            with (
                closing(target.gate),
                self.holdings.target_listing(request.connection_id, below=request.subtree) as listing,
            ):
                # A record may carry the reference of another, but never its own id.
                records = listed(target.client.list_all(), lambda one: (one.kind, one.external_id))
                renamed = result.findings.renamed()
                while chunk := list(islice(records, CHUNK)):
                    self._take(request, result, target, listing, chunk, renamed=renamed)
                    beat()
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
        *,
        renamed: bool,
    ) -> None:
        records = [(key, record) for record in chunk if (key := _uuid(record.reference)) is not None]
        wanted = listing.look([key for key, _record in records])
        twice = set(listing.note([key for key, _record in records if key in wanted]))
        violations: list[Violation] = []
        due: list[UUID] = []
        once: set[UUID] = set()
        extra = listing.unknown([key for key, _record in records if key not in wanted])
        unsettled = result.findings.unsettled(list(wanted))
        named: list[Difference] = []
        for key, record in records:
            if key in extra and key not in once:
                once.add(key)
                named.append(_extra(key, record))
            if key not in wanted:
                continue
            binding, desired = wanted[key]
            if key in twice or key in once:
                twin = _difference(
                    Problem.TARGET_DUPLICATE, binding, Cause.UNKNOWN_REFERENCE, "external_id", None, record.external_id
                )
                named.append(replace(twin, since=record.changed_at))
                continue
            once.add(key)
            if binding.busy or key in unsettled or matches(record.fields, desired.fields):
                continue
            fields = _differing(record, desired)
            if renamed and fields.keys() == {"name"}:
                continue
            # Where it holds what it had confirmed, nobody edited it: our own last word has not arrived yet. After a
            # restored backup it is not known what it had, and nobody is accused.
            behind = binding.confirmed is None or matches(record.fields, binding.confirmed)
            cause = Cause.NOT_DELIVERED if behind else Cause.EDITED
            named += [
                replace(_difference(Problem.TARGET_DIFFERS, binding, cause, name, *pair), since=record.changed_at)
                for name, pair in fields.items()
            ]
            if behind:
                due.append(key)
            else:
                violations.append(Violation(binding, record, fields))
        result.add(named)
        self._repair(request, result, target, violations, due)

    def _absent(self, request: Request, result: Result, target: OpenTarget, listing: TargetListing) -> None:
        """The listing is complete: what it lacks was removed there or never arrived."""
        for chunk in listing.unseen():
            unsettled = result.findings.unsettled([binding.record_id for binding, _desired in chunk])
            settled = [binding for binding, _desired in chunk if binding.record_id not in unsettled]
            removed = [
                Violation(binding, None, {})
                for binding in settled
                if binding.external_id is not None and not binding.busy and _is_removed(target, binding)
            ]
            never = [binding for binding in settled if binding.external_id is None and not binding.busy]
            result.add(_difference(Problem.TARGET_MISSING, one.binding, Cause.REMOVED) for one in removed)
            result.add(_difference(Problem.TARGET_MISSING, binding, Cause.NOT_DELIVERED) for binding in never)
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
    with answered():
        return target.client.look_up(binding.kind, str(binding.record_id)) is None


def _differing(record: TargetRecord, desired: Desired) -> Mapping[str, tuple[object, object]]:
    return {
        name: (value, record.fields.get(name))
        for name, value in desired.fields.items()
        if record.fields.get(name) != value
    }


def _difference(
    problem: Problem,
    binding: Binding,
    cause: Cause,
    field: str | None = None,
    expected: object = None,
    found: object = None,
) -> Difference:
    return Difference(
        problem, "target", binding.kind, binding.source_id, binding.record_id, field, expected, found, cause
    )


def _extra(reference: UUID, record: TargetRecord) -> Difference:
    """Only reported: what nobody here has made is nobody's here to end."""
    return Difference(
        Problem.TARGET_EXTRA,
        "target",
        record.kind,
        record.external_id,
        reference,
        cause=Cause.UNKNOWN_REFERENCE,
        since=record.changed_at,
    )


def _uuid(reference: str) -> UUID | None:
    try:
        return UUID(reference)
    except ValueError:
        return None  # somebody else's record
