"""What a worker does for each hint. Wired from an App; every rule is in the pipeline."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

from bss_sync.adapters.file_lock import Lane
from bss_sync.adapters.sql.deliveries import SqlDeliveries
from bss_sync.adapters.sql.drifts import SqlDrifts
from bss_sync.adapters.sql.fetches import SqlFetches, SqlPolls, SqlProbes
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.adapters.sql.neighbours import SqlNeighbours
from bss_sync.bootstrap import App
from bss_sync.jobs.courtesy import POLITE_STREAMS, Courtesy
from bss_sync.jobs.reconciling import (
    carry_out,
    make_chunks,
    make_clients,
    make_loader,
    make_reconciler,
    make_replayer,
    make_streams,
    poll_by_listing,
)
from bss_sync.jobs.turns import SetOfShards, Turns
from bss_sync.jobs.watched import WatchedChunks, WatchedDeliveries, WatchedStreams
from bss_sync.pipeline import line
from bss_sync.pipeline.deliver import Deliverer
from bss_sync.pipeline.drift import DriftWatch
from bss_sync.pipeline.gather import Fetcher, Poller, probe
from bss_sync.pipeline.load import Loader
from bss_sync.pipeline.reconcile import Reconciler
from bss_sync.pipeline.replay import Replayer
from bss_sync.ports.streams import SHARED_STREAMS, StreamStore
from bss_sync.ports.upkeep import Hinting

TURN_SECONDS = 0.25


@dataclass
class Work:
    """The work of one process."""

    streams: StreamStore
    deliverer: Deliverer
    fetcher: Fetcher
    poller: Poller
    reconciler: Reconciler
    loader: Loader
    replayer: Replayer
    drift: DriftWatch
    probes: SqlProbes
    wake: Hinting
    courtesy: Courtesy
    turn_seconds: float
    """A busy shard gives its thread back after so long, so that others get their turn."""
    turns: Turns = field(default_factory=Turns)
    _hinted: SetOfShards = field(default_factory=SetOfShards)
    """Where little work may be."""
    _heavier: SetOfShards = field(default_factory=SetOfShards)
    """Where there is other work."""

    def process(self, *shards: int) -> None:
        """Decide what is open in these shards: first what is little there and in all others that a hint came for."""
        self._decide_little(*shards)
        while heavier := self._heavier.take():
            shard, *others = heavier
            # A hint for each, so that other threads and other workers take their part.
            for other in others:
                self.wake.process(other)
            self.turns.take(("process", shard), partial(self._process, shard))

    def _decide_little(self, *shards: int) -> None:
        self._hinted.add(shards)
        self.turns.take("little", self._little)

    def _little(self) -> None:
        """Batch after batch until nothing little is left; what is hinted at meanwhile is in the next one.

        The first are short. Where many have a little, the next come later the more batches it takes: then they grow.
        """
        limit = SHARED_STREAMS
        while not self.turns.stopping and (shards := self._hinted.take()):
            with self.courtesy.going_first():
                result, behind = line.process_little(self.streams, shards, limit=limit)
            limit = min(2 * limit, line.BATCH_STREAMS) if result.decided >= limit else SHARED_STREAMS
            self._heavier.add(behind)
            if result.more:
                self._hinted.add(shards)
            self._wake(result, result.wake_shards)

    def _process(self, shard: int) -> None:
        """Decide what is open in one shard; hand the rest back as a hint when it takes long."""
        started = time.monotonic()
        while not self.turns.stopping:
            begun = time.monotonic()
            if not self._decide(shard).more:
                return
            self.turns.rest(self.courtesy.rest_seconds(time.monotonic() - begun))
            if time.monotonic() - started > self.turn_seconds:
                self.wake.process(shard)
                return
            # Between the long batches of a flood, who has only a little to decide goes first.
            self._decide_little(shard)

    def _decide(self, shard: int) -> line.ProcessResult:
        polite = self.courtesy.needed()
        limit = POLITE_STREAMS if polite else line.BATCH_STREAMS
        with self.courtesy.standing_back() if polite else nullcontext():
            result = line.process(self.streams, shard, limit=limit)
        self._wake(result, result.wake_shards - {shard})
        return result

    def _wake(self, result: line.ProcessResult, shards: Iterable[int]) -> None:
        self.wake.process(*shards)
        if result.deliveries:
            self.wake.deliver()
        if result.fetches:
            self.wake.fetch()

    def deliver(self) -> None:
        """Deliver what is due."""
        self.turns.take("deliver", self._deliver)

    def _deliver(self) -> None:
        while not self.turns.stopping and self.deliverer.deliver().more:
            pass

    def fetch(self) -> None:
        """Fetch single entities that are due."""
        self.turns.take("fetch", self._fetch)

    def _fetch(self) -> None:
        while not self.turns.stopping and self.fetcher.fetch().more:
            pass

    def poll(self) -> None:
        """Ask due sources for changes, and the external BSS for edits."""
        self.turns.take("poll", self._poll)

    def _poll(self) -> None:
        if self.drift.poll():
            self.wake.deliver()
        while not self.turns.stopping and self.poller.poll():
            pass
        runs = self.reconciler.runs
        while not self.turns.stopping and (run := runs.claim_approved() or runs.claim_lost()) is not None:
            carry_out(run, self.reconciler, self.loader)
        while not self.turns.stopping and self.replayer.carry_due():
            pass

    def probe(self, connection_id: UUID) -> None:
        """Look whether a silent source is alive."""
        self.turns.take(("probe", connection_id), lambda: self._probe(connection_id))

    def _probe(self, connection_id: UUID) -> None:
        probe(self.poller.sources, self.probes, connection_id)

    def stop(self) -> None:
        """End at the next boundary."""
        self.turns.stop()


def make_work(app: App, wake: Hinting, *, turn_seconds: float = TURN_SECONDS) -> Work:
    """Wire the work of a process."""
    database = app.database
    lease_seconds = app.settings.lease_seconds
    clients = make_clients(app)
    reconciler = make_reconciler(app, wake)
    inbox = SqlInbox(database)
    deliveries = SqlDeliveries(database, lease_seconds=lease_seconds)
    courtesy = Courtesy(SqlNeighbours(database).light, Lane(app.settings.home))
    database.before_statement = courtesy.give_way
    return Work(
        streams=WatchedStreams(make_streams(app), app.metrics, app.traces),
        deliverer=Deliverer(
            WatchedDeliveries(deliveries, app.metrics, app.traces), clients, lease_seconds=lease_seconds
        ),
        fetcher=Fetcher(SqlFetches(database, lease_seconds=lease_seconds), clients, inbox, wake, app.clock),
        poller=Poller(
            SqlPolls(database, lease_seconds=lease_seconds),
            clients,
            inbox,
            WatchedChunks(make_chunks(app), app.metrics),
            wake,
            app.clock,
            by_listing=lambda source, advance: poll_by_listing(reconciler, source, advance),
            lease_seconds=lease_seconds,
        ),
        reconciler=reconciler,
        loader=make_loader(app, wake, reconciler.runs),
        replayer=make_replayer(app, wake),
        drift=DriftWatch(SqlDrifts(database), clients),
        probes=SqlProbes(database),
        wake=wake,
        courtesy=courtesy,
        turn_seconds=turn_seconds,
    )
