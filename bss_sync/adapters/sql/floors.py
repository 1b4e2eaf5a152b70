"""Floors: below which transaction nothing changes any more after a time, so that a list can begin at that time.

Lists are in the order of transactions (reading/paging.py), and no index knows when a row was changed: one that did
would be written with every change. Once a minute the lowest transaction that is still under way is noted instead. What
is changed later belongs to it or to a later one, whether its time is that of its transaction's beginning or of the
moment; so a list of what changed since a time has nothing to show below the floor that was noted before.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, text

APART_SECONDS = 30.0

# A clock that was set back notes nothing until it is where it was: an earlier floor is always of an earlier time.
_NOTE = text(
    """insert into list_floor (noted_at, xid, epoch)
       select clock_timestamp(), pg_snapshot_xmin(pg_current_snapshot()), max(number) from list_epoch
       having max(number) is not null
          and coalesce((select max(noted_at) from list_floor), '-infinity')
              < clock_timestamp() - make_interval(secs => :apart)"""
)
# Five weeks by the minute; what is older by the hour. Looked at is the day that has become too old.
_THIN_OUT = text(
    """delete from list_floor where noted_at between now() - interval '36 days' and now() - interval '35 days'
       and extract(minute from noted_at) > 0"""
)
# Transactions from before a restored backup do not compare with those after it (epochs.py).
_FLOOR = text(
    """select cast(xid as text) from list_floor
       where noted_at <= :moment and epoch >= (select coalesce(max(number), 0) from list_epoch where moved)
       order by noted_at desc limit 1"""
)


def note_floor(connection: Connection, *, apart_seconds: float = APART_SECONDS) -> None:
    """Note the floor of now; nothing where one was noted less than ``apart_seconds`` ago."""
    connection.execute(_NOTE, {"apart": apart_seconds})
    connection.execute(_THIN_OUT)


def floor_of(connection: Connection, moment: datetime) -> int:
    """No row with a time at or after ``moment`` was changed by a lower transaction than this; 0: nothing is known."""
    return int(connection.execute(_FLOOR, {"moment": moment}).scalar_one_or_none() or 0)
