"""Activation: checks what a connection needs to go live, and goes live or names what is missing.

The calls to the source and the target are made between two short transactions, never inside one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from bss_sync.adapters.clients import Clients
from bss_sync.adapters.sql.admin import connection_states, connections
from bss_sync.adapters.sql.admin.connection_states import Moved
from bss_sync.adapters.sql.admin.value_maps import CANONICAL
from bss_sync.adapters.sql.database import Database
from bss_sync.domain.errors import BssSyncError, CannotFetch
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.domain.tenancy import ConnectionState

_EXAMPLES_MAX = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. ``ok`` None: nothing wrong, but worth knowing."""

    check: str
    ok: bool | None
    detail: str
    next_step: str = ""


def check(database: Database, clients: Clients, reference: str) -> list[Finding]:
    """Every check of one connection; nothing is changed."""
    with database.engine() as connection:
        source = connections.find(connection, reference)
        findings = [_catalogue(connection), _products(connection, source), *_values(connection, source)]
    return [*findings, _source(clients, source), target_finding(clients)]


def activate(database: Database, clients: Clients, reference: str, *, actor: str) -> tuple[Moved, list[Finding]]:
    """Check, then go live. When something is missing, the connection is as it was and the findings name it."""
    with database.engine() as connection:
        source = connections.find(connection, reference, lock=True)
        if source.state is ConnectionState.LIVE:
            return Moved(source.state), []
        before = connection_states.begin_checks(connection, source)
    try:
        findings = check(database, clients, str(source.id))
    except BaseException:
        _back(database, source, before, missing=["interrupted"], actor=actor)
        raise
    missing = [finding.check for finding in findings if finding.ok is False]
    if missing:
        return _back(database, source, before, missing=missing, actor=actor), findings
    with database.engine() as connection:
        source = connection_states.refreshed(connection, source)
        return connection_states.go_live(connection, source, actor=actor), findings


def _back(
    database: Database, source: SourceConnection, before: ConnectionState, *, missing: list[str], actor: str
) -> Moved:
    with database.engine() as connection:
        source = connection_states.refreshed(connection, source)
        return connection_states.give_up_checks(connection, source, before, missing=missing, actor=actor)


def _source(clients: Clients, source: SourceConnection) -> Finding:
    try:
        return Finding("source", True, clients.source(source.id).client.check())
    except CannotFetch:
        return Finding("source", True, "it can only push: nothing to reach")
    except BssSyncError as error:
        step = f"Correct the settings (bss-sync connection set {source.name}) or its secrets, then try again."
        return Finding("source", False, error.detail, step)


def target_finding(clients: Clients) -> Finding:
    """Whether the distributor's own BSS can be reached."""
    try:
        target = clients.target()
        if target is None:
            return Finding("target", True, "none is set: the mirror is the distributor's BSS")
        return Finding("target", True, target.client.check())
    except BssSyncError as error:
        return Finding("target", False, error.detail, "Correct it: bss-sync target set, then: bss-sync target test")


def _catalogue(connection: Connection) -> Finding:
    number = connection.execute(text("select count(*) from product where retired_at is null")).scalar_one()
    if not number:
        return Finding("catalogue", False, "it is empty: nothing would be in scope", "Run: bss-sync product add CODE")
    return Finding("catalogue", True, f"{number} product{'s' if number > 1 else ''}")


_FOREIGN = text(
    """select distinct m.body ->> 'product' as product from message m
       where m.connection_id = :id and m.state = 'pending' and settled_on(m.state, m.decided_at) = 'infinity'
         and m.kind = 'subscription' and m.action = 'state'
         and not exists (select 1 from product p where p.code = m.body ->> 'product')
         and not exists (select 1 from product_map x
                         where x.connection_id = m.connection_id and x.source_code = m.body ->> 'product')
       order by 1 limit :limit"""
)


def _products(connection: Connection, source: SourceConnection) -> Finding:
    """Foreign products are the reseller's own business: named, never in the way."""
    rows = connection.execute(_FOREIGN, {"id": source.id, "limit": _EXAMPLES_MAX}).scalars().all()
    if not rows:
        return Finding("products", True, "every product in the waiting messages is in the catalogue")
    return Finding(
        "products",
        None,
        f"not in the catalogue, out of scope: {_named(rows)}",
        f"For those that are yours: bss-sync product map {source.name} SOURCE_CODE CODE",
    )


_WORDS = text(
    """select field, value, count(*) as number from (
           select f.key as field, f.value from message m
           cross join lateral jsonb_each_text(m.body) as f
           where m.connection_id = :id and m.state = 'pending' and m.action = 'state'
             and settled_on(m.state, m.decided_at) = 'infinity'
             and f.key in ('status', 'kind', 'billing_cycle', 'term') and f.value is not null
             and (m.kind = 'account'
                  or exists (select 1 from product p where p.code = m.body ->> 'product')
                  or exists (select 1 from product_map x
                             where x.connection_id = m.connection_id and x.source_code = m.body ->> 'product'))
           union all
           select held_field, held_value from message
           where connection_id = :id and state = 'quarantined' and held_field is not null
             and settled_on(state, decided_at) = 'infinity') as seen
       where not exists (select 1 from value_map v
                         where v.connection_id = :id and v.field = seen.field and v.source_value = seen.value)
       group by field, value order by field, value"""
)


def _values(connection: Connection, source: SourceConnection) -> list[Finding]:
    """Words that nobody has mapped. A cycle or term that is unknown would be charged wrongly: it is in the way."""
    unknown: dict[str, list[str]] = {}
    for row in connection.execute(_WORDS, {"id": source.id}):
        if row.field in CANONICAL and not CANONICAL[row.field][0](row.value):
            unknown.setdefault(row.field, []).append(row.value)
    if not unknown:
        return [Finding("values", True, "every status, kind, cycle and term is known")]
    return [
        Finding(
            field,
            False if field in ("billing_cycle", "term") else None,
            f"unknown: {_named(values)}",
            f"Run: bss-sync connection map {source.name} {field} {values[0]!r} CANONICAL",
        )
        for field, values in unknown.items()
    ]


def _named(values: Sequence[str]) -> str:
    shown = ", ".join(repr(value) for value in values[:_EXAMPLES_MAX])
    return shown + (", …" if len(values) >= _EXAMPLES_MAX else "")
