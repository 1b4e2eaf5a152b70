"""Lists in the order of their changes: a finished list can be resumed later and misses no late commit.

Rows are ordered by (change_xid, key): every change of a row takes the id of its transaction. A transaction with a
lower id may commit later than one with a higher id, so a position alone would skip it. A cursor therefore carries the
floor of its pass: the lowest transaction that was still in flight when any of its pages was read. Where the pass
ends, the cursor falls back to the floor. A resumed list may repeat a row; it never misses one.

After a restored backup the numbers of transactions mean something else: the list begins anew, and says so (``anew``). A
cursor that was given since a restore names its epoch (epochs.py). One that names none is from before the first.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from bss_sync.adapters.sql.epochs import current_epoch, is_still_good
from bss_sync.adapters.sql.floors import floor_of
from bss_sync.adapters.sql.reading.reach import Where
from bss_sync.domain.errors import FieldProblem, InvalidRequest

LIMIT_DEFAULT = 50
LIMIT_MAX = 500
_CURSOR_CHARACTERS_MAX = 2000
_XID_MAX = 2**63
_LOWEST = {"uuid": "00000000-0000-0000-0000-000000000000", "bigint": 0, "text": ""}


@dataclass(frozen=True, slots=True)
class Paging:
    """Which part of a list. ``cursor`` is opaque: what an earlier page answered, with the same filters repeated."""

    limit: int = LIMIT_DEFAULT
    cursor: str | None = None

    def __post_init__(self) -> None:
        """InvalidRequest for a limit outside 1 to 500."""
        if not 1 <= self.limit <= LIMIT_MAX:
            raise InvalidRequest(
                f"limit must be 1 to {LIMIT_MAX}.", fields=(FieldProblem("limit", f"must be 1 to {LIMIT_MAX}"),)
            )


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list. ``next_cursor`` is always there: at the end it resumes the list later.

    ``anew``: the cursor was from before a restored backup, and this is the beginning of the list.
    """

    items: list[dict[str, Any]]
    next_cursor: str
    has_more: bool
    anew: bool = False

    def as_json(self) -> dict[str, Any]:
        """The contract's list."""
        page = {"items": self.items, "next_cursor": self.next_cursor, "has_more": self.has_more}
        return page | {"anew": True} if self.anew else page


