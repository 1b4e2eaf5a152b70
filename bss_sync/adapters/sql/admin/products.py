"""The catalogue: it decides what is in scope (domain.md section 3). What it lets in enters from the staging table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.admin.acts import record_act, record_distributor_act
from bss_sync.domain.errors import FieldProblem, InvalidRequest, NotFound
from bss_sync.domain.tenancy import Connection as SourceConnection

CODE_CHARACTERS_MAX = 255


@dataclass(frozen=True, slots=True)
class CatalogueProduct:
    """A product of the distributor. Retired ones let nothing new in; what has entered stays."""

    code: str
    name: str
    retired_at: datetime | None
    subscriptions: int


@dataclass(frozen=True, slots=True)
class NewProduct:
    """A product to add."""

    code: str
    name: str


@dataclass(frozen=True, slots=True)
class Added:
    """What adding changed, and the shards to wake after the commit: staged subscriptions enter now."""

    added: int
    unchanged: int
    released: int
    shards: frozenset[int]


_UPSERT = text(
    """insert into product (code, name) select * from unnest(cast(:codes as text[]), cast(:names as text[]))
       on conflict (code) do update set name = excluded.name, retired_at = null
       where product.name is distinct from excluded.name or product.retired_at is not null"""
)
_WAKE = text(
    """update stream s set ready_at = least(s.ready_at, now()) from staging g
       where g.stream_id = s.id and g.product = any(:codes)
         and (cast(:connection_id as uuid) is null or g.connection_id = :connection_id)
       returning s.shard"""
)


def add(connection: Connection, products: Sequence[NewProduct], *, actor: str) -> Added:
    """Add products, rename those that are there, bring retired ones back. InvalidRequest names what is wrong."""
    wanted = {product.code: product.name for product in products}
    for code in wanted:
        check_code(code)
    done = connection.execute(_UPSERT, {"codes": list(wanted), "names": list(wanted.values())})
    shards = [row.shard for row in connection.execute(_WAKE, {"codes": list(wanted), "connection_id": None})]
    if done.rowcount:
        some = sorted(wanted)[:100]
        record_distributor_act(
            connection, actor, "product.added", {"count": done.rowcount, "codes": some, "released": len(shards)}
        )
    return Added(done.rowcount, len(wanted) - done.rowcount, len(shards), frozenset(shards))


def check_code(code: str) -> None:
    """InvalidRequest unless a product code is 1 to 255 printable characters without spaces at its ends."""
    if not code or len(code) > CODE_CHARACTERS_MAX or not code.isprintable() or code != code.strip():
        raise InvalidRequest(
            f"{code[:40]!r} is no product code.",
            fields=(FieldProblem("code", f"1 to {CODE_CHARACTERS_MAX} printable characters, no spaces at the ends"),),
        )


def retire(connection: Connection, code: str, *, actor: str) -> CatalogueProduct:
    """Let nothing new in. NotFound for an unknown code; retiring twice is nothing."""
    product = require(connection, code)
    if product.retired_at is None:
        connection.execute(text("update product set retired_at = now() where code = :code"), {"code": code})
        record_distributor_act(connection, actor, "product.retired", {"code": code})
    return require(connection, code)


_LIST = """select p.code, p.name, p.retired_at,
                  (select count(*) from subscription s
                   where s.product = p.code and s.deleted_at is null and s.ended_at is null) as subscriptions
           from product p {where} order by p.code"""


def require(connection: Connection, code: str) -> CatalogueProduct:
    """One product; NotFound."""
    row = connection.execute(text(_LIST.format(where="where p.code = :code")), {"code": code}).one_or_none()
    if row is None:
        raise NotFound(
            f"There is no product {code!r} in the catalogue.", next_step=f"Add it: bss-sync product add {code}"
        )
    return CatalogueProduct(row.code, row.name, row.retired_at, row.subscriptions)


def list_all(connection: Connection) -> list[CatalogueProduct]:
    """The catalogue, by code."""
    rows = connection.execute(text(_LIST.format(where=""))).all()
    return [CatalogueProduct(row.code, row.name, row.retired_at, row.subscriptions) for row in rows]


@dataclass(frozen=True, slots=True)
class Mapped:
    """A source's code that stands for one of the distributor's."""

    connection: str
    source_code: str
    code: str


_MAP = text(
    """insert into product_map (tenant_id, connection_id, source_code, code)
       values (:tenant_id, :connection_id, :source_code, :code)
       on conflict (connection_id, source_code) do update set code = excluded.code"""
)


def map_code(connection: Connection, source: SourceConnection, source_code: str, code: str, *, actor: str) -> Added:
    """Let a source's code stand for the distributor's. NotFound unless the catalogue has it."""
    check_code(source_code)
    require(connection, code)
    scope = {"tenant_id": source.tenant_id, "connection_id": source.id}
    connection.execute(_MAP, {**scope, "source_code": source_code, "code": code})
    woken = connection.execute(_WAKE, {"codes": [source_code], "connection_id": source.id})
    shards = [row.shard for row in woken]
    record_act(
        connection,
        actor,
        "product.mapped",
        {"source_code": source_code, "code": code, "released": len(shards)},
        tenant_id=source.tenant_id,
        connection_id=source.id,
    )
    return Added(1, 0, len(shards), frozenset(shards))


def list_maps(connection: Connection, connection_id: UUID | None = None) -> list[Mapped]:
    """The mapped codes, of one connection or of all."""
    rows = connection.execute(
        text(
            """select c.name, m.source_code, m.code from product_map m join connection c on c.id = m.connection_id
               where cast(:id as uuid) is null or c.id = :id order by c.name, m.source_code"""
        ),
        {"id": connection_id},
    )
    return [Mapped(row.name, row.source_code, row.code) for row in rows]
