"""Workers on several hosts (tests/chaos/hosts.py): one after the other is cut off under load and comes back."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from connectors.simulator.server import SimulatorServer
from tests.chaos import scenarios
from tests.chaos.hosts import Hosts
from tests.chaos.proxy import Proxy
from tests.chaos.scenarios import Round
from tests.chaos.stack import Stack, running_stack
from tests.chaos.verdict import verify
from tests.servers import RedisServer

pytestmark = pytest.mark.slow

SEED = 11
PATIENCE = 3.0
LEVEL_SECONDS_MAX = 60.0
UNSENT_SECONDS = 3.5
"""Packets that wait for their neighbour's address are dropped by then, whatever became of their connection."""
ARRIVES_SECONDS = 4.0
"""The kernel sends again after at most as long as the link was away."""
WORKERS = {"worker-1": 0, "worker-2": 1}


@pytest.fixture
def stack(hosts: Hosts, redis_process: RedisServer) -> Iterator[Stack]:
    with running_stack(SEED, without=("scheduler-2",), redis=redis_process, hosts=hosts, places=WORKERS) as one:
        yield one


def test_a_host_that_is_cut_off_under_load_loses_nothing_and_keeps_the_order(stack: Stack) -> None:
    load = stack.load(SEED, "e", pairs=24, senders=3, pause_seconds=0.01)
    turn = Round(stack, load, random.Random(SEED), size=1, patience=PATIENCE, cut_seconds=(3.0, 4.0))
    load.start()
    try:
        assert scenarios.a_host_is_cut_off(turn)["cuts"] == 1
        load.end()
        found = verify(stack, [load], seconds_max=LEVEL_SECONDS_MAX)
    finally:
        load.abandon()
    assert [*turn.broken, *found.faults] == []
    assert found.effects >= found.entities > 0


def test_what_a_cut_link_held_back_never_arrives_once_the_call_is_over(hosts: Hosts) -> None:
    """Else an older state would reach the target after a newer one that another worker has sent meanwhile."""
    with SimulatorServer() as simulator, Proxy(("127.0.0.1", _port(simulator.url)), listen=hosts.address) as relay:
        with _late_call(hosts, relay.url) as caller:
            hosts.cut(hosts[0])
            assert _told(caller, "go") == "RemoteUnknown"
            time.sleep(UNSENT_SECONDS)
            hosts.mend(hosts[0])
            time.sleep(ARRIVES_SECONDS)
            assert simulator.distributor.records() == []
        with _late_call(hosts, relay.url) as caller:
            assert _told(caller, "go") == "answered", "the way is free when no link is cut"
        assert len(simulator.distributor.records()) == 1


@contextmanager
def _late_call(hosts: Hosts, url: str) -> Iterator[subprocess.Popen[str]]:
    command = [*hosts[0].prefix, sys.executable, "-m", "tests.chaos.late_call", url, "1.5"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as caller:
        try:
            assert caller.stdout is not None
            assert caller.stdout.readline() == "connected\n"
            yield caller
        finally:
            caller.kill()


def _told(caller: subprocess.Popen[str], words: str) -> str:
    assert caller.stdin is not None
    assert caller.stdout is not None
    caller.stdin.write(f"{words}\n")
    caller.stdin.flush()
    return caller.stdout.readline().strip()


def _port(url: str) -> int:
    return urlsplit(url).port or 0
