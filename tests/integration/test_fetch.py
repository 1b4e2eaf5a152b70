"""Fetches: what was only announced, is missing or contradicts is asked for, and gives way to failures."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from bss_sync.adapters.sql.fetches import SqlFetches
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.domain.change import Action, Change, Kind
from bss_sync.ports.inbox import Accepted, Arrival, Origin
from connectors.simulator.faults import Fault
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, target=False, connection={"account_scope": "all"}) as one:
        yield one


def _send(one: World, kind: Kind, source_id: str, action: Action = Action.NOTIFIED, **given: Any) -> None:
    now = datetime.now(UTC)
    identity = uuid4()
    change = Change(
        message_id=str(identity),
        kind=kind,
        source_id=source_id,
        action=action,
        version=given.pop("version", None),
        sent_at=now,
        effective_at=now,
        body=given,
        digest=identity.bytes,
    )
    arrival = Arrival(one.source.tenant_id, one.source.id, None, Origin.DOOR, [change])
    (answer,) = SqlInbox(one.app.database).accept([arrival])
    assert isinstance(answer, Accepted)
    one.process()


def _fetch_now(one: World) -> None:
    one.execute("update fetch_request set due_at = now()")
    one.calm()
    one.work.fetch()
    one.process()


def _messages(one: World) -> list[tuple[str, str, str | None]]:
    return [(row.action, row.state, row.reason) for row in one.rows("select * from message order by seq")]


def test_a_notification_is_applied_once_its_state_was_fetched(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
    _send(mirror, ACCOUNT, "x")
    assert _messages(mirror)[0][:2] == ("notified", "waiting")
    _fetch_now(mirror)
    assert mirror.value("select name from account") == "Customer X"
    assert [state for _action, state, _reason in _messages(mirror)] == ["applied", "applied"]
    assert mirror.value("select verdict from message where action = 'notified'") == "fetched"
    assert mirror.value("select count(*) from fetch_request") == 0


def test_a_notification_of_what_is_gone_ends_it(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
    mirror.poll()
    mirror.simulator.reseller.delete(ACCOUNT, "x")
    _send(mirror, ACCOUNT, "x")
    _fetch_now(mirror)
    assert mirror.value("select deleted_at is not null from account")


def test_what_the_source_never_heard_of_is_a_dead_letter(mirror: World) -> None:
    _send(mirror, ACCOUNT, "nobody")
    _fetch_now(mirror)
    assert _messages(mirror) == [("notified", "dead", "not_found_at_source")]
    assert len(mirror.audits("message.dead")) == 1


def test_a_source_that_is_down_is_asked_again_later(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
    _send(mirror, ACCOUNT, "x")
    mirror.simulator.faults.add(Fault(path="/accounts", status=503, times=5))
    _fetch_now(mirror)
    assert mirror.value("select due_at > now() and last_error like 'remote-busy%' from fetch_request")
    assert _messages(mirror)[0][1] == "waiting"
    mirror.simulator.faults.clear()
    _fetch_now(mirror)
    assert mirror.value("select name from account") == "Customer X"


def test_a_wish_that_comes_during_a_fetch_is_fetched_again(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
    _send(mirror, ACCOUNT, "x")
    store = SqlFetches(mirror.app.database)
    (task,) = store.claim(10)
    assert store.claim(10) == [], "fetches of one entity are serial"
    mirror.execute("update fetch_request set asked = asked + 1")
    assert store.observed(task)
    assert mirror.value("select count(*) from fetch_request where lease_until is null and due_at <= now()") == 1


def test_a_fetcher_whose_lease_was_taken_over_settles_nothing(mirror: World) -> None:
    _send(mirror, ACCOUNT, "x")
    store = SqlFetches(mirror.app.database)
    (first,) = store.claim(10)
    mirror.execute("update fetch_request set lease_until = now() - interval '1 second'")
    (second,) = store.claim(10)
    assert second.token == first.token + 1
    assert not store.not_found(first)
    assert _messages(mirror)[0][1] == "waiting"


def test_the_missing_account_of_a_subscription_is_fetched_past_its_deadline(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"}, push=False)
    record = mirror.simulator.reseller.put(SUBSCRIPTION, "sub", {"account_id": "x", "product": PRODUCT})
    body = {name: record[name] for name in record if name not in ("id", "version", "changed_at")} | {"quantity": "1"}
    _send(mirror, SUBSCRIPTION, "sub", Action.STATE, version=1, **body)
    assert _messages(mirror)[0][1] == "waiting"
    mirror.execute("update message set wait_until = now() - interval '1 second'")
    mirror.execute("update stream set ready_at = now()")
    mirror.process()
    _fetch_now(mirror)
    mirror.process()
    assert mirror.value("select count(*) from subscription where account_id is not null") == 1
