"""``python -m tests.scale reconcile|load|import --records 1000000``: what many records cost.

The first turn reads every page, later ones know those that are as they were when they were level. The source, the bare
client and the comparison are processes of their own. The bare client reads the same pages over one
kept-alive connection and parses them; its time and the comparison's are of the same run, so that a busy machine slows
both. Memory is the comparing process's own, once it has begun and at its most.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
import psycopg

from bench.places import place
from bss_sync.adapters.embedded import EmbeddedPostgres
from bss_sync.bootstrap import open_app
from bss_sync.collector import settle_memory
from bss_sync.jobs.reconciling import make_reconciler
from bss_sync.pipeline.reconcile import Request
from tests.app import NotedWakeUps, add_connection, settings_for
from tests.scale import files, load
from tests.scale.level import PRODUCT, fill_mirror, id_of, seed
from tests.servers import Database, PostgresServer, short_folder

PAGE_SIZE = 1000
MEGABYTE = 1024 * 1024


@contextmanager
def simulator() -> Iterator[str]:
    """A simulated BSS in a process of its own; its address."""
    process = subprocess.Popen([sys.executable, "-m", "connectors.simulator"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None, "it is piped"
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.wait()


def read_bare(url: str) -> int:
    """Read and parse every page, and nothing else; how many entities."""
    address, count = urlsplit(url), 0
    connection = http.client.HTTPConnection(str(address.hostname), address.port)
    for path in ("/accounts", "/subscriptions"):
        after: str | None = ""
        while after is not None:
            connection.request("GET", f"{path}?after={quote(after)}&limit={PAGE_SIZE}")
            page = json.loads(connection.getresponse().read())
            count += len(page["items"])
            after = page["next"]
    connection.close()
    return count


class Watch:
    """The memory of this process while something runs, in bytes, and its processor time."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._stopped = threading.Event()
        self.first = self.most = 0

    def _look(self) -> None:
        while not self._stopped.wait(0.05):
            self.most = max(self.most, self._own.memory_info().rss)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look twenty times a second."""
        self.first = self.most = self._own.memory_info().rss
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()


def compare(home: Path, database: Database, arguments: argparse.Namespace) -> None:
    """Fill, read bare, compare level, edit one silently, compare again; print the figures."""
    wake = NotedWakeUps()
    with simulator() as url, open_app(settings_for(database, home), wake=wake) as app:
        reach = {"base_url": url, "allow_http_private": True, "page_size": PAGE_SIZE}
        source, _secret = add_connection(app, connector="simulator", settings=reach)
        seed(url, arguments.records)
        fill_mirror(database, source.id, source.tenant_id, arguments.records)
        with app.database.engine() as connection:
            connection.exec_driver_sql(f"insert into product (code, name) values ('{PRODUCT}', 'x')")
        reconciler = make_reconciler(app, wake)
        settle_memory()  # as the command does
        for turn in range(arguments.turns):
            started = time.monotonic()
            read_bare(url)
            bare_seconds = time.monotonic() - started
            watch = Watch()
            with watch.watching():
                began = time.process_time()
                started = time.monotonic()
                result = reconciler.reconcile(Request(source.id))
                seconds = time.monotonic() - started
                processor_seconds = time.process_time() - began
            tell(
                turn=turn,
                listed=result.listed,
                differences=result.total,
                bare_seconds=bare_seconds,
                seconds=seconds,
                ratio=seconds / bare_seconds,
                own_processor_seconds=processor_seconds,
                memory_first_mb=watch.first / MEGABYTE,
                memory_most_mb=watch.most / MEGABYTE,
            )
        edited = id_of(arguments.records // 2)
        with psycopg.connect(
            host=str(database.server.folder), port=database.server.port, user="postgres", dbname=database.name
        ) as connection:
            connection.execute("set session_replication_role = replica")
            connection.execute("update subscription set quantity = 777 where source_id = %s", [edited])
        result = reconciler.reconcile(Request(source.id))
        tell(edited=edited, found=[one.as_json() for one in result.differences], repaired=result.repaired)


def tell(**figures: Any) -> None:
    """One line of JSON."""
    shown = {name: round(value, 2) if isinstance(value, float) else value for name, value in figures.items()}
    sys.stdout.write(json.dumps(shown, default=str) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run it over a PostgreSQL of its own, durable as in production."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale", description=__doc__)
    parser.add_argument("what", choices=["reconcile", "load", "import"])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    os.environ.setdefault("BSS_SYNC_LOG_LEVEL", "warning")
    if arguments.what != "reconcile":
        with place() as at:
            for figures in (load if arguments.what == "load" else files).run(at, arguments.records):
                tell(**figures)
        return 0
    with short_folder() as home, EmbeddedPostgres(home) as server:
        postgres = PostgresServer(18, server.socket_folder)
        with postgres.database() as database:
            compare(home, database, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
