"""Lists of what is seldom, in the order of lists: among millions of rows a filter alone would read them all.

Messages that were settled and not applied, records that are ended or deleted, acts other than those of every message,
acts of people; what open messages wait for. What passes by the million is in none of these indexes, so they cost the
line nothing.

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

_OFTEN = "'{message.applied,message.superseded,delivery.created,delivery.updated}'"
INDEXES = {
    "subscription_ended": "subscription (change_xid, id) where ended_at is not null and deleted_at is null",
    "subscription_deleted": "subscription (change_xid, id) where deleted_at is not null",
    "account_ended": "account (change_xid, id) where ended_at is not null and deleted_at is null",
    "account_deleted": "account (change_xid, id) where deleted_at is not null",
    # Asked for each batch: without these, every message that is open would be looked at.
    "message_unsettled_for": "message_unsettled (waits_for) where waits_for is not null",
    "message_unsettled_cycle": "message_unsettled (connection_id) where wait_reason = 'cycle'",
    "audit_action": f"audit (action, change_xid, chain_id, seq) where action <> all ({_OFTEN})",
    "audit_actor": "audit (actor, change_xid, chain_id, seq) where actor <> 'system'",
}
MESSAGES = "message_seldom"
_SELDOM = "(state, change_xid, id) where state in ('superseded', 'out_of_scope', 'discarded')"


def upgrade() -> None:
    """Expand: indexes, made while others read and write. What a kill left half done is made anew."""
    with op.get_context().autocommit_block():
        for name, definition in INDEXES.items():
            _make(name, definition)
        op.execute(f"create index if not exists {MESSAGES} on only message {_SELDOM}")
        partitions = text("select inhrelid::regclass::text from pg_inherits where inhparent = 'message'::regclass")
        for partition in op.get_bind().execute(partitions).scalars().all():
            _make(f"{partition}_seldom", f"{partition} {_SELDOM}")
            op.execute(f"alter index {MESSAGES} attach partition {partition}_seldom")


def _make(name: str, definition: str) -> None:
    valid = text("select indisvalid from pg_index where indexrelid = to_regclass(:name)")
    if op.get_bind().execute(valid, {"name": name}).scalar() is False:
        op.execute(f"drop index concurrently {name}")
    op.execute(f"create index concurrently if not exists {name} on {definition}")


def downgrade() -> None:
    """Drop the indexes, and with that of messages those of its parts."""
    with op.get_context().autocommit_block():
        for name in INDEXES:
            op.execute(f"drop index concurrently if exists {name}")
    op.execute(f"drop index if exists {MESSAGES}")
