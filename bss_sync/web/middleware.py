"""Around every request: its id, its line in the log, its figures, and an answer to what nobody expected."""

from __future__ import annotations

import secrets
import time
from itertools import count

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bss_sync.ports.tracing import Traces
from bss_sync.telemetry import Metrics
from bss_sync.web.problem import defect

_log = structlog.get_logger("bss_sync.web")

_SECURITY_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_PROCESS = secrets.token_hex(8)
_NUMBERS = count(1)
"""A request's id needs no randomness of its own: asking the system for some costs more than all else here."""

ACCEPTED = 202
BODY_BYTES_MAX = 2 * 1024 * 1024

ROUTE_KEY = "bss_sync.route"
"""Where a plain route leaves its pattern in the scope; FastAPI leaves its own under ``route``."""

_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


class RequestLine:
    """One line per request: method, route, status, seconds. No query strings: they may hold what was searched for."""

    def __init__(self, app: ASGIApp, metrics: Metrics, traces: Traces) -> None:
        self._app = app
        self._metrics = metrics
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._traces.enabled:
            await self._traced(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    async def _traced(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._traces.span("web.request") as span:
            # A stranger's trace is linked, never continued: it would decide for us what is kept.
            for name, value in scope["headers"]:
                if name == b"traceparent":
                    span.link(value.decode("latin-1"))
            status = await self._serve(scope, receive, send)
            route = _route(scope)
            span.rename(f"{scope['method'] if scope['method'] in _METHODS else 'other'} {route}")
            span.set(route=route, status=status, request=structlog.contextvars.get_contextvars().get("request", ""))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> int:
        started = time.perf_counter()
        request_id = f"{_PROCESS}-{next(_NUMBERS):x}"
        structlog.contextvars.bind_contextvars(request=request_id)
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                given = {name for name, _ in headers}
                headers.append((b"x-request-id", request_id.encode()))
                headers.extend(header for header in _SECURITY_HEADERS if header[0] not in given)
            await send(message)

        try:
            await self._app(scope, _bounded(receive), sending)
        except Exception as error:  # noqa: BLE001  a defect is answered and logged, never passed to the server
            response = defect(error)
            if status == 0:
                await response(scope, receive, sending)
        self._note(scope, status, time.perf_counter() - started)
        return status

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if route in _QUIET and status < 400:
            return
        # What the door accepts stands in the inbox and in the figures; a line for each is for those who ask for it.
        note = _log.debug if status == ACCEPTED else _log.info
        note("web.request", method=method, route=route, status=status, seconds=round(seconds, 6))


def _bounded(receive: Receive) -> Receive:
    """Bounds every body; the door has a tighter bound of its own, which it meets first."""
    received = 0

    async def receiving() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > BODY_BYTES_MAX:
            raise HTTPException(413, f"The body is larger than {BODY_BYTES_MAX} bytes.")
        return message

    return receiving


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _route(scope: Scope) -> str:
    """The route's pattern; never the address itself, which may hold ids of anybody's choice."""
    path = scope.get(ROUTE_KEY) or getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "unmatched"
