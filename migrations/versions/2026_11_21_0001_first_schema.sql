-- The first schema of bss_sync. Every table that holds a tenant's data has tenant_id, forced row-level security
-- (added by the migration for every such table) and composite keys that carry the tenant.

create table instance (
    only_row boolean primary key default true check (only_row),
    id uuid not null default gen_random_uuid(),
    distributor_id uuid not null,
    time_zone text not null default 'UTC',
    currency text not null default 'EUR',
    created_at timestamptz not null default now()
);

create table tenant (
    id uuid primary key,
    name text not null unique,
    display_name text not null,
    kind text not null check (kind in ('distributor', 'reseller')),
    revision bigint not null default 1,
    created_at timestamptz not null default now(),
    change_xid xid8 not null default pg_current_xact_id()
);
create unique index tenant_one_distributor on tenant (kind) where kind = 'distributor';

-- One reseller's BSS, connected. revision grows with every change of the row or of its secrets.
create table connection (
    id uuid primary key,
    tenant_id uuid not null references tenant (id),
    name text not null unique,
    connector text not null,
    state text not null default 'draft'
        check (state in ('draft', 'checking', 'paused', 'shadow', 'live', 'closed')),
    settings jsonb not null default '{}',
    order_kind text check (order_kind in ('sequence', 'timestamp', 'observed')),
    revision bigint not null default 1,
    shard smallint not null,
    -- Its weight where connections share a batch.
    priority smallint not null default 5 check (priority between 1 and 10),
    poll_cursor text,
    poll_due_at timestamptz,
    poll_lease_until timestamptz,
    poll_failures integer not null default 0,
    poll_error text,
    last_received_at timestamptz,
    silent_since timestamptz,
    paused_from text,
    -- Since when the next tier above may see it: a mirror that was never live is nobody else's.
    live_since timestamptz,
    closed_on date,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    change_xid xid8 not null default pg_current_xact_id(),
    unique (tenant_id, id)
);

