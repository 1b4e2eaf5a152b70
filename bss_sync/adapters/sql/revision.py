"""Which schema a database has, which this version needs, and whether the two go together.

A database names two revisions (docs/decisions/0028-expand-then-contract.md):

schema_revision   where it stands: the newest migration that was applied
alembic_version   its floor: the oldest revision whose programs may still work on it. A migration that only expands
                  leaves it where it was; one that contracts raises it. Programs of 0.1 look for their own head there,
                  so they go on too.

Apart from migrate.py and without Alembic: every process asks this when it starts, and few ever migrate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sqlalchemy import Connection, text

from bss_sync.domain.errors import NotMigrated
from bss_sync.resources import resource_folder

REVISION_TABLE = "schema_revision"
FLOOR_TABLE = "alembic_version"

_NAMED = re.compile(r"^(revision|down_revision)(?:: [^=]+)? = (?:None|[\"']([^\"']+)[\"'])$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a database stands; both None before it was ever migrated. See the module for the two revisions."""

    revision: str | None
    floor: str | None


@cache
def _known() -> tuple[frozenset[str], str]:
    """Read once: a newer version that is installed over a running process is not what that process works with."""
    return revisions_in(resource_folder("migrations"))


def revisions_in(migrations: Path) -> tuple[frozenset[str], str]:
    """Every revision in such a folder, and its head: the one that no other builds on."""
    revisions: set[str] = set()
    built_on: set[str] = set()
    for file in (migrations / "versions").glob("*.py"):
        named = dict(_NAMED.findall(file.read_text(encoding="utf-8")))
        revisions.add(named["revision"])
        built_on.add(named["down_revision"])
    (head,) = revisions - built_on
    return frozenset(revisions), head


def head_revision() -> str:
    """The newest revision that this version knows."""
    return _known()[1]


def standing(connection: Connection) -> Standing:
    """What the database says of itself."""
    floor = _value(connection, FLOOR_TABLE)
    # Before schema_revision existed, the one table said both.
    return Standing(_value(connection, REVISION_TABLE) or floor, floor)


def _value(connection: Connection, table: str) -> str | None:
    if connection.execute(text("select to_regclass(:name)"), {"name": table}).scalar() is None:
        return None
    found: str | None = connection.execute(text(f"select version_num from {table}")).scalar()  # noqa: S608 - a constant
    return found


def is_newer(found: Standing) -> bool:
    """Whether a later version has migrated the database, in a way that this version can work with.

    NotMigrated when it was contracted beyond this version.
    """
    known, head = _known()
    if found.revision is None or found.revision in known:
        return False
    if found.floor in known:
        return True
    raise NotMigrated(
        f"The database is at revision {found.revision}, for programs from {found.floor} on;"
        f" this version ends at {head}.",
        next_step="Run the version that migrated it, or a later one (bss-sync --version).",
    )


def check_migrated(connection: Connection) -> None:
    """Raise NotMigrated unless the database stands at the head, or beyond it in a way that leaves us working."""
    found, head = standing(connection), head_revision()
    if found.revision != head and not is_newer(found):
        raise NotMigrated(
            f"The database is not migrated: it is at revision {found.revision or 'none'}, this version needs {head}."
        )
