"""Row 27 as an operator meets it: everything dies under load, yesterday's backup comes back, the senders never stop.

Two ways to what came after the backup: the source's listing (``reconcile --snapshot``), or the sender sends again.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psycopg import sql

from bss_sync.settings import PREFIX
from tests.chaos.scenarios import Figures, Round, eventually
from tests.chaos.stack import Stack
from tests.chaos.verdict import Key, Way, under_way, verify
from tests.command_line import CommandLine
from tests.servers import OWNER

RUNS_MAX = 8
LEVEL_SECONDS_MAX = 120.0


def yesterdays_backup(turn: Round, folder: Path, way: Way, *, seconds: float) -> Figures:
    """Back up, work on for ``seconds``, lose everything, restore, work on under kills, bring level; see ``Way``."""
    stack, load = turn.stack, turn.load
    program = CommandLine(stack.environment | {f"{PREFIX}DATABASE_OWNER_URL": stack.database.owner_url})
    load.start()
    time.sleep(seconds)
    file = folder / "yesterday.dump"
    before, sent_before = set(load.answered), len(load.requests)
    program.ok("db", "backup", str(file))
    _work_under_kills(turn, seconds)
    with _everything_ended(stack):
        lost = set(load.answered) - before
        _put_away(stack)
        program.ok("db", "restore", str(file))
    stack.wait_until_ready()
    _work_under_kills(turn, seconds)
    load.end(LEVEL_SECONDS_MAX)
    if way is Way.SENT_AGAIN:
        for told in load.requests[sent_before:]:
            load.tell(told)
    figures: Figures = {"answered_and_lost": len(lost)}
    gone: frozenset[Key] = frozenset()
    if way is Way.LISTING:
        runs, gone = _reconcile(turn, program, folder / "listing.jsonl")
        figures["runs"] = runs
    found = verify(stack, [load], seconds_max=LEVEL_SECONDS_MAX, restored=way, held=gone)
    turn.broken += found.faults
    if not lost:
        turn.broken.append("nothing was answered between the backup and the end: the round shows nothing")
    return figures | {"messages": found.messages, "effects": found.effects}


def _work_under_kills(turn: Round, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(turn.chance.uniform(0.5, 2.0))
        turn.stack.crew[turn.chance.choice(sorted(turn.stack.crew.daemons))].kill()


@contextmanager
def _everything_ended(stack: Stack) -> Iterator[None]:
    """SIGKILL of every daemon, and none is started again before the end."""
    daemons = stack.crew.daemons.values()
    for daemon in daemons:
        daemon.wanted = False
        daemon.kill()
    eventually(lambda: all(daemon.process is None for daemon in daemons), "every daemon has ended")
    try:
        yield
    finally:
        for daemon in daemons:
            daemon.wanted = True


def _put_away(stack: Stack) -> None:
    """The database is gone; an empty one has its name."""
    name = sql.Identifier(stack.database.name)
    server = stack.database.server
    server.execute(sql.SQL("drop database {} with (force)").format(name))
    server.execute(sql.SQL("create database {} owner {} template template0").format(name, sql.Identifier(OWNER)))


def _reconcile(turn: Round, program: CommandLine, file: Path) -> tuple[int, frozenset[Key]]:
    """Until level, a worker being killed beside each run. Returns the runs, and what only the target still knows."""
    present = [one for one in turn.load.highest().values() if not one.deleted]
    file.write_text("".join(json.dumps({"kind": one.kind, "data": one.data}) + "\n" for one in present))
    differences: list[dict[str, Any]] = []
    for number in range(1, RUNS_MAX + 1):
        turn.stack.crew[turn.chance.choice(("worker-1", "worker-2"))].kill()
        answer = program("reconcile", turn.stack.connection, "--snapshot", str(file), "--json")
        assert answer.code in (0, 1), f"reconcile ended with {answer.code}: {answer.err}"
        eventually(lambda: not under_way(turn.stack), "what reconcile asked for is done", LEVEL_SECONDS_MAX)
        differences = answer.json["differences"]
        if all(one["problem"] == "target_extra" for one in differences):
            return number, _only_at_the_target(turn, differences)
    raise AssertionError(f"{RUNS_MAX} runs did not make it level; the last one found {differences[:5]}")


def _only_at_the_target(turn: Round, differences: Sequence[dict[str, Any]]) -> frozenset[Key]:
    """Created and deleted since the backup: nobody but the target knows it, and it is only named."""
    known = {
        (kind, str(record["source_id"]))
        for kind in ("account", "subscription")
        for record in turn.stack.items(f"/v1/{kind}s", include_deleted="true")
    }
    gone = {one.key for one in turn.load.highest().values() if one.deleted and one.key not in known}
    if len(differences) != len(gone):
        turn.broken.append(f"{len(differences)} records are named that only the target knows, there are {len(gone)}")
    return frozenset(gone)


def play(stack: Stack, seed: int, folder: Path, way: Way, *, seconds: float) -> tuple[Figures, list[str]]:
    """One round on ``stack``: its figures, and the promises that were not kept."""
    # So many that not everything changes again after the restore.
    load = stack.load(seed, "e", pairs=240)
    turn = Round(stack, load, random.Random(seed), 1)
    try:
        figures = yesterdays_backup(turn, folder, way, seconds=seconds)
    except AssertionError as error:
        return {}, [*turn.broken, str(error)]
    finally:
        load.abandon()
    return figures, turn.broken
