"""Growth: what an event costs in a mirror of 10,000 and of a million subscriptions, for one and for 2,000 resellers.

The cost is CPU: of PostgreSQL, of the door's part (storing the messages) and of the worker, for the same mix of changed
and new records. CPU is counted because it says the same on a busy machine as on a quiet one; wall time is in the notes.
The same processes live through the whole growth, so that their memory can be told apart from its beginning.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from math import gcd
from statistics import median

import psutil

from bench.apply import wait_until
from bench.figures import Goal, Row, series
from bench.filling import fill, reseller_of
from bench.load import ask
from bench.messages import SUBSCRIPTIONS_PER_ACCOUNT, account_body, change_of, fill_inbox, subscription_body
from bench.places import Installation, Place, Reseller, installation
from bss_sync.adapters.broker import RedisWakeUps
from bss_sync.domain.change import Change, Kind

NEW_SHARE = 5
"""One event of so many is about a record that is new."""
DEEP = 50
MEBIBYTE = 2**20
_SETTLED = "select not exists (select from message where settled_on(state, decided_at) = 'infinity')"
_AT_WORK = """
    select exists (select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
                   and backend_type = 'client backend' and state <> 'idle')"""
# Each source is looked up once when it is new, whether or not it can be asked: what is measured begins after that.
_ASKED = "select not exists (select from connection where coalesce(poll_due_at, '-infinity') <= now())"
_COST = "CPU ms per event"


@dataclass
class _Town:
    """An installation that lives while its mirror grows."""

    here: Installation
    redis_url: str
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

    def wake(self) -> None:
        """Tell the worker of every shard."""
        wake = RedisWakeUps(self.redis_url)
        for shard in sorted({one.shard for one in self.here.resellers}):
            wake.process(shard)

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
        self.wake()
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
def _town(at: Place, resellers: int, parts: Sequence[str] = tuple(_COMMANDS)) -> Iterator[_Town]:
    with installation(at, resellers=resellers) as here, ExitStack() as stack:
        processes = {}
        for name in parts:
            command, ready = _COMMANDS[name]
            processes[name] = stack.enter_context(here.process(*command, ready=ready))
        wait_until(here.database, _ASKED)
        yield _Town(here, at.redis_url, processes, _postmaster(at))


def _postmaster(at: Place) -> psutil.Process:
    file = (at.home / "postgres").resolve() / "data" / "postmaster.pid"
    return psutil.Process(int(file.read_text(encoding="ascii").splitlines()[0]))


@dataclass(frozen=True)
class Sizes:
    """How much is measured. ``levels``: mirrored subscriptions, the first of which the others are compared with."""

    levels: tuple[int, ...]
    resellers: tuple[int, ...]
    resellers_level: int
    events: int
    hot: int
    trees: int


FULL = Sizes((10_000, 100_000, 1_000_000), (1, 100, 2_000), 100_000, 5_000, 10_000, 20)
LARGE = Sizes((10_000, 1_000_000, 5_000_000), (), 0, 5_000, 10_000, 20)
"""Without resellers of its own: what many of them cost is measured at 100,000."""
QUICK = Sizes((200, 400), (1, 10), 200, 100, 400, 1)


def measure(at: Place, sizes: Sizes, *, rounds: int) -> list[Row]:
    """Rows on size, memory, number of resellers, a hot stream, deep trees."""
    rows = _by_size(at, sizes, rounds)
    if sizes.resellers:
        rows += _by_resellers(at, sizes, rounds)
    return rows


def _by_size(at: Place, sizes: Sizes, rounds: int) -> list[Row]:
    costs: dict[int, list[float]] = {}
    walls: dict[int, list[float]] = {}
    with _town(at, 8) as town:
        for level in sizes.levels:
            town.grow(level)
            costs[level], walls[level] = _costs(town, sizes.events, rounds)
            town.note_memory()
        hot = _hot(town, sizes.hot, rounds)
        deep = _deep(town, sizes.trees, rounds)
        town.note_memory()
    base = sizes.levels[0]
    rows = [
        Row(
            f"growth-{level}",
            f"Cost per event: {level:,} mirrored subscriptions beside {base:,}",
            series(f"{level:,} subscriptions", _COST, costs[level]),
            Goal("≤ 1.2", 1.2, at_least=False),
            series(f"{base:,} subscriptions", _COST, costs[base]),
            (
                (
                    f"{sizes.events:,} events each, four of five about records all over the mirror, one new; "
                    f"8 resellers, one worker. Wall: {median(walls[level]):.2f} ms per event, "
                    f"{median(walls[base]):.2f} ms at {base:,}."
                ),
            ),
        )
        for level in sizes.levels[1:]
    ]
    top = sizes.levels[-1]
    return [*rows, *_memory(town, sizes), *_shapes(hot, deep, costs[top], sizes)]


def _costs(town: _Town, events: int, rounds: int) -> tuple[list[float], list[float]]:
    town.cost(town.mix(events))
    found = [town.cost(town.mix(events)) for _ in range(rounds)]
    return [cpu for cpu, _ in found], [wall for _, wall in found]


def _memory(town: _Town, sizes: Sizes) -> list[Row]:
    first, last = town.memory[0], town.memory[-1]
    largest = max(last, key=lambda name: last[name])
    grown = max(last, key=lambda name: last[name] / first[name])
    told = "; ".join(f"{name}: {', '.join(f'{moment[name]:.0f}' for moment in town.memory)} MiB" for name in last)
    note = f"After each level of {', '.join(f'{one:,}' for one in sizes.levels)} subscriptions, and at the end: {told}."
    return [
        Row(
            "growth-memory",
            "Memory of the largest process after all of it",
            series(largest, "MiB", [last[largest]]),
            Goal("≤ 300 MB", 300e6 / MEBIBYTE, at_least=False),
            None,
            (note,),
        ),
        Row(
            "growth-memory-flat",
            "The same processes' memory, last beside first",
            series(grown, "MiB", [last[grown]]),
            Goal("≤ 1.2", 1.2, at_least=False),
            series(f"{grown}, at {sizes.levels[0]:,} subscriptions", "MiB", [first[grown]]),
            (note,),
        ),
    ]


def _shapes(
    hot: tuple[list[float], list[float]], deep: tuple[list[float], list[float]], usual: list[float], sizes: Sizes
) -> list[Row]:
    first, last = hot
    flat, tree = deep
    return [
        Row(
            "growth-hot",
            f"A hot stream: one subscription changes {sizes.hot:,} times",
            series("the last fifth of its changes", _COST, last),
            Goal("≤ 1.2", 1.2, at_least=False),
            series("the first fifth", _COST, first),
            (f"Changes of as many records cost {median(usual):.2f} ms each.",),
        ),
        Row(
            "growth-deep",
            f"Deep trees: accounts at {DEEP} levels move to another parent",
            series(f"{DEEP} levels", _COST, tree),
            None,
            series("one level", _COST, flat),
            (f"{sizes.trees} trees; every account of a tree moves. Each move looks at all that is above it.",),
        ),
    ]


def _hot(town: _Town, changes: int, rounds: int) -> tuple[list[float], list[float]]:
    """The first and the last fifth of one subscription's changes."""
    first, last = [], []
    fifth = changes // 5
    for number in range(rounds):
        version = 1_000_000
        found = []
        for _ in range(5):
            bodies = [subscription_body(number, 0, version + place) for place in range(fifth)]
            version += fifth
            sent = [change_of(Kind.SUBSCRIPTION, body) for body in bodies]
            found.append(town.cost([(reseller_of(town.here, number), sent)])[0])
        first.append(found[0])
        last.append(found[-1])
    return first, last


