"""Parts by time come into a database that is full and busy: nothing is copied, and nobody waits for long."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from uuid import uuid4

import psycopg
import pytest

from tests.command_line import over
from tests.releases import Release
from tests.servers import Database, PostgresServer, migrate, short_folder

MESSAGES = 20_000
STALL_SECONDS_MAX = 2.0
"""The exchange waits 0.4 seconds for its locks; the rest is a busy machine."""
CONNECTION = uuid4()
_FILL = f"""
    insert into instance (distributor_id) values (gen_random_uuid());
    insert into tenant (id, name, display_name, kind) values ('{CONNECTION}', 'a', 'A', 'reseller');
    insert into connection (id, tenant_id, name, connector, shard, state)
        values ('{CONNECTION}', '{CONNECTION}', 'a', 'webhook', 1, 'live');
    insert into stream (id, tenant_id, connection_id, shard, kind, source_id)
        select gen_random_uuid(), '{CONNECTION}', '{CONNECTION}', 1, 'account', g::text
        from generate_series(1, {MESSAGES // 10}) g;
    insert into message (id, tenant_id, connection_id, stream_id, shard, message_id, kind, source_id, action,
                         order_kind, version, sent_at, effective_at, body, digest, state, decided_at)
        select gen_random_uuid(), '{CONNECTION}', '{CONNECTION}', gen_random_uuid(), 1, g::text, 'account', g::text,
               'state', 'sequence', 1, now(), now(), '{{}}', '\\x00',
               case when g % 10 = 0 then 'pending' else 'applied' end,
               case when g % 10 > 0 then now() end
        from generate_series(1, {MESSAGES}) g;
    insert into history (tenant_id, connection_id, kind, record_id, epoch, version, effective_at, state, deleted,
                         message)
        select tenant_id, connection_id, 'account', id, 0, v, now(), '{{}}', false, gen_random_uuid()
        from stream, generate_series(1, 10) v"""
# What the version before does all day, in its own words.
_WORK = {
    "door": f"""insert into message (id, tenant_id, connection_id, stream_id, shard, message_id, kind, source_id,
            action, order_kind, version, sent_at, effective_at, body, digest)
        values (gen_random_uuid(), '{CONNECTION}', '{CONNECTION}', gen_random_uuid(), 1, 'new', 'account', 'new',
                'state', 'sequence', 1, now(), now(), '{{}}', '\\x00')""",
    "engine": f"""with settled as (update message set state = 'applied', decided_at = now() where id in (
            select id from message where state = 'pending' order by seq limit 5) returning id)
        insert into history (tenant_id, connection_id, kind, record_id, epoch, version, effective_at, state, deleted,
                             message)
        select '{CONNECTION}', '{CONNECTION}', 'account', (select min(id::text)::uuid from stream), 0, 99, now(),
               '{{}}', false, id from settled""",
}


@pytest.mark.slow
def test_the_version_before_works_on_while_its_tables_become_parts(
    postgres_server: PostgresServer, previous_release: Release
) -> None:
    with postgres_server.database(migrated=False) as database, short_folder() as home:
        assert previous_release.run(over(database, home).environment, "db", "upgrade").code == 0
        with _superuser(database) as sql:
            sql.execute(_FILL.encode())
        longest: defaultdict[str, float] = defaultdict(float)
        done: defaultdict[str, int] = defaultdict(int)
        errors: list[Exception] = []
        stop = threading.Event()

        def work(role: str) -> None:
            try:
                with _superuser(database) as sql:
                    sql.execute(f"set role bss_sync_{role}".encode())
                    while not stop.is_set():
                        begun = time.monotonic()
                        sql.execute(_WORK[role].encode())
                        longest[role] = max(longest[role], time.monotonic() - begun)
                        done[role] += 1
                        time.sleep(0.005)
            except psycopg.Error as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(role,)) for role in _WORK]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        migrate(database.owner_url, database.login_url)
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join(timeout=20)

        assert errors == []
        assert max(longest.values()) < STALL_SECONDS_MAX, dict(longest)
        with _superuser(database) as sql:
            number, numbers, lost = sql.execute(
                "select count(*), count(distinct seq), count(*) filter (where tableoid = 'message_other'::regclass)"
                " from message"
            ).fetchall()[0]
            assert (number, numbers, lost) == (MESSAGES + done["door"], MESSAGES + done["door"], 0)
            assert sql.execute("select count(*) from history where period > '2020-01-01'").fetchall()[0][0] > 0
            # What is settled a week later goes to its month.
            sql.execute("update message set state = 'applied', decided_at = now() + interval '8 days' where seq = 10")
            (part,) = sql.execute("select cast(tableoid as regclass)::text from message where seq = 10").fetchall()[0]
            assert part.startswith("message_settled_")


def _superuser(database: Database) -> psycopg.Connection:
    return psycopg.connect(database.superuser_url.replace("+psycopg", ""), autocommit=True)
