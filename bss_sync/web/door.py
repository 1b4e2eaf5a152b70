"""The webhook door: bytes from a stranger in, 202 only after the commit out.

    bounds → raw body → who sent it → what it says → inbox → 202

What is checked before the signature is the same for every sender, and an unknown connection costs what a wrong
signature costs. The database is asked once per connection, not once per message: an arrival carries the revision
that it was verified with, and the inbox compares (``Stale``: look up and verify again).

A connection that is closed refuses what it can verify with 409 ``connection-closed``: its sender is told, nobody else.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import structlog
from prometheus_client import Counter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bss_sync.adapters.group_commit import Answer, GroupCommit
from bss_sync.adapters.sql.senders import Sender
from bss_sync.domain.change import OrderKind
from bss_sync.domain.errors import (
    BssSyncError,
    DependencyDown,
    FieldProblem,
    InvalidMessage,
    MessageConflict,
    NotFound,
    NotVerified,
    StateConflict,
)
from bss_sync.domain.made_quickly import made_quickly
from bss_sync.domain.tenancy import ConnectionState
from bss_sync.pipeline.envelope import Form, ParsedRequest, parse_request
from bss_sync.pipeline.verify import verify_standard_webhook
from bss_sync.ports.inbox import Accepted, Arrival, Origin
from bss_sync.web.body import BodyReader, header_mapping
from bss_sync.web.middleware import ACCEPTED, ROUTE_KEY, SECURITY_HEADERS, Figures, RequestLine, next_request_id
from bss_sync.web.problem import defect, problem_of, slug_of
from bss_sync.web.senders import KnownSenders, hook_secrets, signing_keys

if TYPE_CHECKING:
    from bss_sync.bootstrap import App
    from bss_sync.ports.connector import HookParser
    from bss_sync.ports.tracing import Traces
    from bss_sync.telemetry import Metrics

_PATH = re.compile(r"/v1/connections/([^/]+)/(messages|hooks(?:/.*)?)", re.DOTALL)

INLINE_BYTES_MAX = 32 * 1024
"""A longer body is understood in a thread, so that it does not keep the others waiting."""

ATTEMPTS_MAX = 7
FIRST_PAUSE_SECONDS = 0.02
"""Doubled each time: a connection that is being changed is asked for again for about a second and a quarter."""

ORIGIN_KEY = "bss_sync.origin"
"""Where ``DoorFirst`` notes in the scope which of the two ways a request takes."""

BEGUN_KEY = "bss_sync.begun"
"""Where the scope has what was begun ahead of the application."""

_ROUTES = {
    Origin.DOOR: "/v1/connections/{connection}/messages",
    Origin.HOOK: "/v1/connections/{connection}/hooks",
}

_HEAD = (
    b"x-request-id: %b\r\n"
    + b"".join(b"%b: %b\r\n" % pair for pair in SECURITY_HEADERS)
    + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
)

_log = structlog.get_logger("bss_sync.door")


@made_quickly
@dataclass(frozen=True, slots=True)
class Incoming:
    """One request as received. ``wanted`` is the connection's id or name, ``headers`` have lower-case names."""

    wanted: str
    headers: Mapping[str, str]
    body: bytes


@made_quickly
@dataclass(frozen=True, slots=True)
class Begun:
    """What was understood of a request, and the inbox's answer to it, which may not be known yet."""

    sender: Sender
    parsed: ParsedRequest
    answer: asyncio.Future[Answer]
    body: bytes
    at: float
    """When it began, by ``time.perf_counter``."""


Understand = Callable[[Incoming, Sender | None], ParsedRequest]
"""Verifies and parses. NotVerified, InvalidMessage or MessageConflict; what it does not raise may be stored."""


