"""Ranges of ids and what they come to. Equal on both sides of a chain link: the same versions of the same entities.

An entity's id in a chain is its record's id in the tier below: a UUID of random bits. A range is all ids that begin
with the same three hexadecimal digits. Per entity, 32 of the id's bits are multiplied with a number made of its version
and deletion; the products of a range are summed, twice over different bits. A single difference always shows; that
several cancel each other in both sums and in the count is a matter of about 1 in 2^50. Plain arithmetic is quick, and
it is the same in every version of PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, text

DIGITS = 3
"""Characters that name a range: 4,096 ranges, about 250 entities each at a million."""

_VERSION_MAX = 2**29
"""Beyond, versions count as this one, so that no product leaves the range of a bigint."""

_GROUPS = (4, 6, 8, 10)
"""The bytes before which a uuid's text has a dash."""

NumberOf = Callable[[str, int, int], str]
"""``of_uuid`` or ``of_text``: both give the same numbers."""

_HASHED = tuple(
    text(f"set local {setting}") for setting in ("enable_sort = off", "jit = off", "parallel_tuple_cost = 0")
)


def hash_by_range(connection: Connection) -> None:
    """For the rest of the transaction: the planner takes each id for a range of its own, and would sort a million."""
    for statement in _HASHED:
        connection.execute(statement)


def of_uuid(identity: str, first: int, count: int) -> str:
    """SQL: ``count`` bytes of a uuid as a number."""
    parts = (
        f"(get_byte(uuid_send({identity}), {first + place})::bigint << {8 * (count - 1 - place)})"
        for place in range(count)
    )
    return f"({' | '.join(parts)})"


def of_text(identity: str, first: int, count: int) -> str:
    """SQL: the same of a uuid's text. A data error where it is none; the bytes lie within one group of digits."""
    place = 1 + 2 * first + sum(first >= begin for begin in _GROUPS)
    return f"('x' || substr({identity}, {place}, {2 * count}))::bit({8 * count})::bigint"


def range_number(identity: str, number_of: NumberOf) -> str:
    """SQL: the range of an id as a number."""
    return f"({number_of(identity, 0, 2)} >> {16 - 4 * DIGITS})"


def range_name(number: int) -> str:
    """The name of a range: how its ids begin."""
    return f"{number:0{DIGITS}x}"


def sums(identity: str, number_of: NumberOf, version: str, deleted: str) -> str:
    """SQL: the aggregate over a range, as text."""
    weight = f"(2 * least({version}, {_VERSION_MAX}) + ({deleted})::integer + 1)"
    return " || '.' || ".join(f"sum({number_of(identity, first, 4)} * {weight})" for first in (12, 0))
