"""A reconciliation that was killed goes on where it was, names what it had named, and repairs nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from sqlalchemy import create_engine, text

from bss_sync.domain.errors import DependencyDown
from bss_sync.jobs.reconciling import make_loader, make_reconciler
from bss_sync.pipeline.read_pages import READ_AHEAD
from bss_sync.pipeline.reconcile import Request, Result
from bss_sync.ports.connector import Observation
from connectors.simulator.faults import Fault
from tests.command_line import CommandLine, over
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, eventually, world

SUBSCRIPTIONS, PAGE = 120, 10
PAGES = SUBSCRIPTIONS // PAGE


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, target=False, connection={"page_size": PAGE, "guard_count": 30}) as one:
        one.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
        for number in range(SUBSCRIPTIONS):
            one.simulator.reseller.put(SUBSCRIPTION, name(number), {"account_id": "x", "product": PRODUCT})
        one.poll()
        one.simulator.listings.clear()
        yield one


def name(number: int) -> str:
    return f"sub-{number:03}"


def program(one: World, database: Database, home: Path) -> CommandLine:
    """The program as another process of the same installation."""
    commands = over(database, home)
    key = one.app.settings.master_key
    assert key is not None
    commands.environment["BSS_SYNC_MASTER_KEY"] = key.get_secret_value()
    return commands


def start(commands: CommandLine, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bss_sync.cli.main", *arguments],
        env=os.environ | commands.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def pages_done(one: World, kind: str = "reconcile") -> int:
    """Pages that a running run is through with."""
    figure = "listed" if kind == "reconcile" else "read"
    value = one.value(
        f"select coalesce(max((progress ->> '{figure}')::integer), 0) from run where kind = :kind", kind=kind
    )
    return int(value) // PAGE


def asked_for(one: World) -> Counter[str]:
    """Behind which id each page of subscriptions was asked for, and how often."""
    queries = [urlsplit(entry) for entry in one.simulator.listings]
    return Counter(
        parse_qs(one.query, keep_blank_values=True)["after"][0] for one in queries if one.path == "/subscriptions"
    )


def differ_at_both_ends(one: World) -> None:
    """What differs on the first and on the last page, and what is gone on the first."""
    one.simulator.reseller.patch(SUBSCRIPTION, name(1), {"quantity": 11}, push=False)
    one.simulator.reseller.patch(SUBSCRIPTION, name(SUBSCRIPTIONS - 1), {"quantity": 99}, push=False)
    one.simulator.reseller.delete(SUBSCRIPTION, name(2), push=False)


EXPECTED = [("extra", name(2)), ("stale", name(1)), ("stale", name(SUBSCRIPTIONS - 1))]


def level(one: World) -> bool:
    one.process()
    quantities = one.rows("select source_id, quantity from subscription where quantity > 1 order by source_id")
    ended = one.value("select deleted_at is not null from subscription where source_id = :id", id=name(2))
    return bool(ended) and [int(row.quantity) for row in quantities] == [11, 99]


_LOCKS_HELD = """
    select count(*) from pg_locks
    where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())"""


def killed_half_way(one: World, commands: CommandLine, command: str = "reconcile") -> None:
    """The program, killed once a few pages are done and many are not."""
    one.simulator.faults.add(Fault(path="/subscriptions", delay_seconds=0.15))
    process = start(commands, command, one.source.name)
    eventually(lambda: pages_done(one, command) >= 6, seconds=60)
    kill(process)
    # Its session finds out that nobody is there any more, and the run's lock goes with it.
    eventually(lambda: one.value(_LOCKS_HELD) == 0)
    one.simulator.faults.clear()
    assert 6 <= pages_done(one, command) < PAGES - 1


def test_a_killed_command_goes_on_behind_the_last_page_and_reports_everything(
    mirror: World, database: Database, server_home: Path
) -> None:
    differ_at_both_ends(mirror)
    commands = program(mirror, database, server_home)
    killed_half_way(mirror, commands)
    done, before = pages_done(mirror), asked_for(mirror)
    mirror.process()
    run_id = mirror.value("select id from run")
    again = commands("reconcile", mirror.source.name, "--json")
    assert again.code == 1, again.err
    report = again.json
    assert (report["run_id"], report["resumed"], report["total"]) == (str(run_id), True, 3)
    assert sorted((one["problem"], one["source_id"]) for one in report["differences"]) == EXPECTED
    assert report["listed"] == SUBSCRIPTIONS, "the account and all subscriptions but the one that is gone"
    twice = [after for after, times in asked_for(mirror).items() if times > 1]
    # The pages that were read ahead, and not compared when the kill came, are asked for again; no other is.
    assert len(twice) <= READ_AHEAD + 2
    assert len(before) - len(twice) >= done - 1
    assert level(mirror)
    repairs = mirror.rows("select source_id from message where origin = 'reconcile' order by source_id")
    assert [row.source_id for row in repairs] == sorted(one[1] for one in EXPECTED), "each once"
    assert mirror.value("select count(*) from run where state = 'done'") == 1
    assert mirror.value("select count(*) from run_seen") + mirror.value("select count(*) from run_end") == 0


def test_a_worker_carries_on_what_a_killed_command_left_behind(
    mirror: World, database: Database, server_home: Path
) -> None:
    differ_at_both_ends(mirror)
    killed_half_way(mirror, program(mirror, database, server_home))
    mirror.work.poll()
    (run,) = mirror.rows("select id, state, result from run")
    assert run.state == "done"
    named = make_reconciler(mirror.app).runs.findings(run.id, mirror.source.id).each()
    assert sorted((str(one.problem), one.source_id) for one in named) == EXPECTED
    assert max(asked_for(mirror).values()) <= 2
    assert sum(asked_for(mirror).values()) <= PAGES + READ_AHEAD + 2
    assert level(mirror)


def test_nobody_carries_on_a_run_whose_process_lives(mirror: World, database: Database, server_home: Path) -> None:
    mirror.simulator.faults.add(Fault(path="/subscriptions", delay_seconds=0.15))
    process = start(program(mirror, database, server_home), "reconcile", mirror.source.name, "--json")
    try:
        eventually(lambda: pages_done(mirror) >= 2, seconds=60)
        # Stopped for a while is not dead.
        process.send_signal(signal.SIGSTOP)
        mirror.execute("update run set updated_at = now() - interval '10 minutes'")
        mirror.work.poll()
        assert mirror.value("select state from run") == "running"
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert json.loads(out)["resumed"] is False
    assert max(asked_for(mirror).values()) == 1


def test_two_comparisons_of_one_connection_at_once_do_not_confuse_each_other(mirror: World) -> None:
    differ_at_both_ends(mirror)
    inner: list[Result] = []

    def listing() -> Iterator[Observation]:
        source = mirror.work.poller.sources.source(mirror.source.id)
        for place, one in enumerate(source.client.list_all()):
            if place == SUBSCRIPTIONS // 2:
                # In the midst of the outer one a whole other one runs, and what it repairs is decided.
                inner.append(make_reconciler(mirror.app).reconcile(Request(mirror.source.id)))
            yield one

    outer = make_reconciler(mirror.app).reconcile(Request(mirror.source.id, snapshot=listing()))
    named = [sorted((str(one.problem), one.source_id) for one in each.differences) for each in (inner[0], outer)]
    assert named == [EXPECTED, EXPECTED]
    assert level(mirror)
    assert mirror.value("select count(distinct id) from run where state = 'done'") == 2
    assert mirror.value("select count(*) from subscription where deleted_at is not null") == 1


def test_postgresql_restarting_under_it_leaves_a_run_that_goes_on(mirror: World, database: Database) -> None:
    differ_at_both_ends(mirror)
    reconciler = make_reconciler(mirror.app)

    def cut_off(listed: int) -> None:
        if listed > SUBSCRIPTIONS // 2 and not cut:
            cut.append(listed)
            _end_other_sessions(database)

    cut: list[int] = []
    with pytest.raises(DependencyDown):
        reconciler.reconcile(Request(mirror.source.id), cut_off)
    assert mirror.value("select state from run") == "running"
    mirror.calm()
    result = reconciler.reconcile(Request(mirror.source.id))
    assert result.resumed
    assert sorted((str(one.problem), one.source_id) for one in result.differences) == EXPECTED
    assert max(asked_for(mirror).values()) <= 2
    assert level(mirror)


def test_a_page_that_was_fed_and_not_stepped_over_is_fed_once_and_named_once(mirror: World) -> None:
    differ_at_both_ends(mirror)
    reconciler = make_reconciler(mirror.app)
    dying: set[int] = set()

    def dies(listed: int) -> None:
        if listed in dying:
            raise DependencyDown("Its process ends after it has fed the page, before it has stepped on.")

    for at in ({1}, {PAGE, PAGE + 1}, {PAGE, PAGE + 1}):
        dying.clear()
        dying.update(at)
        with pytest.raises(DependencyDown):
            reconciler.reconcile(Request(mirror.source.id), dies)
    # Nothing was decided meanwhile: the same page differs as it did.
    result = reconciler.reconcile(Request(mirror.source.id))
    assert sorted((str(one.problem), one.source_id) for one in result.differences) == EXPECTED
    repairs = mirror.rows("select source_id from message where origin = 'reconcile' order by source_id")
    assert [row.source_id for row in repairs] == sorted(one[1] for one in EXPECTED)
    assert level(mirror)


def _end_other_sessions(database: Database) -> None:
    engine = create_engine(database.superuser_url)
    with engine.begin() as connection:
        connection.execute(
            text(
                """select pg_terminate_backend(pid) from pg_stat_activity
                   where datname = :name and pid <> pg_backend_pid()"""
            ),
            {"name": database.name},
        )
    engine.dispose()


def test_a_run_that_is_lost_again_and_again_without_a_step_forward_is_failed(mirror: World) -> None:
    runs = make_reconciler(mirror.app).runs
    lost = runs.start(mirror.source.id, "reconcile", Request(mirror.source.id).options(), requested_by="test")
    runs.let_go(lost.id)
    for _ in range(5):
        carried = runs.claim_lost()
        assert carried is not None
        runs.let_go(carried.id)
    assert runs.claim_lost() is None
    assert mirror.value("select state from run") == "failed"
    assert len(mirror.audits("run.failed")) == 1


def test_who_has_lost_a_run_cannot_write_any_more(mirror: World, database: Database) -> None:
    runs = make_reconciler(mirror.app).runs
    run = runs.start(mirror.source.id, "reconcile", {}, requested_by="test")
    _end_other_sessions(database)
    with pytest.raises(DependencyDown):
        runs.progress(run.id, {"listed": 1})
    other = make_reconciler(mirror.app).runs
    assert other.claim_lost() is not None
    with pytest.raises(DependencyDown):
        runs.progress(run.id, {"listed": 1})
    with pytest.raises(DependencyDown):
        runs.finish(run.id, "done", {"total": 0})
    assert mirror.value("select state from run") == "running"
    other.let_go(run.id)


@pytest.mark.parametrize("who", ["command", "worker"])
def test_a_killed_backfill_goes_on_behind_its_last_page(database: Database, server_home: Path, who: str) -> None:
    with world(database, server_home, target=False, connection={"page_size": PAGE}) as one:
        one.simulator.reseller.put(ACCOUNT, "x", {})
        for number in range(SUBSCRIPTIONS):
            one.simulator.reseller.put(SUBSCRIPTION, name(number), {"account_id": "x", "product": PRODUCT})
        one.execute("update connection set poll_due_at = now() + interval '1 day'")
        killed_half_way(one, program(one, database, server_home), "backfill")
        if who == "worker":
            one.work.poll()
        else:
            make_loader(one.app).backfill(one.source.id, requested_by="test")
        (run,) = one.rows("select state, result from run")
        assert (run.state, run.result["read"], run.result["refused"]) == ("done", SUBSCRIPTIONS + 1, 0)
        assert run.result["accepted"] + run.result["duplicates"] == SUBSCRIPTIONS + 1
        assert sum(asked_for(one).values()) <= PAGES + READ_AHEAD + 2
        one.process()
        assert one.value("select count(*) from subscription") == SUBSCRIPTIONS


def test_no_transaction_is_open_while_the_source_is_being_read(mirror: World, database: Database) -> None:
    ages: list[Any] = []

    def look(_listed: int) -> None:
        with psycopg.connect(
            host=str(database.server.folder), port=database.server.port, user="postgres", dbname=database.name
        ) as connection:
            ages.append(
                connection.execute(
                    """select count(*) from pg_stat_activity
                       where datname = current_database() and pid <> pg_backend_pid()
                         and (backend_xmin is not null or xact_start is not null)
                         and backend_type = 'client backend'"""
                ).fetchone()
            )

    make_reconciler(mirror.app).reconcile(Request(mirror.source.id), look)
    assert len(ages) > PAGES
    assert set(ages) == {(0,)}, "nothing holds vacuum back"
