"""Where and when the order of transactions was counted, so that a restored backup is noticed.

Revision ID: 2026_11_21_0006
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "2026_11_21_0006"
down_revision = "2026_11_21_0004"
branch_labels = None
depends_on = None

ENGINE, API, DOOR = "bss_sync_engine", "bss_sync_api", "bss_sync_door"


def upgrade() -> None:
    """Expand: a table, a column with a default, three functions. Processes of the version before go on."""
    op.execute("set local lock_timeout = '5s'")
    statements = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statements)
    op.execute(f"grant select on list_epoch to {ENGINE}, {API}, {DOOR}")
    for function in ("open_list_epoch(integer)", "declare_restored()", "database_place()"):
        op.execute(f"revoke execute on function {function} from public")
        op.execute(f"grant execute on function {function} to {ENGINE}")
    op.execute(f"grant execute on function open_list_epoch(integer) to {API}, {DOOR}")


def downgrade() -> None:
    """Refuse: cursors that were given would mean something else."""
    raise RuntimeError("There is no way back. Restore a backup instead (docs/runbook.md).")
