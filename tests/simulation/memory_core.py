"""The stores in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from bss_sync.domain.change import MessageState, shard_of
from bss_sync.testing.simulation.chunks import MemoryChunks
from bss_sync.testing.simulation.gathering import MemoryFetches, MemoryHoldings, MemoryPolls
from bss_sync.testing.simulation.line import SimulatedLine, shown
from bss_sync.testing.simulation.outbox import MemoryOutbox
from bss_sync.testing.simulation.runs import MemoryRuns, RunTable
from tests.simulation.core import Decided, Name, Present, Record, Told
from tests.simulation.memory_admin import MemoryAdmin


class MemoryCore:
    """``core.Core`` over the twins."""

    def __init__(
        self,
        products: Sequence[str],
        *,
        can_fetch: bool = True,
        accounts_at_once: bool = False,
        line: SimulatedLine | None = None,
    ) -> None:
        self.line = line or SimulatedLine()
        self.connection_id = self.line.connect(*products, can_fetch=can_fetch, accounts_at_once=accounts_at_once)
        self.tenant_id = self.line.tenants[self.connection_id]
        self.shard = shard_of(self.connection_id)
        self.inbox = self.streams = self.line
        self.outbox = MemoryOutbox(self.line)
        self.deliveries = self.drift = self.target_holdings = self.outbox
        self.fetches = MemoryFetches(self.line)
        self.polls, self.chunks = MemoryPolls(self.line, self.connection_id), MemoryChunks(self.line)
        self.holdings = MemoryHoldings(self.line)
        self._runs = RunTable(self.line, lambda: self.polls.cursor)
        self.admin = MemoryAdmin(self.line, self.polls, self.connection_id)

    def runs(self) -> MemoryRuns:
        """See Core."""
        return MemoryRuns(self._runs)

    def set_time(self, now: datetime) -> None:
        """See Core."""
        self.line.now = now

    def sweep(self) -> bool:
        """See Core."""
        return self.line.sweep()

    def offer(self, code: str, *, retired: bool) -> None:
        """See Core."""
        self.line.offer(self.connection_id, code, retired=retired)

    def revive_killed(self) -> None:
        """See Core."""
        for item in self.line.messages.values():
            verdict = item.verdict
            held = item.message.state is MessageState.QUARANTINED
            if held and verdict is not None and verdict.reason == "process_killer":
                item.message = replace(item.message, state=MessageState.PENDING)

    def tokens(self, stream_ids: Sequence[UUID]) -> Mapping[UUID, int]:
        """See Core."""
        return {key: self.line.leases[key].token for key in stream_ids}

    def present(self) -> Mapping[UUID, Present]:
        """See Core."""
        found = {}
        for key, entity in self.line.entities.items():
            mirrored = entity.mirrored
            if mirrored is not None:
                parent = self.line.link(entity, "parent_id")
                deleted = mirrored.deleted_at is not None
                found[key] = Present(entity.kind, mirrored.epoch, mirrored.version, deleted, parent)
        return found

    def fingerprint(self) -> object:
        """See Core."""
        states = tuple(item.message.state for item in self.line.messages.values())
        deliveries = tuple((row.state, row.external_id) for row in self.line.deliveries.values())
        return states, deliveries, len(self.line.history), len(self.line.wishes)

    def records(self) -> Mapping[Name, Record]:
        """See Core."""
        found = {}
        for key, entity in self.line.entities.items():
            mirrored, row = entity.mirrored, self.line.deliveries.get(key)
            if mirrored is not None:
                found[entity.kind, entity.source_id] = Record(
                    id=key,
                    content=shown(entity),
                    version=mirrored.version,
                    deleted=mirrored.deleted_at is not None,
                    ended=mirrored.ended_reason,
                    parent=self.line.link(entity, "parent_id"),
                    account=self.line.link(entity, "account_id"),
                    external_id=None if row is None else row.external_id,
                    delivery=None if row is None else row.state,
                )
        return found

    def history(self) -> Sequence[Told]:
        """See Core."""
        told = []
        for row in self.line.history:
            entity = self.line.entities[row.record_id]
            quantity = held_quantity(row.state, ended=row.deleted or row.ended_reason is not None)
            name = (entity.kind, entity.source_id)
            told.append(Told(name, row.epoch, row.version, row.effective_at, quantity, row.message))
        return told

    def messages(self) -> Sequence[Decided]:
        """See Core."""
        audited: dict[UUID, Counter[str]] = {}
        for (key, state), count in self.line.audit.items():
            audited.setdefault(key, Counter())[state] += count
        found = []
        for key, item in self.line.messages.items():
            message, entity = item.message, self.line.entities[item.stream]
            name = (entity.kind, entity.source_id)
            found.append(
                Decided(
                    key,
                    message.message_id,
                    name,
                    message.action,
                    message.version,
                    message.state,
                    audited.get(key, Counter()),
                )
            )
        return found


def held_quantity(state: Mapping[str, Any], *, ended: bool) -> str:
    """What a row of history says was held: "0" for what had ended, was on trial, or is an account."""
    if ended or "quantity" not in state or state["trial"]:
        return "0"
    return str(state["quantity"])
