"""``python -m tests.scale_chain --records N``: reconcile over a chain link with N equal records, then 10 that differ.

Two real instances on one PostgreSQL. The rows are written straight into both, as the line would leave them; what is
measured is the comparison alone: its time, and the bytes that travel.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

from bss_sync.domain.change import Kind, stream_id
from tests.servers import PostgresServer, embedded_postgres
from tests.tiers import Tier, tier
from tests.world import PRODUCT

CHUNK = 50_000
DIFFERING = 10

_STREAMS = """
    insert into stream (id, tenant_id, connection_id, shard, kind, source_id, version, digest)
    select f.id, :tenant, :connection, 0, 'subscription', f.source, 1, '\\x00'
    from unnest(cast(:ids as uuid[]), cast(:sources as text[])) as f (id, source)"""
_SUBSCRIPTIONS = """
    insert into subscription (id, tenant_id, connection_id, source_id, product, status, source_status, trial, quantity,
        version, order_kind, source, passed, effective_at, message, chain_version, updated_at, created_at,
        account_source_id, account_id)
    select f.id, :tenant, :connection, f.source, :product, 'active', 'active', false, 1, 1, 'sequence',
        cast(:content as jsonb), cast(:passed as text[]), now(), gen_random_uuid(), 1, now() - interval '1 hour',
        now() - interval '1 hour', :account, :account_id
    from unnest(cast(:ids as uuid[]), cast(:sources as text[])) as f (id, source)"""
_CONTENT = """{"account_id": %s, "parent_id": null, "product": "%s", "status": "active", "source_status": "active",
    "trial": false, "start_date": null, "end_date": null, "activation_date": null, "cancellation_date": null,
    "auto_renew": null, "billing_cycle": null, "term": null, "quantity": "1", "characteristics": {}}"""


@dataclass(frozen=True)
class Figures:
    """One reconciliation."""

    seconds: float
    received_bytes: int
    differences: int
    ranges_listed: int


@contextmanager
def filled(server: PostgresServer, records: int) -> Iterator[tuple[Tier, Tier]]:
    """(below, above) with so many equal records."""
    with (
        server.database() as low,
        server.database() as high,
        tier(low, "Below") as below,
        tier(high, "Above") as above,
    ):
        for one in (below, above):
            one.sell(PRODUCT)
        below.add("webhook", "shop", "Shop")
        above.connect(below, "below", "Below", account_scope="all")
        above.follow()
        tenant = str(below.connections["shop"].tenant_id)
        for start in range(0, records, CHUNK):
            ids = [str(uuid4()) for _one in range(min(CHUNK, records - start))]
            _fill(below, "shop", ids, ids, [], None)
            to = above.connections["below"].id
            known = [str(stream_id(to, Kind.SUBSCRIPTION, one)) for one in ids]
            _fill(above, "below", known, ids, [str(below.app.instance_id)], tenant)
        for one in (below, above):
            one.execute("analyze stream")
            one.execute("analyze subscription")
        yield below, above


def _fill(one: Tier, name: str, ids: list[str], sources: list[str], passed: list[str], account: str | None) -> None:
    source = one.connections[name]
    content = _CONTENT % ("null" if account is None else f'"{account}"', PRODUCT)
    held = {"account": account, "account_id": account and stream_id(source.id, Kind.ACCOUNT, account)}
    values = {"tenant": source.tenant_id, "connection": source.id, "ids": ids, "sources": sources}
    one.execute(_STREAMS, **values)
    one.execute(_SUBSCRIPTIONS, **values, **held, product=PRODUCT, passed=passed, content=content)


def measure(above: Tier) -> Figures:
    """Compare once, without repairing."""
    above.http.answers.clear()
    started = time.monotonic()
    result = above.reconcile("below", dry_run=True)
    return Figures(time.monotonic() - started, above.http.received_bytes, result.total, result.ranges_listed)


def differ(below: Tier) -> None:
    """A few records below are ahead by one state."""
    below.execute(
        """update subscription set quantity = 2, chain_version = 2, version = 2
           where id = any(array(select id from subscription order by hashtext(id::text) limit :number))""",
        number=DIFFERING,
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale_chain", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    options = parser.parse_args()
    with embedded_postgres() as server, filled(server, options.records) as (below, above):
        level = [measure(above) for _time in range(3)]
        differ(below)
        unlike = [measure(above) for _time in range(3)]
    for name, figures in (("level", level), (f"{DIFFERING} differ", unlike)):
        for one in figures:
            sys.stdout.write(f"{name}: {one}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
