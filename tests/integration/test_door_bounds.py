"""What the door takes at most: bytes, depth, number, heads, time (contract, HTTP)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.door_sender import account, fresh_id, slug
from tests.door_world import DoorWorld, door_world
from tests.servers import PostgresServer


@pytest.fixture(scope="module")
def world(postgres_server: PostgresServer) -> Iterator[DoorWorld]:
    with door_world(postgres_server) as it:
        yield it


def test_an_empty_array_is_202_with_zeros(world: DoorWorld) -> None:
    assert world.sender().send([]).json() == {"accepted": 0, "duplicates": 0}


def test_500_messages_pass_and_501_are_413(world: DoorWorld) -> None:
    sender = world.sender()
    many = [{"id": fresh_id(), "type": "account.notified", **_times(), "data": {"id": f"c-{n}"}} for n in range(501)]
    assert sender.send(many[:500]).json() == {"accepted": 500, "duplicates": 0}
    answer = sender.send(many)
    assert (answer.status_code, slug(answer)) == (413, "too-large")


def _times() -> dict[str, str]:
    return {"timestamp": "2026-03-02T10:15:00Z"}


def test_one_mebibyte_passes_the_bound_and_one_byte_more_is_413(world: DoorWorld) -> None:
    sender = world.sender()
    body = json.dumps(account()).encode()
    full = body + b" " * (1024 * 1024 - len(body))
    assert sender.send_bytes(full).status_code == 202
    answer = sender.send_bytes(full + b" ")
    assert (answer.status_code, slug(answer)) == (413, "too-large")


def test_a_body_in_chunks_is_bounded_without_a_content_length(world: DoorWorld) -> None:
    sender = world.sender()
    body = json.dumps(account()).encode()

    def chunks(total: int) -> Iterator[bytes]:
        yield body
        for _ in range(total // 65536):
            yield b" " * 65536

    small = world.client.post(
        sender.path, content=iter([body[:10], body[10:]]), headers=sender.signed(body, fresh_id())
    )
    assert small.status_code == 202
    answer = world.client.post(
        sender.path, content=chunks(1024 * 1024 + 65536), headers=sender.signed(body, fresh_id())
    )
    assert (answer.status_code, slug(answer)) == (413, "too-large")


def test_depth_20_passes_and_21_is_413(world: DoorWorld) -> None:
    sender = world.sender()
    deep: Any = 1
    for _ in range(18):
        deep = [deep]
    assert sender.send({**account(), "unknown": {"x": deep}}).status_code == 202
    answer = sender.send({**account(), "unknown": {"x": [deep]}})
    assert (answer.status_code, slug(answer)) == (413, "too-large")


def test_a_compressed_body_is_415_and_never_inflated(world: DoorWorld) -> None:
    import gzip

    sender = world.sender()
    bomb = gzip.compress(b" " * 50_000_000)
    answer = world.client.post(
        sender.path, content=bomb, headers={**sender.signed(b"x", fresh_id()), "content-encoding": "gzip"}
    )
    assert (answer.status_code, slug(answer)) == (415, "media-type")


def test_another_media_type_is_415_and_no_json_is_400(world: DoorWorld) -> None:
    sender = world.sender()
    answer = sender.send(account(), content_type="text/plain")
    assert (answer.status_code, slug(answer)) == (415, "media-type")
    answer = sender.send_bytes(b'{"type": ')
    assert (answer.status_code, slug(answer)) == (400, "malformed")


def _raw(world: DoorWorld, request: bytes) -> bytes:
    url = world.client.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def test_heads_are_bounded_in_bytes_and_number(world: DoorWorld) -> None:
    line = b"POST /v1/connections/x/messages HTTP/1.1\r\nHost: x\r\n"
    endless = _raw(world, line + b"X: " + b"a" * 40_000)
    many = _raw(world, line + b"".join(b"X-%d: 1\r\n" % n for n in range(200)) + b"\r\n")
    for answer in (endless, many):
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b"application/problem+json" in answer
    assert _raw(world, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_content_length_that_lies_is_cut_off_by_the_time_limit_or_the_end(world: DoorWorld) -> None:
    sender = world.sender()
    body = json.dumps(account()).encode()
    head = "".join(f"{name}: {value}\r\n" for name, value in sender.signed(body, fresh_id()).items())
    with socket.create_connection(
        (world.client.base_url.host, world.client.base_url.port or 80), timeout=10
    ) as connection:
        length = f"Host: x\r\nContent-Length: {len(body) + 10}\r\n\r\n"
        connection.sendall(f"POST {sender.path} HTTP/1.1\r\n{head}{length}".encode() + body)
    assert sender.send(account()).status_code == 202
    assert world.count(sender) == 1
    answer = _raw(
        world, f"POST {sender.path} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n".encode()
    )
    assert answer.split(b" ")[1] in (b"400", b"413")
