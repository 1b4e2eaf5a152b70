"""A mirror that is large enough for plans to show, and what a piece of work reads of it, as PostgreSQL counts it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
from sqlalchemy import text

from bench.apply import psycopg_address
from bench.filling import fill, reseller_of
from bench.messages import account_body, change_of, fill_inbox, subscription_body
from bench.places import PRODUCT, Installation, Reseller
from bss_sync.adapters.sql.admin import connections
from bss_sync.bootstrap import App, open_app
from bss_sync.domain.change import Kind
from bss_sync.domain.tenancy import Role
from bss_sync.jobs.work import Work, make_work
from tests.app import NotedWakeUps, add_connection, add_token, serving, settings_for
from tests.servers import Database

LARGE_ROWS = 1_000
_ENDED = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
_SIZES = """
    select relname, n_live_tup from pg_stat_user_tables where n_live_tup >= %(large)s"""
_READ = """
    select t.relname, t.seq_tup_read, coalesce(t.idx_tup_fetch, 0),
           coalesce((select sum(i.idx_tup_read) from pg_stat_user_indexes i where i.relid = t.relid), 0)::bigint
    from pg_stat_user_tables t"""


class QuietWakeUps(NotedWakeUps):
    """Whoever is woken has no worker."""

    def deliver(self) -> None:
        """Nobody."""

    def fetch(self) -> None:
        """Nobody."""

    def poll(self) -> None:
        """Nobody."""

    def probe(self, connection_id: object) -> None:
        """Nobody."""


@dataclass(frozen=True)
class Reads:
    """Of one large table: rows that scans of the whole read, rows and index entries that were looked up."""

    scanned: int
    looked_up: int


@dataclass
class LargeMirror:
    """An installation whose tables are large."""

    app: App
    here: Installation
    customers: int
    work: Work

    def reads(self, act: Callable[[], object]) -> dict[str, Reads]:
        """What ``act`` read of each large table, by everything that it had PostgreSQL do."""
        self.app.database.dispose()
        before = self._counted()
        act()
        # Sessions that end tell all that they have counted.
        self.app.database.dispose()
        after = self._counted()
        with psycopg.connect(psycopg_address(self.here.database), autocommit=True) as connection:
            large = {name for name, _rows in connection.execute(_SIZES, {"large": LARGE_ROWS})}
        found = {}
        for name in large:
            scanned, fetched, entries = (now - then for now, then in zip(after[name], before[name], strict=True))
            found[name] = Reads(scanned, max(fetched, entries))
        return found

    def _counted(self) -> dict[str, tuple[int, int, int]]:
        with psycopg.connect(psycopg_address(self.here.database), autocommit=True) as connection:
            deadline = time.monotonic() + 20
            while (row := connection.execute(_ENDED).fetchone()) is not None and row[0]:
                assert time.monotonic() < deadline, "sessions have not ended"
                time.sleep(0.02)
            return {row[0]: (row[1], row[2], row[3]) for row in connection.execute(_READ)}

    def send(self, customers: int, version: int, *, first: int = 0) -> None:
        """Changes of so many customers and of their first subscriptions, decided at once."""
        sent = []
        for number in range(first, first + customers):
            body = account_body(number, version) | {"name": f"{number}, {version}"}
            changes = [
                change_of(Kind.ACCOUNT, body),
                change_of(Kind.SUBSCRIPTION, subscription_body(number, 0, version)),
            ]
            sent.append((reseller_of(self.here, number), changes))
        fill_inbox(self.here, sent)
        for shard in sorted({one.shard for one in self.here.resellers}):
            self.work.process(shard)

    @contextmanager
    def client(self, of: str | None = None) -> Iterator[httpx.Client]:
        """An admin at the API, or a reseller by its connection's name."""
        source = None
        if of is not None:
            with self.app.database.engine() as connection:
                source = connections.find(connection, of)
        token = add_token(self.app, Role.ADMIN if source is None else Role.RESELLER, source)
        with serving(self.app) as url, httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as http:
            yield http


@contextmanager
def large_mirror(database: Database, folder: Path, *, customers: int, resellers: int) -> Iterator[LargeMirror]:
    """Customers with four subscriptions each, entered once."""
    here = Installation(database, "", folder)
    with open_app(settings_for(database, folder), wake=QuietWakeUps()) as app:
        for number in range(resellers):
            source, _secret = add_connection(app, f"reseller-{number:04d}")
            here.resellers.append(Reseller(source.id, source.tenant_id, b""))
        with app.database.engine() as connection:
            connection.execute(text("insert into product (code, name) values (:code, :code)"), {"code": PRODUCT})
        fill(here, 0, customers)
        yield LargeMirror(app, here, customers, make_work(app, QuietWakeUps(), turn_seconds=math.inf))
