"""The outbound HTTP client against real sockets that reset, drip, break off, redirect and lie."""

from __future__ import annotations

import gzip
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from bss_sync.adapters.http import RequestsHttpClient, RetryBudget, retry_after_seconds
from bss_sync.domain.errors import (
    BssSyncError,
    ConfigurationError,
    DependencyDown,
    RemoteBusy,
    RemoteDenied,
    RemoteRefused,
    RemoteUnknown,
    Transient,
)
from tests.wire_server import Script, WireServer, answer, call, close, closed_port, drip, reset, silence


@pytest.fixture
def client() -> Iterator[RequestsHttpClient]:
    client = RequestsHttpClient(
        connect_seconds=1, read_seconds=0.3, total_seconds=5, body_bytes_max=100_000, retry_wait_seconds_max=0.01
    )
    yield client
    client.close()


@pytest.mark.parametrize("status", [200, 201, 204, 404, 409, 410])
def test_these_statuses_come_back_as_a_response(client: RequestsHttpClient, status: int) -> None:
    with WireServer(answer(status, b"" if status == 204 else b'{"id": 7}', X_Seen="yes")) as server:
        response = call(client, server.url + "/records", "POST")
    assert response.status == status
    assert response.headers["x-seen"] == "yes"
    assert status == 204 or response.json() == {"id": 7}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (304, RemoteRefused),
        (400, RemoteRefused),
        (401, RemoteDenied),
        (403, RemoteDenied),
        (408, Transient),
        (421, Transient),
        (422, RemoteRefused),
        (423, Transient),
        (424, RemoteRefused),
        (425, Transient),
        (429, RemoteBusy),
        (500, Transient),
        (502, Transient),
        (503, RemoteBusy),
        (504, Transient),
    ],
)
def test_every_other_status_is_an_error_of_our_tree(
    client: RequestsHttpClient, status: int, expected: type[BssSyncError]
) -> None:
    with WireServer(answer(status)) as server, pytest.raises(BssSyncError) as caught:
        call(client, server.url, "POST")
    assert type(caught.value) is expected
    assert len(server.requests) == 1


def test_retry_after_is_read_as_seconds_and_as_a_date(client: RequestsHttpClient) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    with WireServer(answer(503, Retry_After="7"), answer(429, Retry_After=date), answer(503)) as server:
        wishes = []
        for _ in range(3):
            with pytest.raises(RemoteBusy) as caught:
                call(client, server.url)
            wishes.append(caught.value.retry_after_seconds)
    assert wishes[0] == 7
    assert wishes[1] == pytest.approx(90, abs=5)
    assert wishes[2] is None
    # A remote that asks to wait is not asked again within the call, although GET could be.
    assert len(server.requests) == 3


@pytest.mark.parametrize("minutes", [-10, 0, 10])
def test_a_date_to_wait_until_is_meant_by_the_remotes_clock(client: RequestsHttpClient, minutes: int) -> None:
    """So that a clock of ours that is ten minutes off makes no wait longer or shorter (goals: reliability 23)."""
    theirs = datetime.now(UTC) + timedelta(minutes=minutes)
    moments = {"Date": format_datetime(theirs, usegmt=True)}
    moments["Retry_After"] = format_datetime(theirs + timedelta(seconds=90), usegmt=True)
    with WireServer(answer(503, b"", **moments)) as server, pytest.raises(RemoteBusy) as caught:
        client.request("GET", server.url, allow_http_private=True)
    assert caught.value.retry_after_seconds == 90


def test_an_unreadable_or_past_wish_is_harmless() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert retry_after_seconds("soon", now) is None
    assert retry_after_seconds("Sun, 01 Feb 2026 00:00:00 GMT", now) == 0
    assert retry_after_seconds("99999999999", now) == 86_400


def test_a_refused_connection_is_dependency_down_for_every_method(client: RequestsHttpClient) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    for method in ("GET", "POST"):
        with pytest.raises(DependencyDown, match="refused"):
            call(client, url, method)


