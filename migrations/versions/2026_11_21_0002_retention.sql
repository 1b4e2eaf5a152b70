-- What the owner of the tables does for retention. Working roles own nothing: they may call provide and drop, no more.

-- What was dropped, so that a message or a row of history that is asked for later can be said to be gone by policy.
create table if not exists retention (
    part text primary key,
    parent text not null check (parent in ('message', 'history')),
    before_day date not null,
    row_number bigint not null,
    byte_number bigint not null,
    dropped_at timestamptz not null default now()
);
grant select on retention to bss_sync_engine, bss_sync_api;

create or replace function copy_protection(source regclass, target regclass) returns void
    language plpgsql set search_path = public, pg_temp as $$
declare
    one record;
begin
    execute format('alter table %s enable row level security, force row level security', target);
    for one in
        select p.polname, p.polcmd, p.polpermissive, pg_get_expr(p.polqual, p.polrelid) as qual,
               pg_get_expr(p.polwithcheck, p.polrelid) as checked,
               (select string_agg(quote_ident(r.rolname), ', ') from pg_roles r where r.oid = any (p.polroles)) as roles
        from pg_policy p where p.polrelid = source
          and not exists (select from pg_policy t where t.polrelid = target and t.polname = p.polname)
    loop
        execute format('create policy %I on %s as %s for %s to %s', one.polname, target,
            case when one.polpermissive then 'permissive' else 'restrictive' end,
            case one.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete'
                else 'all' end,
            one.roles) || coalesce(format(' using (%s)', one.qual), '')
            || coalesce(format(' with check (%s)', one.checked), '');
    end loop;
end
$$;

-- The parts of a partitioned table by time: from_day inclusive, to_day exclusive; the safety net has neither.
create or replace function retention_parts(wanted text)
    returns table (part text, from_day date, to_day date, byte_number bigint)
    language sql stable set search_path = public, pg_temp as $$
    select c.relname::text,
           cast(substring(b.bound from $b$FROM \('([0-9-]+)'\)$b$) as date),
           cast(substring(b.bound from $b$TO \('([0-9-]+)'\)$b$) as date),
           pg_total_relation_size(c.oid)
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    cross join lateral (select pg_get_expr(c.relpartbound, c.oid) as bound) b
    where i.inhparent = cast(wanted as regclass)
$$;

-- Make one part: as a table of its own, then attached, which takes no lock that readers or writers of the other parts
-- wait for. Rows that the safety net took in the meantime move along.
create or replace function retention_make(parent text, part text, from_day date, to_day date) returns void
    language plpgsql set search_path = public, pg_temp as $$
declare
    place text := case parent when 'message' then 'settled_on(state, decided_at)' else 'period' end;
begin
    execute format('create table %I (like %I including defaults including constraints including indexes)', part, parent);
    execute format('alter table %I add primary key (id)', part);
    perform copy_protection(cast(parent as regclass), cast(part as regclass));
    execute format('with moved as (delete from %I where %s >= %L and %s < %L returning *) insert into %I select * from moved',
        parent || '_other', place, from_day, place, to_day, part);
    execute format('alter table %I attach partition %I for values from (%L) to (%L)', parent, part, from_day, to_day);
end
$$;

-- The months of messages and the years of history that are to come. Returns what was made; gives up for now, with what
-- it has, when a lock is not to be had at once.
create or replace function retention_provide(months integer) returns setof text
    language plpgsql security definer set search_path = public, pg_temp set lock_timeout = '100ms' as $$
declare
    today date := (now() at time zone 'UTC')::date;
    one record;
begin
    for one in
        select * from (
            select 'message' as parent, 'message_settled_' || to_char(m.day, 'YYYY_MM') as part, m.day::date as from_day,
                   (m.day + interval '1 month')::date as to_day
            from generate_series(date_trunc('month', today::timestamp),
                                 date_trunc('month', today::timestamp) + make_interval(months => months),
                                 interval '1 month') m (day)
            union all
            select 'history', 'history_' || to_char(y.day, 'YYYY'), y.day::date, (y.day + interval '1 year')::date
            from generate_series(date_trunc('year', today::timestamp),
                                 date_trunc('year', today::timestamp + make_interval(months => months)),
                                 interval '1 year') y (day)) w
        where to_regclass(w.part) is null
          and exists (select from pg_class c where c.oid = cast(w.parent as regclass) and c.relkind = 'p')
        order by w.parent, w.from_day
    loop
        begin
            if one.from_day <= today then
                -- Rows of this part may be on their way into the safety net: nobody writes meanwhile.
                execute format('lock table %I in access exclusive mode', one.parent);
            end if;
            perform retention_make(one.parent, one.part, one.from_day, one.to_day);
            return next one.part;
        exception when lock_not_available or duplicate_table then
            return;
        end;
    end loop;
end
$$;

-- Drop one part that lies wholly in the past. The rows in it are the caller's to have carried. Null when its lock is not
-- to be had at once: nobody waits longer than that for us.
create or replace function retention_drop(wanted text) returns bigint
    language plpgsql security definer set search_path = public, pg_temp set lock_timeout = '100ms' as $$
declare
    one record;
    number bigint;
begin
    select p.*, parent into one from unnest(array['message', 'history']) parent, retention_parts(parent) p
        where p.part = wanted and p.from_day > '2000-01-01';
    if one.part is null or one.to_day > (now() at time zone 'UTC')::date - 31 then
        raise exception '% is no part that may be dropped', wanted using errcode = 'object_not_in_prerequisite_state';
    end if;
    begin
        execute format('select count(*) from %I', one.part) into number;
        execute format('drop table %I', one.part);
    exception when lock_not_available then
        return null;
    end;
    insert into retention (part, parent, before_day, row_number, byte_number)
        values (one.part, one.parent, one.to_day, number, one.byte_number)
        on conflict (part) do update set row_number = retention.row_number + excluded.row_number, dropped_at = now();
    return number;
end
$$;

-- Nobody else gathers statistics over all parts of a table.
create or replace function retention_analyze() returns void
    language plpgsql security definer set search_path = public, pg_temp set lock_timeout = '100ms' as $$
begin
    analyze message;
    analyze history;
exception when lock_not_available then
    return;
end
$$;

revoke execute on function copy_protection(regclass, regclass), retention_make(text, text, date, date),
    retention_provide(integer), retention_drop(text), retention_analyze() from public;
grant execute on function retention_provide(integer), retention_drop(text), retention_analyze() to bss_sync_engine;
