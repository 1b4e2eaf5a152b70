"""Streams in PostgreSQL: claims with lease and token, and the one transaction that loads, decides, writes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any
from uuid import UUID

from sqlalchemy import text

from bss_sync.adapters.sql.database import Database, driver
from bss_sync.adapters.sql.direct import Statements
from bss_sync.adapters.sql.records import id_array, record_set
from bss_sync.adapters.sql.streams_load import NEW_STREAM, load_batch, load_rehearsal
from bss_sync.adapters.sql.streams_write import write_settled
from bss_sync.domain.errors import LeaseLost
from bss_sync.domain.fairness import fair_shares
from bss_sync.ports.streams import SHARED_STREAMS, Batch, Claim, LittleWork, Settled, Written

LEASE_SECONDS = 30.0
LIGHT_MESSAGES = 64
"""A connection with no more pending than this is light: its messages need not wait for the batches of others."""
DEPTH_MAX = 4
"""Pending messages looked at for each stream of a batch, where several share a stream."""
SMALL_STREAMS = 32
"""A batch of so few streams is carried out by plans that are kept."""
SOLO_CLAIMS_MAX = 3
"""Claims made alone that may end without a verdict before the stream's messages are quarantined."""

_NEVER = sys.maxsize
"""Nothing is carried out so often that the driver would keep its plan of its own accord."""

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
# What another claim has is passed over: it is a few hundred ids, hashed once for each statement.
_CLAIMED = "(select unnest(k.streams) from claim k where k.shard = :shard)"
_PENDING = text(f"""
    select p.id, q.place, p.token from unnest(cast(:ids as uuid[]), cast(:scans as int[]))
        with ordinality as q (connection_id, scan, place)
    cross join lateral (
        select m.stream_id as id, s.token, m.seq
        from message m left join stream s on s.id = m.stream_id
        where m.state = 'pending' and m.shard = :shard and m.connection_id = q.connection_id
          and settled_on(m.state, m.decided_at) = 'infinity'
          and (s.id is null or (s.unfinished = 0 and {_FREE}))
          and m.stream_id not in {_CLAIMED}
        order by m.seq limit q.scan) p
    order by p.seq""")  # noqa: S608  constants only
_READY = text(f"""
    select s.id, s.token from stream s join connection c on c.id = s.connection_id and c.state in ('shadow', 'live')
    where s.shard = :shard and s.ready_at <= now() and s.unfinished = 0 and {_FREE} and s.id not in {_CLAIMED}
    order by s.ready_at limit :scan""")  # noqa: S608  constants only
# One claimer of a shard at a time, for as long as it takes to choose: none can choose what another is choosing.
_TURNS = text("""
    select pg_advisory_xact_lock(:key, t.shard) from (
        select shard from unnest(cast(:shards as int[])) with ordinality as given (shard, place) order by place) t""")
