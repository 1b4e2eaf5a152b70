"""Reference: the engine that a competent team would write in a week, to be good and not to lose.

One Dramatiq message per event, SQLAlchemy's ORM, one short transaction each, on the same tables and with the same
rules: the inbox row is locked, the stream's version decides, product and account are looked up, the mirror is written
with its history, the audit is chained, the delivery is noted. Connections are pooled, statements cached, sessions
reused by thread; what the rules do not need is not loaded.

``python -m bench.usual_engine REDIS_URL DATABASE_URL`` works; the measurement sends one hint per event.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import signal
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from sqlalchemy import BigInteger, Identity, LargeBinary, SmallInteger, Text, create_engine
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from bss_sync.domain.change import Kind, stream_id

THREADS = 8
QUEUE = "usual"


class Base(DeclarativeBase):
    """The same tables; columns that these rules do not touch keep their defaults."""


class Message(Base):
    """The inbox."""

    __tablename__ = "message"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]
    connection_id: Mapped[UUID]
    stream_id: Mapped[UUID]
    kind: Mapped[str]
    source_id: Mapped[str]
    action: Mapped[str]
    order_kind: Mapped[str]
    version: Mapped[int] = mapped_column(BigInteger)
    message_id: Mapped[str]
    sent_at: Mapped[datetime]
    effective_at: Mapped[datetime]
    body: Mapped[dict[str, Any]] = mapped_column(JSONB)
    state: Mapped[str]
    verdict: Mapped[str | None]
    attempts: Mapped[int]
    decided_at: Mapped[datetime | None]
    applied_at: Mapped[datetime | None]


class Stream(Base):
    """How far an entity has come."""

    __tablename__ = "stream"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]
    connection_id: Mapped[UUID]
    shard: Mapped[int] = mapped_column(SmallInteger)
    kind: Mapped[str]
    source_id: Mapped[str]
    version: Mapped[int | None] = mapped_column(BigInteger)
    version_sent_at: Mapped[datetime | None]
    version_message_id: Mapped[str | None]
    digest: Mapped[bytes | None] = mapped_column(LargeBinary)
    deleted: Mapped[bool] = mapped_column(default=False)


class Account(Base):
    """A mirrored account."""

    __tablename__ = "account"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]
    connection_id: Mapped[UUID]
    source_id: Mapped[str]
    name: Mapped[str | None]
    number: Mapped[str | None]
    email: Mapped[str | None]
    kind: Mapped[str]
    version: Mapped[int] = mapped_column(BigInteger)
    order_kind: Mapped[str]
    source: Mapped[dict[str, Any]] = mapped_column(JSONB)
    effective_at: Mapped[datetime]
    message: Mapped[UUID]
    revision: Mapped[int] = mapped_column(BigInteger, default=0)


class Subscription(Base):
    """A mirrored subscription."""

    __tablename__ = "subscription"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]
    connection_id: Mapped[UUID]
    source_id: Mapped[str]
    account_source_id: Mapped[str | None]
    account_id: Mapped[UUID | None]
    product: Mapped[str]
    status: Mapped[str]
    source_status: Mapped[str]
    trial: Mapped[bool]
    start_date: Mapped[date | None]
    end_date: Mapped[date | None]
    activation_date: Mapped[date | None]
    cancellation_date: Mapped[date | None]
    auto_renew: Mapped[bool | None]
    billing_cycle: Mapped[str | None]
    term: Mapped[str | None]
    quantity: Mapped[Decimal]
    characteristics: Mapped[dict[str, Any]] = mapped_column(JSONB)
    version: Mapped[int] = mapped_column(BigInteger)
    order_kind: Mapped[str]
    source: Mapped[dict[str, Any]] = mapped_column(JSONB)
    effective_at: Mapped[datetime]
    message: Mapped[UUID]
    revision: Mapped[int] = mapped_column(BigInteger, default=0)


class History(Base):
    """What was held when."""

    __tablename__ = "history"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant_id: Mapped[UUID]
    connection_id: Mapped[UUID]
    kind: Mapped[str]
    record_id: Mapped[UUID]
    epoch: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column(BigInteger)
    effective_at: Mapped[datetime]
    state: Mapped[dict[str, Any]] = mapped_column(JSONB)
    deleted: Mapped[bool] = mapped_column(default=False)
    message: Mapped[UUID]


class Product(Base):
    """The catalogue."""

    __tablename__ = "product"
    code: Mapped[str] = mapped_column(Text, primary_key=True)
    retired_at: Mapped[datetime | None]


class Delivery(Base):
    """The outbox."""

    __tablename__ = "delivery"
    record_id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]
    connection_id: Mapped[UUID]
    kind: Mapped[str]
    desired_revision: Mapped[int] = mapped_column(BigInteger)
    due_at: Mapped[datetime | None]


class AuditHead(Base):
    """The end of a chain."""

    __tablename__ = "audit_head"
    chain_id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]
    seq: Mapped[int] = mapped_column(BigInteger, default=0)
    hash: Mapped[bytes] = mapped_column(LargeBinary, default=b"")


class Audit(Base):
    """One act."""

    __tablename__ = "audit"
    chain_id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    tenant_id: Mapped[UUID]
    connection_id: Mapped[UUID]
    at: Mapped[datetime]
    actor: Mapped[str]
    action: Mapped[str]
    kind: Mapped[str]
    record_id: Mapped[UUID]
    message: Mapped[UUID]
    detail: Mapped[dict[str, Any]] = mapped_column(JSONB)
    salt: Mapped[bytes] = mapped_column(LargeBinary)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    hash: Mapped[bytes] = mapped_column(LargeBinary)


def apply(session: Session, message_id: UUID) -> None:
    """One event, in the caller's transaction."""
    message = session.get(Message, message_id, with_for_update={"of": Message})
    if message is None or message.state != "pending":
        return
    stream = session.get(Stream, message.stream_id, with_for_update=True)
    if stream is None:
        stream = Stream(
            id=message.stream_id,
            tenant_id=message.tenant_id,
            connection_id=message.connection_id,
            shard=message.connection_id.int % 16,
            kind=message.kind,
            source_id=message.source_id,
        )
        session.add(stream)
        session.flush()
    elif stream.version is not None and message.version <= stream.version:
        _settle(session, message, "superseded", "late")
        return
    record = _record(session, message)
    if record is None:
        return
    record.revision += 1
    stream.version, stream.version_sent_at = message.version, message.sent_at
    stream.version_message_id = message.message_id
    stream.digest = hashlib.sha256(json.dumps(message.body, sort_keys=True).encode()).digest()
    session.add(
        History(
            tenant_id=message.tenant_id,
            connection_id=message.connection_id,
            kind=message.kind,
            record_id=message.stream_id,
            version=message.version,
            effective_at=message.effective_at,
            state=message.body,
            message=message.id,
        )
    )
    delivery = session.get(Delivery, message.stream_id)
    if delivery is None:
        delivery = Delivery(
            record_id=message.stream_id,
            tenant_id=message.tenant_id,
            connection_id=message.connection_id,
            kind=message.kind,
        )
        session.add(delivery)
    delivery.desired_revision, delivery.due_at = record.revision, datetime.now(UTC)
    _settle(session, message, "applied", "updated")


