"""A reseller's BSS, a distributor's BSS and bss_sync between them, for tests of what moves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text

from bss_sync.bootstrap import App, open_app
from bss_sync.domain.change import SHARDS, Kind, stream_id
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.domain.tenancy import ConnectionState
from bss_sync.jobs.work import Work, make_work
from bss_sync.testing.simulation.chunks import NoChunks
from connectors.simulator.server import SimulatorServer
from tests.app import NotedWakeUps, SettableClock, add_connection, settings_for
from tests.servers import Database

PRODUCT = "M365"
_IS_OPEN = """
    select exists (select 1 from message where state = 'pending' and shard is not null)
        or exists (select 1 from stream s join connection c on c.id = s.connection_id
                   where s.ready_at <= now() and c.state in ('shadow', 'live'))"""
ACCOUNT, SUBSCRIPTION = Kind.ACCOUNT, Kind.SUBSCRIPTION


class AllWakeUps(NotedWakeUps):
    """Remembers every hint."""

    def deliver(self) -> None:
        """Noted by nobody."""

    def fetch(self) -> None:
        """Noted by nobody."""

    def poll(self) -> None:
        """Noted by nobody."""

    def probe(self, connection_id: UUID) -> None:
        """Noted by nobody."""


@dataclass
class World:
    """One simulator plays both BSS. Work is done when a test asks for it: ``settle`` until nothing is left."""

    app: App
    work: Work
    simulator: SimulatorServer
    source: SourceConnection

    def rows(self, statement: str, **values: Any) -> Sequence[Row[Any]]:
        with self.app.database.engine() as connection:
            return connection.execute(text(statement), values).all()

    def value(self, statement: str, **values: Any) -> Any:
        (row,) = self.rows(statement, **values)
        return row[0]

    def execute(self, statement: str, **values: Any) -> None:
        with self.app.database.engine() as connection:
            connection.execute(text(statement), values)

    def record_id(self, kind: Kind, source_id: str) -> UUID:
        return stream_id(self.source.id, kind, source_id)

    def process(self) -> None:
        """Decide everything that is open. A busy shard gives its turn back, so it may take several."""
        for _ in range(100):
            for shard in range(SHARDS):
                self.work.process(shard)
            if not self.value(_IS_OPEN):
                return

    def calm(self) -> None:
        """Nothing has failed lately, as far as breakers and budgets know."""
        self.execute(
            """update breaker set failures = 0, openings = 0, opened_at = null, open_until = null, probe_until = null,
                      window_at = null, credit = 100"""
        )

    def poll(self) -> None:
        """Poll the source now, and decide what it said."""
        self.calm()
        self.execute("update connection set poll_due_at = now()")
        self.work.poll()
        self.process()

    def hear(self) -> None:
        """Poll the source now: what it said is in the inbox, and nobody has decided it."""
        self.calm()
        self.execute("update connection set poll_due_at = now()")
        assert replace(self.work.poller, chunks=NoChunks()).poll(), "the poll was due"

    def deliver(self) -> None:
        """Deliver whatever is due, without the pauses after a failure."""
        self.calm()
        self.work.deliver()

    def settle(self) -> None:
        """Source → mirror → target, until nothing is due."""
        self.poll()
        self.deliver()

    def target_records(self) -> dict[str, dict[str, Any]]:
        """The target's fields by our record id."""
        return {one["reference"]: one["fields"] for one in self.simulator.distributor.records()}

    def target_fields(self, kind: Kind, source_id: str) -> dict[str, Any]:
        return self.target_records()[str(self.record_id(kind, source_id))]

    def effects(self, action: str) -> list[dict[str, Any]]:
        return [one for one in self.simulator.distributor.effects() if one["action"] == action]

    def audits(self, action: str) -> Sequence[Row[Any]]:
        return self.rows("select * from audit where action = :action order by seq", action=action)


@contextmanager
def world(
    database: Database, home: Path, *, target: bool = True, connection: dict[str, Any] | None = None, **settings: Any
) -> Iterator[World]:
    """A live connection to a simulated reseller, and a simulated distributor's BSS as the target."""
    wake = AllWakeUps()
    with (
        SimulatorServer() as simulator,
        open_app(settings_for(database, home, **settings), clock=SettableClock(), wake=wake) as app,
    ):
        reach = {"base_url": simulator.url, "allow_http_private": True}
        source, _secret = add_connection(app, connector="simulator", settings=reach | (connection or {}))
        one = World(app, make_work(app, wake), simulator, source)
        one.execute("update connection set state = :state", state=ConnectionState.LIVE)
        one.execute("insert into product (code, name) values (:code, :code)", code=PRODUCT)
        if target:
            one.execute(
                """insert into target (connector, settings, poll_seconds)
                   values ('simulator', cast(:reach as jsonb), 0.2)""",
                reach=json.dumps(reach),
            )
        yield one


def eventually(fact: Callable[[], object], *, seconds: float = 15) -> None:
    """Wait until a fact holds."""
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"not within {seconds} seconds"
        time.sleep(0.05)