TURN_KEY = 7_205_259
# A few messages of many connections, of each its part, in the order in which they came; before them what was woken,
# where that is few; and which of the shards have work besides. What a party has pending is read once: all, if it is
# little.
_LITTLE = text(f"""
    with asked as materialized (select shard::smallint from unnest(cast(:shards as int[])) as a (shard)
    ), party as materialized (
        select c.shard, c.id, w.number, w.streams, w.seqs from asked a join connection c on c.shard = a.shard
        cross join lateral (
            select count(*) as number, array_agg(stream_id) as streams, array_agg(seq) as seqs from (
                select m.stream_id, m.seq from message m
                where m.state = 'pending' and m.shard = c.shard and m.connection_id = c.id
                  and settled_on(m.state, m.decided_at) = 'infinity'
                order by m.seq limit :light + 1) m) w
        where c.state in ('shadow', 'live') and w.number > 0
    ), taken as materialized (
        select unnest(k.streams) as id from claim k where k.shard in (select shard from asked)
    ), woken as materialized (
        select a.shard, s.id, s.token, count(*) over (partition by a.shard) as number
        from asked a cross join lateral (
            select s.id, s.token from stream s join connection c on c.id = s.connection_id
            where s.shard = a.shard and s.ready_at <= now() and s.unfinished = 0 and {_FREE}
              and c.state in ('shadow', 'live')
              and not exists (select from party p where p.id = s.connection_id and p.number > :light)
              and s.id not in (select id from taken)
            order by s.ready_at limit :light + 1) s
    ), chosen as materialized (
        select id, shard, token from (
            select distinct on (f.id) f.* from (
                select f.* from party p cross join lateral (
                    select m.stream_id as id, p.shard, coalesce(s.token, {NEW_STREAM}) as token, m.seq
                    from unnest(p.streams, p.seqs) as m (stream_id, seq) left join stream s on s.id = m.stream_id
                    where (s.id is null or (s.unfinished = 0 and {_FREE}))
                      and m.stream_id not in (select id from taken)
                    order by m.seq limit (select least(:light, 2 * :limit / count(*) + 1) from party)) f
                where p.number <= :light
                union all select id, shard, token, 0 from woken where number <= :light) f
            order by f.id, f.seq) f
        order by f.seq limit :limit
    ), claimed as (
        insert into claim (shard, streams, lease_until)
        select shard, array_agg(id), now() + make_interval(secs => :lease) from chosen group by shard
        returning id, shard
    ), listed as (
        select array_agg(c.id order by k.id) as streams, array_agg(c.token order by k.id) as tokens,
               array_agg(k.id order by k.id) as batches
        from chosen c join claimed k on k.shard = c.shard)
    select coalesce(streams, '{{}}') as streams, coalesce(tokens, '{{}}') as tokens,
           coalesce(batches, '{{}}') as batches, array(
        select a.shard::int from asked a
        where exists (select from party p where p.shard = a.shard and p.number > :light)
           or exists (select from woken w where w.shard = a.shard and w.number > :light)
           or exists (select from claim k where k.shard = a.shard and k.lease_until < now())
           or exists (select from stream s where s.shard = a.shard and s.unfinished > 0 and {_FREE})
    ) as behind from listed""")  # noqa: S608  constants only
_CLAIM = text("""
    insert into claim (shard, streams, lease_until)
    values (:shard, cast(:ids as uuid[]), now() + make_interval(secs => :lease)) returning id""")
_LOST = text("""
    delete from claim where id = (select id from claim where shard = :shard and lease_until < now()
                                  order by lease_until limit 1 for update skip locked) returning streams""")
_END_CLAIM = text("delete from claim where id = any(:ids) returning streams")
# A claim without a verdict: its streams go alone next, whoever had it is fenced; what was new gets its row for that.
_NEW_STREAMS = text("""
    insert into stream (id, tenant_id, connection_id, shard, kind, source_id)
    select distinct on (m.stream_id) m.stream_id, m.tenant_id, m.connection_id, m.shard, m.kind, m.source_id
    from message m where m.stream_id = any(cast(:ids as uuid[])) and m.state = 'pending' and m.shard is not null
        and settled_on(m.state, m.decided_at) = 'infinity'
    order by m.stream_id on conflict do nothing""")
_NO_VERDICT = text("""
    update stream s set token = s.token + 1, unfinished = s.unfinished + 1
    from (select id from stream where id = any(cast(:ids as uuid[])) order by id for no key update) ours
    where s.id = ours.id""")
_LEASE = text(f"""
    update stream t set lease_until = now() + make_interval(secs => :lease), token = t.token + 1,
        -- A wake-up outlives the claim that took it along: it is due again when the lease has run out.
        ready_at = case when t.ready_at is not null then now() + make_interval(secs => :lease) end,
        unfinished = t.unfinished + 1, solo_claims = t.solo_claims + :alone
    from (select s.id, s.solo_claims from stream s where s.id = any(cast(:ids as uuid[])) and {_FREE} order by s.id
          for no key update skip locked) free
    where t.id = free.id returning t.id, t.token, free.solo_claims""")  # noqa: S608  constants only
_PLANS = text("""
    select array[set_config('plan_cache_mode', 'auto', true), set_config('enable_seqscan', 'off', true),
                 set_config('jit', 'off', true)]""")
_GENERIC_PLANS = text("""
    select array[set_config('plan_cache_mode', case when reltuples > 1000 then 'force_generic_plan'
                                                    else 'force_custom_plan' end, true),
                 set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
                 set_config('enable_mergejoin', 'off', true)]
    from pg_class where oid = 'stream'::regclass""")
_RELEASE = text("""
    update stream s set lease_until = null,
        ready_at = case when s.ready_at = s.lease_until then now() else s.ready_at end
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, token bigint)
    where s.id = r.id and s.token = r.token""")


