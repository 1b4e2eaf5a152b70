"""The faults, each bounded and seeded. A scenario disturbs a stack under load and returns what it measured.

What must hold at the end of every one is the same and stands in ``verdict``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import redis

from bss_sync.adapters.sql.database import IDLE_TRANSACTION_SECONDS
from tests.chaos.crew import Daemon
from tests.chaos.failing_worker import DEADLY_EXIT_CODE, EXIT_CODE, POINTS
from tests.chaos.load import Load, Told, subscription_data
from tests.chaos.proxy import FAIR, Weather
from tests.chaos.stack import Stack

Figures = dict[str, float]
LOOK_SECONDS = 0.05
DRAIN_SECONDS_MAX = 30.0
REACH_SECONDS_MAX = 60.0
DEADLY_SECONDS_MAX = 120.0
BACKLOG_SECONDS_MAX = 240.0
CAUGHT_UP_SECONDS = 3.0
FEW_POINTS = ("decided.uncommitted", "remote.written")
DEADLY = "deadly-sub"
HELD = frozenset({("subscription", DEADLY)})
"""What may be held at the end."""
FAILING = ("-m", "tests.chaos.failing_worker")


@dataclass
class Round:
    """What a scenario may use. ``size``: how often it strikes."""

    stack: Stack
    load: Load
    chance: random.Random
    size: int
    patience: float = 1.0
    """Factor on the promised seconds: the short round runs beside other tests."""
    cut_seconds: tuple[float, float] = (5.0, 45.0)
    """How long a host is cut off."""
    broken: list[str] = field(default_factory=list)

    def within(self, what: str, seconds: float, promised: float) -> float:
        """Note a promise that was not kept; returns the seconds."""
        if seconds > promised * self.patience:
            self.broken.append(f"{what} took {seconds:.1f} s, promised are {promised:.0f} s")
        return round(seconds, 2)


def eventually(fact: Callable[[], bool], what: str, seconds: float = REACH_SECONDS_MAX) -> float:
    """Wait for a fact; returns how long that took."""
    started = time.monotonic()
    while not fact():
        assert time.monotonic() - started < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(LOOK_SECONDS)
    return time.monotonic() - started


def visible_seconds(turn: Round, name: str, seconds_max: float = REACH_SECONDS_MAX) -> float:
    """Send a subscription of the tenant's own, and wait until the mirror shows it."""
    turn.load.tell([Told(f"m-{name}", "subscription", name, 1, _own_use(name))])
    look = partial(turn.stack.get, "/v1/subscriptions", source_id=name)
    return eventually(lambda: bool(look()["items"]), f"{name} is visible", seconds_max)


def catch_up(turn: Round) -> None:
    """Wait until what is sent is soon visible: what earlier faults have left is worked off."""
    deadline = time.monotonic() + BACKLOG_SECONDS_MAX
    while visible_seconds(turn, f"caught-up-{turn.chance.randrange(10**9)}", BACKLOG_SECONDS_MAX) > CAUGHT_UP_SECONDS:
        assert time.monotonic() < deadline, f"a backlog is still there after {BACKLOG_SECONDS_MAX:.0f} s"


def worker_dies_at_points(turn: Round) -> Figures:
    """A worker is killed at each named point; what it had begun is finished by others."""
    points = list(POINTS) * turn.size if turn.size else list(FEW_POINTS)
    turn.chance.shuffle(points)
    worker = turn.stack.crew["worker-1"]
    worker.once.extend([*FAILING, "--at", point, "--turn", str(turn.chance.choice((1, 1, 2)))] for point in points)
    before = sum(one.code == EXIT_CODE for one in worker.exits)
    worker.kill()
    eventually(
        lambda: sum(one.code == EXIT_CODE for one in worker.exits) - before == len(points),
        f"all of {points} were reached",
        REACH_SECONDS_MAX + 15.0 * len(points),
    )
    return {"points": len(points)}


def processes_are_killed(turn: Round) -> Figures:
    """SIGKILL at random, of every kind of process."""
    for _ in range(turn.size):
        victim = turn.chance.choice(sorted(turn.stack.crew.daemons))
        turn.stack.crew[victim].kill()
        time.sleep(turn.chance.uniform(0.5, 2.5))
    seconds = visible_seconds(turn, f"after-kills-{turn.chance.randrange(10**9)}")
    # A process that was killed alone holds its leases for as long as they last.
    turn.within("work after the last kill", seconds, turn.stack.lease_seconds + 5)
    return {"kills": turn.size, "visible_seconds": round(seconds, 2)}


