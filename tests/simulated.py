"""What tests with the simulator share: settings, a seed, and a door that its pushes arrive at."""

from __future__ import annotations

import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from standardwebhooks import Webhook

from bss_sync.domain.change import Change, Kind, OrderKind
from bss_sync.pipeline.envelope import parse_request
from connectors.simulator.config import SimulatorConfig
from connectors.simulator.server import SimulatorServer
from connectors.simulator.webhook import Endpoint

SECRET = "whsec_c2VjcmV0LW9mLXRoZS1zaW11bGF0ZWQtZW5kcG9pbnQ="
ACCOUNT, SUBSCRIPTION = Kind.ACCOUNT, Kind.SUBSCRIPTION


def settings(simulator: SimulatorServer, order: OrderKind = OrderKind.SEQUENCE) -> SimulatorConfig:
    # Small pages, so that every listing and feed has several.
    return SimulatorConfig.model_validate(
        {"base_url": simulator.url, "allow_http_private": True, "page_size": 2, "order": order}
    )


def seed(simulator: SimulatorServer) -> None:
    """Part of the reference scenario: five accounts, three subscriptions, one of each deleted."""
    bss = simulator.reseller
    bss.put(ACCOUNT, "lite-1", {"kind": "reseller", "name": "Cloud Lite"})
    for name in ("x", "y"):
        bss.put(ACCOUNT, f"cust-{name}", {"parent_id": "lite-1", "sales_price": "9.90"})
    bss.put(ACCOUNT, "cust/z ä", {"name": "Cloud End-Customer Z"})
    bss.put(ACCOUNT, "gone", {})
    bss.delete(ACCOUNT, "gone")
    bss.put(SUBSCRIPTION, "sub-1", {"account_id": "cust-x", "product": "M365", "quantity": 25.0})
    bss.put(SUBSCRIPTION, "sub-2", {"account_id": "cust-y", "product": "M365", "end_date": "2026-12-31"})
    bss.put(SUBSCRIPTION, "sub-3", {"product": "M365"})
    bss.delete(SUBSCRIPTION, "sub-3")
    bss.patch(SUBSCRIPTION, "sub-1", {"quantity": 26.5, "effective_at": "2026-03-01T00:00:00Z"})


class Door:
    """What stands for the webhook door: it verifies and parses each request, and answers as it is told."""

    def __init__(self) -> None:
        self.changes: queue.Queue[Change] = queue.Queue()
        self.ids: list[str] = []
        self.statuses: list[int] = []
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                door.ids.append(headers["webhook-id"])
                status = door.statuses.pop(0) if door.statuses else 202
                if status == 202:
                    Webhook(SECRET).verify(body, headers)
                    for change in parse_request(headers, body, headers["webhook-id"]).changes:
                        door.changes.put(change)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.endpoint = Endpoint(url=f"http://127.0.0.1:{self._server.server_port}/v1/messages", secret=SECRET)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def received(self, simulator: SimulatorServer) -> list[Change]:
        """Everything that came, once the sender has nothing left to send."""
        assert simulator.webhooks.wait_until_idle(10), simulator.webhooks.view()
        return [self.changes.get_nowait() for _ in range(self.changes.qsize())]