class SqlStreams:
    """``ports.streams.StreamStore`` over PostgreSQL. ``can_fetch`` tells whether a connector (by name) can fetch.

    A batch is claimed by one row of ``claim``, which its own transaction takes away again: nothing is written to a
    stream that its decision does not change. A stream claimed alone is leased in its own row, where its claims are
    counted (docs/decisions/0032-a-batch-is-one-claim.md).
    """

    def __init__(
        self, database: Database, can_fetch: Callable[[str], bool], *, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._database = database
        self._can_fetch = can_fetch
        self._lease_seconds = lease_seconds

    def claim_little(self, shards: Sequence[int], limit: int) -> LittleWork:
        """Lease what is pending of connections that have little, in all of these shards."""
        values = {"shards": sorted(shards), "light": LIGHT_MESSAGES, "limit": limit, "lease": self._lease_seconds}
        with self._database.line(gives_way=False) as connection, planned_beforehand(connection):
            connection.execute(_TURNS, {"key": TURN_KEY, "shards": values["shards"]})
            answer = connection.execute(_LITTLE, values)
        row = answer.one()
        claimed = zip(row.streams, row.tokens, row.batches, strict=True)
        claims = [Claim(stream, token, killer=False, batch=batch) for stream, token, batch in claimed]
        return LittleWork(claims, frozenset(row.behind))

    def claim(self, shard: int, limit: int) -> list[Claim]:
        """Lease streams that have work; one alone when its last claim ended without a verdict."""
        with self._database.line(gives_way=False) as connection:
            connection.execute(_TURNS, {"key": TURN_KEY, "shards": [shard]})
            lost = connection.execute(_LOST, {"shard": shard}).scalar_one_or_none()
            if lost is not None:
                _give_up(connection, lost)
            unfinished = connection.execute(_UNFINISHED, {"shard": shard}).scalar_one_or_none()
            if unfinished is not None:
                return self._lease(connection, [unfinished], alone=True)
            return self._claim(connection, shard, _candidates(connection, shard, limit))

    def _claim(self, connection: Statements, shard: int, tokens: Mapping[UUID, int | None]) -> list[Claim]:
        if not tokens:
            return []
        values = {"shard": shard, "ids": id_array(tokens), "lease": self._lease_seconds}
        batch = connection.execute(_CLAIM, values).scalar_one()
        return [
            Claim(stream, NEW_STREAM if token is None else token, killer=False, batch=batch)
            for stream, token in tokens.items()
        ]

    def _lease(self, connection: Statements, ids: list[UUID], *, alone: bool) -> list[Claim]:
        values = {"ids": id_array(ids), "lease": self._lease_seconds, "alone": 1 if alone else 0}
        return [
            Claim(stream, token, killer=solo_claims >= SOLO_CLAIMS_MAX, alone=alone, again=solo_claims > 0)
            for stream, token, solo_claims in connection.execute(_LEASE, values).all()
        ]

    def work(self, claims: Sequence[Claim], settle: Callable[[Batch], Settled]) -> tuple[Settled, Written]:
        """Lock the streams, check the tokens, load, decide, write, release: one transaction."""
        try:
            planned = planned_beforehand if len(claims) <= SMALL_STREAMS else planned_once
            with self._database.line() as connection, planned(connection):
                return self._work(connection, claims, settle)
        except LeaseLost:
            self._forget(claims)
            raise

    def _work(
        self, connection: Statements, claims: Sequence[Claim], settle: Callable[[Batch], Settled]
    ) -> tuple[Settled, Written]:
        connection.execute(_END_CLAIM, {"ids": _batches(claims)})
        loaded = load_batch(connection, {claim.stream_id: claim.token for claim in claims}, self._can_fetch)
        if not loaded.before:
            raise LeaseLost(f"All {len(claims)} streams of this claim are another worker's by now.")
        settled = settle(loaded.batch)
        return settled, write_settled(connection, loaded, settled, list(loaded.before))

    def _forget(self, claims: Sequence[Claim]) -> None:
        """Of a claim that came too late for everything nothing is left: what is open is claimed as ever."""
        if batches := _batches(claims):
            with self._database.line() as connection:
                connection.execute(_END_CLAIM, {"ids": batches})

    def rehearse(self, message_ids: Sequence[UUID], settle: Callable[[Batch], Settled]) -> Settled:
        """Decide in a copy; nothing is locked or written."""
        with self._database.line() as connection:
            return settle(load_rehearsal(connection, message_ids, self._can_fetch).batch)

    def release(self, claims: Sequence[Claim]) -> None:
        """Give the leases back; ``unfinished`` stays, so that each stream is claimed alone next."""
        batches = _batches(claims)
        with self._database.line() as connection:
            if batches:
                for streams in connection.execute(_END_CLAIM, {"ids": batches}).scalars().all():
                    _give_up(connection, streams)
            else:
                rows = record_set([{"id": claim.stream_id, "token": claim.token} for claim in claims])
                connection.execute(_RELEASE, {"rows": rows})


@contextmanager
def planned_once(connection: Statements) -> Iterator[None]:
    """Every statement of this transaction is planned for its own values; what PostgreSQL asks itself for the foreign
    keys of each row, once for the session: planning these anew took half as long as all the writing.

    No such plan reads a whole table, so that one that was made while a table was empty is good for a full one too.
    """
    raw = driver(connection)
    # Not None: with it the driver keeps no plan at all, also not of a statement that asks for it (PLANNED_ONCE).
    threshold, raw.prepare_threshold = raw.prepare_threshold, _NEVER
    try:
        connection.execute(_PLANS)
        yield
    finally:
        raw.prepare_threshold = threshold


@contextmanager
def planned_beforehand(connection: Statements) -> Iterator[None]:
    """Every statement of this transaction is planned once for the session, for whatever values: for a few rows planning
    takes longer than carrying out.

    Such a plan follows indexes from row to row, and is not made while the tables are nearly empty: which index is the
    right one cannot be seen then.
    """
    raw = driver(connection)
    threshold, raw.prepare_threshold = raw.prepare_threshold, 0
    try:
        connection.execute(_GENERIC_PLANS)
        yield
    finally:
        raw.prepare_threshold = threshold


def _batches(claims: Sequence[Claim]) -> list[UUID]:
    """The rows of ``claim`` by which these were claimed; none where a stream was leased alone."""
    return list({claim.batch for claim in claims if claim.batch is not None})


def _give_up(connection: Statements, streams: Sequence[UUID]) -> None:
    values = {"ids": id_array(streams)}
    connection.execute(_NEW_STREAMS, values)
    connection.execute(_NO_VERDICT, values)


def _candidates(connection: Statements, shard: int, limit: int) -> dict[UUID, int | None]:
    chosen, limit = _pending(connection, shard, limit)
    if len(chosen) < limit:
        for stream, token in connection.execute(_READY, {"shard": shard, "scan": limit - len(chosen)}).all():
            chosen.setdefault(stream, token)
    return chosen


def _pending(connection: Statements, shard: int, limit: int) -> tuple[dict[UUID, int | None], int]:
    """Streams with pending messages and their tokens (None: new), in fair shares; and how large the batch may be."""
    waiting = connection.execute(_PARTIES, {"shard": shard, "light": LIGHT_MESSAGES}).all()
    if len(waiting) > 1:
        limit = min(limit, SHARED_STREAMS)
    heavy = [row for row in waiting if row.number > LIGHT_MESSAGES]
    if heavy:
        # Who has little goes by claims of its own: in one transaction with a flood it would wait for the flood's locks.
        waiting = heavy
    if not waiting:
        return {}, limit
    shares = fair_shares(limit, {row.id: row.priority for row in waiting})
    parties = [row for row in waiting if row.id in shares]
    chosen: dict[UUID, int | None] = {}
    for depth in (1, DEPTH_MAX):
        scans = [limit * depth if row.number > LIGHT_MESSAGES else LIGHT_MESSAGES for row in parties]
        values = {"shard": shard, "ids": id_array(row.id for row in parties), "scans": scans}
        rows = connection.execute(_PENDING, values).all()
        chosen = _choose(rows, [shares[row.id] for row in parties], limit)
        if len(chosen) >= limit or len(rows) < limit:
            break
    return chosen, limit


def _choose(rows: Sequence[Any], shares: Sequence[int], limit: int) -> dict[UUID, int | None]:
    """Stream → its token, each connection up to its share; what some do not need goes to the others."""
    within: dict[UUID, int | None] = {}
    beyond: dict[UUID, int | None] = {}
    taken = [0] * len(shares)
    for stream, place, token in rows:
        if stream in within or stream in beyond:
            continue
        if taken[place - 1] < shares[place - 1]:
            taken[place - 1] += 1
            within[stream] = token
        else:
            beyond[stream] = token
    return dict(islice(chain(within.items(), beyond.items()), limit))