def processes_are_terminated(turn: Round) -> Figures:
    """SIGTERM under load: drained in time, with exit code 0; the statuses of the load say whether any was a 5xx."""
    drains = []
    names = ("web-2", "scheduler-1", "web-1", "web-2", "worker-2")
    for number in range(turn.size):
        daemon = turn.stack.crew[names[number % len(names)]]
        # Another course may keep it away: the one of the message that kills its process takes so long at most.
        eventually(partial(_runs, daemon), f"{daemon.name} runs again", DEADLY_SECONDS_MAX)
        if daemon.name.startswith("web"):
            turn.stack.wait_until_ready()
        time.sleep(turn.chance.uniform(0.1, 0.5))
        ends = len(daemon.exits)
        daemon.terminate()
        eventually(lambda daemon=daemon, ends=ends: len(daemon.exits) > ends, f"{daemon.name} ends")  # type: ignore[misc]  # defaults
        end = daemon.exits[ends]
        drains.append(turn.within(f"the drain of {daemon.name}", end.drain_seconds or 0.0, DRAIN_SECONDS_MAX))
        # A process that had not installed its handlers yet ends by the signal itself: it had begun nothing.
        if end.code not in (0, -15):
            turn.broken.append(f"{daemon.name} ended with {end.code} on SIGTERM")
    return {"ends": turn.size, "drain_seconds_max": max(drains)}


def _runs(daemon: Daemon) -> bool:
    return daemon.process is not None


def the_scheduler_is_killed(turn: Round) -> Figures:
    """Whichever scheduler acts is killed with the wake-ups gone: the other finds the work."""
    for name in ("scheduler-1", "scheduler-2"):
        turn.stack.crew[name].kill()
        redis.Redis.from_url(turn.stack.redis.url).flushall()
        time.sleep(0.5)
    seconds = visible_seconds(turn, f"after-schedulers-{turn.chance.randrange(10**9)}")
    return {"visible_seconds": round(seconds, 2)}


def redis_is_lost(turn: Round) -> Figures:
    """Flushed; killed and started empty; away while messages arrive. The seconds are of waking, not of a backlog."""
    catch_up(turn)
    figures: Figures = {}
    stack, mark = turn.stack, turn.chance.randrange(10**9)
    redis.Redis.from_url(stack.redis.url).flushall()
    seconds = visible_seconds(turn, f"after-flush-{mark}")
    figures["flushed_seconds"] = turn.within("work after Redis was flushed", seconds, 10)
    for number in range(turn.size):
        stack.redis.kill()
        time.sleep(turn.chance.uniform(0.1, 1.0))
        name = f"without-redis-{mark}-{number}"
        turn.load.tell([Told(f"m-{name}", "subscription", name, 1, _own_use(name))])
        stack.redis.start()
        started = time.monotonic()
        eventually(lambda name=name: bool(stack.get("/v1/subscriptions", source_id=name)["items"]), name)  # type: ignore[misc]  # a default
        seconds = turn.within("work after Redis came back empty", time.monotonic() - started, 10)
        figures["restarted_seconds_max"] = max(seconds, figures.get("restarted_seconds_max", 0.0))
    return figures


def postgres_is_restarted(turn: Round) -> Figures:
    """Stopped immediately, or killed, every few seconds, until ``size`` more messages have been answered."""
    start, restarts = len(turn.load.answered), 0
    deadline = time.monotonic() + REACH_SECONDS_MAX + turn.size / 10
    while len(turn.load.answered) - start < turn.size or restarts < 2:
        assert time.monotonic() < deadline, f"only {len(turn.load.answered) - start} messages were answered"
        time.sleep(turn.chance.uniform(1.5, 4.0))
        if turn.chance.random() < 0.25:
            turn.stack.postgres.kill()
        else:
            turn.stack.postgres.stop_immediately()
        restarts += 1
        time.sleep(turn.chance.uniform(0.0, 0.5))
        turn.stack.postgres.start()
    return {"restarts": restarts, "messages": len(turn.load.answered) - start}


