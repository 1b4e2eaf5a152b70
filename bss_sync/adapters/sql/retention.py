"""Retention in PostgreSQL (ports/retention.py, RetentionStore; docs/decisions/0025-retention.md).

The engine owns nothing: parts are made and dropped by functions of the owner (migration 0002), which give up when a
lock is not to be had at once. Rows are carried and deleted by ordinary statements through the partitioned tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.database import Database
from bss_sync.domain.retention import Retention
from bss_sync.ports.connector import ConnectionSettings
from bss_sync.ports.retention import Act, Expired, Turn

MONTHS_AHEAD = 3
CHUNK_RECORDS = 500
CHUNK_MESSAGES = 5_000
KEPT = date(1999, 1, 1)
"""Any day below the years of history: where the part lies that rows are carried into."""
_NOBODY = UUID(int=0)

_PROVIDE = text("select * from retention_provide(:months)")
_TODAY = text("select (now() at time zone 'UTC')::date")
_STAGING_DAYS = text(
    "select coalesce(max(coalesce((settings ->> 'staging_days')::int, :default)), :default) from connection"
)
_EXPIRED = text(
    """select part, from_day, to_day, byte_number from retention_parts(:parent)
       where from_day > '2000-01-01' and to_day <= :before order by from_day"""
)
_DROP = text("select retention_drop(:part)")
_ANALYZE = text("select retention_analyze()")
# Settled before there were parts, or while a part was missing. Ids grow with time: the oldest stand first.
_OLD_UNPARTED = """
    select id from message where settled_on(state, decided_at) = 'infinity'
        and state in ('applied', 'superseded', 'out_of_scope', 'discarded') and decided_at < :before and id < :floor"""
_COUNT_UNPARTED = text(f"select count(*) from ({_OLD_UNPARTED}) m")  # noqa: S608  constants only
_DELETE_UNPARTED = text(
    f"""delete from message where settled_on(state, decided_at) = 'infinity'
            and id = any(array({_OLD_UNPARTED} limit :rows))"""  # noqa: S608  constants only
)
_DELETE_OTHER = text(
    """delete from message where settled_on(state, decided_at) < :before and id = any(array(
           select id from message where settled_on(state, decided_at) < :before
               and tableoid = 'message_other'::regclass limit :rows))"""
)

# A row of the past answers no question at or after the horizon when another of its record wins whenever it could win:
# one of a higher place, in effect by then, recorded by then.
_BEATEN = """exists (
    select 1 from history y where y.record_id = x.record_id
        and (y.epoch, y.version, y.id) > (x.epoch, x.version, x.id)
        and y.effective_at <= greatest(:horizon, x.effective_at) and y.recorded_at <= :horizon)"""
_CHUNK = text(
    """select distinct record_id from history where period >= :from_day and period < :to_day and record_id > :after
       order by record_id limit :records"""
)
_CARRY = text(
    f"""update history set period = '-infinity' where period >= :from_day and period < :to_day and id = any(array(
            select x.id from history x where x.period >= :from_day and x.period < :to_day
                and x.record_id = any(:ids) and not {_BEATEN}))"""  # noqa: S608  constants only
)
_SWEEP = text(
    f"""delete from history where period >= :from_day and period < :to_day and id = any(array(
            select x.id from history x where x.period >= :from_day and x.period < :to_day
                and x.record_id = any(:ids) and x.recorded_at < :horizon and {_BEATEN}))"""  # noqa: S608  constants only
)
_ANY_OLD = text(
    """select exists (select from history
           where period >= :from_day and period < :to_day and recorded_at < :horizon)"""
)
_COUNT_MESSAGES = text(
    """select count(*), 0 as carried from message
       where settled_on(state, decided_at) >= :from_day and settled_on(state, decided_at) < :to_day"""
)
_COUNT_HISTORY = text(
    f"""select count(*), count(*) filter (where not {_BEATEN}) as carried from history x
        where x.period >= :from_day and x.period < :to_day"""  # noqa: S608  constants only
)
_GONE = text("select max(before_day) from retention where parent = 'message'")
_GONE_SINCE = text(
    "select min(dropped_at)::date from retention where parent = 'message' and before_day > cast(:settled_at as date)"
)


@dataclass(frozen=True, slots=True)
class _Horizons:
    """Before which day messages, and before which moment history, are too old."""

    messages: date
    history: datetime


class SqlRetention:
    """RetentionStore over PostgreSQL."""

    def __init__(self, database: Database, policy: Retention) -> None:
        self._database = database
        self._policy = policy

    def turns(self) -> Iterator[Turn]:
        """See RetentionStore."""
        for part in self._provide():
            yield Turn(Act.MADE, "history" if part.startswith("history") else "message", part, 0)
        horizons = self._horizons()
        yield from self._drop_messages(horizons)
        yield from self._delete_messages(horizons)
        yield from self._drop_history(horizons)
        yield from self._sweep_kept(horizons)
        with self._database.engine() as connection:
            connection.execute(_ANALYZE)

    def expired(self) -> Sequence[Expired]:
        """See RetentionStore."""
        horizons = self._horizons()
        counts = {"message": _COUNT_MESSAGES, "history": _COUNT_HISTORY}
        found = []
        for table, before in (("message", horizons.messages), ("history", horizons.history.date())):
            for row in self._old_parts(table, before):
                with self._database.engine() as connection:
                    values = {"from_day": row.from_day, "to_day": row.to_day, "horizon": horizons.history}
                    number, carried = connection.execute(counts[table], values).one()
                found.append(Expired(table, row.part, row.to_day, number, carried, row.byte_number))
        return found

    def stragglers(self) -> int:
        """See RetentionStore."""
        with self._database.engine() as connection:
            return int(connection.execute(_COUNT_UNPARTED, _unparted(self._horizons())).scalar_one())

    def _provide(self) -> list[str]:
        with self._database.engine() as connection:
            return list(connection.execute(_PROVIDE, {"months": MONTHS_AHEAD}).scalars())

    def _horizons(self) -> _Horizons:
        default = ConnectionSettings.model_fields["staging_days"].default
        with self._database.engine() as connection:
            today: date = connection.execute(_TODAY).scalar_one()
            # What lies between a staged state and the one that enters is read from the inbox: it outlives staging.
            staged: int = connection.execute(_STAGING_DAYS, {"default": default}).scalar_one()
        messages = today - timedelta(days=max(self._policy.message_days, staged))
        history = today - timedelta(days=self._policy.history_days)
        return _Horizons(messages, datetime.combine(history, time(), UTC))

    def _old_parts(self, table: str, before: date) -> Sequence[Any]:
        with self._database.engine() as connection:
            return connection.execute(_EXPIRED, {"parent": table, "before": before}).all()

    def _drop(self, table: str, part: str) -> Turn:
        with self._database.engine() as connection:
            number = connection.execute(_DROP, {"part": part}).scalar_one()
        return Turn(Act.PUT_OFF, table, part, 0) if number is None else Turn(Act.DROPPED, table, part, number)

    def _drop_messages(self, horizons: _Horizons) -> Iterator[Turn]:
        for row in self._old_parts("message", horizons.messages):
            yield self._drop("message", row.part)

    def _delete_messages(self, horizons: _Horizons) -> Iterator[Turn]:
        values = {**_unparted(horizons), "rows": CHUNK_MESSAGES}
        for statement, part in ((_DELETE_UNPARTED, "message_unsettled"), (_DELETE_OTHER, "message_other")):
            deleted = CHUNK_MESSAGES
            while deleted == CHUNK_MESSAGES:
                with self._database.engine() as connection:
                    deleted = connection.execute(statement, values).rowcount
                if deleted:
                    yield Turn(Act.DELETED, "message", part, deleted)

    def _drop_history(self, horizons: _Horizons) -> Iterator[Turn]:
        for row in self._old_parts("history", horizons.history.date()):
            # What a pass carries at one horizon is all that any later horizon needs, so the part can go then.
            years = {"from_day": row.from_day, "to_day": row.to_day}
            yield from self._through(row.part, _CARRY, years, horizons, Act.CARRIED)
            yield self._drop("history", row.part)

    def _sweep_kept(self, horizons: _Horizons) -> Iterator[Turn]:
        """What was carried, or was there before there were parts, is not needed for ever either."""
        kept = {"from_day": "-infinity", "to_day": KEPT}
        with self._database.engine() as connection:
            is_old = connection.execute(_ANY_OLD, {**kept, "horizon": horizons.history}).scalar_one()
        if is_old:
            yield from self._through("history_kept", _SWEEP, kept, horizons, Act.DELETED)

    def _through(
        self, part: str, statement: Any, days: dict[str, Any], horizons: _Horizons, act: Act
    ) -> Iterator[Turn]:
        """Go through a part of history in the order of its records, some of them to a transaction."""
        after = _NOBODY
        while True:
            with self._database.engine() as connection:
                ids = _next_records(connection, days, after)
                if not ids:
                    return
                values = {**days, "ids": ids, "horizon": horizons.history}
                number = connection.execute(statement, values).rowcount
            yield Turn(act, "history", part, number)
            after = ids[-1]


def _next_records(connection: Connection, days: dict[str, Any], after: UUID) -> list[UUID]:
    return list(connection.execute(_CHUNK, {**days, "after": after, "records": CHUNK_RECORDS}).scalars())


def _unparted(horizons: _Horizons) -> dict[str, Any]:
    before = datetime.combine(horizons.messages, time(), UTC)
    milliseconds = max(0, int(before.timestamp() * 1_000))
    return {"before": before, "floor": UUID(int=milliseconds << 80)}


def messages_gone_before(connection: Connection) -> date | None:
    """Messages that were settled before this day are no longer kept; None while every one is."""
    gone: date | None = connection.execute(_GONE).scalar_one()
    return gone


def messages_gone_since(connection: Connection, settled_at: datetime) -> date | None:
    """The day on which messages of that time were dropped; None when none of that time were dropped as a part."""
    since: date | None = connection.execute(_GONE_SINCE, {"settled_at": settled_at}).scalar_one()
    return since
