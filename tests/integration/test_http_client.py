"""The outbound HTTP client against real sockets that reset, drip, break off, redirect and lie."""

from __future__ import annotations

import gzip
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bss_sync.adapters.http import RequestsHttpClient, RetryBudget, retry_after_seconds
from bss_sync.adapters.http_connections import check_address
from bss_sync.domain.errors import (
    BssSyncError,
    ConfigurationError,
    DependencyDown,
    RemoteBusy,
    RemoteRefused,
    RemoteUnknown,
    Transient,
)
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


@pytest.fixture
def client() -> Iterator[RequestsHttpClient]:
    client = RequestsHttpClient(
        connect_seconds=1, read_seconds=0.3, total_seconds=5, body_bytes_max=100_000, retry_wait_seconds_max=0.01
    )
    yield client
    client.close()


def call(client: HttpClient, url: str, method: str = "GET", *, key: str | None = None) -> HttpResponse:
    content = None if method == "GET" else {"quantity": 3}
    return client.request(method, url, json=content, idempotency_key=key, allow_http_private=True)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("status", [200, 201, 204, 404, 409, 410])
def test_these_statuses_come_back_as_a_response(client: RequestsHttpClient, status: int) -> None:
    with WireServer(answer(status, b"" if status == 204 else b'{"id": 7}', X_Seen="yes")) as server:
        response = call(client, server.url + "/records", "POST")
    assert response.status == status
    assert response.headers["x-seen"] == "yes"
    assert status == 204 or response.json() == {"id": 7}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (304, RemoteRefused),
        (400, RemoteRefused),
        (401, RemoteRefused),
        (422, RemoteRefused),
        (429, RemoteBusy),
        (500, Transient),
        (502, Transient),
        (503, RemoteBusy),
    ],
)
def test_every_other_status_is_an_error_of_our_tree(
    client: RequestsHttpClient, status: int, expected: type[BssSyncError]
) -> None:
    with WireServer(answer(status)) as server, pytest.raises(BssSyncError) as caught:
        call(client, server.url, "POST")
    assert type(caught.value) is expected
    assert len(server.requests) == 1


def test_retry_after_is_read_as_seconds_and_as_a_date(client: RequestsHttpClient) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    with WireServer(answer(503, Retry_After="7"), answer(429, Retry_After=date), answer(503)) as server:
        wishes = []
        for _ in range(3):
            with pytest.raises(RemoteBusy) as caught:
                call(client, server.url)
            wishes.append(caught.value.retry_after_seconds)
    assert wishes[0] == 7
    assert wishes[1] == pytest.approx(90, abs=5)
    assert wishes[2] is None
    # A remote that asks to wait is not asked again within the call, although GET could be.
    assert len(server.requests) == 3


def test_an_unreadable_or_past_wish_is_harmless() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert retry_after_seconds("soon", now) is None
    assert retry_after_seconds("Sun, 01 Feb 2026 00:00:00 GMT", now) == 0
    assert retry_after_seconds("99999999999", now) == 86_400


def test_a_refused_connection_is_dependency_down_for_every_method(client: RequestsHttpClient) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    for method in ("GET", "POST"):
        with pytest.raises(DependencyDown, match="refused"):
            call(client, url, method)


