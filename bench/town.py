"""Installations whose mirrors are of some size, and what an event costs there: two of them by turns."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from math import gcd
from statistics import median

import psutil

from bench.apply import wait_until
from bench.figures import Series, series
from bench.filling import fill, reseller_of
from bench.messages import SUBSCRIPTIONS_PER_ACCOUNT, account_body, change_of, fill_inbox, subscription_body
from bench.places import Installation, Place, Reseller, installation
from bss_sync.domain.change import Change, Kind

NEW_SHARE = 5
"""One event of so many is about a record that is new."""
MEBIBYTE = 2**20
_SETTLED = "select not exists (select from message where settled_on(state, decided_at) = 'infinity')"
_AT_WORK = """
    select exists (select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
                   and backend_type = 'client backend' and state <> 'idle')"""
# Each source is looked up once when it is new, whether or not it can be asked: what is measured begins after that.
_ASKED = "select not exists (select from connection where coalesce(poll_due_at, '-infinity') <= now())"
COST = "CPU ms per event"
TURNS = 2
"""Turns of a round: one takes seconds, and the machine's own moods last longer than that."""


@dataclass
class Town:
    """An installation that lives while its mirror grows."""

    here: Installation
    processes: dict[str, psutil.Process]
    postmaster: psutil.Process
    customers: int = 0
    version: int = 1
    newest: int = 9_000_000
    """The numbers of new customers: none that the mirror will be filled with."""
    memory: list[dict[str, float]] = field(default_factory=list)

    def grow(self, subscriptions: int) -> None:
        """Fill the mirror up to so many subscriptions."""
        until = subscriptions // SUBSCRIPTIONS_PER_ACCOUNT
        fill(self.here, self.customers, until)
        self.customers = until

    def cost(self, parts: Sequence[tuple[Reseller, Sequence[Change]]]) -> tuple[float, float]:
        """CPU milliseconds and wall milliseconds per event: stored while the worker is held, then decided."""
        events = sum(len(sent) for _, sent in parts)
        worker = self.processes["worker"]
        self._suspend(worker)
        try:
            before, own = self._cpu_seconds(), time.process_time()
            fill_inbox(self.here, parts)
            begun = time.perf_counter()
            stored = time.process_time() - own
        finally:
            worker.resume()
        self.here.wake()
        wait_until(self.here.database, _SETTLED, look_seconds=0.1)
        wall = time.perf_counter() - begun
        used = self._cpu_seconds() - before + stored
        return used / events * 1000, wall / events * 1000

    def _suspend(self, worker: psutil.Process) -> None:
        """Between two of its transactions: what it had locked would be locked all the while."""
        worker.suspend()
        while self.here.ask(_AT_WORK):
            worker.resume()
            time.sleep(0.01)
            worker.suspend()

    def _cpu_seconds(self) -> float:
        """Of PostgreSQL with all its processes, those that have ended too, and of the worker."""
        used = 0.0
        for one in self.postmaster.children():
            # One that ends meanwhile is counted by its parent.
            with suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                used += times.user + times.system
        server = self.postmaster.cpu_times()
        used += server.user + server.system + server.children_user + server.children_system
        times = self.processes["worker"].cpu_times()
        return float(used + times.user + times.system)

    def note_memory(self) -> None:
        """The resident memory of each process in MiB, now."""
        self.memory.append({name: one.memory_info().rss / MEBIBYTE for name, one in self.processes.items()})

    def mix(self, events: int) -> list[tuple[Reseller, list[Change]]]:
        """Changes all over the mirror, and new customers with their subscriptions."""
        self.version += 1
        each = SUBSCRIPTIONS_PER_ACCOUNT + 1
        fresh = max(1, events // NEW_SHARE // each)
        changed = min((events - fresh * each) // each, self.customers)
        # Of every connection as many: a step that has no divisor in common with the customers leaves none out.
        step = next(
            one for one in range(self.customers * 5 // 8 + 1, 2 * self.customers) if gcd(one, self.customers) == 1
        )
        numbers = [place * step % self.customers for place in range(changed)]
        parts: dict[Reseller, list[Change]] = {}
        for number in [*numbers, *range(self.newest, self.newest + fresh)]:
            version = self.version if number < self.customers else 1
            own = parts.setdefault(reseller_of(self.here, number), [])
            body = account_body(number, version)
            own.append(change_of(Kind.ACCOUNT, body | {"name": f"{body['name']}, {version}"}))
            own += [
                change_of(Kind.SUBSCRIPTION, subscription_body(number, index, version))
                for index in range(SUBSCRIPTIONS_PER_ACCOUNT)
            ]
        self.newest += fresh
        return list(parts.items())


_COMMANDS = {
    "worker": (("worker",), "working"),
    "door": (("web", "--bind", "127.0.0.1:0"), "listening on "),
    "scheduler": (("scheduler",), "scheduling"),
}


@contextmanager
def town_at(at: Place, resellers: int, parts: Sequence[str] = tuple(_COMMANDS)) -> Iterator[Town]:
    """An installation with so many resellers and these of its processes, until the end of the block."""
    with installation(at, resellers=resellers) as here, ExitStack() as stack:
        processes = {}
        for name in parts:
            command, ready = _COMMANDS[name]
            processes[name] = stack.enter_context(here.process(*command, ready=ready))
        wait_until(here.database, _ASKED)
        yield Town(here, processes, _postmaster(at))


def _postmaster(at: Place) -> psutil.Process:
    file = (at.home / "postgres").resolve() / "data" / "postmaster.pid"
    return psutil.Process(int(file.read_text(encoding="ascii").splitlines()[0]))


@dataclass
class Turns:
    """Milliseconds per event of one installation and of another one beside it, by turns."""

    costs: list[float] = field(default_factory=list)
    costs_beside: list[float] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)
    walls_beside: list[float] = field(default_factory=list)

    @property
    def wall(self) -> float:
        """The median."""
        return median(self.walls)

    @property
    def wall_beside(self) -> float:
        """The median of the other one."""
        return median(self.walls_beside)

    def cost(self, name: str) -> Series:
        """What an event costs."""
        return series(name, COST, self.costs)

    def cost_beside(self, name: str) -> Series:
        """What it costs in the other one."""
        return series(name, COST, self.costs_beside)


def by_turns(town: Town, beside: Town, events: int, rounds: int) -> Turns:
    """``events`` each in ``beside`` and in ``town``, again and again, ``rounds * TURNS`` times.

    Both have a turn before the first that counts: caches, plans and connections are there then.
    """
    found = Turns()
    for turn in range(1 + rounds * TURNS):
        for one, costs, walls in (
            (beside, found.costs_beside, found.walls_beside),
            (town, found.costs, found.walls),
        ):
            cpu, wall = one.cost(one.mix(events))
            if turn:
                costs.append(cpu)
                walls.append(wall)
    return found
