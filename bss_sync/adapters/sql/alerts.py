"""Alerts in PostgreSQL (ports/alerting.py, AlertStore): every condition is one query over small indexes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import text

from bss_sync.adapters.sql.database import Database
from bss_sync.domain.alerting import Alert, Rule

DRIFT_MINUTES = 15
"""What was found and put back at once is told too; it has cleared when so long nothing more was found."""
FAILED_RUN_HOURS = 24
HELD_BACK_SECONDS = 60
"""A breaker that has been open for so long is told: it will hardly close by itself."""
CLAIM_SECONDS = 120
"""Longer than all ways together take: who claimed an alert and died is followed by the next after it."""

_CONDITIONS = {
    Rule.DEAD_LETTERS: """
        select tenant_id, connection_id, connection_id as subject, sum(number) as number, min(since) as since from (
            select tenant_id, connection_id, count(*) as number, min(coalesce(decided_at, received_at)) as since
            from message where state = 'dead' and settled_on(state, decided_at) = 'infinity'
            group by tenant_id, connection_id
            union all
            select tenant_id, connection_id, count(*), min(updated_at) from delivery where state = 'dead'
            group by tenant_id, connection_id) held
        group by tenant_id, connection_id""",
    Rule.QUARANTINED: """
        select tenant_id, connection_id, connection_id as subject, count(*) as number,
               min(coalesce(decided_at, received_at)) as since
        from message where state = 'quarantined' and settled_on(state, decided_at) = 'infinity'
        group by tenant_id, connection_id""",
    Rule.SILENCE: """
        select tenant_id, id as connection_id, id as subject, 1 as number, silent_since as since
        from connection where silent_since is not null and state in ('shadow', 'live')""",
    Rule.DRIFT: """
        select c.tenant_id, c.id as connection_id, c.id as subject, found.number, found.since
        from connection c cross join lateral (
            select count(*) as number, min(d.found_at) as since from (
                select id, found_at from drift where connection_id = c.id and settled_at is null
                union
                select id, found_at from drift
                where connection_id = c.id and found_at > now() - make_interval(mins => :drift_minutes)) d) found
        where found.number > 0""",
    Rule.STOPPED_RUN: """
        select tenant_id, connection_id, id as subject, 1 as number, updated_at as since from run
        where state = 'stopped'
           or state = 'failed' and finished_at > now() - make_interval(hours => :failed_run_hours)""",
    Rule.HELD_BACK: """
        select tenant_id, connection_id, owner_id as subject, 1 as number, opened_at as since from breaker
        where open_until is not null and opened_at < now() - make_interval(secs => :held_back_seconds)""",
}
_VALUES = {"drift_minutes": DRIFT_MINUTES, "failed_run_hours": FAILED_RUN_HOURS, "held_back_seconds": HELD_BACK_SECONDS}
assert _CONDITIONS.keys() == set(Rule), "every rule has its query"

# Only alerts whose rule was looked at just now, or is watched no more, can have cleared.
_REFRESH = """
    with holding as materialized ({conditions}),
    cleared as (
        update alert a set cleared_at = now(), due_at = null where a.cleared_at is null
            and not exists (select from holding h where h.rule = a.rule and h.subject = a.subject)),
    kept as (
        update alert a set number = h.number from holding h
        where a.cleared_at is null and h.rule = a.rule and h.subject = a.subject and a.number <> h.number)
    insert into alert (id, tenant_id, rule, subject, connection_id, number, since)
    select gen_random_uuid(), h.tenant_id, h.rule, h.subject, h.connection_id, h.number, h.since from holding h
    on conflict (rule, subject) where cleared_at is null do nothing"""
_NOTHING = """select null::text as rule, null::uuid as tenant_id, null::uuid as connection_id, null::uuid as subject,
    0::bigint as number, null::timestamptz as since where false"""
_CLAIM = text(
    """update alert a set attempts = a.attempts + 1, due_at = now() + make_interval(secs => :seconds)
       from (select id from alert where due_at <= now() and cleared_at is null
             order by due_at limit :limit for update skip locked) due
       where a.id = due.id
       returning a.*, (select c.name from connection c where c.id = a.connection_id) as connection"""
)
_TOLD = text(
    """update alert set told = :told, last_error = :error,
           due_at = case when cleared_at is null then now() + make_interval(secs => cast(:delay as float)) end
       where id = :id"""
)


class SqlAlerts:
    """AlertStore over PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def refresh(self, rules: Collection[Rule]) -> int:
        """See AlertStore."""
        parts = [
            f"select '{rule}' as rule, tenant_id, connection_id, subject, number::bigint as number, since "  # noqa: S608  our own rules' names
            f"from ({_CONDITIONS[rule]}) {rule}_condition"
            for rule in sorted(rules)
        ]
        statement = _REFRESH.format(conditions=" union all ".join(parts) or _NOTHING)
        with self._database.engine() as connection:
            return connection.execute(
                text(statement), {name: _VALUES[name] for name in _VALUES if name in statement}
            ).rowcount

    def claim(self, limit: int) -> Sequence[Alert]:
        """See AlertStore."""
        with self._database.engine() as connection:
            rows = connection.execute(_CLAIM, {"limit": limit, "seconds": CLAIM_SECONDS}).all()
        return [
            Alert(
                id=row.id,
                rule=Rule(row.rule),
                subject=row.subject,
                connection=row.connection,
                number=row.number,
                since=row.since,
                opened_at=row.opened_at,
                attempts=row.attempts,
                told=tuple(row.told),
            )
            for row in rows
        ]

    def told(self, alert: Alert, ways: Collection[str], *, error: str | None, delay_seconds: float | None) -> None:
        """See AlertStore."""
        values = {"id": alert.id, "told": sorted(ways), "delay": delay_seconds, "error": error and error[:500]}
        with self._database.engine() as connection:
            connection.execute(_TOLD, values)
