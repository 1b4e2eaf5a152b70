"""Epochs: whether this database is still the one that it was (docs/decisions/0026-a-restore-is-noticed.md).

A server that was restarted, a dump restored elsewhere, a stand-by that took over: each begins an epoch. Every new
connection notices it before it writes anything (database.py); what a restore needs beyond that is done here.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import structlog
from sqlalchemy import Connection, text

from bss_sync.adapters.sql.audit import append_audit
from bss_sync.adapters.sql.database import Database
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.errors import DependencyDown

ROWS_AT_ONCE = 20_000

LEAP = "(select greatest(count(*) - 1, 0) << 16 from list_epoch where moved)"
"""SQL: what is added to the revisions that the tier above is told. A backup counts them anew from where it was; what
the tier above has been told since must never be told again with another content."""


def leap_since(change_xid: str) -> str:
    """SQL: the same for a row that was last written by that transaction: what was restored since then."""
    return f"((select count(*) from list_epoch e where e.moved and e.first_xid > {change_xid}) << 16)"  # noqa: S608  our own text


_log = structlog.get_logger(__name__)

_OPEN = text("select open_list_epoch(:rows)")
# The first row is none of a restore: it says where the counting began.
_NAMED = text(
    """select id from list_epoch where (select count(*) from list_epoch where moved) > 1
       order by number desc limit 1"""
)
# Counted in one epoch and asked in another: still good unless a restore lies between, or the server came back without
# its latest transactions. What came after the restart took a number above that of the epoch's own transaction.
_STILL_GOOD = text(
    """select not exists (select 1 from list_epoch later where later.number > e.number
                            and (later.moved or later.first_xid < cast(cast(:xid as text) as xid8)))
       from list_epoch e where e.id = :epoch"""
)
_HEADS = text("select chain_id, tenant_id, seq from audit_head order by chain_id")
_CONNECTIONS = text("select id from connection")


@dataclass(frozen=True, slots=True)
class Restored:
    """A backup was restored, and its rows are in order. ``rounds``: transactions that this took."""

    rounds: int


def settle(database: Database) -> Restored | None:
    """Put a restored backup in order; None where nothing was restored. Any process may call it, several at once too.

    It may be killed: the next call goes on. Each audit chain tells the restore, at the place where the backup ends.
    """
    with database.engine_at_once() as connection:
        # Asked every other second, and nearly always the same.
        if connection.execute(_OPEN, {"rows": 0}).scalar_one() in ("same", "opened"):
            return None
    rounds = 0
    while True:
        with database.engine() as connection:
            found = connection.execute(_OPEN, {"rows": ROWS_AT_ONCE}).scalar_one()
            if found == "restored":
                _tell_audit(connection)
        if found in ("same", "opened"):
            return None
        rounds += 1
        if found == "restored":
            _tell("database.restored", rounds)
            return Restored(rounds)
        if rounds == 1:
            _tell("database.settling", rounds)


def _tell(event: str, rounds: int) -> None:
    """A command that prints for a program has no log, and would print this between its lines."""
    if structlog.is_configured():
        _log.warning(event, rounds=rounds)


def _tell_audit(connection: Connection) -> None:
    known = set(connection.execute(_CONNECTIONS).scalars())
    append_audit(
        connection,
        [
            AuditEntry(
                head.chain_id,
                head.tenant_id,
                "system",
                "database.restored",
                {"entries": head.seq},
                connection_id=head.chain_id if head.chain_id in known else None,
            )
            for head in connection.execute(_HEADS).all()
        ],
    )


def declare(connection: Connection) -> None:
    """Say that this database was put back from a copy that looks like the original; the next ``settle`` acts on it."""
    connection.execute(text("select declare_restored()"))


def current_epoch(connection: Connection) -> UUID | None:
    """The epoch that a cursor given now names; None as long as no backup was restored, and none needs to be named.

    So a cursor is the same list of values as in version 0.1, which refuses any other. DependencyDown while a restored
    backup is being put in order.
    """
    if connection.execute(_OPEN, {"rows": 0}).scalar_one() == "settling":
        raise DependencyDown("A restored backup is being put in order.", retry_after_seconds=2)
    epoch: UUID | None = connection.execute(_NAMED).scalar_one_or_none()
    return epoch


def is_still_good(connection: Connection, epoch: UUID | None, current: UUID | None, xid: int) -> bool:
    """Whether a position that was counted in ``epoch`` means the same in the ``current`` one (None: before any)."""
    if epoch == current:
        return True
    return epoch is not None and bool(connection.execute(_STILL_GOOD, {"epoch": epoch, "xid": xid}).scalar())