class Door:
    """The receiving routes of one process and what they share."""

    def __init__(self, app: App, senders: KnownSenders, commit: GroupCommit, metrics: Metrics) -> None:
        self._app = app
        self._senders = senders
        self._commit = commit
        self._metrics = metrics
        self._accepted: dict[UUID, Counter] = {}
        self._bodies = BodyReader()
        self._threads = ThreadPoolExecutor(1, "door-reader")

    def close(self) -> None:
        """Let the thread for long bodies end."""
        self._threads.shutdown(wait=False)

    async def messages(self, request: Request) -> Response:
        """``POST /v1/connections/{connection}/messages``: the contract's messages."""
        request.scope[ROUTE_KEY] = _ROUTES[Origin.DOOR]
        return as_response(await self.answer(Origin.DOOR, request.path_params["connection"], request))

    async def hooks(self, request: Request) -> Response:
        """``POST /v1/connections/{connection}/hooks[/…]``: a system's own format, by its connector's parser."""
        request.scope[ROUTE_KEY] = _ROUTES[Origin.HOOK]
        return as_response(await self.answer(Origin.HOOK, request.path_params["connection"], request))

    def begin(self, wanted: str, pairs: Iterable[tuple[bytes, bytes]], body: bytes) -> Begun | None:
        """Put a message of a sender that is remembered into the inbox; None when that takes more than one step."""
        started = time.perf_counter()
        if len(body) > INLINE_BYTES_MAX or not self._bodies.hold(body):
            return None
        sender = self._senders.remembered(wanted)
        try:
            # Nobody remembered is verified in vain here as well.
            parsed = self._understand_message(Incoming(wanted, header_mapping(pairs), body), sender)
            assert sender is not None, "nobody can be verified"
            answer = self._commit.put(self._arrival(sender, Origin.DOOR, parsed))
        except Exception:  # noqa: BLE001  whatever it is, it comes again on the usual way, and is answered there
            self._bodies.release(body)
            return None
        return Begun(sender, parsed, answer, body, started)

    def accepted(self, begun: Begun) -> bytes | None:
        """The content of the 202; None when there is more to say. Once, when the answer is known."""
        self._bodies.release(begun.body)
        if begun.answer.exception() is not None or not isinstance(answer := begun.answer.result(), Accepted):
            return None
        self._count(begun.sender, answer)
        return _content(answer)

    async def answer(self, origin: Origin, wanted: str, request: Request) -> bytes | Response:
        """The content of a 202, after the commit; or the whole response of a refusal."""
        understand = self._understand_message if origin is Origin.DOOR else self._understand_hook
        headers = header_mapping(request.scope["headers"])
        try:
            body = await self._bodies.read(headers, request.receive)
            try:
                begun = request.scope.get(BEGUN_KEY)
                answer = await self._receive(Incoming(wanted, headers, body), origin, understand, begun)
            finally:
                self._bodies.release(body)
        except BssSyncError as error:
            self._note_refusal(wanted, error)
            return problem_of(error)
        except ClientDisconnect:
            # Nobody is there to read it.
            return Response(status_code=400)
        return _content(answer)

    async def _receive(
        self, incoming: Incoming, origin: Origin, understand: Understand, begun: Begun | None
    ) -> Accepted:
        """Verify, understand, store; once more from the start when the connection turns out to have changed."""
        sender = self._senders.remembered(incoming.wanted)
        # Nobody remembered is verified in vain as well: a stranger costs what a wrong signature costs.
        remembered = True
        for attempt in range(ATTEMPTS_MAX):
            if begun is None:
                if not remembered:
                    sender = await self._senders.present(incoming.wanted)
                try:
                    parsed = await self._understood(incoming, sender, understand)
                except BssSyncError:
                    if not remembered:
                        raise
                    # What is remembered may be old: a secret may be new, or no longer count.
                    remembered = False
                    continue
                assert sender is not None, "nobody can be verified"
                answer = await self._commit.put(self._arrival(sender, origin, parsed))
            else:
                sender, parsed, answer = begun.sender, begun.parsed, await begun.answer
                begun = None
            if isinstance(answer, Accepted):
                self._count(sender, answer)
                return answer
            if isinstance(answer, MessageConflict):
                raise _named(answer, parsed.form)
            if not remembered:
                await asyncio.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
            remembered = False
        raise DependencyDown("The connection is being changed just now.", retry_after_seconds=2)

    def _arrival(self, sender: Sender, origin: Origin, parsed: ParsedRequest) -> Arrival:
        trace = self._app.traces.current()
        return Arrival(sender.tenant_id, sender.id, sender.revision, origin, parsed.changes, trace)

    async def _understood(self, incoming: Incoming, sender: Sender | None, understand: Understand) -> ParsedRequest:
        if len(incoming.body) <= INLINE_BYTES_MAX:
            return understand(incoming, sender)
        return await asyncio.get_running_loop().run_in_executor(self._threads, understand, incoming, sender)

    def _understand_message(self, incoming: Incoming, sender: Sender | None) -> ParsedRequest:
        now = self._app.clock.now()
        webhook_id = verify_standard_webhook(incoming.headers, incoming.body, signing_keys(sender, now), now)
        assert sender is not None, "nobody has no key that fits"
        _refuse_closed(sender)
        parsed = parse_request(incoming.headers, incoming.body, webhook_id)
        _check_order(parsed, sender)
        return parsed

    def _understand_hook(self, incoming: Incoming, sender: Sender | None) -> ParsedRequest:
        now = self._app.clock.now()
        parser = None if sender is None else self._hook_parser(sender)
        if sender is None or parser is None:
            # Only who could send to the other route learns that there is nothing here.
            verify_standard_webhook(incoming.headers, incoming.body, signing_keys(sender, now), now)
            raise NotFound(
                "This connection's connector has no format of its own.",
                next_step="Send the contract's messages to …/messages.",
            )
        changes = parser.parse(incoming.headers, incoming.body, hook_secrets(sender, now), now)
        _refuse_closed(sender)
        return ParsedRequest(tuple(changes), Form.ARRAY)

    def _hook_parser(self, sender: Sender) -> HookParser | None:
        connector = self._app.connectors.get(sender.connector)
        if connector is None or not connector.capabilities.hooks:
            return None
        return connector.hooks(connector.config.model_validate(sender.settings))

    def _count(self, sender: Sender, answer: Accepted) -> None:
        if answer.accepted:
            counter = self._accepted.get(sender.id)
            if counter is None:
                counter = self._accepted[sender.id] = self._metrics.accepted.labels(str(sender.id))
            counter.inc(answer.accepted)
        if answer.duplicates:
            self._metrics.duplicates.labels(str(sender.id)).inc(answer.duplicates)

    def _note_refusal(self, wanted: str, error: BssSyncError) -> None:
        self._metrics.refused.labels(slug_of(error)).inc()
        cause = error.cause if isinstance(error, NotVerified) else ""
        fields = [item.field for item in error.fields[:10]]
        _log.warning("door.refused", connection=wanted[:64], reason=slug_of(error), cause=cause, fields=fields)


