"""Closing a connection: what ends, what stays, and who must agree."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from bss_sync.adapters.sql.admin import (
    closing,
    connection_states,
    runs,
)
from bss_sync.adapters.sql.upkeep import SqlUpkeep
from bss_sync.domain.errors import NotFound, StateConflict
from tests.app import ACTOR
from tests.office import Office, office_of
from tests.servers import Database


@pytest.fixture
def office(database: Database, server_home: Path) -> Iterator[Office]:
    with office_of(database, server_home) as one:
        yield one


def test_closing_today_ends_what_is_live_and_keeps_its_history(office: Office) -> None:
    office.live(2)
    with office.app.database.engine() as sql:
        asked = closing.request(sql, office.now(), datetime.now(UTC).date(), actor=ACTOR)
    assert (asked.state, asked.subscriptions) == ("done", 2)
    assert office.state() == "closed"
    assert {row[0] for row in office.rows("select ended_reason from subscription")} == {"closed"}
    ends = office.rows(
        "select ended_reason, state ->> 'quantity' as quantity from history where ended_reason is not null"
    )
    assert [tuple(row) for row in ends] == [("closed", "5"), ("closed", "5")]
    with pytest.raises(StateConflict), office.app.database.engine() as sql:
        connection_states.shadow(sql, office.now(), actor=ACTOR)


def test_closing_on_a_past_day_ends_with_the_end_of_that_day(office: Office) -> None:
    office.live()
    with office.app.database.engine() as sql:
        closing.request(sql, office.now(), date(2026, 3, 31), actor=ACTOR)
    assert office.rows("select ended_at from subscription") == [(datetime(2026, 4, 1, tzinfo=UTC),)]


def test_closing_many_waits_for_an_admin_and_a_later_day_waits_for_that_day(office: Office) -> None:
    office.live(21)
    tomorrow = datetime.now(UTC).date() + timedelta(days=2)
    with office.app.database.engine() as sql:
        asked = closing.request(sql, office.now(), tomorrow, actor=ACTOR)
    assert (asked.state, asked.records) == ("stopped", 21)
    with pytest.raises(StateConflict), office.app.database.engine() as sql:
        closing.request(sql, office.now(), tomorrow, actor=ACTOR)
    with office.app.database.engine() as sql:
        assert runs.approve(sql, asked.run_id, actor=ACTOR).state == "approved"
    with office.app.database.engine() as sql:
        assert closing.execute_next_due(sql) is None
    assert office.state() == "live"
    day = (datetime.now(UTC).date() - timedelta(days=1)).isoformat()
    office.execute("update run set options = jsonb_build_object('on', cast(:day as text))", day=day)
    assert SqlUpkeep(office.app.database).close_due() == 1
    assert office.state() == "closed"
    assert len(office.rows("select 1 from subscription where ended_reason = 'closed'")) == 21


def test_a_rejected_closing_leaves_everything_live(office: Office) -> None:
    office.live(21)
    with office.app.database.engine() as sql:
        asked = closing.request(sql, office.now(), datetime.now(UTC).date(), actor=ACTOR)
        runs.reject(sql, asked.run_id, actor=ACTOR)
    assert office.state() == "live"
    with pytest.raises(StateConflict), office.app.database.engine() as sql:
        runs.approve(sql, asked.run_id, actor=ACTOR)
    with pytest.raises(NotFound), office.app.database.engine() as sql:
        runs.approve(sql, uuid4(), actor=ACTOR)