@dataclass(frozen=True, slots=True)
class Source:
    """A list's query without its conditions. ``keys`` are (column, type): unique, and part of the order."""

    name: str
    columns: str
    tables: str
    change: str
    keys: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Position:
    """Behind which row the next page begins. ``floor`` is None where no pass is under way."""

    xid: int
    key: tuple[Any, ...]
    floor: int | None


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one page and how to go on."""

    rows: Sequence[Row[Any]]
    next_cursor: str
    has_more: bool
    anew: bool = False


# Read before the rows: whatever is in flight when they are read has at least this id.
_FLOOR = text("select cast(pg_snapshot_xmin(pg_current_snapshot()) as text)")
# The planner takes the policies of row-level security for far stricter than they are, and would sort the whole mirror
# for the first page.
_ALONG_INDEX = text("select set_config('enable_sort', 'off', true), set_config('jit', 'off', true)")


def read_rows(
    connection: Connection,
    source: Source,
    where: Where,
    paging: Paging,
    *,
    since: datetime | None = None,
    along_index: bool = False,
) -> Rows:
    """One page. InvalidRequest for a cursor that is none of this list's, DependencyDown while a backup is settled.

    ``since``: no row that was last changed before it satisfies the conditions, so older ones are not read.
    ``along_index``: most rows of an index in the list's order satisfy the conditions, so the page is read from there.
    """
    least_xid = 0 if since is None else floor_of(connection, since)
    if along_index:
        connection.execute(_ALONG_INDEX)
    return read_merged(connection, [(source, where)], paging, least_xid)


def read_merged(
    connection: Connection, sources: Sequence[tuple[Source, Where]], paging: Paging, least_xid: int = 0
) -> Rows:
    """One page of several sources in one order, each read along its own index; they share a name and types of keys.

    ``least_xid``: no row of a lower transaction is wanted.
    """
    first = sources[0][0]
    epoch = current_epoch(connection)
    floor_now = int(connection.execute(_FLOOR).scalar_one())
    start = _start(connection, first, paging.cursor, epoch, floor_now)
    anew = start is None
    start = start or Position(0, _lowest(first), None)
    if start.xid < least_xid:
        start = replace(start, xid=least_xid, key=_lowest(first))
    found: list[tuple[int, tuple[Any, ...], Row[Any]]] = []
    for source, where in sources:
        read = connection.execute(text(_statement(source, where)), _values(source, where, start, paging.limit))
        found += [(int(row.list_xid), _key(source, row), row) for row in read]
    if len(sources) > 1:
        found.sort(key=lambda one: one[:2])
    has_more = len(found) > paging.limit
    found = found[: paging.limit]
    floor = floor_now if start.floor is None else min(start.floor, floor_now)
    xid, key = found[-1][:2] if found else (start.xid, start.key)
    if has_more:
        after = Position(xid, key, floor)
    elif xid < floor:
        after = Position(xid, key, None)
    else:
        after = Position(floor, _lowest(first), None)
    rows = [row for _xid, _key, row in found]
    return Rows(rows, _encode(first.name, epoch, after), has_more, anew and paging.cursor is not None)


def _statement(source: Source, where: Where) -> str:
    keys = ", ".join(column for column, _ in source.keys)
    selected = ", ".join(f"{column} as list_key_{index}" for index, (column, _) in enumerate(source.keys))
    values = ", ".join(f"cast(:after_{index} as {kind})" for index, (_, kind) in enumerate(source.keys))
    return "\n".join(
        [
            "select",
            f"{source.columns}, cast({source.change} as text) as list_xid, {selected}",
            source.tables,
            f"where ({source.change}, {keys}) > (cast(:after_xid as xid8), {values}) and {where.sql()}",
            f"order by {source.change}, {keys} limit :row_count",
        ]
    )


def _values(source: Source, where: Where, start: Position, limit: int) -> dict[str, Any]:
    keys = {f"after_{index}": start.key[index] for index in range(len(source.keys))}
    return {**where.values, **keys, "after_xid": str(start.xid), "row_count": limit + 1}


def _key(source: Source, row: Row[Any]) -> tuple[Any, ...]:
    values = (row._asdict()[f"list_key_{index}"] for index in range(len(source.keys)))
    return tuple(value if isinstance(value, int) else str(value) for value in values)


def _lowest(source: Source) -> tuple[Any, ...]:
    return tuple(_LOWEST[kind] for _, kind in source.keys)


def _start(
    connection: Connection, source: Source, cursor: str | None, epoch: UUID | None, floor_now: int
) -> Position | None:
    """None: from the beginning."""
    if cursor is None:
        return None
    counted_in, position = _decode(source, cursor)
    if not is_still_good(connection, counted_in, epoch, position.xid):
        return None
    if position.floor is None and position.xid > floor_now:
        # A finished list never ends above the floor: the machine was set back to a snapshot while it ran.
        return None
    return position


def _encode(name: str, epoch: UUID | None, position: Position) -> str:
    return encode_cursor([name, position.xid, list(position.key), position.floor, *named(epoch)])


def named(epoch: UUID | None) -> list[str]:
    """How a cursor ends: with the epoch that it names, if it names one."""
    return [] if epoch is None else [str(epoch)]


def encode_cursor(value: Sequence[Any]) -> str:
    """An opaque cursor. It holds no secret and grants nothing: the filters and the reach apply to every page."""
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> Any:
    """What ``encode_cursor`` was given; InvalidRequest for anything else."""
    if len(cursor) > _CURSOR_CHARACTERS_MAX:
        raise wrong_cursor()
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        return json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise wrong_cursor() from None


def wrong_cursor() -> InvalidRequest:
    """The refusal of a cursor that this list has not given."""
    detail = "is no cursor of this list; leave it out to start at the beginning"
    return InvalidRequest(f"The cursor {detail}.", fields=(FieldProblem("cursor", detail),))


def _decode(source: Source, cursor: str) -> tuple[UUID | None, Position]:
    """The epoch that it names, and the position."""
    match decode_cursor(cursor):
        case [source.name, int(xid), [*key], None | int() as floor] if _fits(source, xid, key, floor):
            return None, Position(xid, tuple(key), floor)
        case [source.name, int(xid), [*key], None | int() as floor, str(epoch)] if is_uuid(epoch) and _fits(
            source, xid, key, floor
        ):
            return UUID(epoch), Position(xid, tuple(key), floor)
        case _:
            raise wrong_cursor()


def _fits(source: Source, xid: int, key: list[Any], floor: int | None) -> bool:
    numbers = [xid, 0 if floor is None else floor]
    if any(isinstance(number, bool) or not 0 <= number < _XID_MAX for number in numbers) or len(key) != len(
        source.keys
    ):
        return False
    return all(_is(kind, value) for (_, kind), value in zip(source.keys, key, strict=True))


def _is(kind: str, value: Any) -> bool:
    if kind == "bigint":
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _XID_MAX
    if not isinstance(value, str) or "\x00" in value:
        return False
    return kind == "text" or is_uuid(value)


def is_uuid(value: str) -> bool:
    """Whether PostgreSQL takes it for a uuid: 36 characters, as we write it."""
    return len(value) == 36 and all(
        character == "-" if index in (8, 13, 18, 23) else character in "0123456789abcdefABCDEF"
        for index, character in enumerate(value)
    )
