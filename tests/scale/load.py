"""A first load and a poll of many records, each killed once in the middle, beside live messages; every end is checked.

The loading command and the workers are processes of their own and end by SIGKILL. While the listing is read, some of
its subscriptions change at the source, which sends them as well. The model: every subscription stands as the source
has it, each of its states is in history once, and each message is applied once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psutil

from bench.load import ask, call, change, cursor_of, installed, source_of
from bench.places import Installation, Place
from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.domain.change import Action, Change, Kind
from bss_sync.pipeline.json_text import digest
from bss_sync.ports.inbox import Arrival, Origin
from tests.scale.level import body_of, id_of, seed

LIVE_EVERY = 500
"""One of so many subscriptions changes at its source while the listing is read."""
CHANGED_EVERY = 10
PATIENCE_SECONDS = 3600
_LATE = "select count(*) from history where late"
_STATES = "select jsonb_object_agg(state, n) from (select state, count(*) n from message group by 1) s"
_READ = "select coalesce((progress ->> 'read')::int, 0) from run order by created_at desc limit 1"
_EVERY = "substring(source_id from '[0-9]+$')::int"
_WRONG = f"""
    select count(*) from subscription where quantity <> {{quantity}} or account_id is null or version <> {{version}}
        or account_source_id <> 'customer-' || lpad(({_EVERY} / 100)::text, 6, '0')"""


def run(at: Place, records: int) -> Iterator[dict[str, Any]]:
    """The figures of each step, as they come. AssertionError where an end is not the model's."""
    with source_of() as url:
        seed(url, records)
        with installed(at, url) as here:
            # What the source had before is listed, not polled.
            ask(here, "update connection set poll_due_at = now() + interval '1 day'")
            environment = here.environment | {"BSS_SYNC_LEASE_SECONDS": "5"}
            yield _load(here, environment, url, records)
            yield _poll(here, environment, url, records)


