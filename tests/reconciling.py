"""A small mirror that is compared with its source and its target, and what a comparison found, for tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bss_sync.jobs.reconciling import make_reconciler
from bss_sync.pipeline.reconcile import Request, Result
from bss_sync.ports.reconciliation import Difference
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world


@contextmanager
def level(database: Database, home: Path) -> Iterator[World]:
    """Three accounts and six subscriptions, the same everywhere. The guard asks from the fourth end on.

    Nothing is polled: what a test changes at the source behind the feed's back stays unknown.
    """
    with world(database, home, connection={"page_size": 50, "guard_count": 3}) as one:
        bss = one.simulator.reseller
        bss.put(ACCOUNT, "lite", {"kind": "reseller", "name": "Cloud Lite"})
        bss.put(ACCOUNT, "x", {"name": "Customer X", "parent_id": "lite"})
        bss.put(ACCOUNT, "y", {"name": "Customer Y"})
        for number in range(1, 7):
            bss.put(SUBSCRIPTION, f"sub-{number}", {"account_id": "x", "product": PRODUCT, "quantity": number})
        one.settle()
        yield one


def reconcile(one: World, **given: Any) -> Result:
    """Compare and repair, and let the line do what that asks for."""
    result = make_reconciler(one.app).reconcile(Request(one.source.id, **given))
    one.process()
    one.deliver()
    return result


def differences(one: World, **given: Any) -> Sequence[Difference]:
    """What ``reconcile`` found and repaired, source and target being there."""
    result = reconcile(one, **given)
    assert (result.source_error, result.target_error) == (None, None)
    return result.differences


def found(result: Result) -> list[tuple[str, str, str | None]]:
    """Each difference by its problem, its source id and its field, sorted."""
    return sorted(((str(one.problem), one.source_id, one.field) for one in result.differences), key=str)
