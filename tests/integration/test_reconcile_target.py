"""Reconciliation, the target's side: what differs there is named, and put back by what the mirror has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.simulator.faults import Fault
from tests.reconciling import found, level, reconcile
from tests.servers import Database
from tests.world import SUBSCRIPTION, World


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with level(database, server_home) as one:
        yield one


def test_a_record_there_that_nobody_here_has_made_is_only_named(mirror: World) -> None:
    stranger = "11111111-2222-5333-8444-555555555555"
    mirror.simulator.distributor.create({"kind": "account", "reference": stranger, "fields": {"name": "Who?"}})
    result = reconcile(mirror)
    assert [(str(one.problem), str(one.record_id), str(one.cause)) for one in result.differences] == [
        ("target_extra", stranger, "unknown_reference")
    ]
    assert stranger in mirror.target_records()


def test_the_target_is_compared_field_by_field_and_put_back(mirror: World) -> None:
    by_reference = {one["reference"]: one["id"] for one in mirror.simulator.distributor.records()}
    edited, removed = (str(mirror.record_id(SUBSCRIPTION, f"sub-{number}")) for number in (1, 2))
    mirror.simulator.distributor.edit(by_reference[edited], {"quantity": "500"}, user="clerk")
    mirror.simulator.distributor.remove(by_reference[removed], user="clerk")
    mirror.simulator.distributor.create(
        {"kind": "subscription", "reference": str(mirror.record_id(SUBSCRIPTION, "sub-3")), "fields": {}}
    )
    result = reconcile(mirror)
    assert found(result) == [
        ("target_differs", "sub-1", "quantity"),
        ("target_duplicate", "sub-3", "external_id"),
        ("target_missing", "sub-2", None),
    ]
    mirror.deliver()
    assert mirror.target_fields(SUBSCRIPTION, "sub-1")["quantity"] == "1"
    assert mirror.target_fields(SUBSCRIPTION, "sub-2")["quantity"] == "2"
    assert len(mirror.audits("lock.violated")) == 2


def test_the_target_is_compared_although_the_source_is_down(mirror: World) -> None:
    (record,) = [
        one
        for one in mirror.simulator.distributor.records()
        if one["reference"] == str(mirror.record_id(SUBSCRIPTION, "sub-1"))
    ]
    mirror.simulator.distributor.edit(record["id"], {"quantity": "500"}, user="clerk")
    mirror.simulator.faults.add(Fault(path="/accounts", status=500))
    result = reconcile(mirror, dry_run=True)
    assert result.source_error is not None
    assert found(result) == [("target_differs", "sub-1", "quantity")]
