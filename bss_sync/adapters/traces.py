"""Traces by OpenTelemetry (ports/tracing.py): sent by OTLP over HTTP, in batches, from a thread of its own.

Off unless BSS_SYNC_OTEL_ENDPOINT is set; only then the packages of the optional group ``otel`` are loaded.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from bss_sync.domain.errors import ConfigurationError
from bss_sync.ports.tracing import Span, Traces

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import SpanContext

EXPORT_SECONDS_MAX = 5.0
CLOSE_SECONDS_MAX = 5.0
LINKS_MAX = 128
"""What OpenTelemetry keeps of one span's links; more are dropped there in any case."""

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED = 1


class _NoSpan:
    """A span, and the block that it stands for, of a process that traces nothing."""

    def __enter__(self) -> Span:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def rename(self, name: str) -> None:
        """Nothing to rename."""

    def set(self, **attributes: str | float | bool) -> None:
        """Nobody is told."""

    def link(self, trace: str) -> None:
        """Nothing to link."""


_NO_SPAN = _NoSpan()


class NoTraces:
    """Traces nothing, at no cost."""

    enabled = False

    def span(self, name: str) -> AbstractContextManager[Span]:  # noqa: ARG002  the port's signature
        """See Traces."""
        return _NO_SPAN

    def current(self) -> str | None:
        """See Traces."""
        return None

    def add(
        self, name: str, *, parent: str, begun_at: datetime, ended_at: datetime, **attributes: str | float | bool
    ) -> None:
        """See Traces."""

    def close(self) -> None:
        """See Traces."""


class _OtelSpan:
    """See Span."""

    def __init__(self, span: OtelSpan) -> None:
        self._span = span
        self._links = 0

    def rename(self, name: str) -> None:
        """See Span."""
        self._span.update_name(name)

    def set(self, **attributes: str | float | bool) -> None:
        """See Span."""
        self._span.set_attributes(_named(attributes))

    def link(self, trace: str) -> None:
        """See Span."""
        context = _context_of(trace)
        if context is not None and self._links < LINKS_MAX:
            self._links += 1
            self._span.add_link(context)


class OtelTraces:
    """Traces that are sent to a collector.

    ``endpoint`` is the collector's base address (its OTLP/HTTP port); ``ratio`` the share of new traces that is kept.
    """

    enabled = True

    def __init__(self, endpoint: str, *, headers: Mapping[str, str], ratio: float, part: str, version: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
        except ImportError:
            raise ConfigurationError(
                "BSS_SYNC_OTEL_ENDPOINT: the packages for OpenTelemetry are not installed.",
                next_step="Install bss-sync with its group otel (pip install 'bss-sync[otel]'), or unset it.",
            ) from None
        exporter = OTLPSpanExporter(
            endpoint=endpoint.rstrip("/") + "/v1/traces", headers=dict(headers), timeout=EXPORT_SECONDS_MAX
        )
        self._processor = BatchSpanProcessor(exporter)
        about = {"service.namespace": "bss-sync", "service.name": f"bss-sync-{part}", "service.version": version}
        self._provider = TracerProvider(
            resource=Resource.create(about), sampler=ParentBasedTraceIdRatio(ratio), shutdown_on_exit=False
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("bss_sync", version)

    @contextmanager
    def span(self, name: str) -> Iterator[Span]:
        """See Traces. An error that leaves the block is named by its type; its words may quote what was worked on."""
        from opentelemetry.trace import Status, StatusCode

        with self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
            try:
                yield _OtelSpan(span)
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def current(self) -> str | None:
        """See Traces."""
        from opentelemetry.trace import get_current_span

        context = get_current_span().get_span_context()
        if not context.is_valid or not context.trace_flags.sampled:
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def add(
        self, name: str, *, parent: str, begun_at: datetime, ended_at: datetime, **attributes: str | float | bool
    ) -> None:
        """See Traces."""
        from opentelemetry.trace import Link, NonRecordingSpan, get_current_span, set_span_in_context

        context = _context_of(parent)
        if context is None:
            return
        here = get_current_span().get_span_context()
        span = self._tracer.start_span(
            name,
            context=set_span_in_context(NonRecordingSpan(context)),
            links=[Link(here)] if here.is_valid else [],
            attributes=_named(attributes),
            start_time=_nanoseconds(begun_at),
        )
        span.end(end_time=_nanoseconds(ended_at))

    def close(self) -> None:
        """See Traces."""
        # The library itself would wait for half a minute where nobody takes them.
        last = threading.Thread(target=self._processor.shutdown, name="last-traces", daemon=True)
        last.start()
        last.join(CLOSE_SECONDS_MAX)


def open_traces(endpoint: str | None, *, headers: str, ratio: float, part: str, version: str) -> Traces:
    """Traces to ``endpoint``, none without one. ConfigurationError when the packages are missing.

    ``headers``: NAME=VALUE pairs with commas between them, as collectors want them for their keys.
    """
    if endpoint is None:
        return NoTraces()
    return OtelTraces(endpoint, headers=_pairs(headers), ratio=ratio, part=part, version=version)


def _pairs(headers: str) -> dict[str, str]:
    found = {}
    for pair in filter(None, (part.strip() for part in headers.split(","))):
        name, separator, value = pair.partition("=")
        if not separator or not name.strip():
            raise ConfigurationError("BSS_SYNC_OTEL_HEADERS: must be NAME=VALUE pairs with commas between them.")
        found[name.strip().lower()] = value.strip()
    return found


def _named(attributes: Mapping[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
    return {f"bss_sync.{name}": value for name, value in attributes.items()}


def _context_of(trace: str) -> SpanContext | None:
    from opentelemetry.trace import SpanContext, TraceFlags

    found = _TRACEPARENT.fullmatch(trace)
    if found is None:
        return None
    context = SpanContext(int(found[1], 16), int(found[2], 16), True, TraceFlags(int(found[3], 16) & _SAMPLED))
    return context if context.is_valid else None


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1_000
