"""The outbox, the drift store and what the target ought to hold, in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

from bss_sync.domain import account, subscription
from bss_sync.domain.change import Json, Kind
from bss_sync.domain.tenancy import ConnectionState
from bss_sync.ports.delivery import (
    Binding,
    Claimed,
    Delivered,
    Desired,
    DriftPoll,
    Intent,
    Undelivered,
    Violation,
)
from bss_sync.testing.simulation.line import Delivery, SimulatedLine, shown

BILL_TO = "Cloud Resell"
BLOCKED_SECONDS = 30


@dataclass
class MemoryOutbox:
    """``ports.delivery``: ``DeliveryStore``, ``DriftStore`` and ``TargetHoldings`` over the line's records."""

    line: SimulatedLine
    poll_seconds: float = 60
    feed_cursor: str | None = None
    feed_due_at: datetime | None = None
    feed_lease: datetime | None = None

    # --- deliveries ---------------------------------------------------------------------------------------------------

    def claim(self, limit: int, retries: int | None = None) -> Sequence[Claimed]:  # noqa: ARG002 - nothing is guarded here
        """See DeliveryStore."""
        if self.line.state is not ConnectionState.LIVE:
            return []
        now, found = self.line.now, []
        due = [row for row in self.line.deliveries.values() if row.due_at is not None and row.due_at <= now]
        for row in sorted(due, key=lambda one: (one.due_at or now, one.record_id)):
            if row.lease_until is not None and row.lease_until > now and self.line.leasing:
                continue
            desired, unbound = self.desired(row.record_id)
            if unbound:
                row.state, row.due_at, row.lease_until = "blocked", now + timedelta(seconds=BLOCKED_SECONDS), None
                for relative in unbound:
                    self.line.deliveries.setdefault(relative, Delivery(relative, now))
                continue
            found.append(self._lease(row, desired))
            if len(found) == limit:
                break
        return found

    def _lease(self, row: Delivery, desired: Desired) -> Claimed:
        entity = self.line.entities[row.record_id]
        row.token += 1
        row.attempts += 1
        row.state = "sending"
        seconds = self.line.lease_seconds if self.line.leasing else 0
        row.lease_until = row.due_at = self.line.now + timedelta(seconds=seconds)
        stored = row.intent if row.intent is not None and row.intent.key else None
        return Claimed(
            record_id=row.record_id,
            tenant_id=entity.tenant_id,
            connection_id=entity.connection_id,
            kind=entity.kind,
            token=row.token,
            attempts=row.attempts,
            external_id=row.external_id,
            confirmed=row.confirmed,
            stored=stored,
            desired=desired,
        )

    def desired(self, record_id: UUID) -> tuple[Desired, list[UUID]]:
        """What the target ought to hold of a record, and its relatives that have no binding yet."""
        entity = self.line.entities[record_id]
        mirrored = entity.mirrored
        assert mirrored is not None, "only a mirrored record is delivered"
        links = {name: self.line.link(entity, name) for name in ("account_id", "parent_id")}
        external = {
            name: None if link is None or link not in self.line.deliveries else self.line.deliveries[link].external_id
            for name, link in links.items()
        }
        unbound = [link for name, link in links.items() if link is not None and external[name] is None]
        names = account.FIELDS if entity.kind is Kind.ACCOUNT else subscription.FIELDS
        fields: dict[str, Json] = {name: shown(entity)[name] for name in names}
        fields["parent_id"] = external["parent_id"]
        if entity.kind is Kind.SUBSCRIPTION:
            fields["account_id"] = external["account_id"]
            fields["name"] = f"{self._holder(links['account_id'])} - {mirrored.content['product']}"
        fields["bill_to"] = BILL_TO
        fields["ended"] = mirrored.deleted_at is not None or mirrored.ended_at is not None
        return Desired(self.line.revisions.get(record_id, 1), fields), unbound

    def _holder(self, account_id: UUID | None) -> Json:
        holder = None if account_id is None else self.line.entities[account_id]
        return BILL_TO if holder is None or holder.mirrored is None else shown(holder)["name"]

    def write_intents(self, intents: Sequence[tuple[Claimed, Intent]]) -> frozenset[UUID]:
        """See DeliveryStore."""
        ours = set()
        for claimed, intent in intents:
            row = self.line.deliveries[claimed.record_id]
            held = row.token == claimed.token and row.lease_until is not None and row.lease_until > self.line.now
            if held or not self.line.fencing:
                row.intent = intent
                ours.add(claimed.record_id)
        return frozenset(ours)

    def settle(self, outcomes: Sequence[Delivered | Undelivered]) -> frozenset[UUID]:
        """See DeliveryStore."""
        ours = set()
        for outcome in outcomes:
            row = self.line.deliveries[outcome.claimed.record_id]
            if row.token != outcome.claimed.token and self.line.fencing:
                continue
            if isinstance(outcome, Delivered):
                if row.state != "dead":
                    self._confirm(row, outcome)
                    ours.add(row.record_id)
            else:
                self._fail(row, outcome)
                ours.add(row.record_id)
        return frozenset(ours)

    def _confirm(self, row: Delivery, outcome: Delivered) -> None:
        again = row.desired_revision > outcome.intent.revision or row.due_at != row.lease_until
        renamed = row.confirmed is not None and row.confirmed.get("name") != outcome.intent.fields["name"]
        row.state, row.due_at = ("pending", self.line.now) if again else ("confirmed", None)
        row.external_id, row.confirmed = outcome.external_id, dict(outcome.intent.fields)
        row.confirmed_revision = outcome.intent.revision
        row.intent = replace(outcome.intent, key="")
        row.lease_until, row.attempts = None, 0
        bound = outcome.claimed.external_id is None
        for other in self.line.deliveries.values():
            entity = self.line.entities[other.record_id]
            linked = row.record_id in (self.line.link(entity, "account_id"), self.line.link(entity, "parent_id"))
            if (bound and linked and other.state == "blocked") or (
                renamed and self.line.link(entity, "account_id") == row.record_id and other.external_id is not None
            ):
                other.state, other.due_at = "pending", self.line.now

    def _fail(self, row: Delivery, outcome: Undelivered) -> None:
        again = row.due_at != row.lease_until
        dead = outcome.state == "dead" and not again
        row.state = "pending" if outcome.state == "dead" and again else outcome.state
        row.due_at = None if dead else self.line.now + timedelta(seconds=outcome.delay_seconds or 0)
        if "intent" in outcome.forget and row.intent is not None:
            row.intent = replace(row.intent, key="")
        if "binding" in outcome.forget:
            row.external_id = row.confirmed = None
        row.lease_until = None

    def release(self, claimed: Sequence[Claimed], delay_seconds: float) -> None:
        """See DeliveryStore."""
        for one in claimed:
            row = self.line.deliveries[one.record_id]
            if row.token != one.token:
                continue
            row.due_at, row.lease_until = self.line.now + timedelta(seconds=delay_seconds), None
            row.attempts = max(row.attempts - 1, 0)
            row.state = "pending" if one.stored is None else "unknown"
            if one.stored is None and row.intent is not None:
                row.intent = replace(row.intent, key="")

    # --- drift --------------------------------------------------------------------------------------------------------

    def claim_feed(self) -> DriftPoll | None:
        """See DriftStore."""
        now = self.line.now
        if (self.feed_due_at is not None and self.feed_due_at > now) or (
            self.feed_lease is not None and self.feed_lease > now
        ):
            return None
        self.feed_lease = now + timedelta(seconds=60)
        return DriftPoll(self.feed_cursor, self.feed_lease)

    def finish_feed(self, poll: DriftPoll, cursor: str | None, *, due_seconds: float, error: str | None) -> None:
        """See DriftStore."""
        if self.feed_lease == poll.lease_until:
            assert error is None or cursor == poll.cursor or cursor is not None, "a cursor never goes back to nothing"
            self.feed_cursor, self.feed_lease = cursor, None
            self.feed_due_at = self.line.now + timedelta(seconds=due_seconds)

    def bindings(self, record_ids: Sequence[UUID]) -> Mapping[UUID, Binding]:
        """See DriftStore."""
        rows = self.line.deliveries
        return {key: self._binding(rows[key]) for key in record_ids if key in rows}

    def _binding(self, row: Delivery) -> Binding:
        entity, now = self.line.entities[row.record_id], self.line.now
        leased = row.lease_until is not None and row.lease_until > now
        due = row.due_at is not None and row.due_at <= now
        return Binding(
            record_id=row.record_id,
            tenant_id=entity.tenant_id,
            connection_id=entity.connection_id,
            kind=entity.kind,
            source_id=entity.source_id,
            external_id=row.external_id,
            confirmed=row.confirmed,
            intent=None if row.intent is None else row.intent.fields,
            busy=leased or due or row.state in ("sending", "unknown"),
        )

    def record(self, violations: Sequence[Violation], *, policy: str, run_id: UUID | None = None) -> int:
        """See DriftStore. Only the repair: who found what is PostgreSQL's to keep."""
        assert policy == "repair", f"the simulated target repairs (run {run_id})"
        for violation in violations:
            row = self.line.deliveries[violation.binding.record_id]
            row.due_at, row.state, row.intent = self.line.now, "pending", None
            if violation.record is None:
                row.external_id = row.confirmed = None
            elif row.confirmed is not None:
                row.confirmed |= {name: found for name, (_expected, found) in violation.fields.items()}
        return sum(len(violation.fields) or 1 for violation in violations)

    def settle_reported(self, record_ids: Sequence[UUID]) -> None:
        """See DriftStore: nothing is only reported here."""

    # --- reconciliation -----------------------------------------------------------------------------------------------

    @contextmanager
    def target_listing(self, connection_id: UUID, *, below: str | None = None) -> Iterator[MemoryTargetListing]:
        """See TargetHoldings."""
        for key, entity in self.line.entities.items():
            mirrored = entity.mirrored
            if mirrored is not None and mirrored.deleted_at is None and mirrored.ended_at is None:
                self.line.deliveries.setdefault(key, Delivery(key, None))
        whole = frozenset(self.line.entities)
        yield MemoryTargetListing(self, whole if below is None else self.line.below(connection_id, below))

    def make_due(self, record_ids: Sequence[UUID]) -> None:
        """See TargetHoldings."""
        for key in record_ids:
            row = self.line.deliveries[key]
            row.due_at, row.attempts = row.due_at or self.line.now, 0
            row.state = row.state if row.state in ("sending", "unknown") else "pending"

    def is_live(self, key: UUID) -> bool:
        """Whether the mirror's record has not ended."""
        mirrored = self.line.entities[key].mirrored
        return mirrored is not None and mirrored.deleted_at is None and mirrored.ended_at is None


