"""Around every request: its id, its line in the log, its figures, and an answer to what nobody expected."""

from __future__ import annotations

import secrets
import time
from itertools import count

import structlog
from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bss_sync.ports.tracing import Traces
from bss_sync.telemetry import Metrics
from bss_sync.web.problem import defect

_log = structlog.get_logger("bss_sync.web")

SECURITY_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
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

    def __init__(self, app: ASGIApp, figures: Figures, traces: Traces) -> None:
        self._app = app
        self._figures = figures
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
        request_id = next_request_id()
        structlog.contextvars.bind_contextvars(request=request_id)
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                given = {name for name, _ in headers}
                headers.append((b"x-request-id", request_id.encode()))
                headers.extend(header for header in SECURITY_HEADERS if header[0] not in given)
            await send(message)

        try:
            await self._app(scope, _bounded(receive), sending)
        except Exception as error:  # noqa: BLE001  a defect is answered and logged, never passed to the server
            response = defect(error)
            if status == 0:
                await response(scope, receive, sending)
        self._figures.note(_route(scope), scope["method"], status, time.perf_counter() - started)
        return status


class Figures:
    """What is counted of every request, and its line in the log. Each label is looked up once, not once per request."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._requests: dict[tuple[str, str, int], Counter] = {}
        self._seconds: dict[str, Histogram] = {}

    def note(self, route: str, method: str, status: int, seconds: float, request_id: str | None = None) -> None:
        """One request that was answered. ``request_id`` where the log's context does not have it."""
        method = method if method in _METHODS else "other"
        key = (route, method, status)
        counter = self._requests.get(key)
        if counter is None:
            counter = self._requests[key] = self._metrics.requests.labels(*key)
            self._seconds[route] = self._metrics.request_seconds.labels(route)
        counter.inc()
        self._seconds[route].observe(seconds)
        if route in _QUIET and status < 400:
            return
        # What the door accepts stands in the inbox and in the figures; a line for each is for those who ask for it.
        note = _log.debug if status == ACCEPTED else _log.info
        known = {} if request_id is None else {"request": request_id}
        note("web.request", method=method, route=route, status=status, seconds=round(seconds, 6), **known)


def next_request_id() -> str:
    """An id that no other request of any process has."""
    return f"{_PROCESS}-{next(_NUMBERS):x}"


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
