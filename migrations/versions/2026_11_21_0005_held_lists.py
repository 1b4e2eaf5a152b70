"""Lists of what is held, in the order of lists, also where a hundred thousand messages are.

Revision ID: 2026_11_21_0005
"""

from __future__ import annotations

from alembic import op

revision = "2026_11_21_0005"
down_revision = "2026_11_21_0002"
branch_labels = None
depends_on = None

# Held messages lie in the open part only, and what passes is never held: the index costs the line nothing.
_INDEX = """
    create index concurrently if not exists message_unsettled_listed
    on message_unsettled (state, change_xid, id) where state in ('quarantined', 'dead')"""
_BROKEN = """
    select from pg_index where indexrelid = to_regclass('message_unsettled_listed') and not indisvalid"""


def upgrade() -> None:
    """Expand: one index, made while readers and writers go on. An attempt that was broken off is made again."""
    with op.get_context().autocommit_block():
        if op.get_bind().exec_driver_sql(_BROKEN).first() is not None:
            op.execute("drop index concurrently message_unsettled_listed")
        op.execute(_INDEX)


def downgrade() -> None:
    """Drop the index."""
    with op.get_context().autocommit_block():
        op.execute("drop index concurrently if exists message_unsettled_listed")
