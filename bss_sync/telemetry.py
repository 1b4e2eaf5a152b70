"""Logs and metrics of a process.

Logs: one event per line with a fixed name and keys; JSON to a file or a pipe, text to a terminal. What bears a secret
or a person's data is masked by its key wherever it stands: the log of a defect must be as safe to pass on as any.
"""

from __future__ import annotations

import atexit
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TextIO

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from structlog.typing import EventDict, Processor, WrappedLogger

from bss_sync.domain.errors import ConfigurationError

MASK = "***"
DEPTH_MAX = 6

_SENSITIVE = frozenset(
    [
        *("name", "display_name", "email", "phone", "number", "body", "payload", "subject", "notes", "contact", "data"),
        *("secret", "secrets", "password", "passphrase", "token", "tokens", "authorization", "cookie", "signature"),
        *("signatures", "api_key", "apikey", "private_key", "master_key", "ciphertext", "nonce", "material"),
        *("characteristics", "query"),
    ]
)
"""Keys whose values never leave the process in a log, alone or as the last word (``webhook_secret``)."""

_SAFE = frozenset({"connector_name", "logger_name", "thread_name", "event_name"})
_LAST_WORD = re.compile(r"(?:^|[_\-.])([a-z0-9]+)$")
_CREDENTIAL = re.compile(
    r"(?i)(whsec_[A-Za-z0-9+/=_-]{8,}|whsk_[A-Za-z0-9+/=_-]{8,}|\bbearer\s+[^\s\"']+|(?<=://)[^/@\s:]*:[^/@\s]+(?=@))"
)
_MAY_HOLD_CREDENTIAL = re.compile(r"(?i)whs[ek]|bearer|://").search
"""A quick look before the thorough one."""


@lru_cache(maxsize=4096)
def is_sensitive(key: str) -> bool:
    """Whether a value under this key must be masked."""
    low = key.lower()
    if low in _SAFE:
        return False
    last = _LAST_WORD.search(low)
    return low in _SENSITIVE or (last is not None and last[1] in _SENSITIVE)


