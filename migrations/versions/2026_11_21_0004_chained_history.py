"""What the tier above is told of the past: the place of each state there, and its turn in the order of changes.

Revision ID: 2026_11_21_0004

The previous release runs beside this (docs/decisions/0028-expand-then-contract.md): its rows have no place, and take
their version for one (docs/decisions/0027-history-travels.md).
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

revision = "2026_11_21_0004"
down_revision = "2026_11_21_0003"
branch_labels = None
depends_on = None

INDEX = "history_change"
_COLUMNS = "(change_xid, record_id, id)"


def upgrade() -> None:
    """Add the columns, which rewrites nothing, and the index, while the line goes on writing."""
    op.execute("set local lock_timeout = '2s'")
    op.execute(
        """alter table history
               add column if not exists chain_version bigint,
               add column if not exists chain_linked boolean,
               add column if not exists change_xid xid8 not null default pg_current_xact_id()"""
    )
    for table in ("account", "subscription"):
        op.execute(
            f"""alter table {table}
                    add column if not exists chain_version bigint,
                    add column if not exists chain_effective_at timestamptz"""
        )
    with op.get_context().autocommit_block():
        _index_history()


def _index_history() -> None:
    """Concurrently: who writes history must not wait for a million rows. What a kill left half done is made anew."""
    kind = op.get_bind().execute(text("select relkind from pg_class where oid = 'history'::regclass")).scalar_one()
    if kind != "p":
        _index("history", INDEX)
        return
    op.execute(f"create index if not exists {INDEX} on only history {_COLUMNS}")
    partitions = text("select inhrelid::regclass::text from pg_inherits where inhparent = 'history'::regclass")
    for partition in op.get_bind().execute(partitions).scalars().all():
        name = f"{partition}_change"
        _index(partition, name)
        op.execute(f"alter index {INDEX} attach partition {name}")


def _index(table: str, name: str) -> None:
    valid = text("select indisvalid from pg_index where indexrelid = to_regclass(:name)")
    if op.get_bind().execute(valid, {"name": name}).scalar() is False:
        op.execute(f"drop index concurrently {name}")
    op.execute(f"create index concurrently if not exists {name} on {table} {_COLUMNS}")
