"""Health: whether this process is alive, whether it may be given work, and how the whole stands.

``/healthz`` answers while the process does. ``/readyz`` is 503 while PostgreSQL does not answer, is not migrated, or
its clock and ours differ by more than 60 s; without Redis the process is ready but degraded: the door stores all the
same and the sweeper finds the work. ``/metrics`` is for Prometheus; connections are named by their ids only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import redis
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import text
from starlette.responses import PlainTextResponse, Response

from bss_sync.adapters.sql.revision import check_migrated
from bss_sync.domain.errors import BssSyncError, DependencyDown

if TYPE_CHECKING:
    from bss_sync.bootstrap import App

CLOCK_OFFSET_SECONDS_MAX = 60.0
REDIS_SECONDS_MAX = 1.0
SCRAPE_SECONDS = 1.0
"""Scrapes that come faster than this share one look at the database."""

router = APIRouter(tags=["health"])

_READY = {"status": "ready", "checks": {"database": "ok", "schema": "ok", "clock": "ok", "redis": "not configured"}}


@router.get(
    "/healthz",
    summary="The process is alive",
    responses={200: {"content": {"application/json": {"example": {"status": "alive"}}}}},
)
async def alive() -> dict[str, str]:
    """Answers while the event loop turns."""
    return {"status": "alive"}


@router.get(
    "/readyz",
    summary="The process may be given requests",
    responses={
        200: {"content": {"application/json": {"example": _READY}}},
        503: {"description": "Not ready; each check says why.", "content": {"application/json": {}}},
    },
)
def ready(request: Request) -> JSONResponse:
    """Checks what an accepted message needs: the database, its schema and a clock that is right."""
    app: App = request.app.state.bss_sync
    checks = _database_checks(app)
    able = all(value == "ok" for value in checks.values())
    checks["redis"] = _redis_check(app)
    degraded = able and checks["redis"] not in ("ok", "not configured")
    status = "degraded" if degraded else "ready" if able else "not ready"
    return JSONResponse({"status": status, "checks": checks}, 200 if able else 503)


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=PlainTextResponse,
    responses={
        200: {"content": {"text/plain": {"example": 'bss_sync_messages{state="pending"} 0.0\n'}}},
    },
)
def metrics(request: Request) -> Response:
    """Counts of this process, and the state of the whole as the database knows it."""
    registries: tuple[CollectorRegistry, ...] = request.app.state.registries
    return Response(b"".join(map(generate_latest, registries)), media_type=CONTENT_TYPE_LATEST)


def _database_checks(app: App) -> dict[str, str]:
    checks = {"database": "ok", "schema": "unknown", "clock": "unknown"}
    try:
        with app.database.api(None) as connection:
            before = app.clock.now()
            there = connection.execute(text("select clock_timestamp()")).scalar_one()
            here = before + (app.clock.now() - before) / 2
            checks["clock"] = _clock_check(here - there)
            try:
                check_migrated(connection)
                checks["schema"] = "ok"
            except BssSyncError as error:
                checks["schema"] = f"{error.detail} {error.advice}"
    except DependencyDown as error:
        checks["database"] = error.detail
    return checks


def _clock_check(offset: timedelta) -> str:
    seconds = offset.total_seconds()
    if abs(seconds) <= CLOCK_OFFSET_SECONDS_MAX:
        return "ok"
    return f"{seconds:+.0f} s from PostgreSQL's clock; {CLOCK_OFFSET_SECONDS_MAX:.0f} s are allowed. Check NTP."


def _redis_check(app: App) -> str:
    url = app.settings.redis_url
    if url is None:
        return "not configured"
    try:
        with redis.Redis.from_url(
            url.get_secret_value(), socket_connect_timeout=REDIS_SECONDS_MAX, socket_timeout=REDIS_SECONDS_MAX
        ) as client:
            client.ping()
    except (redis.RedisError, OSError) as error:
        return f"does not answer ({type(error).__name__}); messages are accepted, work begins some seconds later"
    return "ok"


_OPEN_MESSAGES = text(
    """select state, count(*) as messages, extract(epoch from now() - min(received_at)) as age from message
       where state in ('pending', 'waiting', 'quarantined', 'dead') group by state"""
)
_DELIVERIES = text("select count(*) from delivery where due_at <= now()")
_CONNECTIONS = text(
    """select id, state, extract(epoch from now() - coalesce(last_received_at, created_at)) as silence,
              silent_since is not null as silent from connection where state <> 'closed'"""
)
_OPEN_STATES = ("pending", "waiting", "quarantined", "dead")


class DatabaseGauges(Collector):
    """What stands in the database at the moment of a scrape; ``bss_sync_database_up`` is 0 when it cannot be asked."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._taken_at = -SCRAPE_SECONDS
        self._taken: list[Metric] = []

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are known when they are collected."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The gauges, at most ``SCRAPE_SECONDS`` old."""
        with self._lock:
            if time.monotonic() - self._taken_at >= SCRAPE_SECONDS:
                self._taken = self._look()
                self._taken_at = time.monotonic()
            return self._taken

    def _look(self) -> list[Metric]:
        up = GaugeMetricFamily("bss_sync_database_up", "1 when PostgreSQL answers.")
        try:
            with self._app.database.api(None) as connection:
                messages = {row.state: row for row in connection.execute(_OPEN_MESSAGES)}
                due = connection.execute(_DELIVERIES).scalar_one()
                connections = connection.execute(_CONNECTIONS).all()
        except DependencyDown:
            up.add_metric([], 0)
            return [up]
        up.add_metric([], 1)
        return [up, *_message_gauges(messages), _due_gauge(due), *_connection_gauges(connections)]


def _message_gauges(rows: dict[str, Any]) -> list[Metric]:
    count = GaugeMetricFamily("bss_sync_messages", "Messages that are not settled, by state.", labels=["state"])
    age = GaugeMetricFamily("bss_sync_oldest_message_seconds", "Age of the oldest of them, by state.", labels=["state"])
    for state in _OPEN_STATES:
        row = rows.get(state)
        count.add_metric([state], 0 if row is None else row.messages)
        age.add_metric([state], 0 if row is None else float(row.age))
    return [count, age]


def _due_gauge(due: int) -> Metric:
    gauge = GaugeMetricFamily("bss_sync_deliveries_due", "Records that the distributor's BSS does not hold yet.")
    gauge.add_metric([], due)
    return gauge


def _connection_gauges(rows: Iterable[Any]) -> list[Metric]:
    silence = GaugeMetricFamily(
        "bss_sync_connection_silence_seconds", "Seconds since a connection sent something.", labels=["connection"]
    )
    silent = GaugeMetricFamily(
        "bss_sync_connection_silent", "1 when that is longer than its rhythm.", labels=["connection"]
    )
    states = GaugeMetricFamily("bss_sync_connection_state", "1 for its state.", labels=["connection", "state"])
    for row in rows:
        silence.add_metric([str(row.id)], float(row.silence))
        silent.add_metric([str(row.id)], 1 if row.silent else 0)
        states.add_metric([str(row.id), row.state], 1)
    return [silence, silent, states]