def test_an_unknown_host_is_dependency_down() -> None:
    def nothing(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    client = RequestsHttpClient(resolve=nothing, retry_wait_seconds_max=0.01)
    with pytest.raises(DependencyDown, match="not known"):
        client.request("POST", "https://bss.example/")


@pytest.mark.parametrize("fault", [reset, close, silence], ids=["reset", "close", "silence"])
def test_a_lost_answer_is_unknown_for_unsafe_methods_and_never_sent_twice(
    client: RequestsHttpClient, fault: Script
) -> None:
    with WireServer(fault) as server, pytest.raises(RemoteUnknown):
        call(client, server.url, "POST")
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", [reset, close, silence], ids=["reset", "close", "silence"])
def test_a_lost_answer_to_get_is_transient_and_tried_again(client: RequestsHttpClient, fault: Script) -> None:
    with WireServer(fault, fault, answer(200)) as server:
        assert call(client, server.url).status == 200
        assert len(server.requests) == 3
    with WireServer(fault) as server, pytest.raises(Transient) as caught:
        call(client, server.url)
    assert type(caught.value) is Transient
    assert len(server.requests) <= 3


def test_a_write_with_an_idempotency_key_is_tried_again_with_the_same_key(client: RequestsHttpClient) -> None:
    with WireServer(reset, answer(201)) as server:
        assert call(client, server.url, "POST", key="intent-1").status == 201
    assert len(server.requests) == 2
    assert all(b"Idempotency-Key: intent-1" in request for request in server.requests)


@pytest.mark.parametrize("later", [answer(500), answer(503, Retry_After="9")], ids=["500", "503"])
def test_once_an_answer_was_lost_the_outcome_stays_unknown(client: RequestsHttpClient, later: Script) -> None:
    with WireServer(reset, later) as server, pytest.raises(RemoteUnknown):
        call(client, server.url, "POST", key="intent-1")
    assert len(server.requests) >= 2


def test_a_body_that_breaks_off_is_never_a_response(client: RequestsHttpClient) -> None:
    def half(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[1, 2")
        connection.close()

    def half_chunk(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[1, 2\r\n")
        connection.close()

    for script in (half, half_chunk):
        with WireServer(script) as server:
            with pytest.raises(Transient):
                call(client, server.url)
            with pytest.raises(RemoteUnknown):
                call(client, server.url, "POST")


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Slow: "], ids=["body", "head"]
)
def test_a_dripping_answer_ends_at_the_total_deadline(head: bytes) -> None:
    client = RequestsHttpClient(read_seconds=0.5, total_seconds=0.6)
    began = time.monotonic()
    with WireServer(drip(head, pieces=40)) as server:
        with pytest.raises(RemoteUnknown, match="TimeoutError"):
            call(client, server.url, "POST")
        seconds = time.monotonic() - began
    assert 0.5 < seconds < 1.5
    client.close()


def test_a_body_larger_than_the_limit_is_refused_also_when_it_is_compressed(client: RequestsHttpClient) -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    assert len(bomb) < 100_000
    for script in (answer(200, b"0" * 200_000), answer(200, bomb, Content_Encoding="gzip")):
        with WireServer(script) as server, pytest.raises(RemoteRefused, match="larger"):
            call(client, server.url)


def test_chunked_and_compressed_answers_are_read_whole_and_the_connection_is_used_again(
    client: RequestsHttpClient,
) -> None:
    def chunked(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n")

    compressed = answer(200, gzip.compress(b"[1,2]"), Content_Encoding="gzip")
    with WireServer(chunked, compressed, answer(200, b"[1,2]")) as server:
        assert [call(client, server.url).json() for _ in range(4)] == [[1, 2]] * 4
        assert server.connections == 1
        client.close()


def test_a_redirect_is_followed_only_to_the_same_origin(client: RequestsHttpClient) -> None:
    with WireServer(answer(302, Location="/b?x=1"), answer(200, b'"b"')) as server:
        assert call(client, server.url + "/a").json() == "b"
        assert server.requests[1].startswith(b"GET /b?x=1 ")
    with WireServer(answer(200)) as elsewhere:
        for place in (elsewhere.url, "https://127.0.0.1/", "http://localhost/", "//other.example/", "http://[", ""):
            with WireServer(answer(307, Location=place) if place else answer(307)) as server:
                with pytest.raises(RemoteRefused):
                    call(client, server.url, "POST")
                assert len(server.requests) == 1
        assert elsewhere.requests == []


def test_redirects_end_after_three_and_never_change_a_method(client: RequestsHttpClient) -> None:
    with WireServer(answer(307, Location="/again")) as server, pytest.raises(RemoteRefused):
        call(client, server.url)
    assert len(server.requests) == 4
    with WireServer(answer(303, Location="/elsewhere")) as server, pytest.raises(RemoteRefused, match="method"):
        call(client, server.url, "POST")
    with WireServer(answer(308, Location="/moved"), answer(201)) as server:
        assert call(client, server.url, "POST").status == 201
        assert server.requests[1].startswith(b"POST /moved ")
        assert server.requests[1].endswith(b'{"quantity": 3}')


def test_proxies_of_the_environment_are_ignored(client: RequestsHttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    with WireServer(answer(200)) as server:
        assert call(client, server.url).status == 200


def test_errors_name_neither_query_nor_header_nor_body(client: RequestsHttpClient) -> None:
    with WireServer(answer(400, b'{"email": "canary-body"}')) as server, pytest.raises(RemoteRefused) as caught:
        client.request(
            "POST",
            server.url + "/records",
            headers={"Authorization": "Bearer canary-key"},
            params={"q": "canary-query"},
            form={"a": "canary-form"},
            allow_http_private=True,
        )
    assert "canary" not in str(caught.value)
    assert "/records" in str(caught.value)
    assert b"a=canary-form" in server.requests[0]
    with pytest.raises(ConfigurationError) as wrong:
        client.request("GET", "https://bss.example", headers={"Authorization": "Bearer canary\r\nkey"})
    assert "canary" not in str(wrong.value)


def test_retries_stay_below_a_tenth_of_the_calls() -> None:
    budget = RetryBudget()
    retries = 0
    for _ in range(1000):
        budget.earn("bss.example")
        retries += budget.spend("bss.example") + budget.spend("bss.example")
    assert 90 <= retries <= 102


def test_many_threads_share_one_client(client: RequestsHttpClient) -> None:
    def echo(connection: socket.socket, request: bytes) -> None:
        answer(200, request.split(b" ")[1])(connection, request)

    with WireServer(echo) as server:
        with ThreadPoolExecutor(16) as threads:
            bodies = list(threads.map(lambda number: call(client, f"{server.url}/{number}").body, range(300)))
        assert bodies == [f"/{number}".encode() for number in range(300)]
        client.close()
