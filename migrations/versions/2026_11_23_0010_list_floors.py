"""Which transactions were still to end at a time, so that a list of what changed since then begins there.

Revision ID: 2026_11_23_0010

The previous release runs beside this: it neither reads nor writes the table.
"""

from __future__ import annotations

from alembic import op

revision = "2026_11_23_0010"
down_revision = "2026_11_22_0009"
branch_labels = None
depends_on = None

ENGINE, API = "bss_sync_engine", "bss_sync_api"

_LIST_FLOOR = """
    create table list_floor (
        noted_at timestamptz primary key,
        xid xid8 not null,
        epoch bigint not null
    )"""


def upgrade() -> None:
    """Add the table."""
    op.execute("set local lock_timeout = '2s'")
    op.execute(_LIST_FLOOR)
    op.execute(f"grant select, insert, delete on list_floor to {ENGINE}")
    op.execute(f"grant select on list_floor to {API}")


def downgrade() -> None:
    """Drop the table."""
    op.execute("drop table list_floor")
