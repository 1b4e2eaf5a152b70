"""By the source's own id, whoever's it is.

Our ids derive from (connection, kind, source id), so that no index by the source's id is needed.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.reading.reach import Reach, Where
from bss_sync.domain.change import Kind, stream_id

# Asked for by themselves: among so many ids that might be, a list would be read along its order instead.
_THERE = {
    "message": text("select distinct stream_id from message where stream_id = any(:ids)"),
    "account": text("select id from account where id = any(:ids)"),
    "subscription": text("select id from subscription where id = any(:ids)"),
}


def records_named(connection: Connection, reach: Reach, table: str, source_id: str, of: UUID | None) -> list[UUID]:
    """The ids of records, of one connection or of all within reach, that a row of ``table`` is about."""
    connections = [of]
    if of is None:
        where = Where().within(reach, "c", connection_column="id")
        connections = list(connection.execute(where.under("select c.id from connection c"), where.values).scalars())
    kinds = tuple(Kind) if table == "message" else (Kind(table),)
    ids = [stream_id(one, kind, source_id) for one in connections if one is not None for kind in kinds]
    return list(connection.execute(_THERE[table], {"ids": ids}).scalars())
