"""How sets of rows travel to PostgreSQL: one JSON array for ``jsonb_to_recordset``, one array literal for ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson


def record_set(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as JSON. UUIDs, aware datetimes and enums go as they are; a member that is missing is null.

    Numbers beyond 64 bits, which a source's characteristics may hold, are written by the standard library.
    """
    try:
        return orjson.dumps(rows).decode()
    except TypeError:
        return json.dumps(rows, default=str)


def id_array(ids: Iterable[UUID]) -> str:
    """For ``cast(:ids as uuid[])``: cheaper than a list, of which each element is looked at on its own."""
    return "{" + ",".join([one.hex for one in ids]) + "}"
