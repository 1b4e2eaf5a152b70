"""Reference: a Dramatiq actor on Redis that does nothing but one raw upsert per message.

``python -m bench.bare_actor REDIS_URL CONNINFO`` works; the measurement sends. It is as lean as such an actor can be:
no middleware, so no retries and no results; one connection per thread, a prepared statement.
"""

from __future__ import annotations

import signal
import sys
import threading

import dramatiq
import psycopg
from dramatiq.brokers.redis import RedisBroker

TABLE = """
    create table bare (id text primary key, kind text not null, version bigint not null, body jsonb not null,
                       updated_at timestamptz not null default now())"""
_UPSERT = """
    insert into bare (id, kind, version, body) values (%s, %s, %s, %s::jsonb)
    on conflict (id) do update set version = excluded.version, body = excluded.body, updated_at = now()
        where bare.version < excluded.version"""
THREADS = 8


def actor_on(broker: dramatiq.Broker, conninfo: str) -> dramatiq.Actor[..., None]:
    """The actor."""
    local = threading.local()

    def upsert(entity: str, kind: str, version: int, body: str) -> None:
        connection = getattr(local, "connection", None)
        if connection is None:
            connection = local.connection = psycopg.connect(conninfo, autocommit=True, prepare_threshold=0)
        connection.execute(_UPSERT, (entity, kind, version, body))

    decorate = dramatiq.actor(broker=broker, queue_name="bare")
    return decorate(upsert)


def main() -> None:
    """Work until told to stop."""
    redis_url, conninfo = sys.argv[1:]
    broker: dramatiq.Broker = RedisBroker(url=redis_url, middleware=[], namespace="bare")  # type: ignore[no-untyped-call]  # as published
    actor_on(broker, conninfo)
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=THREADS)
    worker.start()
    print("working", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    worker.stop(timeout=5_000)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