def _deep(town: _Town, trees: int, rounds: int) -> tuple[list[float], list[float]]:
    """Accounts that move between two parents at one level, and in trees of ``DEEP`` levels."""
    owner = town.here.resellers[0]
    flat, deep = [], []
    for levels, found in ((1, flat), (DEEP, deep)):
        for number in range(rounds + 1):
            moved = []
            for tree in range(trees):
                for place in range(DEEP):
                    # Down each tree the accounts of one colour hang below each other; each round changes the colour.
                    level = place % levels
                    parent = f"tree-{levels}-{tree}-{place - 1}" if level else f"root-{levels}-{number % 2}"
                    moved.append(_member(f"tree-{levels}-{tree}-{place}", parent, number + 2))
            roots = [_member(f"root-{levels}-{colour}", None, 1) for colour in (0, 1)] if number == 0 else []
            cost, _ = town.cost([(owner, [*roots, *moved])])
            if number:
                found.append(cost)
    return flat, deep


def _member(name: str, parent: str | None, version: int) -> Change:
    body = account_body(0, version) | {
        "id": name,
        "name": f"{name}, {version}",
        "kind": "reseller",
        "parent_id": parent,
    }
    return change_of(Kind.ACCOUNT, body)


def _by_resellers(at: Place, sizes: Sizes, rounds: int) -> list[Row]:
    costs, walls = {}, {}
    for number in sizes.resellers:
        # The scheduler finds who waits for what another batch brought at the same moment.
        with _town(at, number, ["worker", "scheduler"]) as town:
            town.grow(sizes.resellers_level)
            # These resellers send: that they cannot be polled is found out now and then, and not a matter of events.
            ask(town.here, "update connection set poll_due_at = 'infinity'")
            costs[number], walls[number] = _costs(town, sizes.events, rounds)
    base = sizes.resellers[0]
    return [
        Row(
            f"growth-resellers-{number}",
            f"Cost per event: {number:,} connections beside {base:,}",
            series(f"{number:,} connections", _COST, costs[number]),
            Goal("≤ 1.2", 1.2, at_least=False),
            series(f"{base:,} connection", _COST, costs[base]),
            (
                (
                    f"{sizes.resellers_level:,} subscriptions, {sizes.events:,} events of all connections. Wall: "
                    f"{median(walls[number]):.2f} ms per event, {median(walls[base]):.2f} ms with {base:,}."
                ),
            ),
        )
        for number in sizes.resellers[1:]
    ]
