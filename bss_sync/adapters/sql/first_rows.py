"""Rows of what nobody had heard of before: each is written once, decided already (adapters/sql/first_load.py).

Nobody else can have written any of them: a unique key that is there already undoes the whole chunk.

What the line writes in steps (a pending message, its verdict, a lease, a position) is here one insert each; the
mirror's columns are filled as ``mirror_rows`` fills them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from bss_sync.adapters.sql.chain_places import PLACE_MAX
from bss_sync.adapters.sql.direct import PLANNED_ONCE, Statements
from bss_sync.adapters.sql.mirror_rows import SUBSCRIPTION_COLUMNS
from bss_sync.adapters.sql.records import id_array, record_set
from bss_sync.domain.audit import AuditEntry
from bss_sync.domain.change import Content, Kind, stream_id
from bss_sync.ports.inbox import Origin
from bss_sync.ports.loading import New
from bss_sync.ports.streams import Settled

_GIVEN = """
        select * from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, stream uuid, message_id text, kind text,
            source_id text, version bigint, sent_at timestamptz, effective_at timestamptz, body jsonb, dropped text[],
            passed text[], digest text, state text, verdict text, reason text, at_version bigint, content text,
            account uuid, more jsonb, epoch integer, at_sent timestamptz)"""
_MESSAGES = f"""
    with r as materialized ({_GIVEN}), keys as (
        insert into message_key (tenant_id, connection_id, message_id, digest)
        select :tenant, :connection, message_id, decode(digest, 'hex') from r
    ), stored as (
        insert into message (id, tenant_id, connection_id, stream_id, shard, origin, message_id, kind, source_id,
                             action, order_kind, version, sent_at, effective_at, body, dropped, passed, digest,
                             state, verdict, reason, attempts, decided_at, applied_at)
        select id, :tenant, :connection, stream, :shard, :origin, message_id, kind, source_id, 'state', :order_kind,
               version, sent_at, coalesce(effective_at, sent_at), body, coalesce(dropped, '{{}}'),
               coalesce(passed, '{{}}'), decode(digest, 'hex'), state, verdict, reason, 1, now(),
               case when state = 'applied' then now() end
        from r returning id, stream_id, seq
    )"""  # noqa: S608  constants only
# Nobody is at these streams: of their row nothing but the position changes.
_FOLLOWED = text(f"""{_MESSAGES}
    update stream t set epoch = r.epoch, version = r.at_version, version_sent_at = r.at_sent,
        version_message_id = r.message_id, version_seq = s.seq, digest = decode(r.content, 'hex'), deleted = false
    from r join stored s on s.id = r.id where t.id = r.stream""").execution_options(**PLANNED_ONCE)  # noqa: S608  constants only
_STORE = f"""{_MESSAGES}, streams as (
        insert into stream (id, tenant_id, connection_id, shard, kind, source_id, version, version_sent_at,
                            version_message_id, version_seq, digest)
        select r.stream, :tenant, :connection, :shard, r.kind, r.source_id, r.at_version, r.sent_at, r.message_id,
               s.seq, decode(r.content, 'hex')
        from r join stored s on s.stream_id = r.stream
    )"""  # noqa: S608  constants only
_STORED = text(f"{_STORE} select 1").execution_options(**PLANNED_ONCE)
# The content is the message's body with the words that were translated.
_ENTERED = text(f"""{_STORE}, s as materialized (
        select *, body || more as shown, least(:leap + version, {PLACE_MAX}) as place from r
    ), kept as (
        insert into history (tenant_id, connection_id, kind, record_id, epoch, version, effective_at, state, deleted,
                             message, chain_version, chain_linked)
        select :tenant, :connection, 'subscription', stream, 0, version, coalesce(effective_at, sent_at), shown, false,
               id, place, false
        from s
    ), written as (
        insert into subscription (id, tenant_id, connection_id, source_id, revision, epoch, version, order_kind,
                                  source, passed, effective_at, message, chain_version,
                                  {", ".join(name for name in SUBSCRIPTION_COLUMNS if not name.endswith("t_id"))},
                                  account_id)
        select stream, :tenant, :connection, source_id, 1, 0, version, :order_kind, shown, coalesce(passed, '{{}}'),
               coalesce(effective_at, sent_at), id, place,
               {", ".join(value for name, value in SUBSCRIPTION_COLUMNS.items() if not name.endswith("t_id"))},
               account
        from s
    ), due as (
        insert into delivery (record_id, tenant_id, connection_id, kind, desired_revision, due_at)
        select stream, :tenant, :connection, 'subscription', 1, now() from s
        where :live and exists (select from target) order by stream
        returning 1
    )
    select exists (select from due)""").execution_options(**PLANNED_ONCE)  # noqa: S608  constants only


def store_settled(
    connection: Statements, origin: Origin, sender: Any, settled: Settled, new: Mapping[UUID, New]
) -> None:
    """Messages with their verdicts, and streams with their positions."""
    verdicts = dict(settled.verdicts.values())
    rows = []
    for key, one in new.items():
        verdict, position = verdicts[key], settled.entities[key].position
        assert position.digest is not None, "what was decided for good has a position"
        row = _row(one, position.digest) | {
            "state": verdict.state,
            "verdict": verdict.verdict,
            "at_version": position.version,
        }
        if verdict.reason is not None:
            row["reason"] = verdict.reason
        rows.append(row)
    values = _shared(origin, sender, next(iter(new.values())))
    connection.execute(_STORED, values | {"rows": record_set(rows)})


def store_followed(
    connection: Statements, origin: Origin, sender: Any, settled: Settled, arrived: Mapping[UUID, New]
) -> None:
    """Messages of known streams with their verdicts, one of each, and the streams' new positions."""
    rows = []
    for key, (stream, verdict) in settled.verdicts.items():
        position = settled.entities[stream].position
        assert position.digest is not None, "what was applied has a position"
        assert position.message_id == arrived[key].change.message_id, "the only message of its stream"
        row = _row(arrived[key], position.digest)
        row["state"], row["verdict"] = verdict.state, verdict.verdict
        row["epoch"], row["at_version"], row["at_sent"] = position.epoch, position.version, position.sent_at
        rows.append(row)
    values = _shared(origin, sender, next(iter(arrived.values())))
    connection.execute(_FOLLOWED, values | {"rows": record_set(rows)})


