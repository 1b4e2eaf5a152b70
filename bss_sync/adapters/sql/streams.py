"""Streams in PostgreSQL: claims with lease and token, and the one transaction that loads, decides, writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.records import id_array, record_set
from bss_sync.adapters.sql.streams_load import load_batch, load_rehearsal
from bss_sync.adapters.sql.streams_write import write_settled
from bss_sync.domain.errors import LeaseLost
from bss_sync.domain.fairness import fair_shares
from bss_sync.ports.streams import SHARED_STREAMS, Batch, Claim, Settled, Written

LEASE_SECONDS = 30.0
LIGHT_MESSAGES = 64
"""A connection with no more pending than this is light: its messages need not wait for the batches of others."""
DEPTH_MAX = 4
"""Pending messages looked at for each stream of a batch, where several share a stream."""
SOLO_CLAIMS_MAX = 3
"""Claims made alone that may end without a verdict before the stream's messages are quarantined."""

_FREE = "(s.lease_until is null or s.lease_until < now())"
_UNFINISHED = text(f"""
    select s.id from stream s join connection c on c.id = s.connection_id and c.state in ('shadow', 'live')
    where s.shard = :shard and s.unfinished > 0 and {_FREE}
      and (s.ready_at <= now() or exists (select from message m where m.stream_id = s.id and m.state = 'pending'
                                           and settled_on(m.state, m.decided_at) = 'infinity'))
    order by s.solo_claims, s.id limit 1""")  # noqa: S608  constants only
# Who has pending messages, the longest waiting first; each is looked at to its first LIGHT_MESSAGES only.
_PARTIES = text("""
    select c.id, c.priority, w.number from connection c cross join lateral (
        select count(*) as number, min(seq) as first from (
            select m.seq from message m where m.state = 'pending' and m.shard = :shard and m.connection_id = c.id
              and settled_on(m.state, m.decided_at) = 'infinity'
            order by m.seq limit :light + 1) m) w
    where c.shard = :shard and c.state in ('shadow', 'live') and w.number > 0 order by w.first""")
_PENDING = text(f"""
    select p.id, q.place, p.fresh from unnest(cast(:ids as uuid[]), cast(:scans as int[]))
        with ordinality as q (connection_id, scan, place)
    cross join lateral (
        select m.stream_id as id, s.id is null as fresh, m.seq
        from message m left join stream s on s.id = m.stream_id
        where m.state = 'pending' and m.shard = :shard and m.connection_id = q.connection_id
          and settled_on(m.state, m.decided_at) = 'infinity'
          and (s.id is null or (s.unfinished = 0 and {_FREE}))
        order by m.seq limit q.scan) p
    order by p.seq""")  # noqa: S608  constants only
_READY = text(f"""
    select s.id from stream s join connection c on c.id = s.connection_id and c.state in ('shadow', 'live')
    where s.shard = :shard and s.ready_at <= now() and s.unfinished = 0 and {_FREE}
    order by s.ready_at limit :scan""")  # noqa: S608  constants only
_NEW_STREAMS = text("""
    insert into stream (id, tenant_id, connection_id, shard, kind, source_id)
    select distinct on (m.stream_id) m.stream_id, m.tenant_id, m.connection_id, :shard, m.kind, m.source_id
    from message m where m.stream_id = any(cast(:ids as uuid[])) and m.state = 'pending'
        and settled_on(m.state, m.decided_at) = 'infinity'
    order by m.stream_id on conflict do nothing""")
_LEASE = text(f"""
    update stream t set lease_until = now() + make_interval(secs => :lease), token = t.token + 1,
        -- A wake-up outlives the claim that took it along: it is due again when the lease has run out.
        ready_at = case when t.ready_at is not null then now() + make_interval(secs => :lease) end,
        unfinished = t.unfinished + 1, solo_claims = t.solo_claims + :alone
    from (select s.id, s.solo_claims from stream s where s.id = any(cast(:ids as uuid[])) and {_FREE} order by s.id
          for update skip locked) free
    where t.id = free.id returning t.id, t.token, free.solo_claims""")  # noqa: S608  constants only
_LOCK = text("select id, token from stream where id = any(cast(:ids as uuid[])) order by id for update")
_RELEASE = text("""
    update stream s set lease_until = null,
        ready_at = case when s.ready_at = s.lease_until then now() else s.ready_at end
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, token bigint)
    where s.id = r.id and s.token = r.token""")


