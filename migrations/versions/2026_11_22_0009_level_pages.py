"""Pages of a listing that were level are remembered (docs/decisions/0037-level-pages-are-remembered.md).

Revision ID: 2026_11_22_0009

The previous release runs beside this: it neither reads nor writes the table, and carries on what this one has begun.
"""

from __future__ import annotations

from alembic import op

revision = "2026_11_22_0009"
down_revision = "2026_11_22_0007"
branch_labels = None
depends_on = None

ENGINE = "bss_sync_engine"

_LEVEL_PAGE = """
    create table level_page (
        connection_id uuid not null,
        tenant_id uuid not null,
        cursor text collate "C" not null,
        rules bytea not null,
        answer bytea not null,
        following text,
        kind text not null check (kind in ('account', 'subscription')),
        first_id text collate "C" not null,
        last_id text collate "C" not null,
        number integer not null,
        ids uuid[] not null,
        mirror text not null,
        settled boolean not null,
        kept_at timestamptz not null default now(),
        primary key (connection_id, cursor),
        foreign key (tenant_id, connection_id) references connection (tenant_id, id) on delete cascade
    );
    -- Ids are random bits: nothing is gained by trying to compress them.
    alter table level_page alter column ids set storage external;
    create index level_page_age on level_page (kept_at);
"""


def upgrade() -> None:
    """Add the table, for the engine's eyes only."""
    op.execute("set local lock_timeout = '2s'")
    op.get_bind().exec_driver_sql(_LEVEL_PAGE)
    op.execute("alter table level_page enable row level security, force row level security")
    op.execute(f"create policy engine_every_tenant on level_page to {ENGINE} using (true) with check (true)")
    op.execute("create policy owner_maintains on level_page to current_user using (true) with check (true)")
    op.execute(f"grant select, insert, update, delete on level_page to {ENGINE}")
