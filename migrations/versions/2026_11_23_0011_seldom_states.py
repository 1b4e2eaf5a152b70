"""Lists of messages that were settled but not applied, in the order of lists, among millions that were applied.

Revision ID: 2026_11_23_0011

The previous release runs beside this (docs/decisions/0028-expand-then-contract.md): its statements stay as they are.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

revision = "2026_11_23_0011"
down_revision = "2026_11_23_0010"
branch_labels = None
depends_on = None

INDEX = "message_seldom_listed"
# What is applied, nearly everything, is in none of them: the index costs the line nothing.
_COLUMNS = "(state, change_xid, id) where state in ('superseded', 'out_of_scope', 'discarded')"


def upgrade() -> None:
    """Expand: an index for each part, made while others read and write. What a kill left half done is made anew."""
    with op.get_context().autocommit_block():
        op.execute(f"create index if not exists {INDEX} on only message {_COLUMNS}")
        partitions = text("select inhrelid::regclass::text from pg_inherits where inhparent = 'message'::regclass")
        for partition in op.get_bind().execute(partitions).scalars().all():
            name = f"{partition}_seldom_listed"
            valid = text("select indisvalid from pg_index where indexrelid = to_regclass(:name)")
            if op.get_bind().execute(valid, {"name": name}).scalar() is False:
                op.execute(f"drop index concurrently {name}")
            op.execute(f"create index concurrently if not exists {name} on {partition} {_COLUMNS}")
            op.execute(f"alter index {INDEX} attach partition {name}")


def downgrade() -> None:
    """Drop the index, and with it those of the months."""
    op.execute(f"drop index if exists {INDEX}")
