"""Which schema a database has, and which this version needs.

Apart from migrate.py and without Alembic: every process asks this when it starts, and few ever migrate.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection, text

from bss_sync.domain.errors import NotMigrated
from bss_sync.resources import resource_folder

_NAMED = re.compile(r"^(revision|down_revision)(?:: [^=]+)? = (?:None|[\"']([^\"']+)[\"'])$", re.MULTILINE)


def head_revision() -> str:
    """The newest revision that this version knows: the one that no other builds on."""
    revisions: set[str] = set()
    built_on: set[str] = set()
    for file in (resource_folder("migrations") / "versions").glob("*.py"):
        named = dict(_NAMED.findall(file.read_text(encoding="utf-8")))
        revisions.add(named["revision"])
        built_on.add(named["down_revision"])
    (head,) = revisions - built_on
    return head


def current_revision(connection: Connection) -> str | None:
    """The revision that the database stands at; None when it was never migrated."""
    if connection.execute(text("select to_regclass('alembic_version')")).scalar() is None:
        return None
    revision: str | None = connection.execute(text("select version_num from alembic_version")).scalar()
    return revision


def check_migrated(connection: Connection) -> None:
    """Raise NotMigrated unless the database stands at the head."""
    current, head = current_revision(connection), head_revision()
    if current != head:
        raise NotMigrated(
            f"The database is not migrated: it is at revision {current or 'none'}, this version needs {head}."
        )
