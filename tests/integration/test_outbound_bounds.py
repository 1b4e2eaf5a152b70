"""Every call that goes out, against a server that hangs, resets, closes, drips or breaks off (goals: reliability 26).

Each ends within its bound and with the error that says what is known: a question may be asked again, a write that lost
its answer is unknown. The calls are found by the connectors' own capabilities, so that a new one is tested too.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from bss_sync.adapters.alerts import EmailWay, WebhookWay
from bss_sync.adapters.http import RequestsHttpClient
from bss_sync.bootstrap import Connectors
from bss_sync.domain.alerting import Alert, Rule
from bss_sync.domain.change import Kind
from bss_sync.domain.errors import DependencyDown, RemoteUnknown, Transient
from bss_sync.ports.connector import PagedSource, RangedSource
from bss_sync.ports.http import HttpClient
from bss_sync.testing.target_contract import sample_writes
from tests.wire_server import Script, WireServer, close, drip, reset, silence

CONNECT_SECONDS = READ_SECONDS = 0.25
TOTAL_SECONDS = 0.6
SLACK_SECONDS = 1.5
"""For a busy machine; a call without a bound would take five seconds and more here."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nContent-Type: application/json\r\n\r\n"

Call = Callable[[], object]


def _half(connection: Any, _request: bytes) -> None:
    connection.sendall(HEAD + b'{"items": [')
    connection.close()


FAULTS: dict[str, Script] = {
    "hangs before the answer": silence,
    "resets": reset,
    "closes": close,
    "drips the body": drip(HEAD),
    "drips the head": drip(b"HTTP/1.1 200 OK\r\nX-Slow: "),
    "breaks off halfway": _half,
}


def _of_connector(name: str, url: str, http: HttpClient) -> Iterator[tuple[str, Call]]:
    """The outbound calls of a connector, by name."""
    spec = Connectors()[name]
    if "base_url" not in spec.config.model_fields:
        return
    config = spec.config.model_validate({"base_url": url, "allow_http_private": True})
    secrets = {one: SecretStr("sk_test") for one in ("api_key", "token")}
    source, target, can = spec.source(config, secrets, http), spec.target(config, secrets, http), spec.capabilities
    if source is not None:
        yield "check", source.check
        if can.fetch:
            yield "fetch an account", lambda: source.fetch(Kind.ACCOUNT, "a")
            yield "fetch a subscription", lambda: source.fetch(Kind.SUBSCRIPTION, "s")
        if can.list:
            yield "list", lambda: list(source.list_all())
        if can.poll:
            yield "poll", lambda: source.poll(None)
        if isinstance(source, PagedSource):
            yield "list a page", lambda: source.list_page(None)
        if isinstance(source, RangedSource):
            yield "digests of ranges", lambda: source.ranges("distributor")
            yield "list ranges", lambda: list(source.list_ranges(["000"]))
    if target is not None:
        first, second = list(sample_writes())[:2]
        yield "target check", target.check
        yield "look up", lambda: target.look_up(Kind.ACCOUNT, "r")
        yield "read back", lambda: list(target.list_all())
        yield "target changes", lambda: target.changes(None)
        yield "create", lambda: target.write(first)
        yield "update", lambda: target.write(type(second)(second.kind, second.reference, "e-1", second.fields, "k"))


WRITES = frozenset({"create", "update", "alert webhook"})


def _names() -> list[tuple[str, str]]:
    http = RequestsHttpClient()
    found = [(one, name) for one in Connectors() for name, _call in _of_connector(one, "http://127.0.0.1:9", http)]
    return [*found, ("alerts", "alert webhook")]


def _call(connector: str, name: str, url: str, http: HttpClient) -> Call:
    if connector == "alerts":
        secret = "whsec_" + base64.b64encode(b"x" * 32).decode()
        return lambda: WebhookWay(http, url, secret, allow_http_private=True).tell(_alert())
    return dict(_of_connector(connector, url, http))[name]


def _alert() -> Alert:
    now = datetime.now(UTC)
    return Alert(uuid4(), Rule.DRIFT, uuid4(), "cloud-resell", 3, now, now)


def test_the_table_holds_every_kind_of_call() -> None:
    names = {name for _connector, name in _names()}
    assert names >= {
        "check", "fetch an account", "list", "poll", "list a page", "digests of ranges", "list ranges",
        "target check", "look up", "read back", "target changes", "create", "update", "alert webhook",
    }  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize(("connector", "name"), _names(), ids=lambda one: one.replace(" ", "_"))
def test_a_call_ends_within_its_bound_and_says_what_is_known(connector: str, name: str, fault: Script) -> None:
    http = RequestsHttpClient(
        connect_seconds=CONNECT_SECONDS,
        read_seconds=READ_SECONDS,
        total_seconds=TOTAL_SECONDS,
        retry_wait_seconds_max=0.05,
    )
    with WireServer(fault) as server:
        call = _call(connector, name, server.url, http)
        begun = time.monotonic()
        with pytest.raises(Transient) as caught:
            call()
        took = time.monotonic() - begun
        http.close()
    assert took <= TOTAL_SECONDS + SLACK_SECONDS
    assert server.requests, "it was asked"
    assert isinstance(caught.value, RemoteUnknown) is (name in WRITES), "a write may have taken effect, a question not"


@pytest.mark.parametrize("fault", [silence, reset, close], ids=["hangs", "resets", "closes"])
def test_a_mail_ends_within_its_bound(fault: Script) -> None:
    with WireServer(fault) as server:
        way = EmailWay(f"smtp://127.0.0.1:{server.port}", "a@b.example", ["c@d.example"], answer_seconds=READ_SECONDS)
        begun = time.monotonic()
        with pytest.raises(DependencyDown):
            way.tell(_alert())
    assert time.monotonic() - begun <= READ_SECONDS + SLACK_SECONDS
