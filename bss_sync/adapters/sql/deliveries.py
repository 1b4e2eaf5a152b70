"""The outbox in PostgreSQL (ports/delivery.py, DeliveryStore)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.desired import read_desired
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import Kind
from bss_sync.domain.fairness import fair_shares
from bss_sync.ports.delivery import Claimed, Delivered, Desired, Intent, Undelivered

BLOCKED_SECONDS = 30
"""A blocked delivery is woken by its relative's confirmation; should that be missed, it looks again by itself."""
UNSURE_SECONDS = 1
"""It looks again so soon when the relative is just being confirmed: that confirmation cannot know of the block yet."""
CLAIM_ROUNDS = 10
_IS_DUE = "d.due_at <= now() and (d.lease_until is null or d.lease_until <= now())"
_MAY_BE = "(cast(:again as boolean) or d.last_error is null)"
"""What failed before asks for a retry; what a killed worker left behind does not."""
_PARTIES = text(
    f"""select c.id, c.priority from connection c cross join lateral (
           select d.due_at from delivery d where d.connection_id = c.id and {_IS_DUE} and {_MAY_BE}
           order by d.due_at limit 1) d
       where c.state in ('live', 'closed') order by d.due_at"""  # noqa: S608  constants only
)
_DUE = text(
    f"""select d.* from unnest(cast(:ids as uuid[]), cast(:shares as int[])) as q (connection_id, share)
       cross join lateral (
           select d.* from delivery d
           where d.connection_id = q.connection_id and {_IS_DUE} and {_MAY_BE}
           order by d.due_at limit q.share for update skip locked) d
       order by d.due_at"""  # noqa: S608  constants only
)
_LEASE = text(
    """update delivery set token = token + 1, attempts = attempts + 1, state = 'sending', updated_at = now(),
           lease_until = now() + make_interval(secs => :lease), due_at = now() + make_interval(secs => :lease)
       where record_id = any(:ids)"""
)
_BLOCK = text(
    """update delivery set state = 'blocked', due_at = now() + make_interval(secs => :seconds), lease_until = null,
           updated_at = now() where record_id = any(:ids)"""
)
# Held until the block is committed: a relative that is confirmed afterwards finds the blocked row and wakes it. Who is
# at a relative's row already is not waited for, or two would wait for each other.
_UNBOUND = text(
    """select record_id from delivery where record_id = any(:ids) and external_id is null
       order by record_id for share skip locked"""
)
_DROP = text("update delivery set due_at = null, lease_until = null where record_id = any(:ids)")
# Asked first, because a conflict waits for whoever is at that row.
_ENQUEUE_MISSING = text(
    """insert into delivery (record_id, tenant_id, connection_id, kind, desired_revision, due_at)
       select r.id, r.tenant_id, r.connection_id, r.kind, r.revision, now() from (
           select id, tenant_id, connection_id, 'account' as kind, revision from account where id = any(:ids)
           union all
           select id, tenant_id, connection_id, 'subscription', revision from subscription where id = any(:ids)) r
       where not exists (select from delivery d where d.record_id = r.id)
       on conflict do nothing"""
)
_INTENDED = text(
    """update delivery d set intent = r.fields, intent_key = r.key, intent_revision = r.revision, updated_at = now()
       from jsonb_to_recordset(cast(:rows as jsonb))
           as r (id uuid, token bigint, fields jsonb, key text, revision bigint)
       where d.record_id = r.id and d.token = r.token and d.lease_until > now() returning d.record_id"""
)
# due_at differs from lease_until when somebody made the record due again while it was being delivered.
_CONFIRMED = text(
    """update delivery d set
           state = case when d.desired_revision > r.revision or d.due_at is distinct from d.lease_until
                        then 'pending' else 'confirmed' end,
           due_at = case when d.desired_revision > r.revision or d.due_at is distinct from d.lease_until then now() end,
           external_id = r.external_id, confirmed = r.fields, confirmed_revision = r.revision, confirmed_at = now(),
           intent = r.fields, intent_key = null, intent_revision = r.revision,
           lease_until = null, attempts = 0, last_error = null, updated_at = now()
       from jsonb_to_recordset(cast(:rows as jsonb))
           as r (id uuid, token bigint, external_id text, fields jsonb, revision bigint)
       where d.record_id = r.id and d.token = r.token and d.state <> 'dead' returning d.record_id"""
)
_FAILED = text(
    """update delivery d set
           state = case when r.state = 'dead' and d.due_at is distinct from d.lease_until then 'pending'
                        else r.state end,
           due_at = case when r.state = 'dead' and d.due_at is not distinct from d.lease_until then null
                         else now() + make_interval(secs => coalesce(r.delay, 0)) end,
           intent_key = case when r.forget_intent then null else d.intent_key end,
           external_id = case when r.forget_binding then null else d.external_id end,
           confirmed = case when r.forget_binding then null else d.confirmed end,
           attempts = case when r.counted then d.attempts else greatest(d.attempts - 1, 0) end,
           lease_until = null, last_error = r.error, updated_at = now()
       from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, token bigint, state text, delay float, error text,
           forget_intent boolean, forget_binding boolean, counted boolean)
       where d.record_id = r.id and d.token = r.token returning d.record_id"""
)
_RELEASE = text(
    """update delivery d set due_at = now() + make_interval(secs => :delay), lease_until = null,
           attempts = greatest(attempts - 1, 0), state = case when r.sent_before then 'unknown' else 'pending' end,
           intent_key = case when r.sent_before then intent_key end
       from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, token bigint, sent_before boolean)
       where d.record_id = r.id and d.token = r.token"""
)
# In one order for all, the mirror's own writes included (mirror_rows): accounts, then subscriptions, each by id. Two
# transactions that lock several rows would wait for each other otherwise.
_LOCK_OWN = text("select record_id from delivery where record_id = any(:own) order by kind, record_id for update")
_LOCK = text(
    """select record_id from delivery where record_id = any(:own) or record_id in (
           select id from account where parent_id = any(:above) union all
           select id from subscription where account_id = any(:above) union all
           select id from subscription where parent_id = any(:above))
       order by kind, record_id for update"""
)
# Of the relatives those that are locked: one that came since has been made due by what brought it.
_WAKE_RELATIVES = text(
    """update delivery d set due_at = now(), state = 'pending'
       where d.state = 'blocked' and d.record_id = any(:locked) and d.record_id in (
           select id from account where parent_id = any(:ids) union all
           select id from subscription where account_id = any(:ids) union all
           select id from subscription where parent_id = any(:ids))"""
)
_WAKE_RENAMED = text(
    """update delivery d set due_at = now(), state = 'pending'
       where d.external_id is not null and d.record_id = any(:locked)
         and d.record_id in (select id from subscription where account_id = any(:ids))"""
)
_SETTLE_DRIFT = text(
    """update drift set settled_at = now(), action = 'repaired'
       where record_id = any(:ids) and place = 'target' and action = 'repairing' and settled_at is null"""
)


