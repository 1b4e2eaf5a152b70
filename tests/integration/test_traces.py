"""Traces over real HTTP to a collector: from the request that brought a message to what became of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sqlalchemy import text

from bss_sync.adapters.traces import NoTraces, open_traces
from bss_sync.bootstrap import App, make_traces, open_app
from bss_sync.domain.errors import ConfigurationError
from bss_sync.jobs.work import make_work
from tests.app import add_connection, serving, settings_for
from tests.door_sender import Sender, account
from tests.servers import Database
from tests.world import AllWakeUps

SENDERS_TRACE = "00-11111111111111111111111111111111-2222222222222222-01"


@dataclass
class Collector:
    """What was sent to it."""

    url: str
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def spans(self) -> dict[str, Any]:
        """Every span by its name; the last of each."""
        return {
            span.name: span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


@contextmanager
def collector() -> Iterator[Collector]:
    """An OpenTelemetry collector that only listens."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                one.requests.append(ExportTraceServiceRequest.FromString(body))
                one.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        one = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield one
        finally:
            server.shutdown()
            thread.join(5)


@contextmanager
def _traced(database: Database, home: Path, **settings: Any) -> Iterator[App]:
    given = settings_for(database, home, **settings)
    with make_traces(given, "serve") as traces, open_app(given, wake=AllWakeUps(), traces=traces) as app:
        yield app


def _send_and_decide(app: App, **headers: str) -> str | None:
    """One account through the door, decided; its stored trace."""
    source, secret = add_connection(app, settings={"account_scope": "all"})
    with serving(app) as url, httpx.Client(base_url=url, timeout=30, headers=headers) as client:
        assert Sender(client, source.name, secret).send(account(parent_id=None), "m-1").status_code == 202
    work = make_work(app, AllWakeUps())
    for shard in range(16):
        work.process(shard)
    with app.database.engine() as connection:
        row = connection.execute(text("select trace, state from message")).one()
    assert row.state == "applied"
    return row.trace  # type: ignore[no-any-return]  # a row has no types


def test_the_workers_span_hangs_below_the_request_that_brought_the_message(
    database: Database, server_home: Path
) -> None:
    with collector() as seen:
        with _traced(database, server_home, otel_endpoint=seen.url, otel_headers="x-key=secret") as app:
            trace = _send_and_decide(app, traceparent=SENDERS_TRACE)
        spans = seen.spans()
    request = spans["POST /v1/connections/{connection}/messages"]
    decided, batch = spans["message.applied"], spans["line.process"]
    assert trace is not None
    assert trace.startswith(f"00-{request.trace_id.hex()}-{request.span_id.hex()}-")
    assert decided.trace_id == request.trace_id
    assert decided.parent_span_id == request.span_id
    assert [link.span_id for link in decided.links] == [batch.span_id]
    assert [link.span_id for link in batch.links] == [request.span_id]
    assert decided.start_time_unix_nano < decided.end_time_unix_nano
    assert seen.headers[0]["x-key"] == "secret"


def test_a_senders_trace_is_linked_and_never_continued(database: Database, server_home: Path) -> None:
    with collector() as seen:
        with _traced(database, server_home, otel_endpoint=seen.url) as app:
            _send_and_decide(app, traceparent=SENDERS_TRACE)
        request = seen.spans()["POST /v1/connections/{connection}/messages"]
    assert request.trace_id.hex() != SENDERS_TRACE.split("-")[1]
    assert request.parent_span_id == b""
    assert [link.span_id.hex() for link in request.links] == [SENDERS_TRACE.split("-")[2]]


def test_attributes_name_ids_and_words_and_nobody(database: Database, server_home: Path) -> None:
    with collector() as seen:
        with _traced(database, server_home, otel_endpoint=seen.url) as app:
            _send_and_decide(app, traceparent="nonsense")
        sent = "".join(str(request) for request in seen.requests)
        decided = seen.spans()["message.applied"]
    attributes = {one.key: one.value.string_value for one in decided.attributes}
    assert attributes["bss_sync.message_id"] == "m-1"
    assert attributes["bss_sync.verdict"] == "entered"
    assert "Customer" not in sent
    assert "customer-x.example" not in sent


def test_what_is_not_sampled_leaves_no_trace_with_the_message(database: Database, server_home: Path) -> None:
    with collector() as seen:
        with _traced(database, server_home, otel_endpoint=seen.url, otel_sample_ratio=0.0) as app:
            assert _send_and_decide(app) is None
        assert seen.spans() == {}


def test_without_an_endpoint_nothing_is_traced_and_nothing_is_loaded(database: Database, server_home: Path) -> None:
    with _traced(database, server_home) as app:
        assert isinstance(app.traces, NoTraces)
        assert _send_and_decide(app) is None


def test_a_collector_that_is_gone_holds_nobody_up(database: Database, server_home: Path) -> None:
    with _traced(database, server_home, otel_endpoint="http://127.0.0.1:1") as app:
        assert _send_and_decide(app) is not None
        started = time.monotonic()
    assert time.monotonic() - started < 10


def test_an_error_inside_a_span_is_named_by_its_type_only() -> None:
    with collector() as seen:
        traces = open_traces(seen.url, headers="", ratio=1.0, part="test", version="1")
        with pytest.raises(ValueError, match="Canary"), traces.span("work"):
            raise ValueError("Canary Customer")
        traces.close()
    span = seen.spans()["work"]
    assert span.status.message == "ValueError"
    assert "Canary" not in str(span)


def test_wrong_headers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^BSS_SYNC_OTEL_HEADERS"):
        open_traces("http://127.0.0.1:1", headers="key", ratio=1.0, part="test", version="1")
