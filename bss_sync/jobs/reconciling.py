"""Wires a reconciliation: for the CLI, the API, polls by listing, and runs that an admin has approved."""

from __future__ import annotations

from uuid import UUID

from bss_sync.adapters.clients import Clients
from bss_sync.adapters.sql.drifts import SqlDrifts
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.adapters.sql.reconciliation import SqlHoldings
from bss_sync.adapters.sql.runs import SqlRuns
from bss_sync.adapters.sql.target_holdings import SqlTargetHoldings
from bss_sync.bootstrap import App
from bss_sync.pipeline.reconcile import Reconciler, Request
from bss_sync.pipeline.reconcile_target import TargetComparison
from bss_sync.ports.reconciliation import Run
from bss_sync.ports.runtime import WakeUps
from bss_sync.ports.sources import OpenSource


def make_clients(app: App) -> Clients:
    """Sources and the target."""
    return Clients(app.database, app.vault, app.connectors, app.http)


def make_reconciler(app: App, wake: WakeUps | None = None) -> Reconciler:
    """A reconciler over the application's parts."""
    hints, clients, database = wake or app.wake, make_clients(app), app.database
    target = TargetComparison(clients, SqlTargetHoldings(database), SqlDrifts(database), hints)
    return Reconciler(clients, SqlHoldings(database), SqlInbox(database), SqlRuns(database), hints, app.clock, target)


def listing_request(source: OpenSource) -> Request:
    """A poll of a source that has no change feed: its whole listing is compared, the target is not."""
    return Request(source.connection.id, target=False, quiet=True)


def approved_request(run: Run) -> Request:
    """What the guard had stopped, approved: done anew, against the source as it is now."""
    return Request(
        connection_id=UUID(str(run.connection_id)),
        accept=frozenset(run.options.get("accept", ())),
        requested_by=run.requested_by,
        run=run,
    )
