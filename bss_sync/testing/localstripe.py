"""localstripe, a Stripe-compatible server that nobody here wrote, as a process on 127.0.0.1.

Its own command binds to every interface and pickles its data into the temporary folder on every write. Here it
listens on 127.0.0.1 only and keeps its data in memory.

    python -m bss_sync.testing.localstripe --port 0

prints one JSON line, ``{"url": "http://127.0.0.1:PORT"}``, when it accepts connections. ``LocalStripe`` starts and
stops that process. localstripe is a development dependency: without it, starting raises ConfigurationError.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import importlib
import importlib.util
import json
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from bss_sync.domain.errors import ConfigurationError, DependencyDown

HOST: Final = "127.0.0.1"
API_KEY: Final = "sk_test_localstripe"
"""Any key that begins with sk_ is accepted."""

START_SECONDS_MAX: Final = 30.0
STOP_SECONDS_MAX: Final = 5.0


def is_installed() -> bool:
    """Whether localstripe can be imported; it comes with the development dependencies."""
    return importlib.util.find_spec("localstripe") is not None


class LocalStripe:
    """One running localstripe, a context manager. It ends with this process, also when this one is killed."""

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._process: subprocess.Popen[str] | None = None
        self._url: str | None = None

    @property
    def url(self) -> str:
        """The base address; for the stripe library too: ``StripeClient(API_KEY, base_addresses={"api": url})``."""
        assert self._url is not None, "start() comes before url"
        return self._url

    @property
    def pid(self) -> int:
        """The process id of the server."""
        assert self._process is not None, "start() comes before pid"
        return self._process.pid

    def start(self) -> Self:
        """Start the process and wait until it accepts connections. DependencyDown when it does not come up."""
        if not is_installed():
            raise ConfigurationError(
                "localstripe: it is not installed.", next_step="It comes with the development dependencies: make setup"
            )
        command = [sys.executable, "-m", "bss_sync.testing.localstripe", "--port", str(self._port), "--until-eof"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = _first_line(self._process, START_SECONDS_MAX)
        if not line:
            self.stop()
            taken = f"; is port {self._port} taken?" if self._port else "."
            raise DependencyDown(f"localstripe did not come up{taken}")
        self._url = str(json.loads(line)["url"])
        return self

    def send_webhooks_to(self, url: str, secret: str, events: Sequence[str] | None = None) -> None:
        """Let it push signed events: ``send_webhooks``."""
        send_webhooks(self.url, url, secret, events)

    def stop(self) -> None:
        """End the process; nothing happens when it is not running."""
        process, self._process, self._url = self._process, None, None
        if process is None:
            return
        assert process.stdin is not None, "started with pipes"
        assert process.stdout is not None, "started with pipes"
        process.stdin.close()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def send_webhooks(server_url: str, url: str, secret: str, events: Sequence[str] | None = None) -> None:
    """Let the localstripe at ``server_url`` push signed events (None: all types) to ``url``.

    Each comes about a second after the fact, and only once. ConfigurationError when it refuses.
    """
    wanted: dict[str, Any] = {"url": url, "secret": secret}
    if events is not None:
        wanted["events"] = list(events)
    connection = http.client.HTTPConnection(HOST, urlsplit(server_url).port or 0, timeout=10)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/_config/webhooks/bss_sync", json.dumps(wanted).encode(), headers)
        status = connection.getresponse().status
    finally:
        connection.close()
    if status != 200:
        raise ConfigurationError(f"localstripe refused the webhook endpoint {url} with status {status}.")


def _first_line(process: subprocess.Popen[str], seconds: float) -> str:
    """The first line that the process prints; empty when it ends or stays silent."""
    assert process.stdout is not None, "started with pipes"
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(seconds) else ""


async def _serve(port: int, *, until_eof: bool) -> None:
    """Serve until SIGTERM or SIGINT, or until standard input ends."""
    # Imported here: bss_sync itself needs neither. Both come without types that could be relied upon.
    web: Any = importlib.import_module("aiohttp.web")
    server: Any = importlib.import_module("localstripe.server")
    # It would write to a fixed path in the temporary folder, shared with every other user of the machine.
    type(server.store).dump_to_disk = lambda _store: None

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if until_eof:
        _when_input_ends(loop, stopped)
    runner = web.AppRunner(server.app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port)
        await site.start()
        address = runner.addresses[0]
        sys.stdout.write(json.dumps({"url": f"http://{HOST}:{address[1]}"}) + "\n")
        sys.stdout.flush()
        await stopped.wait()
    finally:
        await runner.cleanup()


def _when_input_ends(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> None:
    """Set ``stopped`` when the parent has gone: its end of our standard input closes however it ends."""

    def wait() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(stopped.set)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def main() -> None:
    """The command: one localstripe on 127.0.0.1."""
    parser = argparse.ArgumentParser(description="localstripe on 127.0.0.1, its data in memory only")
    parser.add_argument("--port", type=int, default=8420, help="0 takes a free one")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    arguments = parser.parse_args()
    if not is_installed():
        parser.exit(3, "localstripe is not installed; it comes with the development dependencies: make setup\n")
    asyncio.run(_serve(arguments.port, until_eof=arguments.until_eof))


if __name__ == "__main__":
    main()
