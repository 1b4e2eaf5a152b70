"""What a comparison asks PostgreSQL (adapters/sql/listing.py). Constants only; ``{…}`` is filled in with constants."""

# ruff: noqa: S608  nothing that anybody sends stands in these

from __future__ import annotations

from sqlalchemy import text

from bss_sync.adapters.sql.level_pages import KEEP, STRETCHES
from bss_sync.adapters.sql.ranges import name_of_text, sums
from bss_sync.adapters.sql.shown_columns import KEPT
from bss_sync.domain.change import Kind
from bss_sync.ports.connector import RangeForm

SESSION = (
    text("create temporary table if not exists seen_id (id uuid primary key) on commit preserve rows"),
    text("create temporary table if not exists inside_id (id uuid primary key) on commit preserve rows"),
    text(
        """create temporary table if not exists absent_id (kind text, id uuid, primary key (kind, id))
           on commit preserve rows"""
    ),
    text("create temporary table if not exists bent_id (id uuid primary key) on commit preserve rows"),
    text("truncate seen_id, inside_id, absent_id, bent_id"),
    text("set synchronous_commit = off"),
)
# What the record keeps as the source's last word is what is listed, and its columns show that: that is all.
LEVEL = """s.version = r.version and (l.version is null or s.version = l.version)
                and r.deleted_at is null and r.ended_at is null and not s.deleted
                and r.source = l.content
                and {columns}"""
# The limit keeps PostgreSQL at two index look-ups for each listed id, however large the tables are.
ONE_BY_ONE = f"""
    held as materialized (
        select l.place, found.id, found.level from listed l left join lateral (
            select r.id, {LEVEL} as level
            from {{table}} r join stream s on s.id = r.id
            where r.connection_id = :connection and r.source_id = l.source_id limit 1) found on true)"""
# A listing in the order of its ids: each page is a stretch of the mirror, which is read in one go.
STRETCH = f"""
    {STRETCHES},
    held as materialized (
        select l.place, r.id, {LEVEL} as level
        from listed l left join r on r.source_id = l.source_id left join s on s.id = r.id)"""
UNLIKE = """
    with listed as materialized (
        select * from rows from (unnest(cast(:names as text[])), unnest(cast(:versions as bigint[])),
                                 jsonb_array_elements(cast(:contents as jsonb))) with ordinality
            as l (source_id, version, content, place)),
    {held},
    noted as (
        insert into run_seen (run_id, tenant_id, connection_id, ids)
        select :run, c.tenant_id, c.id, array_agg(held.id) from connection c, held
        where c.id = :connection and held.id is not null group by c.id){kept}
    select place from held where level is not true"""
FILL_INSIDE = text(
    """with recursive below as (
           select id from account where connection_id = :connection and source_id = :source_id
           union select a.id from account a join below b on a.parent_id = b.id),
       held as (
           select s.id from subscription s join below b on s.account_id = b.id
           union select s.id from subscription s join held h on s.parent_id = h.id)
       insert into inside_id select id from below union select id from held"""
)
INSIDE = text("select id from inside_id where id = any(:ids)")
ASTRAY = """
    {held} where r.connection_id = :connection and r.updated_at < :started and r.id > :after and not ({columns})
    order by r.id limit :chunk"""
NOTE = text(
    """insert into run_seen (run_id, tenant_id, connection_id, ids)
       select :run, tenant_id, id, cast(:ids as uuid[]) from connection where id = :connection"""
)
FORGET = text("delete from run_seen where run_id = :run")


# Of one entity, as ``ports.reconciliation.Undecided``.
UNDECIDED = """
    (select jsonb_build_array(m.version, m.body, m.state = 'dead') from message m
     where m.stream_id = {stream}.id and m.action = 'state' and m.state in ('pending', 'waiting', 'quarantined', 'dead')
       and settled_on(m.state, m.decided_at) = 'infinity'
     order by m.version desc nulls last, m.seq desc limit 1) as undecided"""
HELD = f"""
    select r.*, s.version as known_version, s.digest, s.deleted as known_deleted,
           exists (select 1 from message m where m.stream_id = r.id and m.state in ('pending', 'waiting')
               and settled_on(m.state, m.decided_at) = 'infinity') as waiting,
           r.updated_at >= :started as changed,
           array(select t.field from takeover t where t.record_id = r.id and t.released_at is null) as taken,
           exists (select 1 from message m where m.stream_id = r.id and m.state in ('quarantined', 'dead')
               and settled_on(m.state, m.decided_at) = 'infinity') as stopped,
           {UNDECIDED.format(stream="r")}
    from {{table}} r join stream s on s.id = r.id"""