class SqlStreams:
    """``ports.streams.StreamStore`` over PostgreSQL. ``can_fetch`` tells whether a connector (by name) can fetch."""

    def __init__(
        self, database: Database, can_fetch: Callable[[str], bool], *, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._database = database
        self._can_fetch = can_fetch
        self._lease_seconds = lease_seconds

    def claim(self, shard: int, limit: int, *, light: bool = False) -> list[Claim]:
        """Lease streams that have work; one alone when its last claim ended without a verdict."""
        with self._database.engine() as connection:
            if light:
                wanted, _limit = _pending(connection, shard, limit, light=True)
                return self._lease(connection, wanted, alone=False) if wanted else []
            unfinished = connection.execute(_UNFINISHED, {"shard": shard}).scalar_one_or_none()
            if unfinished is not None:
                return self._lease(connection, [unfinished], alone=True)
            wanted = _candidates(connection, shard, limit)
            return self._lease(connection, wanted, alone=False) if wanted else []

    def _lease(self, connection: Connection, ids: list[UUID], *, alone: bool) -> list[Claim]:
        values = {"ids": id_array(ids), "lease": self._lease_seconds, "alone": 1 if alone else 0}
        return [
            Claim(stream, token, killer=solo_claims >= SOLO_CLAIMS_MAX, alone=alone, again=solo_claims > 0)
            for stream, token, solo_claims in connection.execute(_LEASE, values).all()
        ]

    def work(self, claims: Sequence[Claim], settle: Callable[[Batch], Settled]) -> tuple[Settled, Written]:
        """Lock the streams, check the tokens, load, decide, write, release: one transaction."""
        tokens = {claim.stream_id: claim.token for claim in claims}
        with self._database.engine() as connection:
            locked = connection.execute(_LOCK, {"ids": id_array(tokens)}).all()
            ours = [stream for stream, token in locked if token == tokens[stream]]
            if not ours:
                raise LeaseLost(f"Another worker holds all {len(tokens)} streams of this claim.")
            loaded = load_batch(connection, ours, self._can_fetch)
            settled = settle(loaded.batch)
            return settled, write_settled(connection, loaded, settled, ours)

    def rehearse(self, message_ids: Sequence[UUID], settle: Callable[[Batch], Settled]) -> Settled:
        """Decide in a copy; nothing is locked or written."""
        with self._database.engine() as connection:
            return settle(load_rehearsal(connection, message_ids, self._can_fetch).batch)

    def release(self, claims: Sequence[Claim]) -> None:
        """Give the leases back; ``unfinished`` stays, so that each stream is claimed alone next."""
        rows = record_set([{"id": claim.stream_id, "token": claim.token} for claim in claims])
        with self._database.engine() as connection:
            connection.execute(_RELEASE, {"rows": rows})


def _candidates(connection: Connection, shard: int, limit: int) -> list[UUID]:
    chosen, limit = _pending(connection, shard, limit, light=False)
    ids = dict.fromkeys(chosen)
    if len(ids) < limit:
        ready = connection.execute(_READY, {"shard": shard, "scan": limit - len(ids)}).scalars()
        ids.update(dict.fromkeys(ready))
    return list(ids)


def _pending(connection: Connection, shard: int, limit: int, *, light: bool) -> tuple[list[UUID], int]:
    """Streams with pending messages, in fair shares of their connections, and how large the batch may be.

    New streams get their row.
    """
    waiting = connection.execute(_PARTIES, {"shard": shard, "light": LIGHT_MESSAGES}).all()
    if len(waiting) > 1:
        limit = min(limit, SHARED_STREAMS)
    heavy = [row for row in waiting if row.number > LIGHT_MESSAGES]
    if light:
        waiting = [row for row in waiting if row.number <= LIGHT_MESSAGES]
    elif heavy:
        # Who has little goes by claims of its own: in one transaction with a flood it would wait for the flood's locks.
        waiting = heavy
    if not waiting:
        return [], limit
    shares = fair_shares(limit, {row.id: row.priority for row in waiting})
    parties = [row for row in waiting if row.id in shares]
    chosen: dict[UUID, bool] = {}
    for depth in (1, DEPTH_MAX):
        scans = [limit * depth if row.number > LIGHT_MESSAGES else LIGHT_MESSAGES for row in parties]
        values = {"shard": shard, "ids": id_array(row.id for row in parties), "scans": scans}
        rows = connection.execute(_PENDING, values).all()
        chosen = _choose(rows, [shares[row.id] for row in parties], limit)
        if len(chosen) >= limit or len(rows) < limit:
            break
    fresh = [stream for stream, is_fresh in chosen.items() if is_fresh]
    if fresh:
        connection.execute(_NEW_STREAMS, {"shard": shard, "ids": id_array(fresh)})
    return list(chosen), limit


def _choose(rows: Sequence[Any], shares: Sequence[int], limit: int) -> dict[UUID, bool]:
    """Stream → whether it is new, each connection up to its share; what some do not need goes to the others."""
    within: dict[UUID, bool] = {}
    beyond: dict[UUID, bool] = {}
    taken = [0] * len(shares)
    for stream, place, fresh in rows:
        if stream in within or stream in beyond:
            continue
        if taken[place - 1] < shares[place - 1]:
            taken[place - 1] += 1
            within[stream] = fresh
        else:
            beyond[stream] = fresh
    return dict(islice(chain(within.items(), beyond.items()), limit))
