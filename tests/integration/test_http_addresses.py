"""Where the outbound HTTP client may go: https, checked and pinned addresses, the name kept for TLS."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bss_sync.adapters.http import RequestsHttpClient
from bss_sync.adapters.http_connections import check_address
from bss_sync.domain.errors import ConfigurationError, DependencyDown
from tests.wire_server import WireServer, answer, call


@pytest.fixture
def client() -> Iterator[RequestsHttpClient]:
    client = RequestsHttpClient(connect_seconds=1, read_seconds=0.3, total_seconds=5, retry_wait_seconds_max=0.01)
    yield client
    client.close()


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
