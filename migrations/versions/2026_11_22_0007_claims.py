"""A batch of streams is claimed by one row (docs/decisions/0032-a-batch-is-one-claim.md).

Revision ID: 2026_11_22_0007

The previous release runs beside this: it leases streams in their own rows, which this one respects; a token that it
has moved on fences the claim of this one.
"""

from __future__ import annotations

from alembic import op

revision = "2026_11_22_0007"
down_revision = "2026_11_22_0008"
branch_labels = None
depends_on = None

ENGINE = "bss_sync_engine"

# No tenant's: a claim names streams of all connections of its shard, for as long as a batch takes.
_CLAIM = """
    create table claim (
        id uuid primary key default gen_random_uuid(),
        shard smallint not null,
        streams uuid[] not null,
        lease_until timestamptz not null
    );
    create index claim_shard on claim (shard);
    alter table claim set (autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);
"""


def upgrade() -> None:
    """Add the table, for the engine's eyes only; and room in the pages of streams, whose rows change in place."""
    op.execute("set local lock_timeout = '2s'")
    op.get_bind().exec_driver_sql(_CLAIM)
    op.execute("alter table claim enable row level security, force row level security")
    op.execute(f"create policy engine_every_tenant on claim to {ENGINE} using (true) with check (true)")
    op.execute("create policy owner_maintains on claim to current_user using (true) with check (true)")
    op.execute(f"grant select, insert, update, delete on claim to {ENGINE}")
    op.execute("alter table stream set (fillfactor = 85)")
