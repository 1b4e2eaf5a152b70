"""Lists of one connection's records, in the order of lists, however large the mirror around them is.

Revision ID: 2026_11_22_0008

The previous release runs beside this (docs/decisions/0028-expand-then-contract.md): its statements stay as they are.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

revision = "2026_11_22_0008"
down_revision = "2026_11_21_0005"
branch_labels = None
depends_on = None

TABLES = ("account", "subscription")


def upgrade() -> None:
    """Expand: two indexes, made while readers and writers go on. One that a kill left half done is made again."""
    with op.get_context().autocommit_block():
        for table in TABLES:
            name = f"{table}_connection_change"
            valid = text("select indisvalid from pg_index where indexrelid = to_regclass(:name)")
            if op.get_bind().execute(valid, {"name": name}).scalar() is False:
                op.execute(f"drop index concurrently {name}")
            op.execute(f"create index concurrently if not exists {name} on {table} (connection_id, change_xid, id)")


def downgrade() -> None:
    """Drop the indexes."""
    with op.get_context().autocommit_block():
        for table in TABLES:
            op.execute(f"drop index concurrently if exists {table}_connection_change")
