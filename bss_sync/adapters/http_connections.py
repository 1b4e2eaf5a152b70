"""Outbound connections that go only where they may, and answers that cannot drip for ever.

Beneath ``adapters/http.py``: a host name is resolved once per connection, every address is checked, and the connection
is made to exactly a checked address, while Host, SNI and the certificate check keep the name. A name that resolves
differently a moment later therefore gains nothing.
"""

from __future__ import annotations

import http.client
import io
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from bss_sync.domain.errors import ConfigurationError

Resolve = Callable[[str, int], Sequence[str]]
"""Host and port to addresses, as text. Raises socket.gaierror when there are none."""

_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(slots=True)
class Attempt:
    """What a connection has to know about the call that it serves, and what it tells about it.

    ``deadline``: ``time.monotonic()`` at which the whole call ends. ``sent``: whether any byte of the request may have
    left; until then the remote cannot have applied it.
    """

    deadline: float
    read_seconds: float
    private: bool
    resolve: Resolve
    sent: bool = False

    def seconds_left(self) -> float:
        """Raises TimeoutError when none are left."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the call's total time is over")
        return left


CURRENT: ContextVar[Attempt] = ContextVar("attempt")
"""The attempt of this thread. urllib3 has no way to hand anything of a call down to its connection."""


def resolve_with_system(host: str, port: int) -> list[str]:
    """The addresses that the system's resolver gives, in its order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def check_address(text: str, *, host: str, private: bool) -> None:
    """Raise ConfigurationError unless calls may go to the address ``text`` of ``host``.

    Public ones always; private and loopback ones with ``private``; link-local (a cloud's metadata service lives
    there), multicast and unspecified ones never.
    """
    address = _innermost(ip_address(text))
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        raise ConfigurationError(f"base_url: {host} leads to {text}, which is an address that is never called.")
    if not address.is_global and not private:
        raise ConfigurationError(
            f"allow_http_private: {host} leads to {text}, which is no public address, and the setting is false."
        )


def _innermost(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 one stands for, where it does."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


class _BoundedReads(io.RawIOBase):
    """Reads of one answer, head and body: none waits longer than the call has left."""

    def __init__(self, sock: socket.socket, inner: io.RawIOBase, attempt: Attempt) -> None:
        super().__init__()
        self._socket = sock
        self._inner = inner
        self._attempt = attempt

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(min(self._attempt.read_seconds, self._attempt.seconds_left()))
        # typeshed knows no readinto of RawIOBase that takes what BufferedReader hands over.
        return self._inner.readinto(buffer)

    def close(self) -> None:
        self._inner.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self.fp = io.BufferedReader(_BoundedReads(sock, self.fp.detach(), CURRENT.get()))
        self._socket = sock

    def begin(self) -> None:
        """Read the head."""
        super().begin()
        _forget_when_closed(self._socket, on=False)


class _Connection(HTTPConnection):
    response_class = _Response

    def _new_conn(self) -> socket.socket:
        attempt = CURRENT.get()
        port = self.port or self.default_port
        try:
            addresses = attempt.resolve(self.host, port)
        except (socket.gaierror, UnicodeError) as error:
            failure = error if isinstance(error, socket.gaierror) else socket.gaierror(str(error))
            raise NameResolutionError(self.host, self, failure) from error
        # One bad address spoils them all: which of them answers must not decide what is reached.
        for address in addresses:
            check_address(address, host=self.host, private=attempt.private)
        return self._first_answering(addresses, port, attempt)

    def _first_answering(self, addresses: Sequence[str], port: int, attempt: Attempt) -> socket.socket:
        connect_seconds = self.timeout if isinstance(self.timeout, int | float) else attempt.read_seconds
        failure: OSError = OSError("no address")
        for address in addresses:
            try:
                timeout = min(connect_seconds, attempt.seconds_left())
                sock = socket.create_connection((address, port), timeout=timeout)
            except OSError as error:
                failure = error
            else:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
        if isinstance(failure, TimeoutError):
            raise ConnectTimeoutError(self, f"{self.host} did not answer in time") from failure
        raise NewConnectionError(self, f"{self.host} refused: {failure}") from failure

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        attempt = CURRENT.get()
        _forget_when_closed(self.sock, on=True)
        attempt.sent = True
        super().send(data)


def _forget_when_closed(sock: socket.socket, *, on: bool) -> None:
    """Whether closing, also by the end of the process, throws away what the network has not taken yet.

    Without that a link that was cut and comes back would carry a call that has long been given up, and whose work
    another worker has done since.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, 0))


class _TlsConnection(_Connection, HTTPSConnection):
    """The same beneath TLS; HTTPSConnection keeps the host's name for SNI and the certificate."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


POOLS = {"http": _Pool, "https": _TlsPool}
"""Pool classes by scheme, for urllib3's pool manager."""
