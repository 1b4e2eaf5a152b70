"""What is done for each message, each second and each look reads as little of a large mirror as of a small one.

PostgreSQL counts the rows that are read, whatever plan it chose: a scan of a whole table, or of a whole index, shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import event, text

from bss_sync.adapters.sql.admin.message_selection import Selection, chosen_ids, list_selected
from bss_sync.adapters.sql.alerts import SqlAlerts
from bss_sync.adapters.sql.audit import append_audit, verify_chains
from bss_sync.adapters.sql.direct import PLANNED_ONCE
from bss_sync.adapters.sql.floors import note_floor
from bss_sync.adapters.sql.reading.reach import EVERYTHING
from bss_sync.adapters.sql.streams import planned_once
from bss_sync.adapters.sql.upkeep import SqlUpkeep
from bss_sync.bootstrap import App
from bss_sync.cli.references import resolve
from bss_sync.domain.alerting import Rule
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import Kind, stream_id
from bss_sync.domain.moment import rfc3339
from bss_sync.pipeline.sweep import Sweeper
from tests import servers
from tests.app import add_connection
from tests.large_mirror import LargeMirror, QuietWakeUps, large_mirror
from tests.servers import PostgresServer

CUSTOMERS = 4_100
"""With four subscriptions each: a few more records than a tree may have."""
CHANGED = 20
READS_PER_MESSAGE_MAX = 60
READS_PER_LOOK_MAX = 500
PAGE = 20


@pytest.fixture(scope="module", params=["postgres_server", "postgres15_server"], ids=["postgres18", "postgres15"])
def large(request: pytest.FixtureRequest) -> Iterator[LargeMirror]:
    server: PostgresServer = request.getfixturevalue(request.param)
    with (
        servers.short_folder() as folder,
        server.database() as database,
        large_mirror(database, folder, customers=CUSTOMERS, resellers=4) as one,
    ):
        add_connection(one.app, "reseller-small")
        yield one


@pytest.fixture(scope="module")
def since(large: LargeMirror) -> str:
    """A time behind which a few records have changed since the mirror was filled."""
    with large.app.database.engine() as connection:
        note_floor(connection)
        moment = connection.execute(text("select clock_timestamp()")).scalar_one()
    large.send(CHANGED, 3)
    return rfc3339(moment)


def _assert_small(large: LargeMirror, act: Callable[[], object], looked_up_max: int) -> None:
    reads = large.reads(act)
    assert {"stream", "subscription", "account", "message_key", "audit"} <= reads.keys(), "the tables are large"
    wrong = {name: read for name, read in reads.items() if read.scanned or read.looked_up > looked_up_max}
    assert not wrong, f"read too much: {wrong}"


def test_a_message_reads_a_few_rows_of_a_large_mirror(large: LargeMirror) -> None:
    _assert_small(large, lambda: large.send(CHANGED, 2), CHANGED * 2 * READS_PER_MESSAGE_MAX)


def test_a_new_record_reads_a_few_rows_of_a_large_mirror(large: LargeMirror) -> None:
    fresh = CUSTOMERS * 10
    _assert_small(large, lambda: large.send(CHANGED, 1, first=fresh), CHANGED * 2 * READS_PER_MESSAGE_MAX)


def test_a_sweep_of_everything_reads_a_few_rows_of_a_large_mirror(large: LargeMirror) -> None:
    sweeper = Sweeper(SqlUpkeep(large.app.database), QuietWakeUps())
    _assert_small(large, sweeper.tick, READS_PER_LOOK_MAX)


def test_the_alerts_read_a_few_rows_of_a_large_mirror(large: LargeMirror) -> None:
    alerts = SqlAlerts(large.app.database)
    _assert_small(large, lambda: alerts.refresh(set(Rule)), READS_PER_LOOK_MAX)


def _get(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text


LOOKS = {
    "the gauges of a scrape": "/metrics",
    "readiness": "/readyz",
    "a page of accounts": f"/v1/accounts?limit={PAGE}",
    "a page of subscriptions": f"/v1/subscriptions?limit={PAGE}",
    "a page of one connection": f"/v1/subscriptions?limit={PAGE}&connection=reseller-0001",
    "ended subscriptions": "/v1/subscriptions?state=ended",
    "ended accounts of one connection": "/v1/accounts?state=ended&connection=reseller-0001",
    "deleted subscriptions": "/v1/subscriptions?state=deleted",
    "deleted accounts": "/v1/accounts?state=deleted",
    "subscriptions whose account was deleted": "/v1/subscriptions?state=orphaned",
    "accounts whose account was deleted": "/v1/accounts?state=orphaned",
    "a record by its source's id": "/v1/subscriptions?source_id=sub-0000007-1",
    "a record by its source's id and connection": "/v1/accounts?source_id=cust-0000007&connection=reseller-0003",
    "messages of a record": "/v1/messages?source_id=sub-0000007-1",
    "subscriptions that changed since": f"/v1/subscriptions?limit={PAGE}&updated_since={{since}}",
    "what of one connection changed since": "/v1/accounts?updated_since={since}&connection=reseller-0001",
    "messages since": f"/v1/messages?limit={PAGE}&updated_since={{since}}",
    "the audit since": f"/v1/audit?limit={PAGE}&updated_since={{since}}",
    "pending messages": "/v1/messages?state=pending",
    "dead messages": "/v1/messages?state=dead",
    "superseded messages": f"/v1/messages?state=superseded&limit={PAGE}",
    "messages out of scope": f"/v1/messages?state=out_of_scope&limit={PAGE}",
    "discarded messages of one connection": "/v1/messages?state=discarded&connection=reseller-0001",
    "a page of messages": f"/v1/messages?limit={PAGE}",
    "a page of applied messages": f"/v1/messages?state=applied&limit={PAGE}",
    "a message by its sender's id": "/v1/messages?message_id=sub-0000007-1-1",
    "a page of the audit": f"/v1/audit?limit={PAGE}",
    "the tree of an account": "/v1/tree?subtree={account}",
    "acts of a kind": "/v1/audit?action=connection.created",
    "acts of somebody": "/v1/audit?actor=token:mara",
    "acts of somebody on one connection": "/v1/audit?actor=token:mara&connection=reseller-0001",
    "open drift": "/v1/drift",
    "connections": "/v1/connections",
    "runs": "/v1/runs",
    "a record": "/v1/subscriptions/{subscription}",
    "a record of the past": "/v1/subscriptions/{subscription}?as_of=2126-01-01T00:00:00Z",
    "the history of a record": "/v1/subscriptions/{subscription}/history",
    "who owns what of a record": "/v1/subscriptions/{subscription}/explain?field=quantity",
    "the audit of a record": "/v1/audit?record_id={subscription}",
}


@pytest.mark.parametrize("path", LOOKS.values(), ids=LOOKS)
def test_a_look_reads_a_few_rows_of_a_large_mirror(large: LargeMirror, since: str, path: str) -> None:
    subscription = stream_id(large.here.resellers[7 % 4].id, Kind.SUBSCRIPTION, "sub-0000007-1")
    account = stream_id(large.here.resellers[7 % 4].id, Kind.ACCOUNT, "cust-0000007")
    with large.client() as client:
        wanted = path.format(subscription=subscription, account=account, since=since)
        _assert_small(large, lambda: _get(client, wanted), READS_PER_LOOK_MAX)


OWN_LOOKS = {
    "a page of its subscriptions": f"/v1/subscriptions?limit={PAGE}",
    "what of it changed since": f"/v1/accounts?limit={PAGE}&updated_since={{since}}",
    "what of it ended": "/v1/subscriptions?state=ended",
    "a page of its messages": f"/v1/messages?limit={PAGE}",
    "its messages that were superseded": "/v1/messages?state=superseded",
    "a page of its audit": f"/v1/audit?limit={PAGE}",
    "its audit of accounts": f"/v1/audit?kind=account&limit={PAGE}",
    "its audit since": f"/v1/audit?limit={PAGE}&updated_since={{since}}",
}


@pytest.mark.parametrize("of", ["reseller-0001", "reseller-small"])
@pytest.mark.parametrize("path", OWN_LOOKS.values(), ids=OWN_LOOKS)
def test_a_resellers_look_reads_a_few_rows_of_a_large_mirror(
    large: LargeMirror, since: str, path: str, of: str
) -> None:
    """One that has a quarter of everything, and one that has next to nothing."""
    with large.client(of=of) as client:
        _assert_small(large, lambda: _get(client, path.format(since=since)), READS_PER_LOOK_MAX)


CHOICES = {
    "of a record": Selection(source_id="sub-0000007-1"),
    "since a time": Selection(since=datetime(2126, 1, 1, tzinfo=UTC)),
    "not applied": Selection(state="superseded"),
}


@pytest.mark.parametrize("chosen", CHOICES.values(), ids=CHOICES)
def test_an_admins_choice_of_messages_reads_a_few_rows_of_a_large_inbox(
    large: LargeMirror, since: str, chosen: Selection
) -> None:
    def choose() -> None:
        with large.app.database.engine() as connection:
            list_selected(connection, EVERYTHING, chosen, PAGE)
            chosen_ids(connection, EVERYTHING, chosen)

    assert since, "a floor is noted"
    _assert_small(large, choose, READS_PER_LOOK_MAX)


def test_a_records_name_is_found_in_a_large_mirror(large: LargeMirror) -> None:
    def find() -> None:
        with large.app.database.engine() as connection:
            found = resolve(connection, Kind.SUBSCRIPTION, "sub-0000007-1")
        assert found == stream_id(large.here.resellers[7 % 4].id, Kind.SUBSCRIPTION, "sub-0000007-1")

    _assert_small(large, find, READS_PER_LOOK_MAX)


def test_a_tree_that_would_be_too_large_is_refused_with_what_to_do(large: LargeMirror) -> None:
    with large.client() as client:
        refused = client.get("/v1/tree").json()
        shown = client.get("/v1/tree?connection=reseller-0001").json()
    assert (refused["status"], [one["field"] for one in refused["errors"]]) == (422, ["subtree"])
    assert "subtree" in refused["next_step"]
    assert sum(len(root["accounts"]) for root in shown["tree"]) >= CUSTOMERS / 4


def _statements_of(app: App, entries: list[AuditEntry]) -> int:
    statements: list[str] = []
    with app.database.engine() as connection:
        event.listen(connection, "before_cursor_execute", lambda *given: statements.append(given[2]))
        append_audit(connection, entries)
    return len(statements)


def test_the_audit_of_many_chains_takes_as_many_statements_as_that_of_one(large: LargeMirror) -> None:
    app = large.app
    chains = {uuid4() for _ in range(40)}
    entries = [
        AuditEntry(chain, app.distributor.id, "test", "test.noted", {"place": place})
        for place in range(3)
        for chain in chains
    ]
    # Heads that are new, then heads that are there.
    assert [_statements_of(app, entries) for _ in range(2)] == [3, 3]
    with app.database.engine() as connection:
        broken = verify_chains(connection)
        assert {broken[chain] for chain in chains} == {None}
        heads = text("select array_agg(seq) from audit_head where chain_id = any(:ids)")
        assert connection.execute(heads, {"ids": list(chains)}).scalar_one() == [6] * len(chains)


def test_a_statement_that_asks_for_it_is_planned_once_by_a_session_also_in_a_large_batch(large: LargeMirror) -> None:
    kept = text("select count(*) as kept_ones from unnest(cast(:ids as int[]))").execution_options(**PLANNED_ONCE)
    usual = text("select count(*) as usual_ones from unnest(cast(:ids as int[]))")
    with large.app.database.line() as connection, planned_once(connection):
        for number in range(8):
            for statement in (kept, usual):
                assert connection.execute(statement, {"ids": [number]}).scalar_one() == 1
        plans = text("""
            select substring(statement from '(kept|usual)_ones') as name, generic_plans > 0 as generic
            from pg_prepared_statements where statement like '%\\_ones%' and statement not like '%pg_prepared%'""")
        assert connection.execute(plans).all() == [("kept", True)]