def write_plain(
    connection: Statements, origin: Origin, sender: Any, plain: Sequence[tuple[New, Content, bytes]], leap: int
) -> bool:
    """Messages, streams, mirror, history and outbox of what simply enters. True when deliveries are due."""
    rows = []
    for new, content, digest in plain:
        body, account = new.change.body, content["account_id"]
        row = _row(new, digest)
        row["state"], row["verdict"], row["at_version"] = "applied", "entered", new.change.version
        row["more"] = {name: value for name, value in content.items() if name not in body or body[name] != value}
        if account is not None:
            row["account"] = stream_id(sender.id, Kind.ACCOUNT, account)
        rows.append(row)
    values = _shared(origin, sender, plain[0][0]) | {"leap": leap, "live": sender.state == "live"}
    return bool(connection.execute(_ENTERED, values | {"rows": record_set(rows)}).scalar_one())


def plain_entries(sender: Any, plain: Sequence[tuple[New, Content, bytes]]) -> list[AuditEntry]:
    """What the audit keeps of them: what it would keep had the line written them."""
    details: dict[int | None, dict[str, Any]] = {}
    entries = []
    for new, content, _digest in plain:
        version = new.change.version
        detail = details.get(version)
        if detail is None:
            fields = list(content)
            detail = details[version] = {"verdict": "entered", "version": version, "fields": fields, "revision": 1}
        entries.append(
            AuditEntry(
                sender.id,
                sender.tenant_id,
                "system",
                "message.applied",
                detail,
                connection_id=sender.id,
                kind="subscription",
                record_id=new.record_id,
                message=new.message,
            )
        )
    return entries


def anybody_waits(connection: Statements, sender: Any) -> bool:
    """Whether anything of the connection waits for something else, or stands without its parent."""
    return bool(connection.execute(_WAITS, {"connection": sender.id}).scalar_one())


_WAITS = text("""
    select exists (select from message where connection_id = :connection and state in ('waiting', 'dead')
                   and settled_on(state, decided_at) = 'infinity' and waits_for is not null)
        or exists (select from subscription where connection_id = :connection and parent_id is null
                   and parent_source_id is not null)""")


def heard_of(connection: Statements, ids: Sequence[UUID]) -> set[UUID]:
    """Those of which there is a stream, or a message that will make one."""
    return set(connection.execute(_HEARD_OF, {"ids": id_array(ids)}).scalars())


_HEARD_OF = text("""
    select id from stream where id = any(cast(:ids as uuid[]))
    union all select stream_id from message where stream_id = any(cast(:ids as uuid[]))
        and settled_on(state, decided_at) = 'infinity'""")


def _row(new: New, digest: bytes) -> dict[str, Any]:
    change = new.change
    row: dict[str, Any] = {
        "id": new.message,
        "stream": new.record_id,
        "message_id": change.message_id,
        "kind": change.kind,
        "source_id": change.source_id,
        "version": change.version,
        "sent_at": change.sent_at,
        "body": change.body,
        "digest": change.digest.hex(),
        "content": digest.hex(),
    }
    if change.effective_at != change.sent_at:
        row["effective_at"] = change.effective_at
    if change.dropped:
        row["dropped"] = change.dropped
    if change.passed:
        row["passed"] = change.passed
    return row


def _shared(origin: Origin, sender: Any, first: New) -> dict[str, Any]:
    return {
        "tenant": sender.tenant_id,
        "connection": sender.id,
        "shard": sender.shard,
        "origin": origin,
        "order_kind": first.change.order,
    }
