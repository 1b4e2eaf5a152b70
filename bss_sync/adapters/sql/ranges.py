"""Ranges of ids and what they come to. Equal on both sides of a chain link: the same versions of the same entities.

An entity's id in a chain is its record's id in the tier below: random bits, as text of 36 characters. A range is all
ids that begin with the same three characters. Per entity, 32 of the id's bits are multiplied with a number made of its
version and deletion; the products of a range are summed, twice over different bits. A single difference always shows;
that several cancel each other in both sums and in the count is a matter of about 1 in 2^50. PostgreSQL makes the sums
in less than a second per million, and they are the same in every version of it.
"""

from __future__ import annotations

from uuid import UUID

DIGITS = 3
"""Characters that name a range: 4,096 ranges, about 250 entities each at a million."""

_VERSION_MAX = 2**29
"""Beyond, versions count as this one, so that no product leaves the range of a bigint."""

_ID = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


def range_of(identity: str) -> str:
    """SQL: the range of an id that is known to be one. ``identity`` is an SQL expression of type text."""
    return f"substr({identity}, 1, {DIGITS})"


def range_or_none(identity: str) -> str:
    """SQL: the range of any text; what is no id of a chain is in the range without a name, which never agrees."""
    return f"case when {_is_id(identity)} then {range_of(identity)} else '' end"


def uuid_or_lowest(identity: str) -> str:
    """SQL: the text where it is an id, else one that can be added up."""
    return f"case when {_is_id(identity)} then {identity} else '{UUID(int=0)}' end"


def _is_id(identity: str) -> str:
    return f"{identity} ~ '{_ID}'"


def sums(identity: str, version: str, deleted: str) -> str:
    """SQL: the aggregate over a range, as text."""
    weight = f"(2 * least({version}, {_VERSION_MAX}) + ({deleted})::integer + 1)"
    return " || '.' || ".join(f"sum({_bits(identity, first)} * {weight})" for first in (29, 1))


def _bits(identity: str, first: int) -> str:
    return f"('x' || substr({identity}, {first}, 8))::bit(32)::bigint"
