"""The processes of a simulated world: the line's own verbs over stores and clients that may fail at every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from bss_sync.adapters.sql.streams_load import NEW_STREAM
from bss_sync.domain.change import Change, OrderKind
from bss_sync.domain.errors import DependencyDown, RemoteBusy, RemoteUnknown, Transient
from bss_sync.domain.tenancy import Connection, ConnectionState
from bss_sync.pipeline.deliver import Deliverer
from bss_sync.pipeline.drift import DriftWatch
from bss_sync.pipeline.gather import Fetcher, Poller
from bss_sync.pipeline.line import accept, process, process_little
from bss_sync.pipeline.load import Loader
from bss_sync.pipeline.reconcile import Reconciler, Request, Result
from bss_sync.pipeline.reconcile_target import TargetComparison
from bss_sync.ports.connector import ConnectionSettings
from bss_sync.ports.delivery import OpenTarget, TargetSettings
from bss_sync.ports.inbox import Accepted, Arrival, Origin
from bss_sync.ports.sources import OpenSource
from bss_sync.ports.streams import Claim
from bss_sync.testing.simulation.reseller import Reseller, ResellerClient
from connectors.simulator.distributor import DistributorBss
from tests.simulation.core import Core
from tests.simulation.profile import Profile
from tests.simulation.scheduler import Killed, Task
from tests.simulation.target import SimulatedTargetClient

GUARD_OFF = 1_000_000

Stale = Callable[[Sequence[Claim]], frozenset[UUID]]


class Luck(Protocol):
    """What a world tells its processes."""

    def chance(self, share: float) -> bool:
        """Whether a fault that happens in this share of the calls happens now."""
        ...

    def skew(self) -> timedelta:
        """How far the clock of a process that begins now is off."""
        ...

    def seconds(self) -> float:
        """A clock that only goes forward."""
        ...

    def now(self) -> Any:
        """The present moment."""
        ...

    def happened(self, what: str) -> None:
        """A line for the trace."""
        ...

    def counted(self, act: str) -> None:
        """Something that is worth counting was done."""
        ...

    def stepped(self, label: str, result: object, stale: frozenset[UUID]) -> None:
        """A store was called: look whether everything still holds. ``stale``: streams claimed by others since."""
        ...


@dataclass(frozen=True, slots=True)
class OwnClock:
    """The clock of one process, ``off`` from the true time. No store and no lease follows it."""

    luck: Luck
    off: timedelta

    def now(self) -> datetime:
        """What the process believes."""
        moment: datetime = self.luck.now()
        return moment + self.off


class NoWakeUps:
    """Hints get lost: the scheduler finds the work."""

    def process(self, *shards: int) -> None:
        """See WakeUps."""

    def deliver(self) -> None:
        """See WakeUps."""

    def fetch(self) -> None:
        """See WakeUps."""

    def poll(self) -> None:
        """See WakeUps."""


class Stepped:
    """A store that pauses its task before each call, may be down, and may die before its answer arrives."""

    def __init__(self, label: str, store: object, task: Task, luck: Luck, stale: Stale | None) -> None:
        self._label, self._store, self._task, self._luck = label, store, task, luck
        self._stale = stale

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not callable(method):
            return method

        def call(*values: Any, **named: Any) -> Any:
            label = f"{self._label}.{name}"
            self._task.pause(label)
            if self._luck.chance(0.3):
                self._luck.happened(f"{self._task.name}: {label}: PostgreSQL is down")
                raise DependencyDown("PostgreSQL is down.")
            stale = self._stale(values[0]) if self._stale is not None and name == "work" else frozenset()
            result = method(*values, **named)
            self._luck.happened(f"{self._task.name}: {label}")
            self._luck.stepped(label, result, stale)
            if self._luck.chance(0.3):
                self._luck.happened(f"{self._task.name}: {label}: committed, but the answer is lost")
                raise DependencyDown("The connection to PostgreSQL broke after the commit.")
            if self._luck.chance(0.2):
                self._luck.happened(f"{self._task.name}: {label}: committed, then killed")
                self._task.killed = True
                raise Killed
            return result

        return call


class SteppedListings(Stepped):
    """A store whose listings are sessions of their own."""

    @contextmanager
    def listing(self, *values: Any, **named: Any) -> Iterator[Any]:
        """See Holdings."""
        with self._store.listing(*values, **named) as listing:  # type: ignore[attr-defined]  # it is a Holdings
            yield Stepped("listing", listing, self._task, self._luck, None)

    @contextmanager
    def target_listing(self, *values: Any, **named: Any) -> Iterator[Any]:
        """See TargetHoldings."""
        with self._store.target_listing(*values, **named) as listing:  # type: ignore[attr-defined]  # it is a TargetHoldings
            yield Stepped("target_listing", listing, self._task, self._luck, None)


class Processes:
    """Makes the bodies of tasks."""

    def __init__(
        self,
        core: Core,
        reseller: Reseller,
        bss: DistributorBss,
        profile: Profile,
        luck: Luck,
        *,
        looks_up: bool = True,
    ) -> None:
        self.core, self.reseller, self.bss, self.profile, self.luck = core, reseller, bss, profile, luck
        self._looks_up = looks_up

    # --- clients ------------------------------------------------------------------------------------------------------

    def _before(self, task: Task) -> Callable[[str], None]:
        def pause(label: str) -> None:
            task.pause(label)
            if self.luck.chance(0.6):
                self.luck.happened(f"{task.name}: {label}: asked to wait")
                raise RemoteBusy("Wait.", retry_after_seconds=7.0)
            if self.luck.chance(0.6):
                self.luck.happened(f"{task.name}: {label}: no answer, no effect")
                raise RemoteUnknown("No answer.")
            self.luck.happened(f"{task.name}: {label}")

        return pause

    def _after(self, task: Task) -> Callable[[str], None]:
        def dropped(label: str) -> None:
            if self.luck.chance(1.0):
                self.luck.happened(f"{task.name}: {label}: applied, but the answer is lost")
                raise RemoteUnknown("The answer was lost.")
            if self.luck.chance(0.4):
                self.luck.happened(f"{task.name}: {label}: applied, then killed")
                task.killed = True
                raise Killed

        return dropped

    def _sources(self, task: Task) -> _Clients:
        core, profile = self.core, self.profile
        config = ConnectionSettings(poll_seconds=30, guard_count=GUARD_OFF)
        connection = Connection(
            core.connection_id,
            core.tenant_id,
            "cloud-resell",
            "cloud-resell",
            "webhook",
            ConnectionState.LIVE,
            {},
            None if profile.order is OrderKind.OBSERVED else profile.order,
            1,
        )
        source = OpenSource(connection, profile.capabilities, config, ResellerClient(self.reseller, self._before(task)))
        client = SimulatedTargetClient(self.bss, self._before(task), self._after(task), self._looks_up)
        settings = TargetSettings("simulator", core.tenant_id, "repair", 20.0)
        return _Clients(source, OpenTarget(settings, client))

    def _store(self, label: str, store: object, task: Task, stale: Stale | None = None) -> Any:
        return SteppedListings(label, store, task, self.luck, stale)

    def _clock(self) -> OwnClock:
        return OwnClock(self.luck, self.luck.skew())

    # --- what a process does ------------------------------------------------------------------------------------------

    def process(self, task: Task, limit: int) -> None:
        """Decide what is little, then a batch of what there is besides: as workers do."""
        streams, shard = self._store("streams", self.core.streams, task, self._claimed_since), self.core.shard
        _result, behind = process_little(streams, [shard], limit=limit)
        if shard in behind:
            process(streams, shard, limit=limit)

    def _claimed_since(self, claims: Sequence[Claim]) -> frozenset[UUID]:
        tokens = self.core.tokens([claim.stream_id for claim in claims])
        # A stream that has no row yet is claimed by the token of new ones.
        return frozenset(claim.stream_id for claim in claims if tokens.get(claim.stream_id, NEW_STREAM) != claim.token)

    def deliver(self, task: Task, limit: int) -> bool:
        """Deliver a batch; whether anything was done."""
        store = self._store("deliveries", self.core.deliveries, task)
        deliverer = Deliverer(store, self._sources(task), calls_at_once=1)
        result = deliverer.deliver(limit)
        return result.delivered + result.failed > 0

    def fetch(self, task: Task) -> bool:
        """Fetch one entity; whether one was due."""
        fetcher = Fetcher(
            self._store("fetches", self.core.fetches, task),
            self._sources(task),
            self._store("inbox", self.core.inbox, task),
            NoWakeUps(),
            self._clock(),
        )
        result = fetcher.fetch(1)
        return result.observed + result.failed > 0

    def poll(self, task: Task) -> None:
        """Ask the source for changes when it is due; one without a feed is listed."""

        def by_listing(_source: OpenSource, advance: Callable[[int], None]) -> None:
            result = self.reconcile(task, target=False, progress=advance)
            if result.source_error is not None:
                raise Transient(result.source_error)

        Poller(
            self._store("polls", self.core.polls, task),
            self._sources(task),
            self._store("inbox", self.core.inbox, task),
            self._store("chunks", self.core.chunks, task),
            NoWakeUps(),
            self._clock(),
            by_listing,
            lease_seconds=30.0,
            at_once=1,
        ).poll()

    def drift(self, task: Task) -> None:
        """Read the target's feed."""
        DriftWatch(self._store("drift", self.core.drift, task), self._sources(task)).poll()

    def load(self, task: Task) -> None:
        """Take in the source's whole listing."""
        loader = Loader(
            self._sources(task),
            self._store("inbox", self.core.inbox, task),
            self._store("chunks", self.core.chunks, task),
            self._store("runs", self.core.runs(), task),
            NoWakeUps(),
            self._clock(),
            at_once=1,
        )
        loader.backfill(self.core.connection_id, requested_by="admin")
        self.luck.counted("listing taken in")

    def reconcile(
        self,
        task: Task,
        *,
        target: bool = True,
        accept: frozenset[str] = frozenset(),
        since_last: bool = False,
        subtree: str | None = None,
        progress: Callable[[int], None] = lambda _listed: None,
    ) -> Result:
        """Compare everything or a part, and repair; what is accepted may count anew."""
        clients, wake = self._sources(task), NoWakeUps()
        holdings = self._store("target_holdings", self.core.target_holdings, task)
        comparison = TargetComparison(clients, holdings, self._store("drift", self.core.drift, task), wake)
        reconciler = Reconciler(
            clients,
            self._store("holdings", self.core.holdings, task),
            self._store("inbox", self.core.inbox, task),
            self._store("runs", self.core.runs(), task),
            wake,
            self._clock(),
            comparison,
        )
        asked = Request(
            self.core.connection_id,
            accept=accept,
            target=target,
            quiet=not target,
            since_last=since_last,
            subtree=subtree,
        )
        result = reconciler.reconcile(asked, progress)
        if result.resumed:
            self.luck.counted("reconciliation carried on")
        return result

    def arrive(self, task: Task, changes: Sequence[Change], refused: list[Change]) -> None:
        """A request at the door. Without a 2xx the sender sends again: ``refused`` holds what it keeps."""
        refused.extend(changes)
        arrival = Arrival(self.core.tenant_id, self.core.connection_id, None, Origin.DOOR, changes)
        (answer,) = accept(self._store("inbox", self.core.inbox, task), [arrival])
        assert isinstance(answer, Accepted), f"the door said {answer}"
        refused.clear()


class _Clients:
    """``Sources`` and ``Targets`` of one task."""

    def __init__(self, source: OpenSource, target: OpenTarget) -> None:
        self._source, self._target = source, target

    def source(self, connection_id: UUID, *, push_only: bool = False) -> OpenSource:
        """See Sources."""
        assert not push_only, "the simulated source can be asked"
        assert connection_id == self._source.connection.id, "there is one connection"
        return self._source

    def target(self) -> OpenTarget:
        """See Targets."""
        return self._target
