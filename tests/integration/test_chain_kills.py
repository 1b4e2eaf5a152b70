"""A chain of three real processes: whichever is killed, a change at the bottom arrives at the top once."""

from __future__ import annotations

import base64
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from bss_sync.adapters.sql.database import Database as Pools
from bss_sync.bootstrap import App, open_app
from bss_sync.domain.tenancy import Role
from bss_sync.settings import PREFIX, load_settings
from connectors.simulator.server import SimulatorServer
from tests.app import add_connection, add_token
from tests.servers import Database, PostgresServer, short_folder
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, eventually

pytestmark = pytest.mark.slow


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Hop:
    """One instance as a process: the door, the API, a worker and a scheduler. It keeps its address when restarted."""

    database: Database
    home: Path
    distributor: str
    port: int = field(default_factory=_free_port)
    process: subprocess.Popen[str] | None = None
    key: str = field(default_factory=lambda: base64.b64encode(secrets.token_bytes(32)).decode())

    def __post_init__(self) -> None:
        self.pools = Pools(self.database.login_url, pool_size=1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def opened(self) -> Iterator[App]:
        """The application in this process, to set it up."""
        settings = load_settings(
            home=self.home,
            database_url=self.database.login_url,
            database_owner_url=self.database.owner_url,
            master_key=self.key,
            distributor_name=self.distributor,
        )
        with open_app(settings) as app:
            yield app

    def start(self) -> None:
        """Start, and wait until it listens."""
        given = {
            "home": str(self.home),
            "database_url": self.database.login_url,
            "database_owner_url": self.database.owner_url,
            "master_key": self.key,
            "distributor_name": self.distributor,
            "lease_seconds": "2",
            "bind": f"127.0.0.1:{self.port}",
        }
        bare = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bss_sync.cli.main", "serve"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**bare, **{f"{PREFIX}{name.upper()}": value for name, value in given.items()}},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), line

    def kill(self) -> None:
        """SIGKILL: nothing is drained."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def rows(self, statement: str) -> Any:
        with self.pools.engine() as connection:
            return connection.execute(text(statement)).all()

    def write(self, statement: str) -> None:
        with self.pools.engine() as connection:
            connection.execute(text(statement))


def _connect(hop: Hop, connector: str, name: str, url: str, token: str | None = None) -> None:
    with hop.opened() as app:
        with app.database.engine() as connection:
            connection.execute(text("insert into product (code, name) values (:code, :code)"), {"code": PRODUCT})
        settings = {"base_url": url, "allow_http_private": True, "poll_seconds": 0.2, "wait_seconds": 5}
        secret = {} if token is None else {"token": SecretStr(token)}
        add_connection(app, name, connector=connector, settings=settings, secrets=secret)
        with app.database.engine() as connection:
            connection.execute(text("update connection set poll_due_at = now()"))


@contextmanager
def _chain(server: PostgresServer, shop: SimulatorServer) -> Iterator[list[Hop]]:
    """The hops, the lowest first."""
    hops: list[Hop] = []
    with ExitStack() as stack:
        for name in ("Sub-Reseller", "Cloud Resell", "Cloud"):
            hop = Hop(stack.enter_context(server.database()), stack.enter_context(short_folder()), name)
            stack.callback(hop.pools.dispose)
            stack.callback(hop.kill)
            hops.append(hop)
        _connect(hops[0], "simulator", "corner-shop", shop.url)
        for below, hop in pairwise(hops):
            with below.opened() as app:
                token = add_token(app, Role.CHAIN)
            _connect(hop, "bss_sync", "below", below.url, token)
        for hop in hops:
            hop.start()
        yield hops


def _quantities(hop: Hop) -> list[int]:
    return [int(row.quantity) for row in hop.rows("select quantity from subscription order by quantity")]


def test_whichever_hop_is_killed_every_change_arrives_once(postgres_server: PostgresServer) -> None:
    with SimulatorServer() as shop, _chain(postgres_server, shop) as hops:
        bss = shop.reseller
        for number in range(40):
            bss.put(ACCOUNT, f"c-{number}", {"name": f"Customer {number}"})
            bss.put(SUBSCRIPTION, f"s-{number}", {"account_id": f"c-{number}", "product": PRODUCT, "quantity": number})
        eventually(lambda: _quantities(hops[-1]) == list(range(40)), seconds=40)
        for turn, victim in enumerate(hops, start=1):
            for number in range(40):
                bss.patch(SUBSCRIPTION, f"s-{number}", {"quantity": 1000 * turn + number})
                if number == 20:
                    victim.kill()
            # A poll that was killed holds its lease for half a minute. That it runs out is not what is shown here.
            victim.write("update connection set poll_lease_until = null")
            victim.start()
            wanted = [1000 * turn + number for number in range(40)]
            eventually(lambda wanted=wanted: _quantities(hops[-1]) == wanted, seconds=60)  # type: ignore[misc]  # default
        for hop in hops:
            assert [row.state for row in hop.rows("select distinct state from message")] in (
                ["applied"],
                ["applied", "superseded"],
                ["superseded", "applied"],
            )
            twice = """select record_id from history where kind = 'subscription'
                       group by record_id, state ->> 'quantity' having count(*) > 1"""
            assert hop.rows(twice) == []