class SqlDeliveries:
    """DeliveryStore over PostgreSQL."""

    def __init__(self, database: Database, *, lease_seconds: float = 30) -> None:
        self._database = database
        self._lease_seconds = lease_seconds

    def claim(self, limit: int, retries: int | None = None) -> Sequence[Claimed]:
        """See DeliveryStore."""
        for _ in range(CLAIM_ROUNDS):
            with self._database.engine() as connection:
                due = _due(connection, limit, retries)
                claimed = self._lease(connection, due)
            if claimed or len(due) < limit:
                return claimed
        return []

    def _lease(self, connection: Connection, due: Sequence[Row[Any]]) -> list[Claimed]:
        desired = read_desired(connection, [row.record_id for row in due])
        ready = [row for row in due if row.record_id in desired and not desired[row.record_id][1]]
        blocked = [row.record_id for row in due if row.record_id in desired and desired[row.record_id][1]]
        gone = [row.record_id for row in due if row.record_id not in desired]
        if ready:
            ids = [row.record_id for row in ready]
            connection.execute(_LEASE, {"ids": ids, "lease": self._lease_seconds})
        if blocked:
            # A relative that was never made due would block for ever.
            relatives = {relative for record_id in blocked for relative in desired[record_id][1]}
            connection.execute(_ENQUEUE_MISSING, {"ids": list(relatives)})
            unbound = set(connection.execute(_UNBOUND, {"ids": list(relatives)}).scalars())
            unsure = [record_id for record_id in blocked if not unbound.issuperset(desired[record_id][1])]
            sure = [record_id for record_id in blocked if unbound.issuperset(desired[record_id][1])]
            connection.execute(_BLOCK, {"ids": sure, "seconds": BLOCKED_SECONDS})
            connection.execute(_BLOCK, {"ids": unsure, "seconds": UNSURE_SECONDS})
        if gone:
            connection.execute(_DROP, {"ids": gone})
        return [_claimed(row, desired[row.record_id][0]) for row in ready]

    def write_intents(self, intents: Sequence[tuple[Claimed, Intent]]) -> frozenset[UUID]:
        """See DeliveryStore."""
        rows = [
            {
                "id": str(one.record_id),
                "token": one.token,
                "fields": intent.fields,
                "key": intent.key,
                "revision": intent.revision,
            }
            for one, intent in intents
        ]
        with self._database.engine() as connection:
            connection.execute(_LOCK_OWN, {"own": [one.record_id for one, _intent in intents]})
            return frozenset(connection.execute(_INTENDED, {"rows": json.dumps(rows)}).scalars())

    def settle(self, outcomes: Sequence[Delivered | Undelivered]) -> frozenset[UUID]:
        """See DeliveryStore."""
        done = [outcome for outcome in outcomes if isinstance(outcome, Delivered)]
        failed = [outcome for outcome in outcomes if isinstance(outcome, Undelivered)]
        own = [outcome.claimed.record_id for outcome in outcomes]
        above = [one.claimed.record_id for one in done if one.claimed.external_id is None or _renamed(one)]
        with self._database.engine() as connection:
            locked = list(connection.execute(_LOCK, {"own": own, "above": above}).scalars())
            ours: set[UUID] = set()
            if done:
                rows = json.dumps([_confirmed_row(outcome) for outcome in done])
                ours |= set(connection.execute(_CONFIRMED, {"rows": rows}).scalars())
                self._wake(connection, [outcome for outcome in done if outcome.claimed.record_id in ours], locked)
            if failed:
                rows = json.dumps([_failed_row(outcome) for outcome in failed])
                ours |= set(connection.execute(_FAILED, {"rows": rows}).scalars())
            append_audit(connection, _entries(outcome for outcome in outcomes if outcome.claimed.record_id in ours))
        return frozenset(ours)

    def _wake(self, connection: Connection, done: Sequence[Delivered], locked: Sequence[UUID]) -> None:
        bound = [one.claimed.record_id for one in done if one.claimed.external_id is None]
        if bound:
            connection.execute(_WAKE_RELATIVES, {"ids": bound, "locked": locked})
        renamed = [one.claimed.record_id for one in done if _renamed(one)]
        if renamed:
            connection.execute(_WAKE_RENAMED, {"ids": renamed, "locked": locked})
        connection.execute(_SETTLE_DRIFT, {"ids": [one.claimed.record_id for one in done]})

    def release(self, claimed: Sequence[Claimed], delay_seconds: float) -> None:
        """See DeliveryStore."""
        rows = json.dumps(
            [{"id": str(one.record_id), "token": one.token, "sent_before": one.stored is not None} for one in claimed]
        )
        with self._database.engine() as connection:
            connection.execute(_LOCK_OWN, {"own": [one.record_id for one in claimed]})
            connection.execute(_RELEASE, {"rows": rows, "delay": delay_seconds})


