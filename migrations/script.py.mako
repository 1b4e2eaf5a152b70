"""${message}

Revision ID: ${up_revision}

The previous release runs beside this (docs/decisions/0028-expand-then-contract.md): add, never take away. To take away
what no running release uses, say so: floor = "the head of the oldest release that does without it".
"""

from __future__ import annotations

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """${message}"""
    op.execute("set local lock_timeout = '2s'")
    ${upgrades if upgrades else "raise NotImplementedError"}
