"""What is decided reads as little where much is open already: a flood, or children whose parents have not come yet."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from bench.apply import psycopg_address
from bench.messages import SUBSCRIPTIONS_PER_ACCOUNT, change_of, fill_inbox, subscription_body
from bench.places import Reseller
from bss_sync.domain.change import Kind
from tests.app import add_connection
from tests.large_mirror import LargeMirror, large_mirror
from tests.servers import PostgresServer, short_folder

CUSTOMERS = 300
CHANGED = 20
OPEN = 8_000
READS_PER_MESSAGE_MAX = 60
_PUT_ASIDE = "update message set shard = null where connection_id = %(connection)s"
_HALF_WAITS = """
    update message set state = 'waiting', wait_reason = 'account_unknown', waits_for = gen_random_uuid(),
        wait_until = now() + interval '1 hour'
    where connection_id = %(connection)s and seq %% 2 = 0"""
_PAUSE = "update connection set state = 'paused' where id = %(connection)s"


@pytest.fixture(params=["postgres_server", "postgres15_server"], ids=["postgres18", "postgres15"])
def large(request: pytest.FixtureRequest) -> Iterator[LargeMirror]:
    server: PostgresServer = request.getfixturevalue(request.param)
    with (
        short_folder() as folder,
        server.database() as database,
        large_mirror(database, folder, customers=CUSTOMERS, resellers=2) as one,
    ):
        yield one


def _leave_open(large: LargeMirror) -> None:
    """Somebody's subscriptions, half of them not looked at, half of them waiting for accounts that have not come."""
    source, _secret = add_connection(large.app, "reseller-behind")
    changes = [
        change_of(Kind.SUBSCRIPTION, subscription_body(number, index, 1))
        for number in range(OPEN // SUBSCRIPTIONS_PER_ACCOUNT)
        for index in range(SUBSCRIPTIONS_PER_ACCOUNT)
    ]
    fill_inbox(large.here, [(Reseller(source.id, source.tenant_id, b""), changes)])
    with psycopg.connect(psycopg_address(large.here.database)) as connection:
        for statement in (_PAUSE, _PUT_ASIDE, _HALF_WAITS):
            connection.execute(statement, {"connection": source.id})


@pytest.mark.parametrize("first", [0, CUSTOMERS * 10], ids=["changes", "new records"])
def test_a_message_reads_a_few_rows_beside_much_that_is_open(large: LargeMirror, first: int) -> None:
    # Plans are made while nothing is open, and kept.
    large.send(CHANGED, 2, first=first)
    _leave_open(large)
    reads = large.reads(lambda: large.send(CHANGED, 3, first=first + CHANGED))
    found = reads["message_unsettled"]
    assert found.scanned == 0
    assert found.looked_up <= CHANGED * 2 * READS_PER_MESSAGE_MAX, found
