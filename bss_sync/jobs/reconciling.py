"""Wires what the CLI, the API and the workers share: reconciliations, loads of listings and files, replays."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import structlog

from bss_sync.adapters.clients import Clients
from bss_sync.adapters.sql.breakers import SqlBreakers
from bss_sync.adapters.sql.drifts import SqlDrifts
from bss_sync.adapters.sql.first_load import SqlFirstLoad
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.adapters.sql.reconciliation import SqlHoldings
from bss_sync.adapters.sql.replays import SqlReplays
from bss_sync.adapters.sql.runs import SqlRuns
from bss_sync.adapters.sql.streams import SqlStreams
from bss_sync.adapters.sql.target_holdings import SqlTargetHoldings
from bss_sync.bootstrap import App
from bss_sync.domain.errors import BssSyncError, DependencyDown, Transient
from bss_sync.pipeline import line
from bss_sync.pipeline.load import Loader
from bss_sync.pipeline.reconcile import Reconciler, Request
from bss_sync.pipeline.reconcile_target import TargetComparison
from bss_sync.pipeline.replay import Replayer
from bss_sync.ports.runs import Run, RunStore
from bss_sync.ports.runtime import WakeUps
from bss_sync.ports.sources import OpenSource

_log = structlog.get_logger(__name__)


def make_clients(app: App) -> Clients:
    """Sources and the target, behind their breakers."""
    return Clients(app.database, app.vault, app.connectors, app.http, SqlBreakers(app.database))


def make_reconciler(app: App, wake: WakeUps | None = None) -> Reconciler:
    """A reconciler over the application's parts."""
    hints, clients, database = wake or app.wake, make_clients(app), app.database
    target = TargetComparison(clients, SqlTargetHoldings(database), SqlDrifts(database), hints)
    return Reconciler(clients, SqlHoldings(database), SqlInbox(database), SqlRuns(database), hints, app.clock, target)


def listing_request(source: OpenSource) -> Request:
    """A poll of a source that has no change feed: its whole listing is compared, the target is not."""
    return Request(source.connection.id, target=False, quiet=True)


def poll_by_listing(reconciler: Reconciler, source: OpenSource, advance: Callable[[int], None]) -> None:
    """Poll such a source. Transient when the listing broke off, GuardStopped when too much would end."""
    result = reconciler.reconcile(listing_request(source), advance)
    if result.source_error is not None:
        raise Transient(result.source_error)


def run_request(run: Run) -> Request:
    """What a run that was approved, or that lost its process, was asked for."""
    options = run.options
    return Request(
        connection_id=UUID(str(run.connection_id)),
        dry_run=bool(options.get("dry_run")),
        accept=frozenset(options.get("accept", ())),
        requested_by=run.requested_by,
        run=run,
        since_last=bool(options.get("since_last")),
        subtree=options.get("subtree"),
    )


def carry_out(run: Run, reconciler: Reconciler, loader: Loader) -> None:
    """Carry on a reconciliation or a backfill. What the guard stops, or the source refuses, is in the run."""
    try:
        if run.kind == "backfill":
            loader.backfill(run.connection_id, requested_by=run.requested_by, run=run)
        else:
            reconciler.reconcile(run_request(run))
    except DependencyDown:
        raise
    except BssSyncError as error:
        _log.warning("run.ended", run=str(run.id), kind=run.kind, error=error.slug)
    finally:
        # Whatever happened, this process keeps no run that it does not work on.
        reconciler.runs.let_go(run.id)


def make_loader(app: App, wake: WakeUps | None = None, runs: RunStore | None = None) -> Loader:
    """A loader of listings (backfill) and files (import). ``runs``: which has the runs that are to be carried on."""
    database = app.database
    return Loader(
        make_clients(app),
        SqlInbox(database),
        make_chunks(app),
        runs or SqlRuns(database),
        wake or app.wake,
        app.clock,
    )


def make_chunks(app: App) -> SqlFirstLoad:
    """Takes chunks of what we have asked for."""
    return SqlFirstLoad(app.database, lambda name: app.connectors[name].capabilities.fetch)


def make_replayer(app: App, wake: WakeUps | None = None) -> Replayer:
    """A replayer of stored messages."""
    streams = make_streams(app)
    return Replayer(SqlReplays(app.database), lambda ids: line.rehearse(streams, ids), wake or app.wake)


def make_streams(app: App) -> SqlStreams:
    """The streams of the line."""
    return SqlStreams(
        app.database,
        lambda name: app.connectors[name].capabilities.fetch,
        lease_seconds=app.settings.lease_seconds,
    )
