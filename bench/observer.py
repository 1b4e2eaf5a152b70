"""Who looks at the mirror from outside: ``python -m bench.observer CONNINFO RECORDS``.

It says ``looking`` and then asks every few milliseconds which accounts and subscriptions have been written since it
began, until it has seen so many. What it prints then is one JSON document: the id of each record and the moment
(seconds of the machine's monotonic clock) at which it was first seen. A record is seen only when its transaction has
committed, and up to one look later: the figures err against us.
"""

from __future__ import annotations

import json
import sys
import time

import psycopg

LOOK_SECONDS = 0.002
PATIENCE_SECONDS = 300.0
# Both in one snapshot: what commits later has a number that is no lower than the snapshot's lowest.
_LOOK = """
    select pg_snapshot_xmin(pg_current_snapshot())::text,
           array(select id::text from account where change_xid >= %(since)s::text::xid8 union all
                 select id::text from subscription where change_xid >= %(since)s::text::xid8)"""


def main() -> None:
    """Look until everything was seen."""
    conninfo, wanted = sys.argv[1], int(sys.argv[2])
    seen: dict[str, float] = {}
    with psycopg.connect(conninfo, autocommit=True, prepare_threshold=0) as connection:
        connection.execute("set enable_seqscan = off")
        # Planned once: planned anew each time, the looks took a fifteenth of a core from what they look at.
        connection.execute("set plan_cache_mode = force_generic_plan")
        row = connection.execute("select pg_snapshot_xmax(pg_current_snapshot())::text").fetchone()
        assert row is not None, "a snapshot is one row"
        since = row[0]
        print("looking", flush=True)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(seen) < wanted:
            row = connection.execute(_LOOK, {"since": since}).fetchone()
            now = time.monotonic()
            assert row is not None, "an aggregate is one row"
            assert now < deadline, f"{len(seen)} of {wanted} records were seen"
            since = row[0]
            for record in row[1]:
                seen.setdefault(record, now)
            time.sleep(LOOK_SECONDS)
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