def _content(answer: Accepted) -> bytes:
    return b'{"accepted":%d,"duplicates":%d}' % (answer.accepted, answer.duplicates)


def as_response(answer: bytes | Response) -> Response:
    """What ``Door.answer`` gave, for the framework."""
    return Response(answer, ACCEPTED, media_type="application/json") if isinstance(answer, bytes) else answer


class DoorFirst:
    """Takes the door's requests before the application's routing: every layer on the way would cost each message.

    So it does for them what ``RequestLine`` does for the others, unless they are traced; and for most of them the
    server need not even call it (``begin`` and ``answer``, protocol.py).
    """

    def __init__(self, app: ASGIApp, door: Door, figures: Figures, traces: Traces) -> None:
        self._door = door
        self._figures = figures
        self._traced = traces.enabled
        self._app = RequestLine(app, figures, traces)
        self._line = RequestLine(self._plain, figures, traces)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        match = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if match is None:
            await self._app(scope, receive, send)
            return
        scope["path_params"] = {"connection": match[1]}
        scope[ORIGIN_KEY] = Origin.DOOR if match[2] == "messages" else Origin.HOOK
        await (self._line if self._traced else self._quick)(scope, receive, send)

    def begin(self, scope: Scope, body: bytes) -> asyncio.Future[Answer] | None:
        """See protocol.py, Ahead."""
        if self._traced or scope["method"] != "POST" or (match := _PATH.fullmatch(scope["path"])) is None:
            return None
        begun = self._door.begin(match[1], scope["headers"], body) if match[2] == "messages" else None
        if begun is None:
            return None
        scope[BEGUN_KEY] = begun
        return begun.answer

    def answer(self, scope: Scope) -> bytes | None:
        """See protocol.py, Ahead."""
        begun: Begun = scope[BEGUN_KEY]
        content = self._door.accepted(begun)
        if content is None:
            return None
        request_id = next_request_id()
        seconds = time.perf_counter() - begun.at
        self._figures.note(_ROUTES[Origin.DOOR], "POST", ACCEPTED, seconds, request_id)
        return _HEAD % (request_id.encode(), len(content), content)

    async def _plain(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await (self._door.messages if scope[ORIGIN_KEY] is Origin.DOOR else self._door.hooks)(request)
        await response(scope, receive, send)

    async def _quick(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        request_id = next_request_id()
        structlog.contextvars.bind_contextvars(request=request_id)
        origin = scope[ORIGIN_KEY]
        answer: bytes | Response
        try:
            answer = await self._door.answer(origin, scope["path_params"]["connection"], Request(scope, receive))
        except Exception as error:  # noqa: BLE001  a defect is answered and logged, never passed to the server
            answer = defect(error)
        headers = [(b"x-request-id", request_id.encode()), *SECURITY_HEADERS]
        if isinstance(answer, bytes):
            status = ACCEPTED
            headers += (b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": answer})
        else:
            status = answer.status_code
            answer.raw_headers += headers
            await answer(scope, receive, send)
        self._figures.note(_ROUTES[origin], "POST", status, time.perf_counter() - started)


class ConnectionClosed(StateConflict):
    """The connection was closed: its contract has ended."""

    slug = "connection-closed"
    next_step = "Ask the distributor: a closed connection takes nothing more, a new one is needed."


def _refuse_closed(sender: Sender) -> None:
    if sender.state is ConnectionState.CLOSED:
        raise ConnectionClosed("This connection is closed.")


def _check_order(parsed: ParsedRequest, sender: Sender) -> None:
    """One connection speaks one order (domain.md section 6): as pinned, else as this request's first message shows."""
    expected = sender.order
    wrong = []
    for index, change in enumerate(parsed.changes):
        if change.version is None:
            continue
        if expected is None:
            expected = change.order
        elif change.order is not expected:
            place = f"[{index}]." if parsed.form in (Form.ARRAY, Form.CLOUDEVENT_BATCH) else ""
            member = "version" if change.order is OrderKind.SEQUENCE else "source_updated_at"
            wrong.append(FieldProblem(f"{place}data.{member}", f"this connection's messages are ordered by {expected}"))
    if wrong:
        raise InvalidMessage("The message is ordered in another way than its connection.", fields=tuple(wrong))


def _named(conflict: MessageConflict, form: Form) -> MessageConflict:
    """The conflict in the sender's words: an element by its index, a single message by where its id stands."""
    if form in (Form.ARRAY, Form.CLOUDEVENT_BATCH):
        return conflict
    field = "webhook-id" if form is Form.PLAIN else "id"
    return MessageConflict(conflict.detail, fields=tuple(FieldProblem(field, item.detail) for item in conflict.fields))