def _due(connection: Connection, limit: int, retries: int | None) -> list[Row[Any]]:
    """Due rows in fair shares, locked: what failed before as far as ``retries`` go, then what was never tried."""
    if retries is None:
        return _shared(connection, limit, again=True)
    again = _shared(connection, min(limit, retries), again=True) if retries else []
    if len(again) == limit:
        return again
    found = {row.record_id for row in again}
    fresh = [row for row in _shared(connection, limit, again=False) if row.record_id not in found]
    return again + fresh[: limit - len(again)]


def _shared(connection: Connection, limit: int, *, again: bool) -> list[Row[Any]]:
    values = {"again": again}
    waiting = {row.id: row.priority for row in connection.execute(_PARTIES, values)}
    shares = fair_shares(limit, waiting)
    found = list(connection.execute(_DUE, values | {"ids": list(shares), "shares": list(shares.values())}))
    filled = Counter(row.connection_id for row in found)
    hungry = {party: waiting[party] for party in shares if filled[party] == shares[party]}
    if hungry and len(found) < limit and len(hungry) < len(shares):
        # What some did not need goes to those who have more; what is locked already is simply found again.
        more = {party: shares[party] + extra for party, extra in fair_shares(limit - len(found), hungry).items()}
        rows = connection.execute(_DUE, values | {"ids": list(more), "shares": list(more.values())})
        found = [row for row in found if row.connection_id not in more] + list(rows)
    return found[:limit]


