"""Ranges of ids and what they come to. Equal on both sides of a chain link: the same versions of the same entities.

An entity's id in a chain is its record's id in the tier below: a UUID of random bits. A range is all ids that begin
with the same three hexadecimal digits. Each entity is hashed to 64 bits, id, version and deletion together, and a range
is the exclusive or of its entities: a single difference always shows, several cancel each other once in 2^64. The hash
is PostgreSQL's own for uuids. Hash partitions are laid out by it, so it is the same in every version; a machine with
the other order of bytes has another, and lists everything instead.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

DIGITS = 3
"""Characters that name a range: 4,096 ranges, about 250 entities each at a million."""

_HASHED = tuple(
    text(f"set local {setting}") for setting in ("enable_sort = off", "jit = off", "parallel_tuple_cost = 0")
)


def hash_by_range(connection: Connection) -> None:
    """For the rest of the transaction: the planner takes each id for a range of its own, and would sort a million."""
    for statement in _HASHED:
        connection.execute(statement)


def range_number(identity: str) -> str:
    """SQL: the range of a uuid as a number."""
    return f"(get_byte(uuid_send({identity}), 0) * 16 + get_byte(uuid_send({identity}), 1) / 16)"


def range_name(number: int) -> str:
    """The name of a range: how its ids begin."""
    return f"{number:0{DIGITS}x}"


def name_of_text(identity: str) -> str:
    """SQL: the same of a uuid's text."""
    return f"left({identity}, {DIGITS})"


def sums(identity: str, version: str, deleted: str) -> str:
    """SQL: the aggregate over a range, as text. ``identity`` is a uuid."""
    return f"bit_xor(uuid_hash_extended({identity}, ({version} << 1) | ({deleted})::integer))::text"