def a_worker_sleeps_beyond_its_lease(turn: Round) -> Figures:
    """SIGSTOP at a named point for twice the lease, then SIGCONT: what the zombie writes is refused."""
    worker = turn.stack.crew["worker-1"]
    # Not within a transaction: its row locks, not its lease, would decide there.
    points = ["claim.committed", "delivery.intended", "remote.answered", "delivery.claimed", "remote.written"]
    for number in range(turn.size):
        point = points[number % len(points)]
        worker.once.append([*FAILING, "--at", point, "--do", "stop"])
        worker.kill()
        eventually(worker.stopped, f"{worker.name} stands still at {point}")
        time.sleep(2 * turn.stack.lease_seconds)
        worker.resume()
        time.sleep(0.5)
    # The failpoint is spent: it goes on as an ordinary worker.
    return {"zombies": turn.size}


def the_network_is_bad(turn: Round) -> Figures:
    """Between worker and target: delays, slices, resets; then fair again."""
    before = turn.stack.proxy.resets
    kinds = (
        Weather(delay_seconds=0.05, slice_bytes=400),
        Weather(slice_bytes=64, reset_share=0.03),
        Weather(delay_seconds=0.2, reset_share=0.05),
    )
    try:
        for number in range(turn.size):
            turn.stack.proxy.weather = kinds[number % len(kinds)]
            time.sleep(turn.chance.uniform(1.5, 3.0))
    finally:
        turn.stack.proxy.weather = FAIR
    return {"resets": turn.stack.proxy.resets - before}


def a_host_is_cut_off(turn: Round) -> Figures:
    """One host after the other loses its link under load and gets it back; then it has to do everything alone.

    While it is away, and more than once is struck, the other one does what arrives.
    """
    hosts, crew = turn.stack.hosts, turn.stack.crew
    assert hosts is not None, "this stack has hosts"
    away, back = [0.0], []
    for number in range(turn.size):
        place = number % len(hosts.all)
        host, other = hosts[place], crew["worker-2" if place == 0 else "worker-1"]
        mark = f"{number}-{turn.chance.randrange(10**9)}"
        ends = time.monotonic() + turn.chance.uniform(*turn.cut_seconds)
        hosts.cut(host)
        try:
            if turn.size > 1:
                away.append(turn.within("work without a host", visible_seconds(turn, f"away-{mark}"), _freed(turn)))
            time.sleep(max(0.0, ends - time.monotonic()))
        finally:
            hosts.mend(host)
        other.wanted = False
        other.kill()
        back.append(turn.within("work by a host that is back", visible_seconds(turn, f"back-{mark}"), _freed(turn)))
        other.wanted = True
    return {"cuts": turn.size, "away_seconds_max": max(away), "back_seconds_max": max(back)}


def _freed(turn: Round) -> float:
    """When what a cut-off host has locked and leased is free again, and a little more."""
    return IDLE_TRANSACTION_SECONDS + turn.stack.lease_seconds + 5


def a_message_kills_its_process(turn: Round) -> Figures:
    """Every worker dies of it: it is held after three claims alone, everything else proceeds."""
    crew = turn.stack.crew
    workers = [crew["worker-1"], crew["worker-2"]][: 1 if turn.size == 1 else 2]
    crew["worker-2"].wanted = len(workers) > 1
    for worker in workers:
        worker.once.extend([[*FAILING, "--deadly", DEADLY]] * 8)
    crew["worker-2"].kill()
    crew["worker-1"].kill()
    turn.load.tell([Told(f"m-{DEADLY}", "subscription", DEADLY, 1, _own_use(DEADLY))])
    seconds = eventually(lambda: _held(turn.stack) is not None, "the deadly message is held", DEADLY_SECONDS_MAX)
    deaths = sum(one.code == DEADLY_EXIT_CODE for worker in workers for one in worker.exits)
    # Once in a batch with others, then three times alone.
    if not 1 <= deaths <= 4:
        turn.broken.append(f"the deadly message ended {deaths} processes, 1 to 4 are promised")
    for worker in workers:
        worker.once.clear()
    crew["worker-2"].wanted = True
    return {"deaths": deaths, "held_seconds": round(seconds, 2)}


def _held(stack: Stack) -> str | None:
    found = stack.get("/v1/messages", source_id=DEADLY)["items"]
    reason: str | None = next((one["reason"] for one in found if one["state"] in ("dead", "quarantined")), None)
    return reason


def _own_use(name: str) -> dict[str, object]:
    return {**subscription_data(name, 1, ""), "account_id": None}
