-- An epoch is a stretch of transactions on one server, without a restart. Rows are listed in the order of their
-- transactions (change_xid); whether an older cursor still says something is read from the epochs since it was given.
-- moved: the transactions before it do not compare with those after it, because a backup was restored between them.
create table list_epoch (
    number bigint generated always as identity primary key,
    id uuid not null unique default gen_random_uuid(),
    place text not null,
    booted_at timestamptz not null,
    first_xid xid8 not null default pg_current_xact_id(),
    moved boolean not null,
    opened_at timestamptz not null default now()
);

-- After a restore the target's feed begins with our own writes from after the backup: read to its end, not judged.
alter table target add column feed_unjudged boolean not null default false;

-- Which copy of the data this is: another server, database, table or timeline means that it was restored here.
create function database_place() returns text language sql stable set search_path = public, pg_temp as $$
    select concat_ws('/', (select system_identifier from pg_control_system()),
        (select oid from pg_database where datname = current_database()), 'list_epoch'::regclass::oid,
        left(pg_walfile_name(pg_current_wal_lsn()), 8))
$$;

-- same: nothing new. opened: the server was restarted. settling: a backup was restored, and rows wait for another call.
-- restored: they are in order now. At most rows_max rows are written; with 0 a restore is only noticed.
create function open_list_epoch(rows_max integer) returns text
    language plpgsql security definer set search_path = public, pg_temp as $$
declare
    here text := database_place();
    booted timestamptz := pg_postmaster_start_time();
    last list_epoch;
    known boolean;
    written integer;
    listed text;
begin
    select * into last from list_epoch order by number desc limit 1;
    if last.place = here and last.booted_at = booted then
        return 'same';
    end if;
    perform pg_advisory_xact_lock(7205259406);
    select * into last from list_epoch order by number desc limit 1;
    known := found;
    if last.place = here and last.booted_at = booted then
        return 'same';
    elsif last.place = here then
        insert into list_epoch (place, booted_at, moved) values (here, booted, false);
        return 'opened';
    elsif rows_max = 0 then
        return 'settling';
    end if;
    -- Transactions of the server that the rows come from may lie ahead of ours: such rows take a place of now.
    foreach listed in array array['tenant', 'connection', 'account', 'subscription', 'history', 'message', 'run', 'drift',
                                  'contact', 'activity', 'audit'] loop
        execute replace(
            'update LISTED set change_xid = pg_current_xact_id() where change_xid > pg_current_xact_id() and ctid = any(
                array(select ctid from LISTED where change_xid > pg_current_xact_id() limit $1))', 'LISTED', listed)
            using rows_max;
        get diagnostics written = row_count;
        if written > 0 then
            return 'settling';
        end if;
    end loop;
    if known then
        -- What the target holds by now is not known. A bound record that was on its way may be behind what the target
        -- has since been told: it lets the sources speak first.
        update delivery set confirmed = null, intent = null, intent_key = null, lease_until = null,
                due_at = case when due_at is null then null else now() + interval '2 minutes' end,
                state = case when due_at is null then state else 'pending' end
            where record_id = any(array(
                select record_id from delivery
                where external_id is not null and (confirmed is not null or intent is not null or intent_key is not null)
                limit rows_max));
        get diagnostics written = row_count;
        if written > 0 then
            return 'settling';
        end if;
        update target set feed_unjudged = true, poll_lease_until = null, poll_due_at = now();
    end if;
    insert into list_epoch (place, booted_at, moved) values (here, booted, true);
    return case when known then 'restored' else 'opened' end;
end
$$;

-- For copies that look like the original: the data folder put back, a machine set back to a snapshot.
create function declare_restored() returns void
    language sql security definer set search_path = public, pg_temp as $$
    update list_epoch set place = 'declared' where number = (select max(number) from list_epoch)
$$;
