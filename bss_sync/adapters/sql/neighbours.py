"""Whether somebody with little to do is about: then floods make room (fair shares, docs/breakers.md)."""

from __future__ import annotations

from sqlalchemy import text

from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.streams import LIGHT_MESSAGES

NEAR_SECONDS = 3
"""Who has sent within so long is about."""

# At most LIGHT_MESSAGES entries of an index for each connection that is about, and the first light one is enough.
_LIGHT = text("""
    select exists (
        select from connection c
        where c.state in ('shadow', 'live') and c.last_received_at > now() - make_interval(secs => :near)
          and not exists (
              select from message m where m.state = 'pending' and m.shard = c.shard and m.connection_id = c.id
                and settled_on(m.state, m.decided_at) = 'infinity'
              order by m.seq offset :light limit 1))""")


class SqlNeighbours:
    """The connections that send just now, as PostgreSQL knows them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def light(self) -> bool:
        """Whether a connection sends just now that has no backlog."""
        with self._database.engine() as connection:
            return bool(connection.execute(_LIGHT, {"near": NEAR_SECONDS, "light": LIGHT_MESSAGES}).scalar_one())
