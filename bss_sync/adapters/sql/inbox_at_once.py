"""Stores single messages from an event loop: one statement for many requests, which is its own transaction.

It stores what needs no second look: a message that is new, of a connection that is as it was when the message was
verified. Whatever else there may be (a repetition, a conflict, a change under way, an order that is not pinned yet)
is left to the transaction that looks closely (inbox.py); and so is everything when this statement fails, also when
nobody knows whether it was carried out: then the messages are found to be stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from bss_sync.adapters.sql.database import Database, answering
from bss_sync.adapters.sql.inbox_rows import (
    COLUMNS,
    HELD,
    STORING,
    TOUCH,
    Key,
    message_ids,
    message_row,
    order_of,
)
from bss_sync.adapters.sql.records import id_array, record_set
from bss_sync.domain.change import Change
from bss_sync.domain.errors import DependencyDown
from bss_sync.domain.tenancy import PROCESSING
from bss_sync.ports.inbox import Accepted, Arrival

_PROCESSING = ", ".join(f"'{state}'" for state in sorted(PROCESSING))
STORE = f"""
    with held as materialized ({HELD.format(ids="cast(%(ids)s as uuid[])", strength="for share skip locked")}
    ), arrived as materialized (
        select r.*, h.tenant_id as tenant, case when h.state in ({_PROCESSING}) then h.shard end as shard
        from jsonb_to_recordset(cast(%(rows)s as jsonb)) as r (revision bigint, speaks text, {COLUMNS})
        join held h on h.id = r.connection and h.revision = r.revision
        where h.state <> 'closed' and (r.speaks is null or r.speaks = h.order_kind)
        -- In one order everywhere, as in inbox.py.
        order by r.connection, r.message_id collate "C"
    ), {STORING}
    select h.id, case when h.state in ({_PROCESSING}) then h.shard end as shard, h.untouched, stored.number, stored.keys
    from held h, (select count(*) as number,
                         case when count(*) < %(expected)s
                              then json_agg(json_build_array(connection_id, message_id)) end as keys
                  from fresh) stored""".encode()  # noqa: S608  our own texts


class _Held(NamedTuple):
    """A connection that was locked, and what was stored of all of them: their number, and which if not all were new."""

    id: UUID
    shard: int | None
    untouched: bool
    number: int
    keys: list[tuple[str, str]] | None


class InboxAtOnce:
    """The quick way into the inbox, for one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._idle: list[psycopg.AsyncCursor[Any]] = []

    async def accept(self, arrivals: Sequence[Arrival]) -> list[Accepted | None]:
        """One answer per arrival, in order, after the commit; None for what is left to the closer look.

        DependencyDown, or PostgreSQL's own error: nobody knows what is stored.
        """
        plain: dict[Key, tuple[int, Change]] = {}
        for index, arrival in enumerate(arrivals):
            if len(arrival.changes) == 1 and arrival.revision is not None:
                change = arrival.changes[0]
                plain.setdefault((arrival.connection_id.int, change.message_id), (index, change))
        answers: list[Accepted | None] = [None] * len(arrivals)
        if not plain:
            return answers
        rows = [
            _row(arrivals[index], change, id_)
            for (index, change), id_ in zip(plain.values(), message_ids(len(plain)), strict=True)
        ]
        ids = {arrivals[index].connection_id for index, _ in plain.values()}
        found = await self._stored({"rows": record_set(rows), "ids": id_array(ids), "expected": len(rows)})
        stored = plain.keys() if not found or found[0].number == len(rows) else _keys(found[0].keys)
        if found:
            shards = {row.id.int: row.shard for row in found}
            for key in stored:
                answers[plain[key][0]] = Accepted(1, 0, shards[key[0]])
        return answers

    async def close(self) -> None:
        """Give the connections back."""
        while self._idle:
            await self._idle.pop().connection.close()

    async def _stored(self, values: dict[str, Any]) -> list[_Held]:
        cursor = self._idle.pop() if self._idle else (await self._database.door_in_loop()).cursor()
        try:
            with answering():
                await cursor.execute(STORE, values, prepare=True)
                found = [_Held(*row) for row in await cursor.fetchall()]
            await self._touch(cursor, [one.id for one in found if one.untouched])
        except BaseException:
            # Whatever happened: the next set begins with a new one.
            await cursor.connection.close()
            raise
        self._idle.append(cursor)
        return found

    async def _touch(self, cursor: psycopg.AsyncCursor[Any], ids: list[UUID]) -> None:
        """Note that they sent something. Never worth failing for: the messages are committed."""
        if ids:
            with suppress(DependencyDown), answering():
                await cursor.execute(TOUCH, {"ids": ids}, prepare=True)


def _row(arrival: Arrival, change: Change, message_id: UUID) -> dict[str, Any]:
    row = message_row(message_id, arrival, change)
    row["revision"] = arrival.revision
    row["speaks"] = order_of(arrival)
    return row


def _keys(pairs: Sequence[tuple[str, str]] | None) -> set[Key]:
    return {(UUID(sender_id).int, message_id) for sender_id, message_id in pairs or ()}
