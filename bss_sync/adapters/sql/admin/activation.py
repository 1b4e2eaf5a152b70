"""Activation: checks what a connection needs to go live, and goes live or names what is missing.

The calls to the source and the target are made between two short transactions, never inside one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from bss_sync.adapters.sql.admin import connection_states, connections, secrets, targets
from bss_sync.adapters.sql.admin.connection_states import Moved
from bss_sync.adapters.sql.admin.value_maps import CANONICAL
from bss_sync.adapters.sql.database import Database
from bss_sync.domain.errors import BssSyncError
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.ports.connector import ConnectorSpec, SourceClient
from bss_sync.ports.http import HttpClient
from bss_sync.ports.runtime import Vault

_EXAMPLES_MAX = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. ``ok`` None: nothing wrong, but worth knowing."""

    check: str
    ok: bool | None
    detail: str
    next_step: str = ""


@dataclass(frozen=True, slots=True)
class Checkup:
    """What the checks need beside the database. ``connectors`` gives a connector by its name."""

    database: Database
    vault: Vault
    connectors: Mapping[str, ConnectorSpec]
    http: HttpClient


def check(tools: Checkup, reference: str) -> list[Finding]:
    """Every check of one connection; nothing is changed."""
    with tools.database.engine() as connection:
        source = connections.find(connection, reference)
        findings = _stored(connection, source)
    return findings + [_source(tools, source), _target(tools)]


def activate(tools: Checkup, reference: str, *, actor: str) -> tuple[Moved, list[Finding]]:
    """Check, then go live. When something is missing, the connection is as it was and the findings name it."""
    with tools.database.engine() as connection:
        source = connections.find(connection, reference, lock=True)
        before = connection_states.begin_checks(connection, source)
    try:
        findings = check(tools, str(source.id))
    except BaseException:
        _back(tools, source, before, missing=["interrupted"], actor=actor)
        raise
    missing = [finding.check for finding in findings if finding.ok is False]
    if missing:
        return _back(tools, source, before, missing=missing, actor=actor), findings
    with tools.database.engine() as connection:
        source = connection_states.refreshed(connection, source)
        return connection_states.go_live(connection, source, actor=actor), findings


def _back(
    tools: Checkup, source: SourceConnection, before: connections.ConnectionState, *, missing: list[str], actor: str
) -> Moved:
    with tools.database.engine() as connection:
        source = connection_states.refreshed(connection, source)
        return connection_states.give_up_checks(connection, source, before, missing=missing, actor=actor)


def open_source(tools: Checkup, source: SourceConnection) -> SourceClient | None:
    """The client that asks a connection's BSS, or None when it can only push."""
    with tools.database.engine() as connection:
        opaque = secrets.open_opaque(connection, tools.vault, source.id)
    spec = tools.connectors[source.connector]
    return spec.source(spec.config.model_validate(source.settings), opaque, tools.http)


def _source(tools: Checkup, source: SourceConnection) -> Finding:
    return _reachable(
        "source",
        lambda: open_source(tools, source),
        absent="it can only push: nothing to reach",
        next_step=f"Correct the settings (bss-sync connection set {source.name}) or its secrets, then try again.",
    )


def _target(tools: Checkup) -> Finding:
    def client() -> targets.TargetClient | None:
        return targets.open_client(tools.database, tools.vault, tools.connectors, tools.http)

    return _reachable(
        "target",
        client,
        absent="none is set: the mirror is the distributor's BSS",
        next_step="See: bss-sync target test",
    )


def _reachable(
    name: str,
    make: Callable[[], SourceClient | targets.TargetClient | None],
    *,
    absent: str,
    next_step: str,
) -> Finding:
    try:
        client = make()
        if client is None:
            return Finding(name, True, absent)
        return Finding(name, True, client.check())
    except BssSyncError as error:
        return Finding(name, False, error.detail, next_step)


def _stored(connection: Connection, source: SourceConnection) -> list[Finding]:
    return [_catalogue(connection), _products(connection, source), *_values(connection, source)]


def _catalogue(connection: Connection) -> Finding:
    number = connection.execute(text("select count(*) from product where retired_at is null")).scalar_one()
    if not number:
        return Finding("catalogue", False, "it is empty: nothing would be in scope", "Run: bss-sync product add CODE")
    return Finding("catalogue", True, f"{number} product{'s' if number > 1 else ''}")


_FOREIGN = text(
    """select distinct m.body ->> 'product' as product from message m
       where m.connection_id = :id and m.state = 'pending' and m.kind = 'subscription' and m.action = 'state'
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
             and f.key in ('status', 'kind', 'billing_cycle', 'term') and f.value is not null
             and (m.kind = 'account'
                  or exists (select 1 from product p where p.code = m.body ->> 'product')
                  or exists (select 1 from product_map x
                             where x.connection_id = m.connection_id and x.source_code = m.body ->> 'product'))
           union all
           select held_field, held_value from message
           where connection_id = :id and state = 'quarantined' and held_field is not null) as seen
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
