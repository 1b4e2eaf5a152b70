"""The HTTP server: uvicorn, bounded against strangers, and drained on SIGTERM.

Draining: no new connection is taken, every request that has begun is answered, what waits for a commit is committed,
then the process goes on to its own end. It takes at most ``DRAIN_SECONDS`` and the flush after it, 30 s together.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
import uvicorn

from bss_sync.collector import settle_memory
from bss_sync.domain.errors import ConfigurationError
from bss_sync.web.app import create_app
from bss_sync.web.protocol import BoundedProtocol

if TYPE_CHECKING:
    from bss_sync.bootstrap import App

_log = structlog.get_logger("bss_sync.web")

DRAIN_SECONDS = 18
KEEP_ALIVE_SECONDS = 65
"""Longer than the usual minute of proxies and clients, so that it is they who end an idle connection."""

BACKLOG = 1024
SWITCH_SECONDS = 0.001
GC_ALLOCATIONS = 20_000


class DrainingServer(uvicorn.Server):
    """Ends on SIGTERM and SIGINT by returning: whoever started it has things of their own to close.

    (uvicorn raises the signal anew once it has drained, which would end the process before they are closed.)
    """

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[int], None] | None = None) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the port once requests are taken."""
        # The threads that commit and read long bodies would take 5 ms from each request otherwise, and it from them.
        sys.setswitchinterval(SWITCH_SECONDS)
        await super().startup(sockets)
        settle_memory(GC_ALLOCATIONS)
        if self.started and sockets and self._on_listening is not None:
            self._on_listening(sockets[0].getsockname()[1])

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle the two signals while serving, and put back what was before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGTERM, signal.SIGINT)
        before = {kind: signal.signal(kind, self.handle_exit) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def stop(self) -> None:
        """Begin to drain; safe from any thread."""
        self.should_exit = True


def make_server(app: App, bind: str, on_listening: Callable[[int], None] | None = None) -> DrainingServer:
    """A server over ``app`` that is not listening yet; ``run_server`` runs it."""
    host, _, port = bind.rpartition(":")
    config = uvicorn.Config(
        create_app(app),
        host=host.strip("[]"),
        port=int(port),
        loop="uvloop",
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    return DrainingServer(config, on_listening)


def run_server(server: DrainingServer) -> None:
    """Listen and serve until ``stop`` or a signal; returns when drained. ConfigurationError when it cannot listen."""
    config = server.config
    with _listening(config.host, config.port) as listener:
        server.run([listener])
    _log.info("web.drained")


def run_web(app: App, bind: str, on_listening: Callable[[int], None] | None = None) -> None:
    """Serve ``app`` on ``bind`` (ADDRESS:PORT; port 0 lets the system choose) until SIGTERM, then drain.

    ``on_listening`` is told the port as soon as requests are taken.
    """
    run_server(make_server(app, bind, on_listening))


@contextmanager
def _listening(host: str, port: int) -> Generator[socket.socket, None, None]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"BSS_SYNC_BIND: cannot listen on {host}:{port}: {error.strerror}.",
                next_step="Stop what listens there, or set BSS_SYNC_BIND to another address.",
            ) from None
        listener.listen(BACKLOG)
        listener.setblocking(False)
        yield listener
