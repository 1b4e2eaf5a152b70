"""HTTP/1.1 as the server speaks it: uvicorn's, bounded against strangers, with a short way for what the door takes.

A request whose body has come with its head may be taken ahead of the application (``Ahead``): it then needs no task, no
scope that is handed down through layers and no messages between them. Whatever is not answered there by a plain 202
goes the usual way.
"""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import chain
from typing import Any, Protocol

from uvicorn._types import ASGI3Application, HTTPScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from bss_sync.web.problem import problem

HEAD_SECONDS_MAX = 20.0
HEAD_BYTES_MAX = 32 * 1024
HEADERS_MAX = 100
UNREAD_BYTES_MAX = 8 * 1024 * 1024
"""What may still arrive for a request that was answered early; beyond that the connection is cut."""


class Ahead(Protocol):
    """What an application may offer under its attribute ``ahead``."""

    def begin(self, scope: HTTPScope, body: bytes) -> asyncio.Future[Any] | None:
        """Take a request; None when the application has to. It is done when the answer is known."""
        ...

    def answer(self, scope: HTTPScope) -> bytes | None:
        """The answer of a request that was taken: its head from the second line on, and its body. None when the
        application has to answer; what is known stands in the scope then.
        """
        ...


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose head is bounded in bytes, number and time, and whose refusals are problem documents."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = True
        self._head_bytes = 0
        self._read_bytes = 0
        self._unread_bytes = 0
        self._refused = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._ahead: Ahead | None = getattr(self.app, "ahead", None)
        self._feeding = False
        self._held: ASGI3Application | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A connection that says nothing is closed."""
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head that is not complete yet: the parser itself would keep any amount."""
        self._feeding = self._ahead is not None
        self._read_bytes = len(data)
        super().data_received(data)
        self._feeding = False
        if self._held is not None:
            # There is more to come of its body.
            self._let_in()
        if self._in_head and not self._refused:
            if self._head_timer is None:
                self._arm()
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._refuse(431, "The request's head is too large.")

    def on_message_begin(self) -> None:
        """A new request on this connection."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        self._unread_bytes = 0

    def on_headers_complete(self) -> None:
        """The head is complete: it is let in when it keeps the bounds."""
        self._in_head = False
        self._disarm()
        # No head is longer than what it came in.
        if len(self.headers) > HEADERS_MAX or (
            self._head_bytes + self._read_bytes > HEAD_BYTES_MAX and self._head_length() > HEAD_BYTES_MAX
        ):
            self._refuse(431, "The request's head is too large.")
            return
        super().on_headers_complete()

    def _head_length(self) -> int:
        return len(self.url) + sum(map(len, chain.from_iterable(self.headers)))

    def on_body(self, body: bytes) -> None:
        """What arrives after the answer is thrown away, but not without end."""
        if self._refused:
            return
        if self.cycle.response_complete:
            self._unread_bytes += len(body)
            if self._unread_bytes > UNREAD_BYTES_MAX:
                self.transport.close()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is here as a whole; a refused one has no cycle."""
        if self._refused:
            return
        super().on_message_complete()
        if self._held is not None and not self._take_ahead(self.cycle, self._held):
            self._let_in()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """While the request is being read, wait whether it comes as a whole."""
        if self._feeding:
            self._held = app
        else:
            super()._start_asgi_task(cycle, app)

    def _let_in(self) -> None:
        app, self._held = self._held, None
        assert app is not None, "it is held"
        super()._start_asgi_task(self.cycle, app)

    def _take_ahead(self, cycle: RequestResponseCycle, app: ASGI3Application) -> bool:
        assert self._ahead is not None, "nothing is held otherwise"
        done = self._ahead.begin(cycle.scope, bytes(cycle.body))
        if done is None:
            return False
        self._held = None
        done.add_done_callback(partial(self._settle, cycle, app))
        return True

    def _settle(self, cycle: RequestResponseCycle, app: ASGI3Application, _done: asyncio.Future[Any]) -> None:
        assert self._ahead is not None, "it was taken"
        answer = self._ahead.answer(cycle.scope)
        if answer is None:
            super()._start_asgi_task(cycle, app)
            return
        cycle.response_started = cycle.response_complete = True
        if cycle.disconnected:
            return
        head = [b"HTTP/1.1 202 Accepted\r\n", *(b"%b: %b\r\n" % pair for pair in cycle.default_headers)]
        if not cycle.keep_alive:
            head.append(b"connection: close\r\n")
        head.append(answer)
        self.transport.write(b"".join(head))
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def send_400_response(self, msg: str) -> None:
        """No HTTP at all."""
        self._refuse(400, msg)

    def _refuse(self, status: int, detail: str) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        answer = problem(status, detail, next_step="Correct the request's head.", headers={"Connection": "close"})
        reason = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}[status]
        head = b"".join(b"%b: %b\r\n" % pair for pair in answer.raw_headers)
        self.transport.write(b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, reason.encode(), head, bytes(answer.body)))
        self.transport.close()

    def _arm(self) -> None:
        self._disarm()
        self._head_timer = self.loop.call_later(HEAD_SECONDS_MAX, self._refuse, 408, "The request did not arrive.")

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
