"""Loads today's rules of connections: the products that a batch speaks of, and what an admin has mapped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from uuid import UUID

from sqlalchemy import text

from bss_sync.adapters.sql.direct import Answer, Statements
from bss_sync.domain.product import Catalogue
from bss_sync.ports.streams import ConnectionRules, Entity

_RULES = text("""
    select c.id, c.name, c.connector, c.settings, i.id as instance_id,
        (select jsonb_object_agg(p.source_code, p.code) from product_map p
         where p.connection_id = c.id and p.source_code = any(:codes)) as mapped,
        (select jsonb_agg(jsonb_build_array(v.field, v.source_value, v.canonical)) from value_map v
         where v.connection_id = c.id) as valued,
        (select jsonb_object_agg(k.code, k.retired_at is not null) from product k
         where k.code = any(:codes) or k.code in (
             select p.code from product_map p where p.connection_id = any(:ids) and p.source_code = any(:codes))
        ) as catalogue
    from connection c cross join instance i where c.id = any(:ids)""")


def ask_rules(
    connection: Statements, connection_ids: list[UUID], entities: Iterable[Entity], products: Collection[str] = ()
) -> Answer:
    """Ask for rules, with the products that the open and staged messages of the entities name, and these."""
    codes = set(products) | {
        message.body["product"]
        for entity in entities
        for message in (*entity.open, *([entity.staged] if entity.staged else []))
        if message.body.get("product") is not None
    }
    return connection.execute(_RULES, {"ids": connection_ids, "codes": list(codes)})


def read_rules(answer: Answer, can_fetch: Callable[[str], bool]) -> dict[UUID, ConnectionRules]:
    """The rules by connection."""
    return {
        row.id: ConnectionRules(
            connection_id=row.id,
            name=row.name,
            catalogue=Catalogue(row.catalogue or {}, row.mapped or {}),
            value_maps={(field, value): canonical for field, value, canonical in row.valued or ()},
            accounts_at_once=row.settings.get("account_scope") == "all",
            wait_seconds=float(row.settings.get("wait_seconds", 900)),
            can_fetch=can_fetch(row.connector),
            instance_id=str(row.instance_id),
        )
        for row in answer.all()
    }
