"""What a simulated world needs of the stores, whether they are in memory or on PostgreSQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import UUID

from bss_sync.domain.change import Action, Kind
from bss_sync.ports.delivery import DeliveryStore, DriftStore
from bss_sync.ports.inbox import InboxStore
from bss_sync.ports.loading import ChunkStore
from bss_sync.ports.reconciliation import Holdings
from bss_sync.ports.runs import RunStore
from bss_sync.ports.sources import FetchStore, PollStore
from bss_sync.ports.streams import StreamStore
from bss_sync.ports.target_holdings import TargetHoldings

if TYPE_CHECKING:
    from tests.simulation.admin import Admin

Name = tuple[Kind, str]


class Present(NamedTuple):
    """A mirrored record at a moment, as much of it as may never go wrong between two steps."""

    kind: Kind
    epoch: int
    version: int
    deleted: bool
    parent: UUID | None


class Record(NamedTuple):
    """A mirrored record at rest. ``parent`` and ``account`` are the records that it is linked to."""

    id: UUID
    content: Mapping[str, Any]
    version: int
    deleted: bool
    ended: str | None
    parent: UUID | None
    account: UUID | None
    external_id: str | None
    delivery: str | None


class Told(NamedTuple):
    """One row of history, in the order of recording."""

    name: Name
    epoch: int
    version: int
    effective_at: datetime
    quantity: str
    message: UUID


class Decided(NamedTuple):
    """One message of the inbox. ``audited``: how often each state was written into the audit for it."""

    id: UUID
    message_id: str
    name: Name
    action: Action
    version: int | None
    state: str
    audited: Counter[str]


class Core(Protocol):
    """The stores of one connection, and what is in them."""

    connection_id: UUID
    tenant_id: UUID
    shard: int

    @property
    def admin(self) -> Admin:
        """``admin.Admin``."""
        ...

    @property
    def inbox(self) -> InboxStore:
        """``InboxStore``."""
        ...

    @property
    def streams(self) -> StreamStore:
        """``StreamStore``."""
        ...

    @property
    def deliveries(self) -> DeliveryStore:
        """``DeliveryStore``."""
        ...

    @property
    def drift(self) -> DriftStore:
        """``DriftStore``."""
        ...

    @property
    def fetches(self) -> FetchStore:
        """``FetchStore``."""
        ...

    @property
    def polls(self) -> PollStore:
        """``PollStore``."""
        ...

    @property
    def chunks(self) -> ChunkStore:
        """``ChunkStore``."""
        ...

    @property
    def holdings(self) -> Holdings:
        """``Holdings``."""
        ...

    @property
    def target_holdings(self) -> TargetHoldings:
        """``TargetHoldings``."""
        ...

    def runs(self) -> RunStore:
        """``RunStore`` of one process: who forgets it has let go of its runs."""
        ...

    def set_time(self, now: datetime) -> None:
        """The stores' clock."""
        ...

    def sweep(self) -> bool:
        """What the sweeper does; whether messages are to be decided now."""
        ...

    def offer(self, code: str, *, retired: bool) -> None:
        """An admin puts a product into the catalogue or retires it."""
        ...

    def revive_killed(self) -> None:
        """An admin replays what was set aside because its process died over it again and again."""
        ...

    def tokens(self, stream_ids: Sequence[UUID]) -> Mapping[UUID, int]:
        """The fencing tokens of now."""
        ...

    def present(self) -> Mapping[UUID, Present]:
        """Every mirrored record."""
        ...

    def fingerprint(self) -> object:
        """Equal as long as nothing was decided, accepted or confirmed."""
        ...

    def records(self) -> Mapping[Name, Record]:
        """The mirror."""
        ...

    def history(self) -> Sequence[Told]:
        """The history. ``quantity`` is "0" where nothing was held: deleted, ended or on trial."""
        ...

    def messages(self) -> Sequence[Decided]:
        """The inbox."""
        ...