UNLIKE_ONE_BY_ONE = {
    kind: text(UNLIKE.format(held=ONE_BY_ONE.format(table=kind, columns=KEPT[kind]), kept="")) for kind in Kind
}
UNLIKE_IN_STRETCH = {
    (kind, kept): text(
        UNLIKE.format(held=STRETCH.format(table=kind, columns=KEPT[kind]), kept=KEEP.format(kind=kind) if kept else "")
    )
    for kind in Kind
    for kept in (True, False)
}
STREAMS = text(
    f"""select s.*, exists (select 1 from message m where m.stream_id = s.id and m.state in ('quarantined', 'dead')
                  and settled_on(m.state, m.decided_at) = 'infinity')
              as stopped,
              exists (select 1 from message m where m.stream_id = s.id and m.state in ('pending', 'waiting')
                  and settled_on(m.state, m.decided_at) = 'infinity')
              as waiting,
              exists (select 1 from message m where m.stream_id = s.id and m.received_at >= :started) as changed,
              exists (select 1 from history h where h.record_id = s.id) as once_mirrored,
              {UNDECIDED.format(stream="s")}
       from stream s where s.id = any(:ids)"""
)
# One pass over the mirror, hashed: the planner thinks of each page's row as a few ids.
HASHED = (
    text("set local jit = off"),
    text("set local enable_nestloop = off"),
    text("set local work_mem = '64MB'"),
)
FIND_ABSENT = """
    with seen as materialized (select unnest(ids) as id from run_seen where run_id = :run)
    insert into absent_id select '{kind}', r.id from {kind} r
    where r.connection_id = :connection and r.deleted_at is null and r.ended_at is null and r.updated_at < :started
      and {narrowed} and not exists (select 1 from seen x where x.id = r.id)"""
ABSENT = """
    {held} join absent_id x on x.kind = '{kind}' and x.id = r.id
    where x.id > :after and r.deleted_at is null and r.ended_at is null and r.updated_at < :started
    order by x.id limit :chunk"""
END = text(
    """insert into run_end (run_id, tenant_id, connection_id, record_id, kind, source_id, version, changed_at,
           effective_at, passed)
       select :run, c.tenant_id, c.id, e.record_id, e.kind, e.source_id, e.version, e.changed_at, e.effective_at,
              coalesce(e.passed, '{}')
       from jsonb_to_recordset(cast(:rows as jsonb)) as e (record_id uuid, kind text, source_id text, version bigint,
           changed_at timestamptz, effective_at timestamptz, passed text[])
       join connection c on c.id = :connection
       on conflict (run_id, record_id) do update set version = excluded.version, changed_at = excluded.changed_at,
           effective_at = excluded.effective_at, passed = excluded.passed"""
)
ENDS_COUNT = text("select count(*) from run_end where run_id = :run")
# Subscriptions end before the accounts that hold them.
ENDS = text(
    """select * from run_end where run_id = :run and kind = :kind and record_id > :after
       order by record_id limit :chunk"""
)
# Along the index: for a few ranges the whole mirror is not read.
FILL_RANGES = text(
    """insert into inside_id
       select r.id from unnest(cast(:ranges as text[])) as n (name)
       cross join lateral (
           select a.id from account a where a.connection_id = :connection
             and a.source_id >= n.name collate "C" and a.source_id < n.name || 'g' collate "C"
           union all select s.id from subscription s where s.connection_id = :connection
             and s.source_id >= n.name collate "C" and s.source_id < n.name || 'g' collate "C") r"""
)
INSIDE_RANGES = "r.id = any(array(select id from inside_id))"
RANGES = {
    form: text(
        f"""select {name_of_text("s.source_id")} as range, count(*) as number,
                   {sums("s.source_id", "s.version", "s.deleted", form)} as sums
            from stream s where s.connection_id = :connection and s.version is not null group by 1"""
    )
    for form in RangeForm
}
LIVE = text(
    """select (select count(*) from account where connection_id = :connection and deleted_at is null
                 and ended_at is null)
            + (select count(*) from subscription where connection_id = :connection and deleted_at is null
                 and ended_at is null)"""
)
HELD_BENT = HELD.replace("select r.*,", "select r.*, p.source_id as linked_to,", 1)
UNLINKED = """
    {held} join {relative} p on p.connection_id = r.connection_id and p.source_id = r.{column}_source_id
    where r.connection_id = :connection and r.{column}_id is null
      and r.{column}_source_id is not null and r.deleted_at is null and r.ended_at is null
      and r.updated_at < :started and r.id > :after and {narrowed} order by r.id limit :chunk"""
_BENT = """join {relative} p on p.id = r.{column}_id
    where r.connection_id = :connection and r.deleted_at is null and r.ended_at is null and r.updated_at < :started
      and (p.source_id is distinct from r.{column}_source_id or p.connection_id <> r.connection_id) and {narrowed}"""
FIND_BENT = f"insert into bent_id select r.id from {{table}} r {_BENT}"
BENT = f"{{held}} {_BENT} and r.id in (select id from bent_id) and r.id > :after order by r.id limit :chunk"
LINKS = (
    (Kind.ACCOUNT, "account", "parent"),
    (Kind.SUBSCRIPTION, "account", "account"),
    (Kind.SUBSCRIPTION, "subscription", "parent"),
)
