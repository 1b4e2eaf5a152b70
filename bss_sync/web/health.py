"""Health: whether this process is alive, whether it may be given work, and how the whole stands.

``/healthz`` answers while the process does. ``/readyz`` is 503 while PostgreSQL does not answer, is not migrated, or
its clock and ours differ by more than 60 s; without Redis the process is ready but degraded: the door stores all the
same and the sweeper finds the work. ``/metrics`` is for Prometheus; connections are named by their ids only.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import redis
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy import text
from starlette.responses import PlainTextResponse, Response

from bss_sync.adapters.sql.revision import check_migrated
from bss_sync.domain.errors import BssSyncError, DependencyDown

if TYPE_CHECKING:
    from bss_sync.bootstrap import App

CLOCK_OFFSET_SECONDS_MAX = 60.0
REDIS_SECONDS_MAX = 1.0

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
