"""Traces: what one request or one batch did, and which request a message came with.

A trace travels with the message as a W3C ``traceparent`` (column ``message.trace``), so that what a worker does minutes
later is shown beside the request that brought it. Attributes are ids, states and counts: never a name, never content.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol


class Span(Protocol):
    """A piece of work that is being traced."""

    def rename(self, name: str) -> None:
        """What it turned out to be: a route is known only at the end of its request."""
        ...

    def set(self, **attributes: str | float | bool) -> None:
        """Facts about it."""
        ...

    def link(self, trace: str) -> None:
        """It worked on what ``trace`` (a traceparent) brought. An unreadable one is left out."""
        ...


class Traces(Protocol):
    """Where traces go. Every method returns at once: spans are sent later, and lost when nobody takes them."""

    @property
    def enabled(self) -> bool:
        """Whether anybody looks; where not, callers need not collect what they would say."""
        ...

    def span(self, name: str) -> AbstractContextManager[Span]:
        """Trace a block: below the present span of this thread or task, else as a new trace."""
        ...

    def current(self) -> str | None:
        """The present span as a traceparent; None where it is not sampled."""
        ...

    def add(
        self, name: str, *, parent: str, begun_at: datetime, ended_at: datetime, **attributes: str | float | bool
    ) -> None:
        """A span that is over already, below ``parent`` (a traceparent), linked to the present span."""
        ...

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        ...
