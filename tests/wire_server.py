"""A raw server on 127.0.0.1 that answers, or misbehaves, as it is scripted: for tests of the outbound client."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from bss_sync.ports.http import HttpClient, HttpResponse

Script = Callable[[socket.socket, bytes], None]
"""What the server does with one request: the connection and the whole request."""


def answer(status: int, body: bytes = b"{}", **headers: str) -> Script:
    """A whole answer; ``Retry_After="3"`` becomes a header."""
    lines = [f"HTTP/1.1 {status} Reason", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return lambda connection, _: connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)


def reset(connection: socket.socket, _: bytes) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def close(connection: socket.socket, _: bytes) -> None:
    connection.close()


def silence(connection: socket.socket, _: bytes) -> None:
    connection.settimeout(5)
    connection.recv(1)  # until the client hangs up


def drip(head: bytes, pieces: int = 200) -> Script:
    """``head`` and then one byte every 50 ms."""

    def script(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head)
        for _piece in range(pieces):
            time.sleep(0.05)
            connection.sendall(b"x")

    return script


class WireServer:
    """Plays one script per request, the last one again and again; remembers the requests."""

    def __init__(self, *scripts: Script, context: ssl.SSLContext | None = None) -> None:
        self.scripts = list(scripts)
        self.requests: list[bytes] = []
        self.connections = 0
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            self._open.append(connection)
            connection.settimeout(5)
            while request := _read_request(connection):
                self.requests.append(request)
                script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                script(connection, request)
        except OSError:
            pass  # the client hung up, or a script closed the connection
        finally:
            connection.close()


def _read_request(connection: socket.socket) -> bytes:
    request = b""
    while b"\r\n\r\n" not in request:
        piece = connection.recv(65536)
        if not piece:
            return b""
        request += piece
    head, _, body = request.partition(b"\r\n\r\n")
    lengths = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    while lengths and len(body) < lengths[0]:
        piece = connection.recv(65536)
        if not piece:
            return b""
        body += piece
        request += piece
    return request


def call(client: HttpClient, url: str, method: str = "GET", *, key: str | None = None) -> HttpResponse:
    content = None if method == "GET" else {"quantity": 3}
    return client.request(method, url, json=content, idempotency_key=key, allow_http_private=True)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