def _load(here: Installation, environment: dict[str, str], url: str, records: int) -> dict[str, Any]:
    live = _Live(here, url, records)
    with _workers(here, environment), live.sending():
        started = time.monotonic()
        killed = _command(environment, ["backfill", "source", "--json"], lambda: _number(here) > records // 2)
        resumed = _command(environment, ["backfill", "source", "--json"], None)
        live.stop()
        _wait(here, "select not exists (select from message where state in ('pending', 'waiting'))")
        seconds = time.monotonic() - started
    changed = f"{_EVERY} % {LIVE_EVERY} = 0 and {_EVERY} < {live.sent * LIVE_EVERY}"
    _check(here, records, f"{_EVERY} % 500 + 1 + ({changed})::int", f"1 + ({changed})::int")
    return {
        "step": "first load, killed once",
        "records": records,
        "seconds": seconds,
        "live": live.sent,
        "memory_mb": [killed.most_mb, resumed.most_mb],
        "memory_over_time_mb": resumed.over_time(),
        "states": here.ask(_STATES),
    }


def _poll(here: Installation, environment: dict[str, str], url: str, records: int) -> dict[str, Any]:
    before, late = int(here.ask("select count(*) from message")), here.ask(_LATE)
    ask(here, "update connection set poll_cursor = :cursor", cursor=cursor_of(url))
    number = change(url, records)
    polled = f"select count(*) from subscription where {_EVERY} % {CHANGED_EVERY} = 0 and quantity = {_EVERY} % 500 + 2"
    started = time.monotonic()
    ask(here, "update connection set poll_due_at = now()")
    with _workers(here, environment) as workers:
        applied = f"select count(*) - {before} from message"
        while int(here.ask(applied)) < number // 2:
            time.sleep(0.2)
        for worker in workers:
            worker.process.kill()
    with _workers(here, environment) as workers:
        _wait(here, "select poll_lease_until is null and poll_due_at > now() from connection")
        _wait(here, "select not exists (select from message where state in ('pending', 'waiting'))")
        seconds = time.monotonic() - started
        most = max(worker.most_mb for worker in workers)
    assert here.ask(polled) == number, f"{here.ask(polled)} of {number} changes are in the mirror"
    assert int(here.ask(applied)) == number, "each change is one message"
    assert here.ask(_LATE) == late, "what is polled comes in its order"
    doubled = "select count(*) from (select from history group by record_id, version having count(*) > 1) d"
    assert here.ask(doubled) == 0, "each state is in history once"
    return {
        "step": "poll, its worker killed once",
        "changed": number,
        "seconds": seconds,
        "memory_mb": most,
    }


def _check(here: Installation, records: int, quantity: str, version: str) -> None:
    facts = {
        "subscriptions": here.ask("select count(*) from subscription"),
        "streams": here.ask("select count(*) from stream where kind = 'subscription'"),
        "told": here.ask("select count(distinct record_id) from history where kind = 'subscription'"),
    }
    assert set(facts.values()) == {records}, f"{facts} of {records}"
    wrong = here.ask(_WRONG.format(quantity=quantity, version=version))
    assert wrong == 0, f"{wrong} subscriptions are not what the model says"
    once = {
        "history": "select count(*) from (select from history group by record_id, version having count(*) > 1) d",
        "audit": "select count(*) from (select from audit where action = 'message.applied' group by message "
        "having count(*) > 1) d",
        "unaudited": "select count(*) from message m where state = 'applied' "
        "and not exists (select from audit a where a.message = m.id and a.action = 'message.applied')",
        "held": "select count(*) from message where state in ('quarantined', 'dead')",
    }
    found = {name: here.ask(statement) for name, statement in once.items()}
    assert set(found.values()) == {0}, f"{found}"


def _number(here: Installation) -> int:
    return int(here.ask(_READ) or 0)


class _Watched:
    """A process and its memory."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._own = psutil.Process(process.pid)
        self._seen: list[int] = []

    def look(self) -> None:
        """Note how much it has now."""
        try:
            self._seen.append(self._own.memory_info().rss >> 20)
        except psutil.Error:
            return

    @property
    def most_mb(self) -> int:
        """The most that it had."""
        return max(self._seen, default=0)

    def over_time(self) -> list[int]:
        """A dozen looks, evenly spread."""
        return self._seen[:: max(1, len(self._seen) // 12)]


def _start(environment: dict[str, str], arguments: list[str]) -> _Watched:
    command = [sys.executable, "-m", "bss_sync.cli.main", *arguments]
    return _Watched(subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True))


def _command(environment: dict[str, str], arguments: list[str], kill_when: Callable[[], bool] | None) -> _Watched:
    """Run a command to its end, or to the moment when it is to be killed."""
    watched, looks = _start(environment, arguments), 0
    while watched.process.poll() is None:
        watched.look()
        looks += 1
        if kill_when is not None and looks % 5 == 0 and kill_when():
            watched.process.kill()
            watched.process.wait()
            return watched
        time.sleep(0.2)
    assert kill_when is None, "it ended before it could be killed"
    assert watched.process.returncode == 0, f"{arguments} ended with {watched.process.returncode}"
    return watched


@contextmanager
def _workers(here: Installation, environment: dict[str, str]) -> Iterator[list[_Watched]]:
    assert here.redis_url, "workers are woken by Redis"
    workers = [_start(environment, ["worker"]) for _ in range(2)]
    scheduler = _start(environment, ["scheduler"])
    over = threading.Event()

    def look() -> None:
        while not over.wait(1.0):
            for worker in workers:
                worker.look()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield workers
    finally:
        over.set()
        looking.join()
        for one in (*workers, scheduler):
            one.process.terminate()
            one.process.wait(60)


class _Live:
    """What changes at the source meanwhile, and is sent."""

    def __init__(self, here: Installation, url: str, records: int) -> None:
        self.sent = 0
        self._here, self._url, self._records = here, url, records
        self._over = threading.Event()

    def stop(self) -> None:
        """No more."""
        self._over.set()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send until it is stopped."""
        thread = threading.Thread(target=self._send)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _send(self) -> None:
        tenant_id = self._here.ask("select tenant_id from connection")
        connection_id = self._here.ask("select id from connection")
        database = Database(self._here.database.login_url)
        inbox = SqlInbox(database)
        for number in range(0, self._records, LIVE_EVERY):
            if self._over.wait(0.05):
                break
            body = {**body_of(number), "quantity": number % 500 + 2}
            call(self._url, "POST", "/seed", {"subscriptions": [{"id": id_of(number), **body}]})
            told = {**body_of(number), "quantity": str(number % 500 + 2)}
            now = datetime.now(UTC)
            name = f"live-{number}"
            live = Change(
                name, Kind.SUBSCRIPTION, id_of(number), Action.STATE, 2, now, now, told, digest({"id": name}, "live")
            )
            inbox.accept([Arrival(tenant_id, connection_id, None, Origin.DOOR, [live])])
            self.sent += 1
        database.dispose()


def _wait(here: Installation, fact: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not here.ask(fact):
        assert time.monotonic() < deadline, f"never true: {fact}"
        time.sleep(0.5)
