"""What a long comparison has seen, found and is about to end, kept outside of its process.

Revision ID: 2026_11_21_0003

The previous release runs beside this (docs/decisions/0028-expand-then-contract.md): it uses none of these tables.
"""

from __future__ import annotations

from alembic import op

revision = "2026_11_21_0003"
down_revision = "2026_11_21_0001"
branch_labels = None
depends_on = None

ENGINE = "bss_sync_engine"

# Logged, all of them: an unlogged table is emptied by the crash that it has to survive.
TABLES = {
    # The live records that a listing held, a row per page: a million of them are 16 MB, and no index entry each.
    "run_seen": """
        create table run_seen (
            run_id uuid not null,
            tenant_id uuid not null,
            connection_id uuid not null,
            ids uuid[] not null,
            kept_at timestamptz not null default now()
        );
        create index run_seen_run on run_seen (run_id);
        create index run_seen_age on run_seen (kept_at)""",
    # What a run has named. The same difference is named once, also by a page that is compared twice.
    "run_difference": """
        create table run_difference (
            run_id uuid not null,
            seq bigint generated always as identity,
            tenant_id uuid not null,
            connection_id uuid not null,
            record_id uuid not null,
            place text not null check (place in ('target', 'mirror')),
            problem text not null,
            field text not null default '',
            kind text not null,
            source_id text collate "C" not null,
            expected jsonb,
            found jsonb,
            cause text,
            since timestamptz,
            found_at timestamptz not null default now(),
            primary key (run_id, seq)
        );
        create unique index run_difference_once on run_difference (run_id, record_id, place, problem, field);
        create index run_difference_age on run_difference (found_at)""",
    # Records that are gone at the source, until the guard has let them all end.
    "run_end": """
        create table run_end (
            run_id uuid not null,
            record_id uuid not null,
            tenant_id uuid not null,
            connection_id uuid not null,
            kind text not null,
            source_id text collate "C" not null,
            version bigint,
            changed_at timestamptz,
            effective_at timestamptz,
            passed text[] not null default '{}',
            kept_at timestamptz not null default now(),
            primary key (run_id, record_id)
        );
        create index run_end_age on run_end (kept_at)""",
}


def upgrade() -> None:
    """Add the tables, for the engine's eyes only."""
    op.execute("set local lock_timeout = '2s'")
    for table, statements in TABLES.items():
        op.get_bind().exec_driver_sql(statements)
        op.execute(f"alter table {table} enable row level security, force row level security")
        op.execute(f"create policy engine_every_tenant on {table} to {ENGINE} using (true) with check (true)")
        op.execute(f"create policy owner_maintains on {table} to current_user using (true) with check (true)")
        op.execute(f"grant select, insert, update, delete on {table} to {ENGINE}")
