"""``python -m tests.chaos.tiers --seed S --rounds N``: a chain of three tiers, each a process; whichever is killed, and
wherever, a change at the bottom has one effect in the distributor's BSS at the very top.

Corner Shop's BSS is below; above Cloud is its own BSS, whose log of effects is the judge.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import text

from bss_sync.adapters.sql.database import Database as Pools
from bss_sync.bootstrap import App, open_app
from bss_sync.domain.tenancy import Role
from bss_sync.settings import PREFIX, load_settings
from connectors.simulator.server import SimulatorServer
from tests.app import add_connection, add_token
from tests.chaos.failing_tier import POLL_POINTS
from tests.chaos.failing_worker import DELIVERY_POINTS, EXIT_CODE, STREAM_POINTS
from tests.servers import Database, PostgresServer, embedded_postgres, short_folder
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION

NAMES = ("Sub-Reseller", "Cloud Resell", "Cloud")
LEVEL_SECONDS_MAX = 90.0
POINT_SECONDS_MAX = 75.0
SERVE = ("-m", "bss_sync.cli.main", "serve")


def free_port() -> int:
    """A port that nobody uses now."""
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
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[str] | None = None
    key: str = field(default_factory=lambda: base64.b64encode(secrets.token_bytes(32)).decode())

    def __post_init__(self) -> None:
        self.pools = Pools(self.database.login_url, pool_size=1)

    @property
    def url(self) -> str:
        """Its address."""
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

    def start(self, arguments: Sequence[str] = SERVE) -> None:
        """Start, and wait until it listens; it may have met its point before that."""
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
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**bare, **{f"{PREFIX}{name.upper()}": value for name, value in given.items()}},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on ") or self.process.wait() == EXIT_CODE, line

    def kill(self) -> int | None:
        """SIGKILL: nothing is drained. Its exit code, had it ended already."""
        if self.process is None:
            return None
        code = self.process.poll()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return code

    def rows(self, statement: str) -> Any:
        """Rows of its database."""
        with self.pools.engine() as connection:
            return connection.execute(text(statement)).all()


def _connect(hop: Hop, connector: str, name: str, url: str, token: str | None = None) -> None:
    with hop.opened() as app:
        with app.database.engine() as connection:
            connection.execute(text("insert into product (code, name) values (:code, :code)"), {"code": PRODUCT})
        settings = {"base_url": url, "allow_http_private": True, "poll_seconds": 0.2, "wait_seconds": 5,
                    "guard_count": 1_000_000}  # fmt: skip
        secret = {} if token is None else {"token": SecretStr(token)}
        add_connection(app, name, connector=connector, settings=settings, secrets=secret)
        with app.database.engine() as connection:
            connection.execute(text("update connection set poll_due_at = now()"))


@dataclass
class Tiers:
    """The hops, the lowest first; the BSS below them all and the BSS above them all."""

    hops: list[Hop]
    shop: SimulatorServer
    top: SimulatorServer
    chance: random.Random
    subscriptions: int = 0

    def sell(self, number: int) -> None:
        """Customers with a subscription each."""
        for _one in range(number):
            place, self.subscriptions = self.subscriptions, self.subscriptions + 1
            self.shop.reseller.put(ACCOUNT, f"c-{place}", {"name": f"Customer {place}"})
            held = {"account_id": f"c-{place}", "product": PRODUCT, "quantity": 1}
            self.shop.reseller.put(SUBSCRIPTION, f"s-{place}", held)

    def change(self, times: int) -> None:
        """Quantities, ends and returns of some."""
        bss = self.shop.reseller
        for _time in range(times):
            name = f"s-{self.chance.randrange(self.subscriptions)}"
            live = name in bss.live(SUBSCRIPTION)
            quantity = self.chance.randrange(2, 10_000)
            if not live:
                held = {"account_id": f"c-{name[2:]}", "product": PRODUCT, "quantity": quantity}
                bss.put(SUBSCRIPTION, name, held)
            elif self.chance.random() < 0.1:
                bss.delete(SUBSCRIPTION, name)
            else:
                bss.patch(SUBSCRIPTION, name, {"quantity": quantity})

    def kill_at(self, place: int, point: str, turn: int = 1) -> str | None:
        """Let a tier run until it ends at a point, while the shop goes on selling; what was wrong."""
        hop = self.hops[place]
        hop.kill()
        hop.start(["-m", "tests.chaos.failing_tier", "--at", point, "--turn", str(turn)])
        deadline = time.monotonic() + POINT_SECONDS_MAX
        assert hop.process is not None
        while hop.process.poll() is None and time.monotonic() < deadline:
            self.change(3)
            time.sleep(0.2)
        code = hop.kill()
        self.change(5)
        hop.start()
        return None if code == EXIT_CODE else f"{hop.distributor} did not come to {point}: {code}"

    def kill_somewhere(self) -> None:
        """Kill any tier while it works."""
        hop = self.chance.choice(self.hops)
        for _time in range(4):
            self.change(6)
            time.sleep(self.chance.uniform(0, 0.3))
        hop.kill()
        self.change(6)
        hop.start()

    def faults(self) -> list[str]:
        """Wait until all is level, at most so long; then everything that is wrong."""
        deadline = time.monotonic() + LEVEL_SECONDS_MAX
        while (found := self._unlike()) and time.monotonic() < deadline:
            time.sleep(0.3)
        return found + self._doubled()

    def _unlike(self) -> list[str]:
        """Histories that are not yet those of the shop, and what the top holds otherwise."""
        states = Counter(one.id for one in self.shop.reseller.revisions() if one.kind == SUBSCRIPTION)
        wanted = sorted(states.values())
        found = []
        for hop in self.hops:
            rows = hop.rows("select count(*) as number from history where kind = 'subscription' group by record_id")
            if (number := sorted(row.number for row in rows)) != wanted:
                found.append(f"{hop.distributor} has {sum(number)} states in history instead of {sum(wanted)}")
        live = sorted(str(one["quantity"]) for one in self.shop.reseller.live(SUBSCRIPTION).values())
        last = {one["reference"]: one["after"] for one in self._effects()}
        held = sorted(str(one["quantity"]) for one in last.values() if not one["ended"])
        if held != live:
            found.append(f"the BSS at the top holds {held} instead of {live}")
        return found

    def _effects(self) -> list[dict[str, Any]]:
        return [one for one in self.top.distributor.effects() if one["kind"] == SUBSCRIPTION]

    def _doubled(self) -> list[str]:
        effects = self.top.distributor.effects()
        creates = Counter(one["reference"] for one in effects if one["action"] == "create")
        keys = Counter(one["idempotency_key"] for one in effects)
        found = [f"{reference} was created {number} times" for reference, number in creates.items() if number > 1]
        found += [f"{number} effects under one key" for number in keys.values() if number > 1]
        found += [f"effect {one['number']} changed nothing" for one in effects if not one["changed"]]
        for hop in self.hops:
            twice = hop.rows("select 1 from history group by record_id, epoch, version having count(*) > 1")
            found += [f"{hop.distributor} has {len(twice)} states twice"] if twice else []
            odd = hop.rows(
                """select distinct state, reason from message
                   where state not in ('applied', 'superseded') and not (kind = 'account' and state = 'out_of_scope')"""
            )
            found += [f"{hop.distributor}: a message is {row.state}: {row.reason}" for row in odd]
        return found


@contextmanager
def three_tiers(server: PostgresServer, seed: int) -> Iterator[Tiers]:
    """All started."""
    hops: list[Hop] = []
    with ExitStack() as stack:
        shop, top = (stack.enter_context(SimulatorServer()) for _ in range(2))
        for name in NAMES:
            hop = Hop(stack.enter_context(server.database()), stack.enter_context(short_folder()), name)
            stack.callback(hop.pools.dispose)
            stack.callback(hop.kill)
            hops.append(hop)
        _connect(hops[0], "simulator", "corner-shop", shop.url)
        for below, hop in pairwise(hops):
            with below.opened() as app:
                token = add_token(app, Role.CHAIN)
            _connect(hop, "bss_sync", "below", below.url, token)
        _deliver_to(hops[-1], top.url)
        for hop in hops:
            hop.start()
        yield Tiers(hops, shop, top, random.Random(seed))


def _deliver_to(hop: Hop, url: str) -> None:
    with hop.pools.engine() as connection:
        connection.execute(
            text(
                """insert into target (connector, settings, poll_seconds)
                   values ('simulator', cast(:settings as jsonb), 5)"""
            ),
            {"settings": json.dumps({"base_url": url, "allow_http_private": True})},
        )


def every_point() -> list[tuple[int, str]]:
    """(tier, point): each where it can be come to."""
    polled = [(place, point) for place in (0, 1, 2) for point in POLL_POINTS + STREAM_POINTS]
    return polled + [(2, point) for point in DELIVERY_POINTS]


def play(server: PostgresServer, seed: int, points: Sequence[tuple[int, str]], random_kills: int) -> list[str]:
    """Kill at these points and so often anywhere; everything that is wrong in the end."""
    with three_tiers(server, seed) as tiers:
        tiers.sell(12)
        found = [words for place, point in points if (words := tiers.kill_at(place, point)) is not None]
        for _time in range(random_kills):
            tiers.kill_somewhere()
        return found + tiers.faults()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.tiers", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20, help="at random, per round")
    options = parser.parse_args(arguments)
    broken: list[str] = []
    with embedded_postgres() as server:
        for seed in range(options.seed, options.seed + options.rounds):
            started = time.monotonic()
            points = every_point()
            random.Random(seed).shuffle(points)
            found = play(server, seed, points, options.kills)
            sys.stdout.write(f"seed {seed}: {len(points)} points, {options.kills} kills at random, ")
            sys.stdout.write(f"{time.monotonic() - started:.0f} s: {found or 'held'}\n")
            sys.stdout.flush()
            broken += found
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
