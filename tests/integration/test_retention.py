"""Retention: messages and history in parts by time, dropped by policy beside the running line; what is said then."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from bss_sync.adapters.sql.admin.message_selection import Selection, chosen_ids, gone_from
from bss_sync.adapters.sql.reading.messages import get_message
from bss_sync.adapters.sql.reading.reach import EVERYTHING, Reach
from bss_sync.adapters.sql.reading.story import tell_story
from bss_sync.adapters.sql.retention import SqlRetention
from bss_sync.adapters.sql.upkeep import SqlUpkeep
from bss_sync.domain.errors import ConfigurationError, DependencyDown, NoLongerKept, NotFound
from bss_sync.domain.moment import parse_moment
from bss_sync.domain.retention import Retention
from bss_sync.ports.retention import Act, Turn
from bss_sync.settings import load_settings
from tests.command_line import over
from tests.scenario import SUBSCRIPTION, subscription_body
from tests.scenario_postgres import PostgresScenario, postgres_scenario
from tests.servers import Database

LONG_AGO = "2020-03-15T12:00:00Z"
STALL_SECONDS_MAX = 1.0
"""A prune waits a tenth of a second for its lock; the rest is a busy machine."""


@pytest.fixture
def line(database: Database) -> Iterator[PostgresScenario]:
    with postgres_scenario(database) as one:
        yield one


@contextmanager
def _owner(database: Database) -> Iterator[psycopg.Connection]:
    address = database.owner_url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(address, autocommit=True) as connection:
        yield connection


def _make_month(database: Database) -> None:
    """The part of the month LONG_AGO, as it would have been made then."""
    with _owner(database) as owner:
        owner.execute("select retention_make('message', 'message_settled_2020_03', '2020-03-01', '2020-04-01')")


def _parts(line: PostgresScenario, table: str = "message") -> dict[str, int]:
    rows = line.rows(f"select cast(tableoid as regclass)::text as part, count(*) as number from {table} group by 1")
    return {row.part: row.number for row in rows}


def _settled(line: PostgresScenario, source_id: str, version: int = 1, **body: Any) -> str:
    return line.send(line.change(SUBSCRIPTION, source_id, version, subscription_body(**body)))


def _age(line: PostgresScenario, *message_ids: str) -> None:
    line.execute(
        "update message set decided_at = :at, received_at = :at where message_id = any(:ids)",
        at=parse_moment(LONG_AGO, "UTC", field="at"),
        ids=list(message_ids),
    )


def _pass(line: PostgresScenario, policy: Retention | None = None) -> Sequence[Turn]:
    return list(SqlRetention(line.database, policy or Retention()).turns())


def _this_month() -> str:
    return f"message_settled_{datetime.now(UTC):%Y_%m}"


def test_a_message_lies_with_the_open_ones_until_it_is_settled_and_again_when_it_is_reopened(
    line: PostgresScenario,
) -> None:
    message = line.send(line.change(SUBSCRIPTION, "s", 1, subscription_body(product="FOREIGN")), work=False)
    assert _parts(line) == {"message_unsettled": 1}
    line.work()
    assert line.state(message) == "out_of_scope"
    (part,) = _parts(line)
    assert part.startswith("message_settled_")
    line.replay(message)
    assert line.state(message) == "out_of_scope"
    line.execute("update message set state = 'pending', shard = null where message_id = :id", id=message)
    assert _parts(line) == {"message_unsettled": 1}, "also by a statement that knows nothing of parts"


def test_what_enters_scope_later_is_found_in_its_month_and_settled_anew(line: PostgresScenario) -> None:
    first = _settled(line, "s", 1, product="LATER", quantity="1")
    second = _settled(line, "s", 2, product="LATER", quantity="2")
    assert line.states() == ["out_of_scope", "out_of_scope"]
    line.offer("LATER")
    assert line.state(second) == "applied"
    assert line.verdict(first)[0] in ("superseded", "out_of_scope")
    assert "message_unsettled" not in _parts(line)


def test_what_the_line_does_for_every_message_looks_into_the_open_part_only(
    line: PostgresScenario, database: Database
) -> None:
    _make_month(database)
    first = line.send(line.change(SUBSCRIPTION, "a", 1, subscription_body()), work=False)
    with _owner(database) as owner, owner.transaction():
        # Whoever reads it, or plans to, would wait.
        owner.execute("lock table message_settled_2020_03 in access exclusive mode")
        line.work()
        second = line.send(line.change(SUBSCRIPTION, "a", 2, subscription_body(quantity="2")))
    assert [line.state(first), line.state(second)] == ["applied", "applied"]


def test_every_part_is_protected_like_its_table_and_can_be_reached_through_it_only(
    line: PostgresScenario, database: Database
) -> None:
    _make_month(database)
    with _owner(database) as owner:
        owner.execute("drop table message_settled_2020_03")
        last = owner.execute("select part from retention_parts('message') order by from_day desc nulls last").fetchone()
        assert last is not None
        owner.execute(f"drop table {last[0]}".encode())
    made = [turn.part for turn in _pass(line) if turn.act is Act.MADE]
    assert made == [last[0]], "made by a process that owns nothing"
    catalogue = """
        select c.relname, c.relrowsecurity and c.relforcerowsecurity as forced, i.inhparent::regclass::text as parent,
            array(select concat_ws(' ', p.polname, p.polcmd, pg_get_expr(p.polqual, p.polrelid),
                                  pg_get_expr(p.polwithcheck, p.polrelid), p.polroles::text)
                  from pg_policy p where p.polrelid = c.oid order by 1) as policies,
            array(select concat_ws(' ', p.polname, p.polcmd, pg_get_expr(p.polqual, p.polrelid),
                                  pg_get_expr(p.polwithcheck, p.polrelid), p.polroles::text)
                  from pg_policy p where p.polrelid = i.inhparent order by 1) as of_parent,
            has_table_privilege('bss_sync_engine', c.oid, 'select, insert, update, delete')
            or has_table_privilege('bss_sync_api', c.oid, 'select, insert, update, delete')
            or has_table_privilege('bss_sync_door', c.oid, 'select, insert, update, delete') as open
        from pg_inherits i join pg_class c on c.oid = i.inhrelid where c.relkind = 'r'"""
    parts = line.rows(catalogue)
    assert {row.parent for row in parts} == {"message", "history"}
    assert len(parts) >= 8
    for row in parts:
        assert (row.forced, row.open) == (True, False), row.relname
        assert row.policies == row.of_parent, row.relname
        assert len(row.policies) >= 3


def test_a_month_that_is_too_old_is_dropped_whole_and_said_to_be_gone(
    line: PostgresScenario, database: Database
) -> None:
    old, young = _settled(line, "old"), _settled(line, "young")
    _age(line, old)
    assert _parts(line) == {"message_other": 1, _this_month(): 1}, "a month that is missing loses nothing"
    (gone,) = (row.id for row in line.rows("select id from message where message_id = :id", id=old))
    _make_month(database)
    assert _parts(line)["message_settled_2020_03"] == 1, "what the safety net had taken moves along"
    audited = line.rows("select count(*) from audit")[0][0]
    (expired,) = SqlRetention(line.database, Retention()).expired()
    assert (expired.part, expired.rows, expired.before) == ("message_settled_2020_03", 1, date(2020, 4, 1))
    assert _parts(line)["message_settled_2020_03"] == 1, "a dry run drops nothing"

    dropped = [(turn.act, turn.part, turn.rows) for turn in _pass(line)]
    assert dropped == [(Act.DROPPED, "message_settled_2020_03", 1)]
    assert [row.message_id for row in line.rows("select message_id from message")] == [young]
    assert line.rows("select count(*) from audit")[0][0] == audited, "the audit is never pruned"
    assert line.mirrored(SUBSCRIPTION) == {"old", "young"}
    assert _pass(line) == [], "and then there is nothing to do"

    with line.database.engine() as connection:
        for ask in (
            lambda: get_message(connection, EVERYTHING, gone, with_payload=False, with_stack=False),
            lambda: tell_story(connection, EVERYTHING, str(gone)),
            lambda: chosen_ids(connection, EVERYTHING, Selection(ids=(gone,))),
        ):
            with pytest.raises(NoLongerKept, match="no longer kept"):
                ask()
        foreign = Reach(tenant_id=line.connection_id)
        with pytest.raises(NotFound) as refused:
            get_message(connection, foreign, gone, with_payload=False, with_stack=False)
        assert type(refused.value) is NotFound, "a foreign one looks like none"


def test_a_window_that_reaches_behind_what_is_kept_is_told(line: PostgresScenario, database: Database) -> None:
    _age(line, _settled(line, "old"))
    _make_month(database)
    _pass(line)
    zone = "UTC"
    since, until = (parse_moment(day, zone, field="since") for day in ("2020-01-01", "2020-03-31"))
    with line.database.engine() as connection:
        with pytest.raises(NoLongerKept, match="settled before 2020-04-01"):
            chosen_ids(connection, EVERYTHING, Selection(since=since, until=until))
        assert gone_from(connection, Selection(since=since)) == date(2020, 4, 1)
        later = parse_moment("2026-01-01", zone, field="since")
        assert gone_from(connection, Selection(since=later)) is None
        assert chosen_ids(connection, EVERYTHING, Selection(since=later)) == []


def test_messages_outlive_the_staging_that_may_ask_for_them(line: PostgresScenario, database: Database) -> None:
    _age(line, _settled(line, "old"))
    _make_month(database)
    line.execute("""update connection set settings = settings || '{"staging_days": 30000}'""")
    assert _pass(line) == []
    line.execute("""update connection set settings = settings - 'staging_days'""")
    assert [turn.act for turn in _pass(line)] == [Act.DROPPED]


def test_a_part_that_is_in_use_is_put_off_and_nobody_waits(line: PostgresScenario, database: Database) -> None:
    _age(line, _settled(line, "old"))
    _make_month(database)
    with line.database.engine() as reader:
        reader.execute(text("select count(*) from message")).scalar_one()
        begun = time.monotonic()
        assert [turn.act for turn in _pass(line)] == [Act.PUT_OFF]
        assert time.monotonic() - begun < 2 * STALL_SECONDS_MAX
    assert [turn.act for turn in _pass(line)] == [Act.DROPPED]


def test_the_line_runs_on_while_parts_are_dropped_and_made(line: PostgresScenario, database: Database) -> None:
    for number in range(4):
        _age(line, _settled(line, f"old-{number}"))
    stop, failed = threading.Event(), []

    def prune() -> None:
        try:
            while not stop.is_set():
                _make_month(database)
                while not any(turn.act is Act.DROPPED for turn in _pass(line)):
                    time.sleep(0.02)
        except Exception as error:  # noqa: BLE001  shown by the assertion below
            failed.append(error)

    pruning = threading.Thread(target=prune)
    pruning.start()
    longest, sent = 0.0, 0
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        begun = time.monotonic()
        _settled(line, f"new-{sent}")
        longest = max(longest, time.monotonic() - begun)
        sent += 1
    stop.set()
    pruning.join(timeout=20)
    assert failed == []
    assert line.rows("select count(*) from retention")[0][0] == 1
    states = line.rows("select distinct state from message where source_id like 'new-%'")
    assert [row.state for row in states] == ["applied"]
    assert line.rows("select count(*) from message where source_id like 'new-%'")[0][0] == sent > 5
    assert longest < 2 * STALL_SECONDS_MAX, f"somebody waited {longest:.2f} s"


def test_what_was_settled_before_there_were_parts_is_deleted_by_and_by(line: PostgresScenario) -> None:
    old, young, held = _settled(line, "old"), _settled(line, "young"), _settled(line, "held", status="odd")
    assert line.state(held) == "quarantined"
    _age(line, old)
    assert SqlRetention(line.database, Retention()).stragglers() == 0
    assert [(turn.act, turn.part, turn.rows) for turn in _pass(line)] == [(Act.DELETED, "message_other", 1)]
    left = {row.message_id for row in line.rows("select message_id from message")}
    assert left == {young, held}
    line.execute("update message set received_at = :at, decided_at = :at", at=parse_moment(LONG_AGO, "UTC", field="a"))
    _pass(line)
    assert {row.message_id for row in line.rows("select message_id from message")} == {held}, "held for ever"


def test_a_repeat_that_is_older_than_the_memory_falls_to_the_version_rule(line: PostgresScenario) -> None:
    change = line.change(SUBSCRIPTION, "s", 1, subscription_body(quantity="1"))
    line.send(change)
    line.send(line.change(SUBSCRIPTION, "s", 2, subscription_body(quantity="2")))
    line.execute("update message_key set received_at = now() - interval '91 days'")
    assert SqlUpkeep(line.database, Retention()).prune().message_keys == 2
    line.send(change)
    assert sorted(line.states()) == ["applied", "applied", "superseded"]
    shown = line.mirror(SUBSCRIPTION, "s")
    assert shown is not None
    assert (shown.version, shown["quantity"]) == (2, "2")
    assert len(line.history(SUBSCRIPTION, "s")) == 2


def test_the_memory_of_a_key_lasts_as_long_as_it_is_set(line: PostgresScenario) -> None:
    _settled(line, "s")
    line.execute("update message_key set received_at = now() - interval '91 days'")
    assert SqlUpkeep(line.database, Retention(deduplication_days=120)).prune().message_keys == 0


def test_settings_that_contradict_each_other_are_refused_with_what_to_set() -> None:
    for given, words in (
        ({"deduplication_days": 30}, "DEDUPLICATION_DAYS: sources tell again"),
        ({"deduplication_days": 401}, r"MESSAGE_DAYS: .* set deduplication_days \(401\) or more"),
        ({"history_days": 399}, r"HISTORY_DAYS: .* set message_days \(400\) or more"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            load_settings(**given)
    assert load_settings(message_days=90).retention == Retention(90, 3653, 90)


def test_a_message_that_moved_under_a_waiting_hand_is_a_passing_matter(line: PostgresScenario) -> None:
    message = line.send(line.change(SUBSCRIPTION, "s", 1, subscription_body()), work=False)
    errors: list[Exception] = []

    def lock() -> None:
        try:
            line.rows("select id from message where message_id = :id for update", id=message)
        except Exception as error:  # noqa: BLE001  looked at below
            errors.append(error)

    with line.database.engine() as settling:
        settling.execute(text("update message set state = 'discarded', decided_at = now()"))
        waiting = threading.Thread(target=lock)
        waiting.start()
        time.sleep(0.3)
    waiting.join(timeout=10)
    assert [type(error) for error in errors] == [DependencyDown], "the caller tries again"


def test_the_engine_may_drop_nothing_that_is_young(line: PostgresScenario) -> None:
    with line.database.pool("engine").connect() as connection:
        for part in (_this_month(), "message_unsettled", "message_other", "history_kept", "account"):
            with pytest.raises(Exception, match="is no part that may be dropped"):
                connection.execute(text("select retention_drop(:part)"), {"part": part})
            connection.rollback()
    for role in ("api", "door"):
        with line.database.pool(role).connect() as connection, pytest.raises(Exception, match="permission denied"):
            connection.execute(text("select retention_provide(1)"))


def test_the_command_says_first_what_would_go_and_then_what_went(
    line: PostgresScenario, database: Database, server_home: Path
) -> None:
    _age(line, _settled(line, "old"))
    _make_month(database)
    bss_sync = over(database, server_home)
    told = bss_sync.ok("db", "prune", "--dry-run", "--json").json
    (part,) = told["parts"]
    assert (told["dry_run"], part["part"], part["rows"]) == (True, "message_settled_2020_03", 1)
    assert part["byte_count"] > 0
    assert "message_settled_2020_03" in bss_sync.ok("db", "prune").out
    assert bss_sync.ok("db", "prune", "--json").json["turns"] == []
    (gone,) = line.rows("select message from history")
    answer = bss_sync("message", "show", str(gone.message), "--json")
    assert answer.code == 2
    assert answer.problem["type"].endswith("/no-longer-kept")
