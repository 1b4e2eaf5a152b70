"""Pruning the past changes no answer to any as-of question at or after the horizon.

A question is (T, R): what was in effect at T, as it was known at R (domain.md section 6). PostgreSQL decides what is
carried; the answers are worked out here, by the rule as it is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from bss_sync.adapters.sql.retention import SqlRetention
from bss_sync.domain.retention import Retention
from bss_sync.ports.retention import Act
from tests.scenario_postgres import PostgresScenario, postgres_scenario
from tests.servers import Database

YEAR = 2014
FIRST = datetime(YEAR, 1, 1, tzinfo=UTC)
POLICY = Retention()
RECORDS = 12
Moment = int
"""Quarters of a year since FIRST: few enough that rows and questions meet at the same moment."""

rows_of_a_record = st.lists(
    st.fixed_dictionaries(
        {
            "epoch": st.integers(0, 1),
            "version": st.integers(1, 4),
            "effective": st.integers(-4, 60),
            # Most of them in the year that goes; some later, on both sides of the horizon.
            "recorded": st.one_of(st.integers(0, 3), st.integers(0, 3), st.integers(4, 20)),
            "kept": st.booleans(),
        }
    ),
    min_size=1,
    max_size=7,
)


@pytest.fixture(scope="module")
def line(module_database: Database) -> Iterator[PostgresScenario]:
    with postgres_scenario(module_database) as one:
        yield one


def _moment(quarter: Moment) -> datetime:
    return FIRST + timedelta(days=91 * quarter)


def _fill(line: PostgresScenario, database: Database, histories: Sequence[Sequence[dict[str, Any]]]) -> None:
    ids = [str(uuid4()) for _ in histories]
    rows = [
        {
            "record": record,
            "epoch": row["epoch"],
            "version": row["version"],
            "effective": _moment(row["effective"]).isoformat(),
            "recorded": _moment(row["recorded"]).isoformat(),
            # The rest was there before there were parts, or was carried by an earlier pass.
            "period": "-infinity" if row["kept"] else str(_moment(row["recorded"]).replace(month=1, day=1).date()),
        }
        for record, history in zip(ids, histories, strict=True)
        for row in history
    ]
    line.execute("delete from history")
    with line.database.engine() as connection:
        connection.execute(
            text(
                """insert into stream (id, tenant_id, connection_id, shard, kind, source_id)
                   select cast(i as uuid), :tenant, :connection, 1, 'account', i from unnest(cast(:ids as text[])) i"""
            ),
            {"ids": ids, "tenant": line.tenant_id, "connection": line.connection_id},
        )
        connection.execute(
            text(
                """insert into history (tenant_id, connection_id, kind, record_id, epoch, version, effective_at,
                                        recorded_at, state, deleted, message, period)
                   select :tenant, :connection, 'account', r.record, r.epoch, r.version, r.effective, r.recorded,
                          '{}', false, gen_random_uuid(), cast(r.period as date)
                   from jsonb_to_recordset(cast(:rows as jsonb)) as r (record uuid, epoch int, version bigint,
                       effective timestamptz, recorded timestamptz, period text)"""
            ),
            {"rows": json.dumps(rows), "tenant": line.tenant_id, "connection": line.connection_id},
        )
    with psycopg.connect(database.owner_url.replace("+psycopg", "")) as owner:
        owner.execute(
            f"select retention_make('history', 'history_{YEAR}', '{YEAR}-01-01', '{YEAR + 1}-01-01')".encode()
        )


def _rows(line: PostgresScenario) -> list[Any]:
    columns = "id, record_id, epoch, version, effective_at, recorded_at"
    return list(line.rows(f"select {columns} from history order by record_id, epoch desc, version desc, id desc"))


def _answer(rows: Sequence[Any], at: datetime, known: datetime) -> dict[UUID, int]:
    answer = {}
    for record, own in groupby(rows, key=lambda row: row.record_id):
        found = next((row.id for row in own if row.effective_at <= at and row.recorded_at <= known), None)
        if found is not None:
            answer[record] = found
    return answer


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories=st.lists(rows_of_a_record, min_size=RECORDS, max_size=RECORDS))
def test_every_question_at_or_after_the_horizon_has_the_answer_it_had(
    line: PostgresScenario, module_database: Database, histories: list[list[dict[str, Any]]]
) -> None:
    _fill(line, module_database, histories)
    before = _rows(line)
    turns = list(SqlRetention(line.database, POLICY).turns())
    after = _rows(line)

    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    horizon = today - timedelta(days=POLICY.history_days)
    moments = [horizon, *(at for at in map(_moment, range(-4, 62)) if at >= horizon)]
    answered = set()
    for at in moments:
        for known in moments:
            expected = _answer(before, at, known)
            assert _answer(after, at, known) == expected
            answered |= set(expected.values())
    old = {row.id for row in after if row.recorded_at < horizon and row.recorded_at.year == YEAR}
    assert old <= answered, "what answers no question is gone"
    assert any(turn.act is Act.DROPPED for turn in turns)
    parts = line.rows("select distinct cast(tableoid as regclass)::text as part from history")
    assert f"history_{YEAR}" not in {row.part for row in parts}