@dataclass
class MemoryTargetListing:
    """``ports.target_holdings.TargetListing``."""

    outbox: MemoryOutbox
    inside: frozenset[UUID]
    _seen: set[UUID] = field(default_factory=set)

    def look(self, record_ids: Sequence[UUID]) -> Mapping[UUID, tuple[Binding, Desired]]:
        """See TargetListing."""
        found = self.outbox.bindings([key for key in record_ids if key in self.inside])
        return {key: (binding, self.outbox.desired(key)[0]) for key, binding in found.items()}

    def note(self, record_ids: Sequence[UUID]) -> frozenset[UUID]:
        """See TargetListing."""
        again = frozenset(record_ids) & self._seen
        self._seen |= set(record_ids)
        return again

    def unknown(self, references: Sequence[UUID]) -> frozenset[UUID]:
        """See TargetListing."""
        return frozenset(references) - self.outbox.line.entities.keys()

    def unseen(self) -> Iterator[Sequence[tuple[Binding, Desired]]]:
        """See TargetListing."""
        rows = self.outbox.line.deliveries
        absent = [
            key
            for key, row in sorted(rows.items())
            if key in self.inside
            and key not in self._seen
            and (row.external_id is not None or (self.outbox.is_live(key) and row.due_at is None))
        ]
        if absent:
            yield list(self.look(absent).values())
