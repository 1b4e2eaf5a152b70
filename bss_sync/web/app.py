"""The web application: the door, the API and health, over one wired ``App``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio.to_thread
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import bss_sync
from bss_sync.adapters.group_commit import GroupCommit
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.adapters.sql.inbox_at_once import InboxAtOnce
from bss_sync.adapters.sql.senders import SqlSenders
from bss_sync.adapters.waker import Waker, hints_in_loop
from bss_sync.web import health, problem
from bss_sync.web.api import routers
from bss_sync.web.door import Door, DoorFirst
from bss_sync.web.gauges import DatabaseGauges
from bss_sync.web.middleware import Figures
from bss_sync.web.openapi import describe
from bss_sync.web.senders import KnownSenders

if TYPE_CHECKING:
    from bss_sync.bootstrap import App

FLUSH_SECONDS = 10.0
API_THREADS = 12
"""As many API requests work at one time as the pool has connections, overflow included; more wait."""

DESCRIPTION = "Mirrors resellers' accounts and subscriptions into a distributor's BSS. Times are UTC, RFC 3339."


class Application(FastAPI):
    """The framework's application behind what takes the door's requests.

    That stands outside of all the framework's own layers, each of which would cost every message.
    """

    ahead: DoorFirst | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if self.ahead is None or scope["type"] != "http":
            await super().__call__(scope, receive, send)
        else:
            await self.ahead(scope, receive, send)


def create_app(app: App) -> FastAPI:
    """The ASGI application over ``app``. Its lifespan starts and drains the group commit."""
    metrics = app.metrics
    gauges = CollectorRegistry()
    gauges.register(DatabaseGauges(app))
    at_once = InboxAtOnce(app.database)
    waker = Waker(hints_in_loop(app.wake))
    commit = GroupCommit(SqlInbox(app.database), at_once.accept, waker, observe=metrics.batch.observe)
    senders = KnownSenders(SqlSenders(app.database, app.vault))
    door = Door(app, senders, commit, metrics)

    @asynccontextmanager
    async def lifespan(_application: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = API_THREADS
        try:
            yield
        finally:
            # Every request has been answered by now; what is left belongs to senders that have gone.
            await commit.close(FLUSH_SECONDS)
            await senders.close()
            await at_once.close()
            door.close()

    application = Application(
        title="bss_sync",
        summary="Mirrors resellers' BSS into a distributor's BSS",
        description=DESCRIPTION,
        version=bss_sync.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    application.state.bss_sync = app
    application.state.registries = (metrics.registry, gauges)
    problem.install(application)
    _add_door(application, door)
    application.include_router(health.router)
    for router in routers():
        application.include_router(router)
    application.ahead = DoorFirst(super(Application, application).__call__, door, Figures(metrics), app.traces)
    application.openapi = lambda: describe(application)  # type: ignore[method-assign]  # the framework's own way to extend it
    return application


def _add_door(application: FastAPI, door: Door) -> None:
    """The door's routes as routes: what is no POST is refused here, the POSTs were taken before (``DoorFirst``)."""
    messages = Route("/v1/connections/{connection}/messages", door.messages, methods=["POST"])
    hooks = Route("/v1/connections/{connection}/hooks", door.hooks, methods=["POST"])
    below_hooks = Route("/v1/connections/{connection}/hooks/{rest:path}", door.hooks, methods=["POST"])
    application.router.routes[:0] = [messages, hooks, below_hooks]
