"""A mirror of any size, written straight into the tables as the line would have left it: everything entered once.

Every table that the line writes has its rows, so that every index is as large as in life. The entries of the audit have
the size of real ones but are not chained: computing a million hashes one after the other would measure only that.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from uuid import UUID

import psycopg
from psycopg import sql

from bench.apply import psycopg_address
from bench.messages import SUBSCRIPTIONS_PER_ACCOUNT, account_body, subscription_body
from bench.places import Installation, Reseller
from bss_sync.domain.change import Action, Kind, stream_id
from bss_sync.pipeline.translate import content_digest

_GIVEN = """
    create temporary table given (id uuid, connection_id uuid, kind text, source_id text, account_id uuid,
                                  digest bytea, message uuid, place bigint, source jsonb)"""
_STREAM = """
    insert into stream (id, tenant_id, connection_id, shard, kind, source_id, token, version, version_sent_at,
                        version_message_id, digest)
    select g.id, c.tenant_id, c.id, c.shard, g.kind, g.source_id, 1, 1, now(), g.source_id || '-1', g.digest
    from given g join connection c on c.id = g.connection_id"""
_ACCOUNT = """
    insert into account (id, tenant_id, connection_id, source_id, name, number, email, kind, version, order_kind,
                         source, effective_at, message, chain_version)
    select g.id, c.tenant_id, c.id, g.source_id, g.source ->> 'name', g.source ->> 'number', g.source ->> 'email',
           g.source ->> 'kind', 1, 'sequence', g.source, now(), g.message, 1
    from given g join connection c on c.id = g.connection_id where g.kind = 'account'"""
_SUBSCRIPTION = """
    insert into subscription (id, tenant_id, connection_id, source_id, account_source_id, account_id, product,
                              status, source_status, trial, start_date, end_date, activation_date, auto_renew,
                              billing_cycle, term, quantity, characteristics, version, order_kind, source,
                              effective_at, message, chain_version)
    select g.id, c.tenant_id, c.id, g.source_id, g.source ->> 'account_id', g.account_id, g.source ->> 'product',
           'active', 'active', false, (g.source ->> 'start_date')::date, (g.source ->> 'end_date')::date,
           (g.source ->> 'activation_date')::date, true, 'P1M', 'P1Y', (g.source ->> 'quantity')::numeric,
           g.source -> 'characteristics', 1, 'sequence', g.source, now(), g.message, 1
    from given g join connection c on c.id = g.connection_id where g.kind = 'subscription'"""
_HISTORY = """
    insert into history (tenant_id, connection_id, kind, record_id, epoch, version, effective_at, state, deleted,
                         message, chain_version, chain_linked)
    select c.tenant_id, c.id, g.kind, g.id, 0, 1, now(), g.source, false, g.message, 1, false
    from given g join connection c on c.id = g.connection_id"""
_MESSAGE = """
    insert into message (id, tenant_id, connection_id, stream_id, shard, message_id, kind, source_id, action,
                         order_kind, version, sent_at, effective_at, body, digest, state, verdict, attempts, decided_at,
                         applied_at)
    select g.message, c.tenant_id, c.id, g.id, c.shard, g.source_id || '-1', g.kind, g.source_id, 'state', 'sequence',
           1, now(), now(), g.source || jsonb_build_object('id', g.source_id, 'version', 1), g.digest, 'applied',
           'entered', 1, now(), now()
    from given g join connection c on c.id = g.connection_id"""
_KEY = """
    insert into message_key (tenant_id, connection_id, message_id, digest)
    select c.tenant_id, c.id, g.source_id || '-1', g.digest from given g join connection c on c.id = g.connection_id"""
_AUDIT = """
    with numbered as (
        select g.*, c.tenant_id, coalesce(h.seq, 0) + row_number() over (partition by c.id order by g.place) as seq
        from given g join connection c on c.id = g.connection_id left join audit_head h on h.chain_id = c.id),
    heads as (
        insert into audit_head (chain_id, tenant_id, seq, hash)
        select connection_id, tenant_id, max(seq), sha256(connection_id::text::bytea) from numbered group by 1, 2
        on conflict (chain_id) do update set seq = excluded.seq)
    insert into audit (chain_id, seq, tenant_id, connection_id, at, actor, action, kind, record_id, message, detail,
                       salt, digest, hash)
    select connection_id, seq, tenant_id, connection_id, now(), 'system', 'message.applied', kind, id, message,
           jsonb_build_object('fields', (select jsonb_agg(key) from jsonb_object_keys(source) key), 'version', 1,
                              'verdict', 'entered', 'revision', 1),
           substr(digest, 1, 16), sha256(digest), sha256(sha256(digest)) from numbered"""
_TABLES = ("stream", "account", "subscription", "history", "message", "message_key", "audit")
_STATEMENTS = (_STREAM, _ACCOUNT, _SUBSCRIPTION, _HISTORY, _MESSAGE, _KEY, _AUDIT)
ACCOUNTS_AT_ONCE = 25_000


def fill(here: Installation, first: int, until: int) -> None:
    """Mirror the customers from ``first`` up to ``until``, the resellers by turns, each with its subscriptions.

    Then everything is vacuumed, analysed and on disk, as it would be after some time.
    """
    with psycopg.connect(psycopg_address(here.database), autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")  # no trigger, no check of a foreign key
        connection.execute("set synchronous_commit = off")
        connection.execute(_GIVEN)
        for start in range(first, until, ACCOUNTS_AT_ONCE):
            _copy(connection, here.resellers, start, min(start + ACCOUNTS_AT_ONCE, until))
            for statement in _STATEMENTS:
                connection.execute(statement)
            connection.execute("truncate given")
        tables = sql.SQL(", ").join(map(sql.Identifier, _TABLES))
        connection.execute(sql.SQL("vacuum analyze {}").format(tables))
        connection.execute("checkpoint")


def reseller_of(here: Installation, number: int) -> Reseller:
    """Whose customer that is."""
    return here.resellers[number % len(here.resellers)]


def _copy(connection: psycopg.Connection, resellers: list[Reseller], first: int, until: int) -> None:
    with connection.cursor() as cursor, cursor.copy("copy given from stdin") as copy:
        for row in _rows(resellers, first, until):
            copy.write_row(row)


def _rows(resellers: list[Reseller], first: int, until: int) -> Iterator[tuple[object, ...]]:
    # In the order of time, as the door's: ids of messages stay together in the index.
    high = (time.time_ns() // 1_000_000) << 16 | 0x7000
    place = 0
    for number in range(first, until):
        owner = resellers[number % len(resellers)].id
        account = account_body(number, 1)
        account_id = stream_id(owner, Kind.ACCOUNT, account["id"])
        bodies = [(Kind.ACCOUNT, account)]
        bodies += [
            (Kind.SUBSCRIPTION, subscription_body(number, index, 1)) for index in range(SUBSCRIPTIONS_PER_ACCOUNT)
        ]
        for kind, body in bodies:
            name = body["id"]
            content = {key: value for key, value in body.items() if key not in ("id", "version")}
            link = None
            if kind is Kind.SUBSCRIPTION:
                content |= {"quantity": str(body["quantity"])}
                link = str(account_id)
            digest = content_digest(Action.STATE, content)
            if kind is Kind.SUBSCRIPTION:
                content["source_status"] = content["status"]
            identity = account_id if kind is Kind.ACCOUNT else stream_id(owner, kind, name)
            message = UUID(int=(high + (place >> 12)) << 64 | 0b10 << 62 | secrets.randbits(62))
            yield (
                *(str(identity), str(owner), kind.value, name, link, digest, str(message), place),
                json.dumps(content),
            )
            place += 1