def _claimed(row: Row[Any], desired: Desired) -> Claimed:
    stored = None
    if row.intent_key is not None and row.intent is not None:
        stored = Intent(row.intent_key, row.intent_revision, row.intent)
    return Claimed(
        record_id=row.record_id,
        tenant_id=row.tenant_id,
        connection_id=row.connection_id,
        kind=Kind(row.kind),
        token=row.token + 1,
        attempts=row.attempts + 1,
        external_id=row.external_id,
        confirmed=row.confirmed,
        stored=stored,
        desired=desired,
        again=row.last_error is not None,
    )


def _confirmed_row(outcome: Delivered) -> dict[str, Any]:
    return {
        "id": str(outcome.claimed.record_id),
        "token": outcome.claimed.token,
        "external_id": outcome.external_id,
        "fields": outcome.intent.fields,
        "revision": outcome.intent.revision,
    }


def _failed_row(outcome: Undelivered) -> dict[str, Any]:
    return {
        "id": str(outcome.claimed.record_id),
        "token": outcome.claimed.token,
        "state": outcome.state,
        "delay": outcome.delay_seconds,
        "error": outcome.error[:500],
        "forget_intent": "intent" in outcome.forget,
        "forget_binding": "binding" in outcome.forget,
        "counted": outcome.counted,
    }


def _renamed(outcome: Delivered) -> bool:
    """An account's name stands in the names of its subscriptions."""
    before = outcome.claimed.confirmed
    return (
        outcome.claimed.kind is Kind.ACCOUNT and before is not None and before["name"] != outcome.intent.fields["name"]
    )


def _entries(outcomes: Iterable[Delivered | Undelivered]) -> list[AuditEntry]:
    entries = []
    for outcome in outcomes:
        claimed = outcome.claimed
        detail: dict[str, Any] = {"attempt": claimed.attempts}
        if isinstance(outcome, Delivered):
            if outcome.action == "unchanged":
                continue
            action = f"delivery.{outcome.action}"
            detail |= {"external_id": outcome.external_id, "revision": outcome.intent.revision}
        else:
            action = "delivery.dead" if outcome.state == "dead" else "delivery.failed"
            if "binding" in outcome.forget:
                action = "delivery.vanished"
            detail |= {"state": outcome.state, "error": outcome.error[:500]}
        entries.append(
            AuditEntry(
                claimed.connection_id,
                claimed.tenant_id,
                "system",
                action,
                detail,
                connection_id=claimed.connection_id,
                kind=str(claimed.kind),
                record_id=claimed.record_id,
            )
        )
    return entries
