"""The distributor's BSS of the simulator, called without HTTP, with lost answers and refusals drawn from the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bss_sync.domain.change import Kind
from bss_sync.domain.errors import RemoteRefused
from bss_sync.ports.connector import TargetRecord, TargetWrite
from connectors.simulator.distributor import DistributorBss
from connectors.simulator.mapper import target_record
from connectors.simulator.reseller import Refused

PAGE = 7


@dataclass
class SimulatedTargetClient:
    """``ports.connector.TargetClient``. ``pause`` comes before a call takes effect, ``after`` before it is answered."""

    bss: DistributorBss
    pause: Callable[[str], None]
    after: Callable[[str], None]
    looks_up: bool = True

    def check(self) -> str:
        """See TargetClient."""
        self.pause("target.check")
        return "a simulated BSS"

    def look_up(self, kind: Kind, reference: str) -> TargetRecord | None:
        """See TargetClient."""
        self.pause(f"target.look_up {kind} {reference[:8]}")
        found = self.bss.look_up(reference, str(kind))["items"] if self.looks_up else []
        return target_record(found[0]) if found else None

    def write(self, write: TargetWrite) -> TargetRecord:
        """See TargetClient."""
        verb = "create" if write.external_id is None else f"update {write.external_id}"
        self.pause(f"target.{verb} {write.kind} {write.reference[:8]}")
        key = write.idempotency_key if self.looks_up else None
        try:
            if write.external_id is None:
                content = {"kind": str(write.kind), "reference": write.reference, "fields": dict(write.fields)}
                view = self.bss.create(content, key=key)
            else:
                view = self.bss.update(write.external_id, write.fields, key=key)
        except Refused as error:
            raise RemoteRefused(error.detail, status=error.status) from error
        self.after(f"target.{verb}")
        return target_record(view)

    def changes(self, cursor: str | None) -> tuple[Sequence[TargetRecord], str | None, bool]:
        """See TargetClient."""
        self.pause(f"target.changes {cursor}")
        feed = self.bss.changes(int(cursor or 0), PAGE)
        return [target_record(one) for one in feed["items"]], feed["cursor"], feed["more"]

    def list_all(self) -> Iterator[TargetRecord]:
        """See TargetClient."""
        after: str | None = ""
        while after is not None:
            self.pause(f"target.list after {after!r}")
            page = self.bss.page(after, PAGE)
            yield from [target_record(one) for one in page["items"]]
            after = page["next"]
