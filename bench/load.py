"""First load: a source's whole listing into an empty mirror, and then what changed of it, beside dlt.

Both read the same listing of the same simulated BSS over HTTP and write to the same PostgreSQL. A load is counted from
the start of its process to the last row: ours until every message is decided, dlt's until its command has ended. What
changed is read from the source's feed: ours by a running worker whose poll becomes due, dlt's by its command without
the start of Python and its imports.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg
from sqlalchemy import make_url

from bench.apply import psycopg_address, wait_until, workers
from bench.figures import Goal, Row, series
from bench.places import Installation, Place, installation
from bss_sync.adapters.broker import RedisWakeUps
from bss_sync.bootstrap import open_app
from bss_sync.settings import PREFIX, load_settings
from tests.app import add_connection
from tests.scale.level import PER_ACCOUNT, body_of, id_of, seed

CONNECTION = "source"
PAGE_SIZE = 1000
CHANGED_SHARE = 10
"""One of so many subscriptions changes afterwards."""
_AT_ONCE = 5_000
_LOOK_SECONDS = 0.02
"""A look at the connection costs little, and a tenth of a second would be a twentieth of what is measured."""
_DECIDED = """not exists (select from message
                where state in ('pending', 'waiting') and settled_on(state, decided_at) = 'infinity')"""
_SETTLED = f"select {_DECIDED} and (select count(*) from subscription) = {{number}}"  # noqa: S608  our own text
# A poll that is over has decided everything or left it to the inbox. They are counted when the clock has stopped.
_POLLED = f"""
    select {_DECIDED} and exists (select from connection where poll_lease_until is null and poll_due_at > now())"""  # noqa: S608  our own text


@dataclass(frozen=True)
class _Times:
    """Rows per second: of the first load, and of what changed."""

    first: float
    changed: float


def measure(at: Place, *, records: int, rounds: int) -> list[Row]:
    """Two rows: the first load, and ten per cent changed."""
    ours, theirs = [], []
    # The first of several is not counted: in it PostgreSQL gets the memory and the journal that it goes on with.
    for _ in range(rounds + 1 if rounds > 1 else 1):
        with source_of() as url:
            seed(url, records)
            theirs.append(_dlt(at, url, records))
        with source_of() as url:
            seed(url, records)
            ours.append(_ours(at, url, records))
    ours, theirs = ours[-rounds:], theirs[-rounds:]
    accounts = -(-records // PER_ACCOUNT)
    same = (
        f"{records:,} subscriptions of {accounts:,} accounts, listed over HTTP in pages of {PAGE_SIZE:,} by the same "
        "simulated BSS. dlt: merge, upsert, its own defaults, nested objects as one column; it keeps no history."
    )
    return [
        Row(
            f"load-first-{records}",
            f"First load of {records:,} subscriptions, beside dlt",
            series("bss_sync", "rows/s", [one.first for one in ours]),
            Goal("≥ 2", 2.0),
            series("dlt", "rows/s", [one.first for one in theirs]),
            (same, "From the start of the command to the last decision, with history, audit and hierarchy."),
        ),
        Row(
            f"load-changed-{records}",
            f"10 % of {records:,} subscriptions changed, beside dlt",
            series("bss_sync", "rows/s", [one.changed for one in ours]),
            Goal("≥ 1", 1.0),
            series("dlt", "rows/s", [one.changed for one in theirs]),
            (same, "Both read the source's feed of changes; the start of Python and its imports are not counted."),
        ),
    ]


def _ours(at: Place, url: str, records: int) -> _Times:
    with installed(at, url) as here, workers(here):
        started = time.perf_counter()
        _run(["-m", "bss_sync.cli.main", "backfill", CONNECTION, "--json"], here.environment)
        wait_until(here.database, _SETTLED.format(number=records))
        first = time.perf_counter() - started
        _look(here, records)
        # The feed is read to where the listing was: what comes now is news.
        ask(here, "update connection set poll_cursor = :cursor", cursor=cursor_of(url))
        changed = change(url, records)
        wake = RedisWakeUps(at.redis_url)
        started = time.perf_counter()
        ask(here, "update connection set poll_due_at = now()")
        wake.poll()
        wait_until(here.database, _POLLED, look_seconds=_LOOK_SECONDS)
        seconds = time.perf_counter() - started
        done = here.ask("select count(*) from subscription where version = 2")
        assert done == changed, f"{done} of {changed} changes were decided"
        return _Times(_entities(records) / first, changed / seconds)


def _dlt(at: Place, url: str, records: int) -> _Times:
    with at.postgres.database(migrated=False) as database, tempfile.TemporaryDirectory() as folder:
        address = make_url(database.superuser_url)
        target = (
            f"postgresql://{address.username}:none@localhost:{address.query['port']}/{address.database}"
            f"?host={address.query['host']}"
        )
        started = time.perf_counter()
        _run(["-m", "bench.dlt_load", url, target, folder], {})
        first = time.perf_counter() - started
        with psycopg.connect(psycopg_address(database)) as connection:
            row = connection.execute("select count(*) from mirror.subscriptions").fetchone()
            assert row == (records,), f"dlt has loaded {row}"
        cursor = cursor_of(url)
        changed = change(url, records)
        told = _run(["-m", "bench.dlt_load", url, target, folder, cursor], {})
        return _Times(_entities(records) / first, changed / float(json.loads(told)["seconds"]))


def _look(here: Installation, records: int) -> None:
    done = {
        "history": here.ask("select count(*) from history where kind = 'subscription'"),
        "audit": here.ask("select count(*) from audit where action = 'message.applied' and kind = 'subscription'"),
        "linked": here.ask("select count(*) from subscription where account_id is not null"),
    }
    assert set(done.values()) == {records}, f"not everything was done: {done} of {records}"


def ask(here: Installation, statement: str, **values: str) -> None:
    """Carry out a statement as superuser."""
    with psycopg.connect(psycopg_address(here.database)) as connection:
        connection.execute(statement.replace(":cursor", "%(cursor)s"), values)


def _entities(records: int) -> int:
    return records + -(-records // PER_ACCOUNT)


@contextmanager
def installed(at: Place, url: str) -> Iterator[Installation]:
    """An installation with a connection to a simulated BSS."""
    with installation(at, resellers=0) as here:
        settings = load_settings(
            home=here.folder,
            database_url=here.database.login_url,
            database_owner_url=here.database.owner_url,
            redis_url=at.redis_url,
            master_key=here.key,
        )
        reach = {"base_url": url, "allow_http_private": True, "page_size": PAGE_SIZE}
        with open_app(settings) as app:
            add_connection(app, CONNECTION, connector="simulator", settings=reach)
        yield here


@contextmanager
def source_of() -> Iterator[str]:
    """A simulated BSS in a process of its own; its address."""
    process = subprocess.Popen([sys.executable, "-m", "connectors.simulator"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None, "it is piped"
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.wait()


def _run(arguments: list[str], environment: dict[str, str]) -> str:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    done = subprocess.run(
        [sys.executable, *arguments], env={**bare, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


def cursor_of(url: str) -> str:
    """Where the source's feed of changes ends now."""
    health = call(url, "GET", "/health")
    return str(health["changes"])


def change(url: str, records: int) -> int:
    """Change the quantity of one of ten, spread over all; returns how many."""
    numbers = range(0, records, CHANGED_SHARE)
    for start in range(0, len(numbers), _AT_ONCE):
        subscriptions = [
            {"id": id_of(number), **body_of(number), "quantity": number % 500 + 2}
            for number in numbers[start : start + _AT_ONCE]
        ]
        call(url, "POST", "/seed", {"subscriptions": subscriptions})
    return len(numbers)


def call(url: str, method: str, path: str, content: object = None) -> dict[str, object]:
    """Ask the simulated BSS."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port)
    try:
        connection.request(method, path, json.dumps(content), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        document = json.loads(answer.read())
        assert answer.status == 200, f"{path}: {document}"
        return dict(document)
    finally:
        connection.close()
