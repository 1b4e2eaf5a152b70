"""The simulator's HTTP server: the routes of both BSS, the knobs, and the faults on the wire."""

from __future__ import annotations

import hmac
import json
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import ValidationError

from bss_sync.domain.change import Json, OrderKind
from connectors.simulator.distributor import DistributorBss
from connectors.simulator.faults import Fault, Faults
from connectors.simulator.reseller import Refused, ResellerBss
from connectors.simulator.routes import CONTROL, ROUTES, Call, Role, Route, Simulation
from connectors.simulator.webhook import WebhookSender

_LISTINGS = frozenset({"/accounts", "/subscriptions", "/records"})
_BODY_BYTES_MAX = 256 * 1024 * 1024


class SimulatorServer:
    """Both BSS (or one) on 127.0.0.1, each request in its own thread. Use it as a context manager.

    ``reseller``, ``distributor``, ``webhooks`` and ``faults`` may also be used directly by tests in the same process.
    ``stop`` and ``start`` play an outage: state and port stay. ``api_key``: what the BSS routes then ask for as a
    bearer token; the routes that turn knobs and read logs stay open.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        role: Role = Role.BOTH,
        order: OrderKind = OrderKind.SEQUENCE,
        api_key: str | None = None,
    ) -> None:
        self.reseller = ResellerBss(order)
        self.distributor = DistributorBss()
        self.webhooks = WebhookSender(lambda: self.reseller.order)
        self.reseller.listener = self.webhooks.tell
        self.faults = Faults()
        self.calls: Counter[str] = Counter()
        self.listings: list[str] = []
        """Every page that was asked for: path and query, in the order in which it was."""
        self.role = role
        self._api_key = api_key
        self._port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._calls_lock = threading.Lock()
        self._simulation = Simulation(self.reseller, self.distributor, self.webhooks, self.faults, self.calls, role)

    @property
    def url(self) -> str:
        """The base address, once it has been started."""
        assert self._port, "the port is known after start()"
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Listen. The first start chooses the port when it is 0; later ones take the same again."""
        assert self._server is None, "it is running already"
        self._server = _Server(("127.0.0.1", self._port), self)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="simulator", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close the port and every connection; nothing is forgotten."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.drop_connections()
        self._server = None

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        self.webhooks.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Json]:
        """Route one call: status and content."""
        route, arguments = self._route(method, path)
        if route is None:
            return 404, {"detail": f"There is no {method} {path} here."}
        if route.handler not in CONTROL and not self._permitted(headers.get("authorization", "")):
            return 401, {"detail": "Send Authorization: Bearer and the api key."}
        try:
            content = json.loads(body) if body else {}
            call = Call(
                arguments=tuple(unquote(one) for one in arguments),
                query=dict(parse_qsl(query, keep_blank_values=True)),
                user=headers.get("x-user"),
                key=headers.get("idempotency-key"),
                content=content,
            )
            return route.status, route.handler(self._simulation, call)
        except Refused as refusal:
            return refusal.status, {"detail": refusal.detail, **refusal.content}
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            return 422, {"detail": problems}
        except ValueError as error:
            return 400, {"detail": str(error)}

    def count(self, method: str, path: str, query: str = "") -> None:
        """Count a call by method and first segment of its path; note the pages of listings."""
        with self._calls_lock:
            self.calls[f"{method} /{path.split('/')[1]}"] += 1
            if method == "GET" and path in _LISTINGS:
                self.listings.append(f"{path}?{query}")

    def _route(self, method: str, path: str) -> tuple[Route | None, tuple[str, ...]]:
        for route in ROUTES:
            if route.method == method and self.role in (Role.BOTH, *route.roles):
                found = re.fullmatch(route.pattern, path)
                if found is not None:
                    return route, found.groups()
        return None, ()

    def _permitted(self, authorization: str) -> bool:
        if self._api_key is None:
            return True
        return hmac.compare_digest(authorization.encode(), f"Bearer {self._api_key}".encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Handlers of kept-alive connections end when their connection is dropped; nothing waits for them.
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], owner: SimulatorServer) -> None:
        self.owner = owner
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        self._stopped = False
        super().__init__(address, _Handler)

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: Json
    ) -> None:
        assert isinstance(request, socket.socket), "a stream server accepts sockets"
        with self._open_lock:
            self._open.add(request)
            if self._stopped:
                _shut(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._open_lock:
                self._open.discard(request)

    def drop_connections(self) -> None:
        with self._open_lock:
            self._stopped = True
            for one in self._open:
                _shut(one)

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Json) -> None:
        """Callers may hang up whenever they like, and a fault knob makes them; anything else is told."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _handle(self) -> None:
        owner = self.server.owner
        address = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        if length > _BODY_BYTES_MAX:
            self._write(413, {"detail": "too large"})
            return
        body = self.rfile.read(length)
        owner.count(self.command, address.path, address.query)
        # The knobs themselves never fail, else nobody could turn them back.
        fault = None if address.path.startswith("/faults") else owner.faults.take(self.command, address.path)
        if fault is not None and self._disturbed(fault):
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, content = owner.answer(self.command, address.path, address.query, headers, body)
        if fault is not None and fault.apply_then_drop:
            self._hang_up(reset=False)
            return
        self._write(status, content, truncate=fault is not None and fault.truncate)

    def _disturbed(self, fault: Fault) -> bool:
        """Whether the fault has ended the call before it took effect."""
        if fault.delay_seconds:
            time.sleep(fault.delay_seconds)
        if fault.reset:
            self._hang_up(reset=True)
            return True
        if fault.status is not None:
            wish = fault.retry_after_seconds
            headers = {} if wish is None else {"Retry-After": f"{wish:g}"}
            self._write(fault.status, {"detail": "a fault knob answered"}, headers)
            return True
        return False

    def _write(
        self, status: int, content: Json, headers: Mapping[str, str] | None = None, *, truncate: bool = False
    ) -> None:
        payload = b"" if status == HTTPStatus.NO_CONTENT else json.dumps(content, separators=(",", ":")).encode()
        lines = [f"HTTP/1.1 {status} {_reason(status)}", f"Content-Length: {len(payload)}"]
        if payload:
            lines.append("Content-Type: application/json")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        # One write: two would wait for each other's acknowledgement.
        self.wfile.write(head + (payload[: len(payload) // 2] if truncate else payload))
        if truncate:
            self._hang_up(reset=False)

    def _hang_up(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            # Lingering for zero seconds makes the kernel send RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            _shut(self.connection)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Silence: a log line per call would drown the tests' own output."""

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815 - the base class looks them up so


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Fault"


def _shut(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it was closed already
