"""The webhook door: bytes from a stranger in, 202 only after the commit out.

    bounds → raw body → who sent it → what it says → inbox → 202

Everything before the signature is checked in the same way for every sender: an unknown connection costs what a wrong
signature costs and answers the same. The database is asked once per connection, not once per message: the arrival
carries the revision that it was verified with, and the inbox compares (``Stale``: verify again).
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog
from starlette.requests import Request
from starlette.responses import Response

from bss_sync.adapters.group_commit import Batcher, Bounds, GroupCommit
from bss_sync.adapters.sql.senders import Sender, SqlSenders
from bss_sync.domain.change import Change, OrderKind
from bss_sync.domain.errors import (
    BssSyncError,
    DependencyDown,
    FieldProblem,
    InvalidMessage,
    MessageConflict,
    NotFound,
    NotVerified,
    Overloaded,
    StateConflict,
)
from bss_sync.domain.tenancy import ConnectionState
from bss_sync.pipeline.envelope import CONTRACT_LIMITS, Form, ParsedRequest, check_length, parse_request
from bss_sync.pipeline.verify import SignatureVersion, SigningKey, verify_standard_webhook
from bss_sync.ports.inbox import Accepted, Arrival, Origin, Stale
from bss_sync.web.problem import problem_of, slug_of

if TYPE_CHECKING:
    from bss_sync.bootstrap import App
    from bss_sync.ports.connector import HookParser
    from bss_sync.telemetry import Metrics

BODY_SECONDS_MAX = 30.0
HELD_BYTES_MAX = 64 * 1024 * 1024
"""Bodies in memory at one time, of all senders together."""

INLINE_BYTES_MAX = 32 * 1024
"""A longer body is read in a thread, so that it does not keep the others waiting."""

ATTEMPTS_MAX = 7
FIRST_PAUSE_SECONDS = 0.02
SECRET_NAME, HOOK_SECRET_NAME = "webhook", "webhook_secret"  # noqa: S105  names of secrets, not secrets

_log = structlog.get_logger("bss_sync.door")
_DUMMY = (SigningKey.symmetric(secrets.token_bytes(32)),)
_CHANGING = DependencyDown("The connection is being changed just now.", retry_after_seconds=2)


@dataclass(frozen=True, slots=True)
class Incoming:
    """One request as received: ``headers`` with lower-case names, ``wanted`` the connection's id or name."""

    wanted: str
    headers: Mapping[str, str]
    body: bytes


class Door:
    """The two receiving routes of one process, with what they share: known senders, the group commit, bounds."""

    def __init__(self, app: App, metrics: Metrics, commit: GroupCommit) -> None:
        self._app = app
        self._metrics = metrics
        self._commit = commit
        self._known: dict[str, Sender] = {}
        self._held_bytes = 0
        self._readers = ThreadPoolExecutor(1, "door-reader")
        self._finder: Batcher[str, Sender | None] = Batcher(
            "door-senders", SqlSenders(app.database, app.vault).find, Bounds(batch_weight_max=100, waiting_weight_max=1_000)
        )

    def start(self) -> None:
        """Begin to look senders up."""
        self._finder.start()

    def close(self) -> None:
        """Stop."""
        self._finder.close(5)
        self._readers.shutdown(wait=False)

    async def messages(self, request: Request) -> Response:
        """``POST /v1/connections/{connection}/messages``."""
        return await self._answer(request, self._receive_message)

    async def hooks(self, request: Request) -> Response:
        """``POST /v1/connections/{connection}/hooks[/…]``."""
        return await self._answer(request, self._receive_hook)

    async def _answer(self, request: Request, receive: _Receive) -> Response:
        held = _Held(self)
        try:
            headers = _headers(request.scope["headers"])
            body = await asyncio.wait_for(self._read(request, headers, held), BODY_SECONDS_MAX)
            accepted = await receive(Incoming(request.path_params["connection"], headers, body))
        except TimeoutError:
            return self._refuse(InvalidMessage("The body did not arrive in time.", status=408, slug="timeout"), request)
        except BssSyncError as error:
            return self._refuse(error, request)
        finally:
            held.release()
        return Response(
            b'{"accepted":%d,"duplicates":%d}' % (accepted.accepted, accepted.duplicates), 202, None, "application/json"
        )
