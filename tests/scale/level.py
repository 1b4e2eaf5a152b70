"""A source with many subscriptions, and a mirror that is level with it: written straight into the tables.

A first load through the line would show the same and take minutes; what is measured here is what comes after it.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import psycopg

from bss_sync.domain.change import Action, Kind, shard_of, stream_id
from bss_sync.pipeline.translate import content_digest
from tests.servers import Database

PRODUCT = "M365"
PER_ACCOUNT = 100
SEEDED_AT_ONCE = 10_000
_NEVER = UUID(int=0)

ACCOUNT = {"name": "Customer", "number": None, "email": None, "kind": "customer", "parent_id": None}


def account_of(number: int) -> str:
    """The account that holds a subscription."""
    return f"customer-{number // PER_ACCOUNT:06}"


def body_of(number: int) -> dict[str, Any]:
    """The canonical body of a subscription."""
    return {
        "account_id": account_of(number),
        "parent_id": None,
        "product": PRODUCT,
        "status": "active",
        "trial": False,
        "start_date": "2026-01-01",
        "end_date": None,
        "activation_date": "2026-01-02",
        "cancellation_date": None,
        "auto_renew": True,
        "billing_cycle": "P1M",
        "term": "P1Y",
        "quantity": str(number % 500 + 1),
        "characteristics": {"domain": f"customer-{number}.example", "region": "eu"},
    }


def id_of(number: int) -> str:
    """The source's id of a subscription."""
    return f"sub-{number:07}"


def seed(url: str, records: int, first: int = 0) -> None:
    """Fill a simulated BSS over HTTP, silently: the subscriptions from ``first`` on, until it has so many."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port)
    for start in range(first, records, SEEDED_AT_ONCE):
        numbers = range(start, min(start + SEEDED_AT_ONCE, records))
        accounts = sorted({account_of(number) for number in numbers})
        content = {
            "accounts": [{"id": one, **ACCOUNT} for one in accounts],
            "subscriptions": [
                {"id": id_of(number), **body_of(number), "quantity": number % 500 + 1} for number in numbers
            ],
        }
        connection.request("POST", "/seed", json.dumps(content), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, "the simulator was filled"
    connection.close()


def fill_mirror(database: Database, connection_id: UUID, tenant_id: UUID, records: int) -> None:
    """Write the mirror of that source, as the line would have left it."""
    server = database.server
    accounts = (records + PER_ACCOUNT - 1) // PER_ACCOUNT
    shared = [tenant_id, connection_id]
    with (
        psycopg.connect(host=str(server.folder), port=server.port, user="postgres", dbname=database.name) as connection,
        connection.cursor() as cursor,
    ):
        connection.execute("set session_replication_role = replica")  # no trigger, no check of a foreign key
        with cursor.copy(
            "copy stream (id, tenant_id, connection_id, shard, kind, source_id, version, digest) from stdin"
        ) as copy:
            for kind, name, body in _entities(records, accounts):
                digest = content_digest(Action.STATE, body)
                shard = shard_of(connection_id)
                copy.write_row([stream_id(connection_id, kind, name), *shared, shard, str(kind), name, 1, digest])
        about = "version, order_kind, source, effective_at, message, updated_at"
        told = [1, "sequence", None, "2026-01-01", _NEVER, "2026-01-01"]
        with cursor.copy(
            f"copy account (id, tenant_id, connection_id, source_id, name, kind, {about}) from stdin"
        ) as copy:
            told[2] = json.dumps(ACCOUNT)
            for number in range(accounts):
                name = f"customer-{number:06}"
                copy.write_row(
                    [stream_id(connection_id, Kind.ACCOUNT, name), *shared, name, "Customer", "customer", *told]
                )
        with cursor.copy(
            f"""copy subscription (id, tenant_id, connection_id, source_id, account_source_id, account_id, product,
                    status, source_status, trial, start_date, activation_date, auto_renew, billing_cycle, term,
                    quantity, characteristics, {about}) from stdin"""
        ) as copy:
            for number in range(records):
                copy.write_row(_subscription(connection_id, tenant_id, number, told))
    with psycopg.connect(
        host=str(server.folder), port=server.port, user="postgres", dbname=database.name, autocommit=True
    ) as connection:
        connection.execute("vacuum analyze stream, account, subscription")


def _entities(records: int, accounts: int) -> Iterator[tuple[Kind, str, dict[str, Any]]]:
    for number in range(accounts):
        yield Kind.ACCOUNT, f"customer-{number:06}", ACCOUNT
    for number in range(records):
        yield Kind.SUBSCRIPTION, id_of(number), body_of(number)


def _subscription(connection_id: UUID, tenant_id: UUID, number: int, told: list[Any]) -> list[Any]:
    body, account = body_of(number), account_of(number)
    source = json.dumps(body | {"source_status": body["status"]})
    return [
        stream_id(connection_id, Kind.SUBSCRIPTION, id_of(number)),
        tenant_id,
        connection_id,
        id_of(number),
        account,
        stream_id(connection_id, Kind.ACCOUNT, account),
        PRODUCT,
        "active",
        "active",
        False,
        body["start_date"],
        body["activation_date"],
        True,
        "P1M",
        "P1Y",
        body["quantity"],
        json.dumps(body["characteristics"]),
        *told[:2],
        source,
        *told[3:],
    ]
