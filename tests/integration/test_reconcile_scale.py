"""One of many: found in one cycle, put back, explained; and the memory that it takes does not grow with the many.

The same with a million, and the time against a bare client: ``python -m tests.scale reconcile --records 1000000``.
"""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from bss_sync.jobs.reconciling import make_reconciler
from bss_sync.jobs.work import make_work
from bss_sync.pipeline.reconcile import Request
from tests.direct_http import DirectHttp
from tests.scale.level import body_of, fill_mirror, id_of
from tests.scale.level import seed as seed_source
from tests.servers import Database
from tests.world import SUBSCRIPTION, AllWakeUps, World, world

MEGABYTE = 1024 * 1024


def _filled(one: World, database: Database, records: int, first: int = 0) -> None:
    seed_source(one.simulator.url, records, first)
    fill_mirror(database, one.source.id, one.source.tenant_id, records)


def _deliver_all(one: World) -> None:
    """Two calls for each record: without sockets, for they are not what is looked at."""
    work = make_work(replace(one.app, http=DirectHttp(one.simulator)), AllWakeUps())
    one.calm()
    while one.value("select exists (select from delivery where due_at <= now())"):
        work.deliver()


@pytest.mark.slow
def test_a_silent_edit_of_one_in_ten_thousand_is_found_in_one_cycle_put_back_and_explained(
    database: Database, server_home: Path
) -> None:
    number = 6_789
    with world(database, server_home, connection={"page_size": 1000}) as one:
        _filled(one, database, 10_000)
        make_reconciler(one.app).reconcile(Request(one.source.id))
        _deliver_all(one)
        records = {record["reference"]: record for record in one.simulator.distributor.records()}
        assert len(records) == 10_000 + 100
        edited = str(one.record_id(SUBSCRIPTION, id_of(number)))
        wanted = body_of(number)["quantity"]
        one.simulator.distributor.edit(records[edited]["id"], {"quantity": "1"}, user="clerk")
        result = make_reconciler(one.app).reconcile(Request(one.source.id))
        (found,) = result.differences
        assert (str(found.problem), found.source_id, found.field) == ("target_differs", id_of(number), "quantity")
        assert (found.expected, found.found, str(found.cause)) == (wanted, "1", "edited")
        assert found.since is not None
        one.deliver()
        assert one.target_fields(SUBSCRIPTION, id_of(number))["quantity"] == wanted
        (drift,) = one.rows("select changed_by, changed_at, field, expected, found, action from drift")
        assert (drift.changed_by, drift.field, drift.expected, drift.found) == ("clerk", "quantity", wanted, "1")
        assert drift.changed_at is not None
        assert len(one.audits("lock.violated")) == 1
        assert make_reconciler(one.app).reconcile(Request(one.source.id)).total == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_records(database: Database, server_home: Path) -> None:
    peaks = []
    with world(database, server_home, target=False, connection={"page_size": 500}) as one:
        for first, records in ((0, 2_000), (2_000, 10_000)):
            one.execute("delete from account; delete from subscription; delete from stream")
            _filled(one, database, records, first)
            reconciler = make_reconciler(one.app)
            reconciler.reconcile(Request(one.source.id))
            gc.collect()
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            result = reconciler.reconcile(Request(one.source.id))
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
            tracemalloc.stop()
            assert (result.listed, result.total) == (records + records // 100, 0)
    assert peaks[1] < peaks[0] + 2 * MEGABYTE, f"{peaks[0]} bytes for 2,000 records, {peaks[1]} for 10,000"
