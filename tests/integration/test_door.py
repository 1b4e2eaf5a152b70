"""The webhook door over real HTTP and real PostgreSQL, as a stranger's sender sees it (contract, HTTP)."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import text

from bss_sync.adapters.sql.admin import secrets as stored_secrets
from bss_sync.domain.tenancy import ConnectionState
from tests.app import ACTOR, add_connection, set_state
from tests.at_once import at_once
from tests.door_sender import Sender, account, fields, fresh_id, slug, subscription
from tests.door_world import DoorWorld, door_world
from tests.servers import PostgresServer


@pytest.fixture(scope="module")
def world(postgres_server: PostgresServer) -> Iterator[DoorWorld]:
    with door_world(postgres_server) as it:
        yield it


def test_a_signed_message_is_stored_before_it_is_answered_and_wakes_a_worker(world: DoorWorld) -> None:
    sender = world.sender()
    world.wake.noted.clear()
    answer = sender.send(subscription())
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "duplicates": 0})
    row = world.one(
        "select m.* , c.shard as own_shard from message m join connection c on c.id = m.connection_id"
        " where c.name = :name",
        name=sender.connection,
    )
    assert (row.kind, row.source_id, row.version, row.state) == ("subscription", "sub-4711", 7, "pending")
    assert row.shard == row.own_shard
    assert row.body["quantity"] == "25"
    assert world.wake.noted.wait(5)
    assert row.shard in world.wake.shards


def test_the_connection_may_be_named_by_its_id(world: DoorWorld) -> None:
    source, secret = add_connection(world.app, f"reseller-{fresh_id()}")
    assert Sender(world.client, str(source.id), secret).send(account()).status_code == 202


def test_the_same_message_again_is_a_duplicate(world: DoorWorld) -> None:
    sender = world.sender()
    sender.send(subscription(), "again")
    assert sender.send(subscription(), "again").json() == {"accepted": 0, "duplicates": 1}
    assert world.count(sender) == 1


def test_the_same_message_100_times_at_once_is_one_row_and_always_the_same_kind_of_answer(world: DoorWorld) -> None:
    sender = world.sender()
    answers = at_once(world.client, [lambda own: sender.through(own).send(subscription(), "at-once")] * 100)
    assert {answer.status_code for answer in answers} == {202}
    assert sum(answer.json()["accepted"] for answer in answers) == 1
    assert sum(answer.json()["duplicates"] for answer in answers) == 99
    assert world.count(sender) == 1


def test_the_same_id_with_another_body_is_409_and_recorded(world: DoorWorld) -> None:
    sender = world.sender()
    sender.send(subscription(version=1), "conflicting")
    answer = sender.send(subscription(version=2), "conflicting")
    assert (answer.status_code, slug(answer), fields(answer)) == (409, "message-conflict", ["webhook-id"])
    assert world.count(sender) == 1
    entry = world.one(
        "select a.* from audit a join connection c on c.id = a.connection_id"
        " where c.name = :name and a.action = 'message.conflict'",
        name=sender.connection,
    )
    assert entry.actor == f"sender:{sender.connection}"


def test_an_array_is_accepted_as_a_whole_or_not_at_all(world: DoorWorld) -> None:
    sender = world.sender()
    good = [{"id": fresh_id(), **account(f"c-{number}")} for number in range(5)]
    assert sender.send(good).json() == {"accepted": 5, "duplicates": 0}
    wrong = [{"id": fresh_id(), **account("c-9")}, {"id": fresh_id(), **account("c-10", kind=7)}]
    answer = sender.send(wrong)
    assert (answer.status_code, slug(answer), fields(answer)) == (422, "invalid-message", ["[1].data.kind"])
    conflicting = [{"id": fresh_id(), **account("c-11")}, {**good[3], "data": account("other")["data"]}]
    answer = sender.send(conflicting)
    assert (answer.status_code, fields(answer)) == (409, ["[1].id"])
    assert world.count(sender) == 5
    # Two that contradict each other within one array are refused likewise, and recorded.
    twice = [{"id": "twin", **account("c-12")}, {"id": "twin", **account("c-12", version=9)}]
    answer = sender.send(twice)
    assert (answer.status_code, fields(answer)) == (409, ["[1].id"])
    assert world.count(sender) == 5
    entries = "select count(*) as number from audit a join connection c on c.id = a.connection_id "
    entries += "where c.name = :name and a.action = 'message.conflict'"
    assert world.one(entries, name=sender.connection).number == 2


def test_an_array_s_own_webhook_id_is_no_key(world: DoorWorld) -> None:
    sender = world.sender()
    first = [{"id": "element-1", **account()}]
    second = [{"id": "element-2", **account()}]
    assert sender.send(first, "envelope").json() == {"accepted": 1, "duplicates": 0}
    assert sender.send(second, "envelope").json() == {"accepted": 1, "duplicates": 0}
    assert sender.send([*first, *second]).json() == {"accepted": 0, "duplicates": 2}


def test_each_wrong_field_is_named(world: DoorWorld) -> None:
    message = subscription(quantity=-1, trial="no")
    del message["data"]["status"]
    answer = world.sender().send(message)
    assert answer.status_code == 422
    assert sorted(fields(answer)) == ["data.quantity", "data.status", "data.trial"]


def test_an_unknown_connection_looks_exactly_like_a_wrong_signature(world: DoorWorld) -> None:
    sender = world.sender()
    wrong = Sender(world.client, sender.connection, "whsec_" + base64.b64encode(b"x" * 32).decode()).send(account())
    unknown = Sender(world.client, "nobody", sender.secret).send(account())
    by_id = Sender(world.client, str(uuid4()), sender.secret).send(account())
    odd = Sender(world.client, "%00%ff", sender.secret).send(account())
    answers = (wrong, unknown, by_id, odd)
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    volatile = {"x-request-id", "date"}
    assert len({str(sorted((n, v) for n, v in answer.headers.items() if n not in volatile)) for answer in answers}) == 1


def test_a_dot_in_the_webhook_id_is_refused(world: DoorWorld) -> None:
    answer = world.sender().send(account(), "with.dot")
    assert (answer.status_code, fields(answer)) == (400, ["webhook-id"])


def test_two_secrets_are_valid_while_one_is_rotated_and_a_revoked_one_is_refused_at_once(world: DoorWorld) -> None:
    source, first = add_connection(world.app, f"reseller-{fresh_id()}")
    old = Sender(world.client, source.name, first)
    assert old.send(account()).status_code == 202
    with world.app.database.engine() as connection:
        second, _ = stored_secrets.rotate(connection, world.app.vault, source, overlap=timedelta(hours=24), actor=ACTOR)
    new = Sender(world.client, source.name, second)
    assert [new.send(account()).status_code, old.send(account()).status_code] == [202, 202]
    with world.app.database.engine() as connection:
        stored_secrets.revoke(connection, source, None, actor=ACTOR)
    assert [old.send(account()).status_code, new.send(account()).status_code] == [401, 202]


def test_an_expired_secret_is_refused(world: DoorWorld) -> None:
    source, first = add_connection(world.app, f"reseller-{fresh_id()}")
    with world.app.database.engine() as connection:
        stored_secrets.rotate(connection, world.app.vault, source, overlap=timedelta(0), actor=ACTOR)
    assert Sender(world.client, source.name, first).send(account()).status_code == 401


def test_v1a_is_verified_with_the_sender_s_public_key(world: DoorWorld) -> None:
    source, secret = add_connection(world.app, f"reseller-{fresh_id()}")
    key = Ed25519PrivateKey.generate()
    material = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    with world.app.database.engine() as connection:
        stored_secrets.add_public_key(connection, world.app.vault, source, material, actor=ACTOR)
    sender = Sender(world.client, source.name, secret)
    body = json.dumps(account()).encode()
    headers = sender.signed(body, "by-key")
    content = b"by-key." + headers["webhook-timestamp"].encode() + b"." + body
    headers["webhook-signature"] = "v1a," + base64.b64encode(key.sign(content)).decode()
    assert world.client.post(sender.path, content=body, headers=headers).status_code == 202
    assert world.client.post(sender.path, content=body + b" ", headers=headers).status_code == 401


@pytest.mark.parametrize("state", [ConnectionState.DRAFT, ConnectionState.CHECKING, ConnectionState.PAUSED])
def test_a_connection_that_is_not_processing_parks_its_messages(world: DoorWorld, state: ConnectionState) -> None:
    sender = world.sender(state=state)
    assert sender.send(account()).status_code == 202
    row = world.one(
        "select m.shard from message m join connection c on c.id = m.connection_id where c.name = :name",
        name=sender.connection,
    )
    assert row.shard is None


def test_a_closed_connection_tells_its_own_sender_and_nobody_else(world: DoorWorld) -> None:
    source, secret = add_connection(world.app, f"reseller-{fresh_id()}")
    sender = Sender(world.client, source.name, secret)
    assert sender.send(account()).status_code == 202
    with world.app.database.engine() as connection:
        set_state(connection, source.id, ConnectionState.CLOSED)
    answer = sender.send(account())
    assert (answer.status_code, slug(answer)) == (409, "connection-closed")
    stranger = Sender(world.client, source.name, "whsec_" + base64.b64encode(b"y" * 32).decode())
    assert stranger.send(account()).status_code == 401


def test_a_connection_speaks_the_order_of_its_first_message(world: DoorWorld) -> None:
    sender = world.sender()
    assert sender.send(account(version=1)).status_code == 202
    message = account()
    del message["data"]["version"]
    message["data"]["source_updated_at"] = "2026-03-02T10:14:00Z"
    answer = sender.send(message)
    assert (answer.status_code, fields(answer)) == (422, ["data.source_updated_at"])
    answer = sender.send([{"id": fresh_id(), **account()}, {"id": fresh_id(), **message}])
    assert (answer.status_code, fields(answer)) == (422, ["[1].data.source_updated_at"])
    notified = {"type": "account.notified", "timestamp": "2026-03-02T10:15:00Z", "data": {"id": "c-1"}}
    assert sender.send(notified).status_code == 202


def test_a_message_verified_before_a_change_is_verified_again(world: DoorWorld) -> None:
    source, secret = add_connection(world.app, f"reseller-{fresh_id()}", state=ConnectionState.DRAFT)
    sender = Sender(world.client, source.name, secret)
    assert sender.send(account(), "before").status_code == 202
    with world.app.database.engine() as connection:
        set_state(connection, source.id, ConnectionState.LIVE)
    assert sender.send(account(), "after").status_code == 202
    assert world.one(
        "select shard from message where connection_id = :id and message_id = 'after'", id=source.id
    ).shard == (source.id.int % 16)


def test_a_connection_under_change_delays_only_its_own_messages(world: DoorWorld) -> None:
    source, secret = add_connection(world.app, f"reseller-{fresh_id()}")
    busy, other = Sender(world.client, source.name, secret), world.sender()
    assert busy.send(account(version=1)).status_code == other.send(account(version=1)).status_code == 202
    with ThreadPoolExecutor(1) as thread:
        with world.app.database.engine() as connection:
            connection.execute(text("select 1 from connection where id = :id for update"), {"id": source.id})
            waiting = thread.submit(busy.send, account(version=2))
            started = time.monotonic()
            assert other.send(account(version=2)).status_code == 202
            assert time.monotonic() - started < 1
            assert not waiting.done()
        assert waiting.result().status_code == 202


def test_a_broken_wake_up_fails_no_request(world: DoorWorld) -> None:
    sender = world.sender()
    world.wake.broken = True
    try:
        assert [sender.send(account(version=n)).status_code for n in (1, 2)] == [202, 202]
    finally:
        world.wake.broken = False


def test_requests_in_one_breath_are_answered_in_their_order_and_one_in_parts_as_well(world: DoorWorld) -> None:
    sender = world.sender()
    assert sender.send(account()).status_code == 202
    first, second = (_request(sender, account(version=version), f"breath-{version}") for version in (4, 5))
    last = _request(sender, account(version=6), "breath-6", connection="close")
    with socket.create_connection((world.client.base_url.host, world.client.base_url.port or 80), timeout=20) as wire:
        wire.sendall(first + second)
        wire.sendall(last[:-100])
        time.sleep(0.1)
        wire.sendall(last[-100:])
        answer = b""
        while part := wire.recv(65536):
            answer += part
    heads = answer.split(b"HTTP/1.1 ")[1:]
    assert [head.partition(b"\r\n")[0] for head in heads] == [b"202 Accepted"] * 3
    assert [b"\r\nconnection: close\r\n" in head for head in heads] == [False, False, True]
    for name in (b"x-request-id", b"x-content-type-options", b"cache-control", b"date"):
        assert [head.count(b"\r\n%b: " % name) for head in heads] == [1] * 3, "whichever way it took"
    assert world.count(sender) == 4


def test_a_sender_that_does_not_wait_for_its_answer_has_sent(world: DoorWorld) -> None:
    sender = world.sender()
    assert sender.send(account()).status_code == 202
    with socket.create_connection((world.client.base_url.host, world.client.base_url.port or 80), timeout=20) as wire:
        wire.sendall(_request(sender, account(version=4), "gone"))
    deadline = time.monotonic() + 10
    while world.count(sender) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert world.count(sender) == 2
    assert sender.send(account(version=4), "gone").json() == {"accepted": 0, "duplicates": 1}


def _request(sender: Sender, document: Any, webhook_id: str, **headers: str) -> bytes:
    """A request as it stands on the wire."""
    body = json.dumps(document).encode()
    given = {"host": "test", "content-length": str(len(body)), **sender.signed(body, webhook_id, **headers)}
    lines = [f"POST {sender.path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_a_method_or_a_route_that_is_not_there_is_a_problem_document(world: DoorWorld) -> None:
    answer = world.client.get("/v1/connections/x/messages")
    assert (answer.status_code, slug(answer), answer.headers["allow"]) == (405, "method-not-allowed", "POST")
    answer = world.client.get("/v1/nothing")
    assert (answer.status_code, slug(answer)) == (404, "not-found")


def test_a_sender_more_than_five_minutes_off_is_401(world: DoorWorld) -> None:
    sender = world.sender()
    for seconds, status in ((-330, 401), (330, 401), (-270, 202), (270, 202)):
        sender.now = datetime.now(UTC) + timedelta(seconds=seconds)
        assert sender.send(account()).status_code == status, seconds
