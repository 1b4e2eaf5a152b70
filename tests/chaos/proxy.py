"""A TCP proxy that delays, slices and resets, between a worker and a server: the distributor's BSS, or any other."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 64 * 1024
_SILENCE_SECONDS_MAX = 120.0


@dataclass(frozen=True)
class Weather:
    """What happens to a connection's bytes.

    delay_seconds  before each piece
    slice_bytes    the largest piece; None: as it comes
    reset_share    of pieces (0 to 1) after which both ends are reset
    """

    delay_seconds: float = 0.0
    slice_bytes: int | None = None
    reset_share: float = 0.0


FAIR = Weather()


class Proxy:
    """Listens on a port of its own and forwards to ``target``. Use it as a context manager; ``weather`` may change.

    ``target`` is an address and port, or a socket in a folder. ``silent_seconds``: a caller that answers nothing for
    so long, not even the kernel's own question, is given up, as a server does whose session asks for it.
    """

    def __init__(
        self,
        target: tuple[str, int] | Path,
        seed: int = 0,
        *,
        listen: str = "127.0.0.1",
        silent_seconds: int | None = None,
    ) -> None:
        self.weather = FAIR
        self.resets = 0
        self._target = target
        self._random = random.Random(seed)
        self._silent_seconds = silent_seconds
        self._listener = socket.create_server((listen, 0), backlog=256)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.address}"

    @property
    def address(self) -> str:
        """Its address and port."""
        host, port = self._listener.getsockname()[:2]
        return f"{host}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            left = list(self._open)
        for one in left:
            _close(one)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = self._reach()
            except OSError:
                _close(near)
                continue
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._silent_seconds is not None:
                _notice_silence(near, self._silent_seconds)
            for one in (near, far):
                one.settimeout(_SILENCE_SECONDS_MAX)
            with self._lock:
                self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _reach(self) -> socket.socket:
        if isinstance(self._target, Path):
            far = socket.socket(socket.AF_UNIX)
            far.settimeout(5)
            far.connect(str(self._target))
            return far
        far = socket.create_connection(self._target, timeout=5)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return far

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                if not self._forward(data, source, sink):
                    break
        for one in (source, sink):
            _close(one)
            with self._lock:
                self._open.discard(one)

    def _forward(self, data: bytes, source: socket.socket, sink: socket.socket) -> bool:
        """False when the connection was reset."""
        weather = self.weather
        size = weather.slice_bytes or len(data)
        for start in range(0, len(data), size):
            if weather.delay_seconds:
                time.sleep(weather.delay_seconds)
            sink.sendall(data[start : start + size])
            with self._lock:
                torn = self._random.random() < weather.reset_share
                self.resets += torn
            if torn:
                for one in (source, sink):
                    _close(one, reset=True)
                return False
        return True


def _close(one: socket.socket, *, reset: bool = False) -> None:
    """Close, and wake who reads from it. Lingering for no time makes it RST instead of FIN."""
    with suppress(OSError):
        if reset:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
    one.close()


def _notice_silence(one: socket.socket, seconds: int) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, seconds // 2))
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, seconds // 4))
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, seconds * 1000)
