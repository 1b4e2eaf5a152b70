"""Reference: the same web server with a handler that reads the body and answers 202. ``python -m bench.empty_door``."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bss_sync.web.protocol import BoundedProtocol


async def _accept(request: Request) -> Response:
    await request.body()
    return Response(status_code=202)


def main() -> None:
    """Serve on a free port of 127.0.0.1, which is told on standard output."""
    application = Starlette(routes=[Route("/{path:path}", _accept, methods=["POST"])])
    config = uvicorn.Config(
        application, loop="uvloop", http=BoundedProtocol, access_log=False, log_level="critical", lifespan="off"
    )
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"listening on {listener.getsockname()[1]}", flush=True)
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