def _record(session: Session, message: Message) -> Account | Subscription | None:
    """The mirrored row as the message says; None when the message does not enter."""
    body = message.body
    if message.kind == Kind.ACCOUNT:
        account = session.get(Account, message.stream_id)
        if account is None:
            account = Account(id=message.stream_id, revision=0)
            session.add(account)
        account.name, account.number, account.email = body["name"], body["number"], body["email"]
        account.kind = body["kind"]
        _identify(account, message)
        return account
    product = session.get(Product, body["product"])
    if product is None or body["trial"]:
        _settle(session, message, "out_of_scope", "out_of_scope")
        return None
    account_id = stream_id(message.connection_id, Kind.ACCOUNT, body["account_id"])
    if session.get(Account, account_id) is None:
        _settle(session, message, "waiting", "waiting")
        return None
    subscription = session.get(Subscription, message.stream_id)
    if subscription is None:
        subscription = Subscription(id=message.stream_id, revision=0)
        session.add(subscription)
    subscription.account_source_id, subscription.account_id = body["account_id"], account_id
    for name in ("product", "status", "trial", "auto_renew", "billing_cycle", "term", "characteristics"):
        setattr(subscription, name, body[name])
    for name in ("start_date", "end_date", "activation_date", "cancellation_date"):
        setattr(subscription, name, None if body[name] is None else date.fromisoformat(body[name]))
    subscription.source_status, subscription.quantity = body["status"], Decimal(body["quantity"])
    _identify(subscription, message)
    return subscription


def _identify(record: Account | Subscription, message: Message) -> None:
    record.tenant_id, record.connection_id = message.tenant_id, message.connection_id
    record.source_id, record.version, record.order_kind = message.source_id, message.version, message.order_kind
    record.source, record.effective_at, record.message = message.body, message.effective_at, message.id


def _settle(session: Session, message: Message, state: str, verdict: str) -> None:
    now = datetime.now(UTC)
    message.state, message.verdict, message.decided_at = state, verdict, now
    message.attempts += 1
    if state == "applied":
        message.applied_at = now
    session.flush()
    head = session.get(AuditHead, message.connection_id, with_for_update=True)
    if head is None:
        head = AuditHead(chain_id=message.connection_id, tenant_id=message.tenant_id, seq=0, hash=b"")
        session.add(head)
    detail = {"verdict": verdict, "version": message.version}
    salt = secrets.token_bytes(16)
    digest = hashlib.sha256(salt + json.dumps(detail, sort_keys=True).encode()).digest()
    head.seq += 1
    head.hash = hashlib.sha256(head.hash + f"{head.seq}{now}{message.id}".encode() + digest).digest()
    session.add(
        Audit(
            chain_id=message.connection_id,
            seq=head.seq,
            tenant_id=message.tenant_id,
            connection_id=message.connection_id,
            at=now,
            actor="system",
            action=f"message.{state}",
            kind=message.kind,
            record_id=message.stream_id,
            message=message.id,
            detail=detail,
            salt=salt,
            digest=digest,
            hash=head.hash,
        )
    )


def actor_on(broker: dramatiq.Broker, url: str) -> dramatiq.Actor[..., None]:
    """The actor: one event, one transaction."""
    engine = create_engine(
        url,
        pool_size=THREADS,
        connect_args={"options": "-c role=bss_sync_engine -c timezone=UTC", "prepare_threshold": 1},
    )
    sessions = sessionmaker(engine, expire_on_commit=False, autoflush=False)

    def work(message_id: str) -> None:
        with sessions.begin() as session:
            apply(session, UUID(message_id))

    decorate = dramatiq.actor(broker=broker, queue_name=QUEUE)
    return decorate(work)


def main() -> None:
    """Work until told to stop."""
    redis_url, url = sys.argv[1:]
    broker: dramatiq.Broker = RedisBroker(url=redis_url, middleware=[], namespace=QUEUE)  # type: ignore[no-untyped-call]  # as published
    actor_on(broker, url)
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=THREADS)
    worker.start()
    print("working", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    worker.stop(timeout=5_000)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
