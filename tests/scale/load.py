"""A first load and a poll of many records, each killed once in the middle, beside live messages; every end is checked.

The loading command and the workers are processes of their own and end by SIGKILL. While the listing is read, some of
its subscriptions change at the source, which sends them as well. The model: every subscription stands as the source
has it, each of its states is in history once, and each message is applied once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from bench.load import ask, call, change, cursor_of, installed, source_of
from bench.places import Installation, Place
from tests.scale.level import body_of, id_of, seed
from tests.scale.live import Live
from tests.scale.model import EVERY, check
from tests.scale.processes import SETTLED, command, rows_read, wait, working

CHANGED_EVERY = 10
_LATE = "select count(*) from history where late"
_STATES = "select jsonb_object_agg(state, n) from (select state, count(*) n from message group by 1) s"


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
    def change_at_source(number: int) -> None:
        body = {**body_of(number), "quantity": number % 500 + 2}
        call(url, "POST", "/seed", {"subscriptions": [{"id": id_of(number), **body}]})

    live = Live(here, records, change_at_source)
    with working(here, environment), live.sending():
        started = time.monotonic()
        killed = command(environment, ["backfill", "source", "--json"], lambda: rows_read(here) > records // 2)
        resumed = command(environment, ["backfill", "source", "--json"], None)
        live.stop()
        wait(here, SETTLED)
        seconds = time.monotonic() - started
    check(here, records, live.changed)
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
    polled = f"select count(*) from subscription where {EVERY} % {CHANGED_EVERY} = 0 and quantity = {EVERY} % 500 + 2"
    started = time.monotonic()
    ask(here, "update connection set poll_due_at = now()")
    with working(here, environment) as workers:
        applied = f"select count(*) - {before} from message"
        while int(here.ask(applied)) < number // 2:
            time.sleep(0.2)
        for worker in workers:
            worker.process.kill()
    with working(here, environment) as workers:
        wait(here, "select poll_lease_until is null and poll_due_at > now() from connection")
        wait(here, SETTLED)
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
