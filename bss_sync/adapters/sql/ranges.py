"""Ranges of ids and what they come to. Equal on both sides of a chain link: the same versions of the same entities.

An entity's id in a chain is its record's id in the tier below: a UUID of random bits. A range is all ids that begin
with the same three hexadecimal digits. Each entity is hashed to 64 bits, id, version and deletion together, and a range
is the exclusive or of its entities: a single difference always shows, several cancel each other once in 2^64. The hash
is PostgreSQL's own. Hash partitions are laid out by it, so it is the same in every version; a machine with the other
order of bytes has another, and lists everything instead. Of an id it is taken as the id is written: to read a million
texts as uuids took longer than all the rest.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection, text

from bss_sync.ports.connector import RangeForm

DIGITS = 3
"""Characters that name a range: 4,096 ranges, about 250 entities each at a million."""
RANGE_NAME = re.compile(f"[0-9a-f]{{{DIGITS}}}")

_HASHED = tuple(
    text(f"set local {setting}") for setting in ("enable_sort = off", "jit = off", "parallel_tuple_cost = 0")
)


def hash_by_range(connection: Connection) -> None:
    """For the rest of the transaction: the planner takes each id for a range of its own, and would sort a million."""
    for statement in _HASHED:
        connection.execute(statement)


def name_of_text(identity: str) -> str:
    """SQL: the range of a uuid's text."""
    return f"left({identity}, {DIGITS})"


def sums(identity: str, version: str, deleted: str, form: RangeForm) -> str:
    """SQL: the aggregate over a range, as text. ``identity`` is a uuid's text."""
    words = f"({version} << 1) | ({deleted})::integer"
    if form is RangeForm.UUID:
        return f"bit_xor(uuid_hash_extended(cast({identity} as uuid), {words}))::text"
    return f"bit_xor(hashtextextended({identity}, {words}))::text"