-- Secrets of connections and of the target, encrypted; owner_id is the connection's id or the target's tenant.
create table secret (
    id uuid primary key,
    tenant_id uuid not null references tenant (id),
    owner_id uuid not null,
    name text not null,
    scheme text not null check (scheme in ('v1', 'v1a', 'opaque')),
    nonce bytea not null,
    ciphertext bytea not null,
    key_id text not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
create index secret_owner on secret (owner_id, name);

-- API tokens. Only the SHA-256 of the token is kept. tenant_id is null for the distributor's people.
create table api_token (
    id uuid primary key,
    name text not null,
    role text not null check (role in ('admin', 'operator', 'auditor', 'chain', 'reseller')),
    tenant_id uuid references tenant (id),
    connection_id uuid references connection (id),
    digest bytea not null unique,
    created_at timestamptz not null default now(),
    revoked_at timestamptz,
    check ((role = 'reseller') = (tenant_id is not null))
);

-- The distributor's own BSS; no row: the mirror is it.
create table target (
    only_row boolean primary key default true check (only_row),
    connector text not null,
    settings jsonb not null default '{}',
    drift_policy text not null default 'repair' check (drift_policy in ('repair', 'report')),
    poll_seconds double precision not null default 60,
    poll_cursor text,
    poll_due_at timestamptz not null default now(),
    poll_lease_until timestamptz,
    poll_error text,
    updated_at timestamptz not null default now()
);

-- Whether a remote may be called now, and how many retries are affordable. owner_id is the connection's id (its source)
-- or the target's tenant. No row: closed.
create table breaker (
    owner_id uuid primary key,
    tenant_id uuid not null references tenant (id),
    connection_id uuid,
    failures integer not null default 0,
    openings integer not null default 0,
    opened_at timestamptz,
    open_until timestamptz,
    probe_until timestamptz,
    reason text,
    window_at timestamptz,
    calls integer not null default 0,
    failed integer not null default 0,
    retried integer not null default 0,
    credit double precision not null default 2,
    credit_at timestamptz,
    updated_at timestamptz not null default now(),
    check (owner_id = coalesce(connection_id, tenant_id)),
    foreign key (tenant_id, connection_id) references connection (tenant_id, id)
);

create table product (
    code text primary key,
    name text not null,
    created_at timestamptz not null default now(),
    retired_at timestamptz
);

create table product_map (
    tenant_id uuid not null,
    connection_id uuid not null,
    source_code text not null,
    code text not null references product (code),
    created_at timestamptz not null default now(),
    primary key (connection_id, source_code),
    foreign key (tenant_id, connection_id) references connection (tenant_id, id)
);

-- An admin's mapping of a quarantined value: once per connection, field and value.
create table value_map (
    tenant_id uuid not null,
    connection_id uuid not null,
    field text not null check (field in ('status', 'kind', 'billing_cycle', 'term')),
    source_value text not null,
    canonical text not null,
    created_at timestamptz not null default now(),
    primary key (connection_id, field, source_value),
    foreign key (tenant_id, connection_id) references connection (tenant_id, id)
);

create table ownership_policy (
    tenant_id uuid not null,
    connection_id uuid not null,
    version integer not null,
    document jsonb not null,
    created_at timestamptz not null default now(),
    primary key (connection_id, version),
    foreign key (tenant_id, connection_id) references connection (tenant_id, id)
);

-- Deduplication memory, apart from the inbox so that each can be pruned on its own.
create table message_key (
    tenant_id uuid not null,
    connection_id uuid not null,
    message_id text collate "C" not null,
    digest bytea not null,
    received_at timestamptz not null default now(),
    primary key (connection_id, message_id)
);
create index message_key_age on message_key (received_at);

-- The inbox. stream_id is derived from (connection, kind, source id) and is also the record's id.
-- shard is null while the connection is not processing: parked.
create table message (
    id uuid primary key,
    seq bigint generated always as identity,
    tenant_id uuid not null,
    connection_id uuid not null,
    stream_id uuid not null,
    shard smallint,
    origin text not null default 'door'
        check (origin in ('door', 'hook', 'poll', 'fetch', 'backfill', 'import', 'reconcile')),
    message_id text collate "C" not null,
    kind text not null check (kind in ('account', 'subscription')),
    source_id text collate "C" not null,
    action text not null check (action in ('state', 'deleted', 'notified')),
    order_kind text not null check (order_kind in ('sequence', 'timestamp', 'observed')),
    version bigint,
    sent_at timestamptz not null,
    effective_at timestamptz not null,
    body jsonb not null,
    dropped text[] not null default '{}',
    -- The instances that a chained message came through, the lowest first.
    passed text[] not null default '{}',
    digest bytea not null,
    -- The W3C traceparent of the request that brought it, where that was traced.
    trace text,
    state text not null default 'pending' check (state in ('pending', 'waiting', 'applied', 'superseded',
        'out_of_scope', 'quarantined', 'dead', 'discarded')),
    verdict text,
    reason text,
    stack text,
    held_field text,
    held_value text,
    waits_for uuid,
    wait_reason text,
    wait_until timestamptz,
    fetch_asked boolean not null default false,
    attempts integer not null default 0,
    -- An admin has let it past the guard.
    cleared boolean not null default false,
    received_at timestamptz not null default now(),
    decided_at timestamptz,
    applied_at timestamptz,
    change_xid xid8 not null default pg_current_xact_id(),
    foreign key (tenant_id, connection_id) references connection (tenant_id, id)
);
-- By connection, so that a flood of one is never scanned for the others.
create index message_pending on message (shard, connection_id, seq) where state = 'pending';
create index message_open on message (stream_id) where state in ('pending', 'waiting', 'quarantined', 'dead');
create index message_waits on message (waits_for) where state in ('waiting', 'dead');
create index message_deadline on message (wait_until) where state = 'waiting';
create index message_stream on message (stream_id, seq);
create index message_state on message (connection_id, state, seq);
create index message_change on message (change_xid, id);
create index message_sender on message (connection_id, message_id);
create index message_held on message (connection_id, state) where state in ('quarantined', 'dead');

-- One row per entity: who works on it now, and the highest version known of it, in scope or not.
create table stream (
    id uuid primary key,
    tenant_id uuid not null,
    connection_id uuid not null,
    shard smallint not null,
    kind text not null,
    source_id text collate "C" not null,
    ready_at timestamptz,
    lease_until timestamptz,
    token bigint not null default 0,
    unfinished smallint not null default 0,
    solo_claims smallint not null default 0,
    epoch integer not null default 0,
    epoch_at timestamptz,
    version bigint,
    version_sent_at timestamptz,
    version_message_id text collate "C",
    version_seq bigint,
    digest bytea,
    deleted boolean not null default false,
    unique (connection_id, kind, source_id),
    unique (tenant_id, id),
    foreign key (tenant_id, connection_id) references connection (tenant_id, id)
);
create index stream_ready on stream (shard, ready_at) where ready_at is not null;
create index stream_unfinished on stream (shard) where unfinished > 0;

-- The latest known state of what is out of scope: at most one live state and one deletion per entity.
create table staging (
    stream_id uuid not null,
    action text not null check (action in ('state', 'deleted')),
    tenant_id uuid not null,
    connection_id uuid not null,
    kind text not null,
    message uuid not null,
    message_id text collate "C" not null,
    version bigint,
    order_kind text not null,
    sent_at timestamptz not null,
    effective_at timestamptz not null,
    body jsonb not null,
    passed text[] not null default '{}',
    reason text not null,
    product text,
    staged_at timestamptz not null default now(),
    primary key (stream_id, action),
    foreign key (tenant_id, stream_id) references stream (tenant_id, id)
);
create index staging_product on staging (connection_id, product) where product is not null;
create index staging_age on staging (staged_at);

-- The mirror. *_source_id are the source's own ids as sent; *_id link to the mirrored record.
-- source is the latest content that the source said; the columns differ from it only in fields taken over.
create table account (
    id uuid primary key,
    tenant_id uuid not null,
    connection_id uuid not null,
    source_id text collate "C" not null,
    name text,
    number text,
    email text,
    kind text not null,
    parent_source_id text collate "C",
    parent_id uuid,
    notes text,
    tags text[] not null default '{}',
    responsible_user text,
    epoch integer not null default 0,
    version bigint not null,
    order_kind text not null,
    source jsonb not null,
    passed text[] not null default '{}',
    effective_at timestamptz not null,
    message uuid not null,
    revision bigint not null default 1,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    deleted_at timestamptz,
    ended_at timestamptz,
    ended_reason text,
    change_xid xid8 not null default pg_current_xact_id(),
    unique (tenant_id, id),
    unique (connection_id, source_id),
    foreign key (tenant_id, connection_id) references connection (tenant_id, id),
    foreign key (tenant_id, id) references stream (tenant_id, id),
    foreign key (tenant_id, parent_id) references account (tenant_id, id) deferrable initially deferred
);
create index account_parent on account (parent_id) where parent_id is not null;
create index account_unlinked on account (connection_id, parent_source_id)
    where parent_id is null and parent_source_id is not null;
create index account_change on account (change_xid, id);

create table subscription (
    id uuid primary key,
    tenant_id uuid not null,
    connection_id uuid not null,
    source_id text collate "C" not null,
    account_source_id text collate "C",
    account_id uuid,
    parent_source_id text collate "C",
    parent_id uuid,
    product text not null,
    status text not null,
    source_status text not null,
    trial boolean not null,
    start_date date,
    end_date date,
    activation_date date,
    cancellation_date date,
    auto_renew boolean,
    billing_cycle text,
    term text,
    quantity numeric not null,
    characteristics jsonb not null default '{}',
    price jsonb,
    bill_to_contact text,
    custom_fields jsonb not null default '{}',
    notes text,
    epoch integer not null default 0,
    version bigint not null,
    order_kind text not null,
    source jsonb not null,
    passed text[] not null default '{}',
    effective_at timestamptz not null,
    message uuid not null,
    revision bigint not null default 1,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    deleted_at timestamptz,
    ended_at timestamptz,
    ended_reason text,
    change_xid xid8 not null default pg_current_xact_id(),
    unique (tenant_id, id),
    unique (connection_id, source_id),
    foreign key (tenant_id, connection_id) references connection (tenant_id, id),
    foreign key (tenant_id, id) references stream (tenant_id, id),
    foreign key (tenant_id, account_id) references account (tenant_id, id) deferrable initially deferred,
    foreign key (tenant_id, parent_id) references subscription (tenant_id, id) deferrable initially deferred
);
create index subscription_account on subscription (account_id) where account_id is not null;
create index subscription_parent on subscription (parent_id) where parent_id is not null;
create index subscription_without_account on subscription (connection_id, account_source_id)
    where account_id is null and account_source_id is not null;
create index subscription_unlinked on subscription (connection_id, parent_source_id)
    where parent_id is null and parent_source_id is not null;
create index subscription_change on subscription (change_xid, id);

-- Bitemporal history: what the source said, effective when, recorded when, by which message.
-- The state at T as known at R is the row of the highest (epoch, version, id) with effective_at <= T, recorded_at <= R.
create table history (
    id bigint generated always as identity primary key,
    tenant_id uuid not null,
    connection_id uuid not null,
    kind text not null,
    record_id uuid not null,
    epoch integer not null,
    version bigint not null,
    effective_at timestamptz not null,
    recorded_at timestamptz not null default now(),
    state jsonb not null,
    deleted boolean not null,
    ended_reason text,
    late boolean not null default false,
    message uuid not null,
    foreign key (tenant_id, record_id) references stream (tenant_id, id)
);
create index history_record on history (record_id, epoch desc, version desc, id desc);
create index history_connection on history (connection_id, kind, effective_at);

create table gap (
    id bigint generated always as identity primary key,
    tenant_id uuid not null,
    connection_id uuid not null,
    stream_id uuid not null,
    from_version bigint not null,
    to_version bigint not null,
    missing bigint not null,
    found_at timestamptz not null default now(),
    closed_at timestamptz,
    closed_by text,
    foreign key (tenant_id, stream_id) references stream (tenant_id, id)
);
create index gap_open on gap (stream_id) where closed_at is null;

-- Fetches of one entity are serial: one row per stream.
create table fetch_request (
    stream_id uuid primary key,
    tenant_id uuid not null,
    connection_id uuid not null,
    kind text not null,
    source_id text collate "C" not null,
    reason text not null,
    due_at timestamptz not null default now(),
    lease_until timestamptz,
    token bigint not null default 0,
    attempts integer not null default 0,
    asked bigint not null default 1,
    last_error text,
    foreign key (tenant_id, connection_id) references connection (tenant_id, id)
);
create index fetch_request_due on fetch_request (connection_id, due_at);

-- Fields that the distributor has taken over by force.
create table takeover (
    id uuid primary key,
    tenant_id uuid not null,
    connection_id uuid not null,
    record_id uuid not null,
    kind text not null,
    field text not null,
    value jsonb,
    reason text not null,
    taken_by text not null,
    taken_at timestamptz not null default now(),
    released_at timestamptz,
    released_by text,
    release_reason text,
    foreign key (tenant_id, record_id) references stream (tenant_id, id)
);
create unique index takeover_open on takeover (record_id, field) where released_at is null;

-- The outbox, level-triggered: one row per record, desired against confirmed.
create table delivery (
    record_id uuid primary key,
    tenant_id uuid not null,
    connection_id uuid not null,
    kind text not null,
    state text not null default 'pending'
        check (state in ('pending', 'sending', 'unknown', 'confirmed', 'blocked', 'dead')),
    desired_revision bigint not null,
    confirmed_revision bigint not null default 0,
    external_id text,
    intent jsonb,
    intent_key text,
    intent_revision bigint,
    confirmed jsonb,
    due_at timestamptz,
    lease_until timestamptz,
    token bigint not null default 0,
    attempts integer not null default 0,
    last_error text,
    confirmed_at timestamptz,
    updated_at timestamptz not null default now(),
    foreign key (tenant_id, record_id) references stream (tenant_id, id)
);
create index delivery_due on delivery (connection_id, due_at) where due_at is not null;
create index delivery_dead on delivery (connection_id) where state = 'dead';
create unique index delivery_external on delivery (kind, external_id) where external_id is not null;

-- Differences that were found: lock violations in the external BSS, and what reconciliation named.
create table drift (
    id uuid primary key,
    tenant_id uuid not null,
    connection_id uuid not null,
    record_id uuid,
    kind text not null,
    source_id text,
    place text not null check (place in ('target', 'mirror')),
    problem text not null,
    field text,
    expected jsonb,
    found jsonb,
    changed_by text,
    changed_at timestamptz,
    action text not null check (action in ('repaired', 'reported', 'repairing')),
    run_id uuid,
    found_at timestamptz not null default now(),
    settled_at timestamptz,
    change_xid xid8 not null default pg_current_xact_id()
);
create index drift_found on drift (connection_id, found_at);
create index drift_open on drift (connection_id) where settled_at is null;
create index drift_change on drift (change_xid, id);
create index drift_record on drift (record_id);

-- Long runs: reconcile, backfill, import, replay, close; and what the guard has stopped.
create table run (
    id uuid primary key,
    tenant_id uuid not null,
    connection_id uuid,
    kind text not null check (kind in ('reconcile', 'backfill', 'import', 'replay', 'close', 'guard')),
    state text not null default 'running'
        check (state in ('running', 'stopped', 'approved', 'rejected', 'done', 'failed')),
    options jsonb not null default '{}',
    progress jsonb not null default '{}',
    result jsonb not null default '{}',
    requested_by text not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    finished_at timestamptz,
    change_xid xid8 not null default pg_current_xact_id()
);
create index run_recent on run (created_at);

-- What the guard counts: how many live records messages have ended, kept for an hour.
create table ending (
    id bigint generated always as identity primary key,
    tenant_id uuid not null,
    connection_id uuid not null,
    at timestamptz not null default now(),
    number integer not null,
    foreign key (tenant_id, connection_id) references connection (tenant_id, id)
);
create index ending_recent on ending (connection_id, at);

-- The messages of a replay, in the order in which they are opened again: whole entities, accounts first. The run may
-- be about several tenants: its own is the distributor then.
create table replay_item (
    run_id uuid not null,
    place bigint not null,
    tenant_id uuid not null,
    stream_id uuid not null,
    message uuid not null,
    primary key (run_id, place)
);

-- Conditions that a person is told of, each once until it clears. subject: a connection or a run.
create table alert (
    id uuid primary key,
    tenant_id uuid not null,
    rule text not null,
    subject uuid not null,
    connection_id uuid,
    number bigint not null,
    since timestamptz,
    opened_at timestamptz not null default now(),
    cleared_at timestamptz,
    due_at timestamptz default now(),
    attempts integer not null default 0,
    told text[] not null default '{}',
    last_error text
);
create unique index alert_open on alert (rule, subject) where cleared_at is null;
create index alert_due on alert (due_at) where due_at is not null and cleared_at is null;

-- The audit: one hash chain per connection (or per tenant for acts on none), over salted digests.
create table audit_head (
    chain_id uuid primary key,
    tenant_id uuid not null,
    seq bigint not null default 0,
    hash bytea not null default '\x'
);

create table audit (
    chain_id uuid not null,
    seq bigint not null,
    tenant_id uuid not null,
    connection_id uuid,
    at timestamptz not null,
    actor text not null,
    action text not null,
    kind text,
    record_id uuid,
    message uuid,
    detail jsonb,
    salt bytea,
    digest bytea not null,
    hash bytea not null,
    change_xid xid8 not null default pg_current_xact_id(),
    primary key (chain_id, seq)
);
create index audit_change on audit (change_xid, chain_id, seq);
create index audit_record on audit (record_id, at) where record_id is not null;
create index audit_message on audit (message) where message is not null;
create index audit_conflict on audit (chain_id, at) where action = 'message.conflict';

create table contact (
    id uuid primary key,
    tenant_id uuid not null,
    account_id uuid not null,
    name text not null,
    email text,
    phone text,
    created_by text not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    deleted_at timestamptz,
    change_xid xid8 not null default pg_current_xact_id(),
    foreign key (tenant_id, account_id) references account (tenant_id, id)
);
create index contact_account on contact (account_id);

create table activity (
    id uuid primary key,
    tenant_id uuid not null,
    account_id uuid not null,
    kind text not null check (kind in ('email', 'task', 'event', 'document', 'case')),
    subject text not null,
    body text,
    due_at timestamptz,
    created_by text not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    deleted_at timestamptz,
    change_xid xid8 not null default pg_current_xact_id(),
    foreign key (tenant_id, account_id) references account (tenant_id, id)
);
create index activity_account on activity (account_id);

-- Idempotency-Key of API creates.
create table idempotency (
    token_id uuid not null,
    key text not null,
    tenant_id uuid not null,
    request_digest bytea not null,
    status integer not null,
    response jsonb not null,
    created_at timestamptz not null default now(),
    primary key (token_id, key)
);
