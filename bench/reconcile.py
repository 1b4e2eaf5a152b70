"""Reconcile: a source and a mirror in sync, compared whole, beside a bare client that reads the same rows once.

The bare client reads every page over one kept-alive connection and parses the JSON, and that is all it does. Both ask
the same simulated BSS, a process of its own, by turns. Over a chain link nothing is listed while both sides are equal:
there the time and the bytes that travel are shown beside what is asked of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from bench.figures import Goal, Row, series
from bench.places import Installation, Place, installation
from bss_sync.bootstrap import App, open_app
from bss_sync.collector import settle_memory
from bss_sync.jobs.reconciling import make_reconciler
from bss_sync.pipeline.reconcile import Request
from bss_sync.settings import load_settings
from tests.app import NotedWakeUps, add_connection
from tests.scale.__main__ import PAGE_SIZE, read_bare, simulator
from tests.scale.level import PER_ACCOUNT, fill_mirror, seed
from tests.scale_chain import filled
from tests.scale_chain import measure as compare_over_chain

MEGABYTE = 1024 * 1024


def measure(at: Place, *, records: int, rounds: int) -> list[Row]:
    """The comparison of a listing, and of a chain link in seconds and in megabytes."""
    with simulator() as url, installation(at, resellers=0) as here:
        seed(url, records)
        turns = _turns(here, url, records, rounds)
    return [
        _row(records, "first", "first", [(one.first, one.bare) for one in turns], "Every page is read."),
        _row(records, "later", "later", [(one.later, one.bare) for one in turns], "No page is another than before."),
        *_chain(at, records, rounds),
    ]


@dataclass(frozen=True, slots=True)
class _Turn:
    """Seconds of each."""

    bare: float
    first: float
    later: float


def _row(records: int, name: str, words: str, pairs: list[tuple[float, float]], note: str) -> Row:
    accounts = -(-records // PER_ACCOUNT)
    return Row(
        f"reconcile-{name}-{records}",
        f"Reconcile {records:,} subscriptions in sync, a {words} time, beside reading them once",
        series("bss_sync", "s", [own for own, _other in pairs]),
        Goal("≤ 1.5", 1.5, at_least=False),
        series("bare client", "s", [other for _own, other in pairs]),
        (
            f"{records:,} subscriptions of {accounts:,} accounts, in pages of {PAGE_SIZE:,} over HTTP. {note}",
            "Compared are every mirrored field, its recorded source, its links, and what the listing lacks.",
        ),
    )


def _turns(here: Installation, url: str, records: int, rounds: int) -> list[_Turn]:
    settings = load_settings(
        home=here.folder,
        database_url=here.database.login_url,
        database_owner_url=here.database.owner_url,
        master_key=here.key,
    )
    wake, found = NotedWakeUps(), []
    with open_app(settings, wake=wake) as app:
        settle_memory()  # as the command does
        reach = {"base_url": url, "allow_http_private": True, "page_size": PAGE_SIZE}
        source, _secret = add_connection(app, connector="simulator", settings=reach)
        fill_mirror(here.database, source.id, source.tenant_id, records)
        # Once before it counts: the first run finds every page of the database on the disk.
        for turn in range(rounds + 1):
            bare = _seconds(lambda: read_bare(url))
            with app.database.engine() as connection:
                connection.exec_driver_sql("delete from level_page")
            first = _seconds(lambda: _compare(app, wake, source.id))
            later = _seconds(lambda: _compare(app, wake, source.id))
            if turn:
                found.append(_Turn(bare, first, later))
    return found


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _compare(app: App, wake: NotedWakeUps, connection_id: UUID) -> None:
    result = make_reconciler(app, wake).reconcile(Request(connection_id))
    assert (result.total, result.source_error) == (0, None), f"they are in sync: {result.as_json()}"


def _chain(at: Place, records: int, rounds: int) -> list[Row]:
    with filled(at.postgres, records) as (_below, above):
        compare_over_chain(above)
        figures = [compare_over_chain(above) for _ in range(rounds)]
    assert {one.differences for one in figures} == {0}, "both sides are equal"
    what = f"Reconcile {records:,} equal records over a chain link"
    return [
        Row(
            f"reconcile-chain-{records}",
            f"{what}: time",
            series("bss_sync", "s", [one.seconds for one in figures]),
            Goal("≤ 2 s", 2.0, at_least=False),
        ),
        Row(
            f"reconcile-chain-bytes-{records}",
            f"{what}: what travels",
            series("bss_sync", "MB", [one.received_bytes / MEGABYTE for one in figures]),
            Goal("≤ 1 MB", 1.0, at_least=False),
        ),
    ]
