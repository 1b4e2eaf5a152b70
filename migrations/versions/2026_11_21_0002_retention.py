"""Retention: messages and history in parts by time, and what drops them (docs/decisions/0025-retention.md).

The present tables become parts of the new ones as they are: no row is copied, none is rewritten. Everything that reads
a whole table happens under a lock that lets readers and writers through; the exchange itself changes the catalogue
only. Each step is a transaction of its own and can be repeated, so that a lock that is not to be had ends the attempt
and not the work.

Revision ID: 2026_11_21_0002
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "2026_11_21_0002"
down_revision = "2026_11_21_0006"
branch_labels = None
depends_on = None

MONTHS_AHEAD = 3

# The lock_timeout below is shorter than PostgreSQL's deadlock_timeout: whoever stands crosswise to us is never ended.

# A message lies in the part of the month in which it was settled; what is open, in a part of its own. What had been
# settled before there were parts stays with the open ones, so that the table can be attached as it is. A week is ample
# for the steps between here and there, and each attempt counts it anew: meanwhile nobody may settle into a part that
# does not exist yet.
_MESSAGE_BOUND = """
set local lock_timeout = '400ms';
lock table message in access exclusive mode;
alter table message drop constraint if exists message_unsettled_bound;
do $$
declare
    since timestamptz := case when exists (select from message) then date_trunc('day', now(), 'UTC') + interval '7 days'
                              else '-infinity' end;
begin
    execute format($f$
        create or replace function settled_on(state text, decided_at timestamptz) returns date
            language sql immutable parallel safe
            return case when state in ('applied', 'superseded', 'out_of_scope', 'discarded')
                             and decided_at >= timestamptz %L
                        then (decided_at at time zone 'UTC')::date else date 'infinity' end
    $f$, since::text);
end
$$;
alter table message add constraint message_unsettled_bound
    check (settled_on(state, decided_at) is not null and settled_on(state, decided_at) >= 'infinity'::date) not valid;
"""

_MESSAGE_EXCHANGE = """
set local lock_timeout = '400ms';
lock table message in access exclusive mode;
alter table message rename to message_unsettled;
create table message (like message_unsettled including defaults including constraints including storage)
    partition by range (settled_on(state, decided_at));
alter table message drop constraint message_unsettled_bound;
do $$
declare
    numbers bigint;
begin
    select last_value + is_called::int into numbers from message_seq_seq;
    alter table message_unsettled alter column seq drop identity;
    execute format('alter table message alter column seq add generated always as identity (start with %s)', numbers);
end
$$;
"""

_HISTORY_BOUND = """
set local lock_timeout = '400ms';
alter table history drop constraint if exists history_kept_bound;
alter table history add column if not exists period date not null default '-infinity',
    add constraint history_kept_bound check (period < '2000-01-01'::date) not valid;
"""

_HISTORY_EXCHANGE = """
set local lock_timeout = '400ms';
lock table stream in share row exclusive mode;
lock table history in access exclusive mode;
alter table history rename to history_kept;
create table history (like history_kept including defaults including constraints including storage)
    partition by range (period);
alter table history drop constraint history_kept_bound,
    alter column period set default date_trunc('year', now() at time zone 'UTC')::date;
do $$
declare
    numbers bigint;
begin
    select last_value + is_called::int into numbers from history_id_seq;
    alter table history_kept alter column id drop identity;
    execute format('alter table history alter column id add generated always as identity (start with %s)', numbers);
end
$$;
"""

# Its own rights, policies and indexes go to the parent; the part keeps its indexes and can be reached through the
# parent only.
_TAKE_OVER = """
select copy_protection('{part}', '{parent}');
do $$
declare
    one record;
begin
    for one in select a.grantee::regrole as grantee, string_agg(a.privilege_type, ', ') as privileges
               from pg_class c, aclexplode(c.relacl) a
               where c.oid = '{part}'::regclass and a.grantee not in (0, c.relowner) group by a.grantee
    loop
        execute format('grant %s on {parent} to %s', one.privileges, one.grantee);
        execute format('revoke all on {part} from %s', one.grantee);
    end loop;
    for one in select c.relname, pg_get_indexdef(c.oid) as definition
               from pg_index i join pg_class c on c.oid = i.indexrelid
               where i.indrelid = '{part}'::regclass and not i.indisunique
    loop
        execute format('alter index %I rename to %I', one.relname,
                       '{part}' || substr(one.relname, length('{parent}') + 1));
        execute replace(one.definition, ' ON public.{part} ', ' ON ONLY public.{parent} ');
    end loop;
end
$$;
alter index {parent}_pkey rename to {part}_pkey;
alter table {parent} attach partition {part} for values from ({from_day}) to ({to_day});
alter table {part} drop constraint {part}_bound;
create table {parent}_other (like {parent} including defaults including constraints including indexes);
alter table {parent}_other add primary key (id);
select copy_protection('{parent}', '{parent}_other');
alter table {parent} attach partition {parent}_other default;
select retention_provide({months});
"""

# The open part is a queue: rows come and go all day.
_QUEUE = """
alter table message_unsettled set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
                                   autovacuum_analyze_scale_factor = 0.05);
"""

_FOREIGN_KEY = "alter table history add foreign key (tenant_id, record_id) references stream (tenant_id, id);"


def upgrade() -> None:
    """Exchange both tables, then provide the parts of the coming months."""
    with op.get_context().autocommit_block():
        _run(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
        if not _is_partitioned("message"):
            _run(_MESSAGE_BOUND)
            # What the attaching would otherwise read the whole table for, under its lock.
            _run("alter table message validate constraint message_unsettled_bound")
            taken = _TAKE_OVER.format(
                parent="message",
                part="message_unsettled",
                from_day="'infinity'",
                to_day="maxvalue",
                months=MONTHS_AHEAD,
            )
            _run(_MESSAGE_EXCHANGE + taken + _QUEUE)
        if not _is_partitioned("history"):
            _run(_HISTORY_BOUND)
            _run("alter table history validate constraint history_kept_bound")
            taken = _TAKE_OVER.format(
                parent="history", part="history_kept", from_day="minvalue", to_day="'2000-01-01'", months=MONTHS_AHEAD
            )
            _run(_HISTORY_EXCHANGE + _FOREIGN_KEY + taken)


def _run(statements: str) -> None:
    """Several statements at once are one transaction."""
    op.get_bind().exec_driver_sql(statements.replace("%", "%%"))


def _is_partitioned(table: str) -> bool:
    found = op.get_bind().exec_driver_sql(f"select relkind from pg_class where oid = '{table}'::regclass")  # noqa: S608  constants only
    return found.scalar_one() == "p"


def downgrade() -> None:
    """Refuse: parts that were dropped do not come back."""
    raise RuntimeError("The retention of messages and history has no way back. Restore a backup instead.")
