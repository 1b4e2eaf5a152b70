"""``python -m connectors.simulator``: start the server and say where it listens."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading

from bss_sync.domain.change import OrderKind
from connectors.simulator.routes import Role
from connectors.simulator.server import SimulatorServer


def main() -> int:
    """Serve until SIGINT or SIGTERM. One JSON line with the url is printed once it listens."""
    parser = argparse.ArgumentParser(prog="python -m connectors.simulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--role", choices=[str(one) for one in Role], default=str(Role.BOTH))
    parser.add_argument("--order", choices=[str(one) for one in OrderKind], default=str(OrderKind.SEQUENCE))
    parser.add_argument(
        "--api-key-variable", metavar="NAME", help="environment variable that holds the api key; none: no key is asked"
    )
    arguments = parser.parse_args()
    api_key = os.environ.get(arguments.api_key_variable) if arguments.api_key_variable else None
    if arguments.api_key_variable and not api_key:
        parser.error(f"the environment variable {arguments.api_key_variable} is empty")
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    server = SimulatorServer(
        port=arguments.port, role=Role(arguments.role), order=OrderKind(arguments.order), api_key=api_key
    )
    with server:
        sys.stdout.write(json.dumps({"url": server.url, "role": arguments.role}) + "\n")
        sys.stdout.flush()
        stopping.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
