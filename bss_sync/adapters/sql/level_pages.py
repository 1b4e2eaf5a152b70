"""Pages that were level, and what the mirror's stretch of each came to then (docs/decisions/0037).

A stretch is a kind's rows of the mirror and of the streams from the first to the last id of a page. What it comes to is
made of where PostgreSQL keeps each row and of the transaction that wrote it: whoever changes a row, in whatever way,
writes it anew elsewhere. Nothing of a row is read for that. A table that was written anew as a whole, or restored from
a dump, comes to something else: then its pages are read, once.
"""

# ruff: noqa: S608  nothing that anybody sends stands in these

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from bss_sync.domain.change import Kind
from bss_sync.ports.level_pages import AnsweredPage, LevelPage

STRETCHES = """
    r as materialized (
        select *, ctid as spot, xmin as written_by from {table}
        where connection_id = :connection and source_id between :first and :last),
    s as materialized (
        select *, ctid as spot, xmin as written_by from stream
        where connection_id = :connection and kind = '{table}' and source_id between :first and :last)"""
_SUM = "select concat(count(*), ' ', bit_xor(hashtidextended(spot, written_by::text::bigint))) as sum from"
_SUMS = f"concat_ws(' ', ({_SUM} r), ({_SUM} s))"
# In the same statement that compares, so that what is remembered is what was compared.
KEEP = f""",
    kept as (
        insert into level_page (connection_id, tenant_id, cursor, rules, answer, following, kind, first_id, last_id,
            number, ids, mirror, settled)
        select c.id, c.tenant_id, :cursor, cast(:rules as bytea), cast(:answer as bytea), :following, '{{kind}}',
               :first, :last, (select count(*) from listed),
               array(select id from held where id is not null), {_SUMS},
               not exists (select 1 from held where level is not true)
        from connection c where c.id = :connection
        on conflict (connection_id, cursor) do update set rules = excluded.rules, answer = excluded.answer,
            following = excluded.following, kind = excluded.kind, first_id = excluded.first_id,
            last_id = excluded.last_id, number = excluded.number, ids = excluded.ids, mirror = excluded.mirror,
            settled = excluded.settled, kept_at = excluded.kept_at)"""
_THIS = "connection_id = :connection and cursor = :cursor and rules = :rules and answer = :answer"
_SETTLE = text(f"update level_page set settled = true where {_THIS}")
_KNOWN = text(
    """select cursor, rules, answer, following, kind, first_id, last_id, number from level_page
       where connection_id = :connection and rules = :rules and settled"""
)
_STILL_LEVEL = {
    kind: text(
        f"""with {STRETCHES.format(table=kind).replace("*, ctid", "ctid")},
            same as (
                select * from level_page where {_THIS} and settled and kind = '{kind}' and mirror = {_SUMS}),
            noted as (
                insert into run_seen (run_id, tenant_id, connection_id, ids)
                select :run, tenant_id, connection_id, ids from same),
            still_used as (
                update level_page set kept_at = now()
                where {_THIS} and kept_at < now() - interval '7 days' and exists (select 1 from same))
            select count(*) from same"""
    )
    for kind in Kind
}
PRUNE = text("delete from level_page where kept_at < now() - interval '35 days'")


def named(page: AnsweredPage) -> dict[str, Any]:
    """The page as the statements name it."""
    return {"cursor": page.cursor, "rules": page.rules, "answer": page.answer, "following": page.following}


def known_pages(connection: Connection, scope: Mapping[str, Any], rules: bytes) -> dict[str, LevelPage]:
    """What is remembered under these rules, by cursor."""
    return {
        row.cursor: LevelPage(
            AnsweredPage(row.cursor, bytes(row.rules), bytes(row.answer), row.following),
            Kind(row.kind),
            row.first_id,
            row.last_id,
            row.number,
        )
        for row in connection.execute(_KNOWN, {"connection": scope["connection"], "rules": rules})
    }


def settle(connection: Connection, scope: Mapping[str, Any], page: AnsweredPage) -> None:
    """It is level after all."""
    connection.execute(_SETTLE, {"connection": scope["connection"], **named(page)})


def still_level(connection: Connection, scope: Mapping[str, Any], known: LevelPage) -> bool:
    """Whether its stretch comes to the same; then its records are noted as listed."""
    values = {**scope, **named(known.page), "first": known.first, "last": known.last}
    return bool(connection.execute(_STILL_LEVEL[known.kind], values).scalar_one())
