"""Loads today's rules of connections: the products that a batch speaks of, and what an admin has mapped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.domain.product import Catalogue
from bss_sync.ports.streams import ConnectionRules, Entity

_CONNECTIONS = text("""
    select c.id, c.name, c.connector, c.settings, i.id as instance_id from connection c cross join instance i
    where c.id = any(:ids)""")
_PRODUCT_MAPS = text("""
    select connection_id, source_code, code from product_map
    where connection_id = any(:ids) and source_code = any(:codes)""")
_PRODUCTS = text("select code, retired_at is not null as retired from product where code = any(:codes)")
_VALUE_MAPS = text(
    "select connection_id, field, source_value, canonical from value_map where connection_id = any(:ids)"
)


def load_rules(
    connection: Connection,
    connection_ids: list[UUID],
    entities: Iterable[Entity],
    can_fetch: Callable[[str], bool],
) -> dict[UUID, ConnectionRules]:
    """The rules by connection, with the products that the open and staged messages of the entities name."""
    codes = {
        message.body["product"]
        for entity in entities
        for message in (*entity.open, *([entity.staged] if entity.staged else []))
        if message.body.get("product") is not None
    }
    mapped: dict[UUID, dict[str, str]] = defaultdict(dict)
    for row in connection.execute(_PRODUCT_MAPS, {"ids": connection_ids, "codes": list(codes)}):
        mapped[row.connection_id][row.source_code] = row.code
    wanted = codes | {code for names in mapped.values() for code in names.values()}
    catalogue = {row.code: row.retired for row in connection.execute(_PRODUCTS, {"codes": list(wanted)})}
    values: dict[UUID, dict[tuple[str, str], str]] = defaultdict(dict)
    for row in connection.execute(_VALUE_MAPS, {"ids": connection_ids}):
        values[row.connection_id][row.field, row.source_value] = row.canonical
    return {
        row.id: ConnectionRules(
            connection_id=row.id,
            name=row.name,
            catalogue=Catalogue(catalogue, mapped.get(row.id, {})),
            value_maps=values.get(row.id, {}),
            accounts_at_once=row.settings.get("account_scope") == "all",
            wait_seconds=float(row.settings.get("wait_seconds", 900)),
            can_fetch=can_fetch(row.connector),
            instance_id=str(row.instance_id),
        )
        for row in connection.execute(_CONNECTIONS, {"ids": connection_ids})
    }