def test_an_unknown_host_is_dependency_down() -> None:
    def nothing(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    client = RequestsHttpClient(resolve=nothing, retry_wait_seconds_max=0.01)
    with pytest.raises(DependencyDown, match="not known"):
        client.request("POST", "https://bss.example/")


@pytest.mark.parametrize("fault", [reset, close, silence], ids=["reset", "close", "silence"])
def test_a_lost_answer_is_unknown_for_unsafe_methods_and_never_sent_twice(
    client: RequestsHttpClient, fault: Script
) -> None:
    with WireServer(fault) as server, pytest.raises(RemoteUnknown):
        call(client, server.url, "POST")
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", [reset, close, silence], ids=["reset", "close", "silence"])
def test_a_lost_answer_to_get_is_transient_and_tried_again(client: RequestsHttpClient, fault: Script) -> None:
    with WireServer(fault, fault, answer(200)) as server:
        assert call(client, server.url).status == 200
        assert len(server.requests) == 3
    with WireServer(fault) as server, pytest.raises(Transient) as caught:
        call(client, server.url)
    assert type(caught.value) is Transient
    assert len(server.requests) <= 3


def test_a_write_with_an_idempotency_key_is_tried_again_with_the_same_key(client: RequestsHttpClient) -> None:
    with WireServer(reset, answer(201)) as server:
        assert call(client, server.url, "POST", key="intent-1").status == 201
    assert len(server.requests) == 2
    assert all(b"Idempotency-Key: intent-1" in request for request in server.requests)


@pytest.mark.parametrize("later", [answer(500), answer(503, Retry_After="9")], ids=["500", "503"])
def test_once_an_answer_was_lost_the_outcome_stays_unknown(client: RequestsHttpClient, later: Script) -> None:
    with WireServer(reset, later) as server, pytest.raises(RemoteUnknown):
        call(client, server.url, "POST", key="intent-1")
    assert len(server.requests) >= 2


def test_a_body_that_breaks_off_is_never_a_response(client: RequestsHttpClient) -> None:
    def half(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[1, 2")
        connection.close()

    def half_chunk(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[1, 2\r\n")
        connection.close()

    for script in (half, half_chunk):
        with WireServer(script) as server:
            with pytest.raises(Transient):
                call(client, server.url)
            with pytest.raises(RemoteUnknown):
                call(client, server.url, "POST")


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Slow: "], ids=["body", "head"]
)
def test_a_dripping_answer_ends_at_the_total_deadline(head: bytes) -> None:
    client = RequestsHttpClient(read_seconds=0.5, total_seconds=0.6)
    began = time.monotonic()
    with WireServer(drip(head, pieces=40)) as server:
        with pytest.raises(RemoteUnknown, match="TimeoutError"):
            call(client, server.url, "POST")
        seconds = time.monotonic() - began
    assert 0.5 < seconds < 1.5
    client.close()


def test_a_body_larger_than_the_limit_is_refused_also_when_it_is_compressed(client: RequestsHttpClient) -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    assert len(bomb) < 100_000
    for script in (answer(200, b"0" * 200_000), answer(200, bomb, Content_Encoding="gzip")):
        with WireServer(script) as server, pytest.raises(RemoteRefused, match="larger"):
            call(client, server.url)


def test_chunked_and_compressed_answers_are_read_whole_and_the_connection_is_used_again(
    client: RequestsHttpClient,
) -> None:
    def chunked(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n")

    compressed = answer(200, gzip.compress(b"[1,2]"), Content_Encoding="gzip")
    with WireServer(chunked, compressed, answer(200, b"[1,2]")) as server:
        assert [call(client, server.url).json() for _ in range(4)] == [[1, 2]] * 4
        assert server.connections == 1
        client.close()


def test_a_redirect_is_followed_only_to_the_same_origin(client: RequestsHttpClient) -> None:
    with WireServer(answer(302, Location="/b?x=1"), answer(200, b'"b"')) as server:
        assert call(client, server.url + "/a").json() == "b"
        assert server.requests[1].startswith(b"GET /b?x=1 ")
    with WireServer(answer(200)) as elsewhere:
        for place in (elsewhere.url, "https://127.0.0.1/", "http://localhost/", "//other.example/", "http://[", ""):
            with WireServer(answer(307, Location=place) if place else answer(307)) as server:
                with pytest.raises(RemoteRefused):
                    call(client, server.url, "POST")
                assert len(server.requests) == 1
        assert elsewhere.requests == []


def test_redirects_end_after_three_and_never_change_a_method(client: RequestsHttpClient) -> None:
    with WireServer(answer(307, Location="/again")) as server, pytest.raises(RemoteRefused):
        call(client, server.url)
    assert len(server.requests) == 4
    with WireServer(answer(303, Location="/elsewhere")) as server, pytest.raises(RemoteRefused, match="method"):
        call(client, server.url, "POST")
    with WireServer(answer(308, Location="/moved"), answer(201)) as server:
        assert call(client, server.url, "POST").status == 201
        assert server.requests[1].startswith(b"POST /moved ")
        assert server.requests[1].endswith(b'{"quantity": 3}')


def test_http_and_private_addresses_are_refused_without_permission(client: RequestsHttpClient) -> None:
    with WireServer(answer(200)) as server:
        for url in (server.url, f"https://127.0.0.1:{server.port}", f"https://localhost:{server.port}"):
            with pytest.raises(ConfigurationError, match="allow_http_private"):
                client.request("GET", url)
        # A connection that was opened with permission does not serve a call without it.
        assert call(client, server.url).status == 200
        with pytest.raises(ConfigurationError):
            client.request("GET", server.url)
        assert len(server.requests) == 1
    for url in ("ftp://bss.example/", "file:///etc/passwd", "nothing"):
        with pytest.raises(ConfigurationError):
            client.request("GET", url, allow_http_private=True)


def test_one_private_address_among_public_ones_refuses_the_name() -> None:
    resolved: list[str] = []

    def mixed(host: str, port: int) -> Sequence[str]:
        resolved.append(host)
        return ["93.184.215.14", "10.0.0.8"]

    client = RequestsHttpClient(resolve=mixed)
    with pytest.raises(ConfigurationError, match=r"10\.0\.0\.8"):
        client.request("GET", "https://bss.example/")
    assert resolved == ["bss.example"]


PRIVATE = (
    "10.1.2.3",
    "127.0.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "::1",
    "fd00::1",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
)
FORBIDDEN = (
    "169.254.169.254",
    "0.0.0.0",  # noqa: S104 - nothing is bound to it: it is refused
    "::",
    "224.0.0.1",
    "fe80::1",
    "::ffff:169.254.169.254",
)


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_need_permission(address: str) -> None:
    with pytest.raises(ConfigurationError):
        check_address(address, host="bss.example", private=False)
    check_address(address, host="bss.example", private=True)


@pytest.mark.parametrize("address", FORBIDDEN)
def test_addresses_that_are_never_called(address: str) -> None:
    with pytest.raises(ConfigurationError, match="never"):
        check_address(address, host="bss.example", private=True)


def test_public_addresses_need_no_permission() -> None:
    for address in ("93.184.215.14", "2606:4700::1111", "::ffff:93.184.215.14"):
        check_address(address, host="bss.example", private=False)


def _certificates(folder: Path, name: str) -> tuple[ssl.SSLContext, str]:
    """A server context whose certificate is for ``name``, and the file that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    trusted = folder / "trusted.pem"
    trusted.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = folder / "key.pem"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted, secret)
    return context, str(trusted)


def test_the_checked_address_is_called_under_the_name_of_the_url(tmp_path: Path) -> None:
    context, trusted = _certificates(tmp_path, "bss.example")
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    resolved: list[str] = []

    def pinned(host: str, port: int) -> Sequence[str]:
        resolved.append(host)
        return ["127.0.0.1"]

    client = RequestsHttpClient(ca_file=trusted, resolve=pinned, retry_wait_seconds_max=0.01)
    with WireServer(answer(200, b'"secure"'), context=context) as server:
        url = f"https://bss.example:{server.port}/x"
        assert call(client, url).json() == "secure"
        assert names == ["bss.example"]
        assert resolved == ["bss.example"]
        assert f"Host: bss.example:{server.port}".encode() in server.requests[0]
        # The certificate is for bss.example: another name at the same address is refused before anything is sent.
        with pytest.raises(DependencyDown, match="certificate"):
            call(client, f"https://other.example:{server.port}/x", "POST")
        assert len(server.requests) == 1
        client.close()


def test_proxies_of_the_environment_are_ignored(client: RequestsHttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    with WireServer(answer(200)) as server:
        assert call(client, server.url).status == 200


def test_errors_name_neither_query_nor_header_nor_body(client: RequestsHttpClient) -> None:
    with WireServer(answer(400, b'{"email": "canary-body"}')) as server, pytest.raises(RemoteRefused) as caught:
        client.request(
            "POST",
            server.url + "/records",
            headers={"Authorization": "Bearer canary-key"},
            params={"q": "canary-query"},
            form={"a": "canary-form"},
            allow_http_private=True,
        )
    assert "canary" not in str(caught.value)
    assert "/records" in str(caught.value)
    assert b"a=canary-form" in server.requests[0]
    with pytest.raises(ConfigurationError) as wrong:
        client.request("GET", "https://bss.example", headers={"Authorization": "Bearer canary\r\nkey"})
    assert "canary" not in str(wrong.value)


def test_retries_stay_below_a_tenth_of_the_calls() -> None:
    budget = RetryBudget()
    retries = 0
    for _ in range(1000):
        budget.earn("bss.example")
        retries += budget.spend("bss.example") + budget.spend("bss.example")
    assert 90 <= retries <= 102


def test_many_threads_share_one_client(client: RequestsHttpClient) -> None:
    def echo(connection: socket.socket, request: bytes) -> None:
        answer(200, request.split(b" ")[1])(connection, request)

    with WireServer(echo) as server:
        with ThreadPoolExecutor(16) as threads:
            bodies = list(threads.map(lambda number: call(client, f"{server.url}/{number}").body, range(300)))
        assert bodies == [f"/{number}".encode() for number in range(300)]
        client.close()