def masked(value: Any, depth: int = 0) -> Any:
    """A copy without what must not be logged."""
    if isinstance(value, str):
        return _CREDENTIAL.sub(MASK, value) if _MAY_HOLD_CREDENTIAL(value) else value
    if isinstance(value, int | float):
        return value
    if depth >= DEPTH_MAX:
        return MASK
    if isinstance(value, Mapping):
        return {str(key): MASK if is_sensitive(str(key)) else masked(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [masked(item, depth + 1) for item in value]
    return value


def mask(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The processor that masks. The event's own name is fixed text and passes."""
    return {key: (MASK if is_sensitive(key) and value is not None else masked(value)) for key, value in event.items()}


def _text_of_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The stack as file, line and function, and the errors' types: messages may quote what was being worked on."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        event["stack"] = stack_of(error)
    return event


def stack_of(error: BaseException) -> str:
    """Where an error came from, innermost last, its causes included; no messages, no values."""
    lines: list[str] = []
    current: BaseException | None = error
    while current is not None and len(lines) < 60:
        lines.append(type(current).__qualname__)
        trace = current.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            lines.append(f"  {code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
            trace = trace.tb_next
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n".join(lines)


class Lines:
    """Writes log lines in batches, up to ``FLUSH_SECONDS`` late; a warning or worse at once, with all before it.

    A line per request would else be a system call per request, which costs the event loop more than the request.
    """

    FLUSH_SECONDS = 0.1
    LINES_MAX = 1_000

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._pending = threading.Event()
        self._thread: threading.Thread | None = None
        atexit.register(self.flush)

    def info(self, line: str) -> None:
        """Write soon."""
        with self._lock:
            self._lines.append(line)
            full = len(self._lines) >= self.LINES_MAX
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log-lines", daemon=True)
                self._thread.start()
        if full:
            self.flush()
        elif not self._pending.is_set():
            self._pending.set()

    debug = msg = info

    def warning(self, line: str) -> None:
        """Write now."""
        with self._lock:
            self._lines.append(line)
        self.flush()

    warn = error = critical = fatal = failure = exception = log = warning

    def flush(self) -> None:
        """Write what is there."""
        with self._lock:
            lines, self._lines = self._lines, []
            if lines and not self._out.closed:
                self._out.write("\n".join(lines) + "\n")
                self._out.flush()

    def _run(self) -> None:
        while True:
            self._pending.wait()
            time.sleep(self.FLUSH_SECONDS)
            self._pending.clear()
            self.flush()


class _LinesFactory:
    """One ``Lines`` for every logger of the process."""

    def __init__(self, out: TextIO) -> None:
        self._lines = Lines(out)

    def __call__(self, *_arguments: Any) -> Lines:
        return self._lines


def configure_logging(*, level: str = "info", form: str | None = None, stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging. ``form``: json or text; None: text on a terminal only."""
    out = stream or sys.stderr
    as_text = form == "text" or (form is None and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _text_of_exception,
        mask,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=out.isatty()) if as_text else structlog.processors.JSONRenderer()
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_LinesFactory(out),
        cache_logger_on_first_use=stream is None,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LAGS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1_800, 7_200, 86_400)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """What a process counts. Labels are ids, routes, states and slugs: never a name, never a sender's text."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no annotation there
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "bss_sync_http_requests",
            "HTTP requests answered.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "bss_sync_http_request_seconds",
            "Seconds from a request's head to its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.accepted = Counter(
            "bss_sync_messages_accepted", "New messages, committed.", ("connection",), registry=self.registry
        )
        self.duplicates = Counter(
            "bss_sync_messages_duplicate", "Messages that were known already.", ("connection",), registry=self.registry
        )
        self.refused = Counter(
            "bss_sync_requests_refused",
            "Requests that the door refused, by the problem's slug.",
            ("reason",),
            registry=self.registry,
        )
        self.batch = Histogram(
            "bss_sync_group_commit_requests",
            "Requests that shared one commit.",
            buckets=_SIZES,
            registry=self.registry,
        )
        self._of_workers()

    def _of_workers(self) -> None:
        self.decided_seconds = Histogram(
            "bss_sync_message_decided_seconds",
            "Seconds from a message's arrival to its verdict, by the state it got.",
            ("state",),
            buckets=_LAGS,
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "bss_sync_process_batch_seconds",
            "Seconds that a batch of messages took to load, decide and commit.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.deliveries = Counter(
            "bss_sync_deliveries",
            "Attempts to bring a record to the distributor's BSS, by outcome.",
            ("outcome",),
            registry=self.registry,
        )
        self.delivery_seconds = Histogram(
            "bss_sync_delivery_seconds",
            "Seconds from a delivery's claim to its outcome.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.scheduling = Gauge("bss_sync_scheduler_acting", "1 while this process sweeps.", registry=self.registry)
        self.swept_at = Gauge(
            "bss_sync_scheduler_swept_timestamp_seconds", "When this process last swept.", registry=self.registry
        )
        self.alerts = Counter(
            "bss_sync_alerts_sent", "Alerts to people, by way and outcome.", ("way", "outcome"), registry=self.registry
        )


@contextmanager
def serving_metrics(metrics: Metrics, host: str, port: int) -> Iterator[int]:
    """Show the figures at ``/metrics`` of an address of their own, in a thread; gives the port, which 0 lets be chosen.

    ConfigurationError when nothing can listen there.
    """
    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except OSError as error:
        raise ConfigurationError(
            f"BSS_SYNC_METRICS_BIND: cannot listen on {host}:{port}: {error.strerror}.",
            next_step="Stop what listens there, or set BSS_SYNC_METRICS_BIND to another address.",
        ) from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
