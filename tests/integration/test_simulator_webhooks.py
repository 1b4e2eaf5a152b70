"""What the simulated reseller BSS pushes is what the door accepts, and is disturbed on request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from bss_sync.adapters.http import RequestsHttpClient
from bss_sync.domain.change import Action, OrderKind
from connectors.simulator.client import SimulatorSource
from connectors.simulator.server import SimulatorServer
from connectors.simulator.webhook import Knobs, Release, Style
from tests.simulated import ACCOUNT, SUBSCRIPTION, Door, seed, settings


@pytest.fixture
def simulator() -> Iterator[SimulatorServer]:
    with SimulatorServer() as server:
        yield server


@pytest.fixture
def http() -> Iterator[RequestsHttpClient]:
    client = RequestsHttpClient(connect_seconds=1, read_seconds=2, total_seconds=10, retry_wait_seconds_max=0.01)
    yield client
    client.close()


@pytest.fixture
def door(simulator: SimulatorServer) -> Iterator[Door]:
    with Door() as door:
        simulator.webhooks.configure(door.endpoint)
        yield door
        simulator.webhooks.configure(None)


@pytest.mark.parametrize("style", list(Style))
def test_every_style_of_push_is_what_the_door_accepts(style: Style, simulator: SimulatorServer, door: Door) -> None:
    simulator.webhooks.disturb(Knobs(style=style, hold=True))
    seed(simulator)
    simulator.webhooks.disturb(Knobs(style=style))
    changes = door.received(simulator)
    revisions = simulator.reseller.revisions()
    assert sorted((one.kind, one.source_id) for one in changes) == sorted((one.kind, one.id) for one in revisions)
    if style is Style.NOTIFY:
        assert {one.action for one in changes} == {Action.NOTIFIED}
    else:
        assert [one.version for one in changes] == [one.version for one in revisions]
        assert "data.sales_price" in {name for one in changes for name in one.dropped}
    assert len(set(door.ids)) == (1 if style in (Style.BATCH, Style.CLOUDEVENTS_BATCH) else len(revisions))


def test_a_pushed_body_equals_the_fetched_one(simulator: SimulatorServer, door: Door, http: RequestsHttpClient) -> None:
    seed(simulator)
    last = {(change.kind, change.source_id): change for change in door.received(simulator)}
    for listed in SimulatorSource(settings(simulator), {}, http).list_all():
        pushed = last[listed.kind, listed.source_id]
        assert (pushed.body, pushed.version) == (listed.body, listed.version)
    assert last[SUBSCRIPTION, "sub-1"].effective_at == datetime(2026, 3, 1, tzinfo=UTC)


def test_a_timestamp_source_pushes_and_shows_its_change_time(
    simulator: SimulatorServer, door: Door, http: RequestsHttpClient
) -> None:
    simulator.reseller.order = OrderKind.TIMESTAMP
    seed(simulator)
    changes = door.received(simulator)
    assert {change.order for change in changes if change.action is Action.STATE} == {OrderKind.TIMESTAMP}
    asked = SimulatorSource(settings(simulator, OrderKind.TIMESTAMP), {}, http)
    seen = asked.fetch(SUBSCRIPTION, "sub-1")
    assert seen is not None
    assert seen.version == max(change.version or 0 for change in changes if change.source_id == "sub-1")


def test_a_failed_push_comes_again_with_the_same_id_and_a_refused_one_does_not(
    simulator: SimulatorServer, door: Door
) -> None:
    door.statuses = [503, 500, 429]
    simulator.reseller.put(ACCOUNT, "a", {})
    assert len(door.received(simulator)) == 1
    assert len(door.ids) == 4
    assert len(set(door.ids)) == 1
    door.statuses = [401]
    simulator.reseller.put(ACCOUNT, "a", {"name": "b"})
    assert door.received(simulator) == []
    assert simulator.webhooks.view()["refused"] == 1


def test_a_push_waits_until_the_door_is_there(simulator: SimulatorServer) -> None:
    with Door() as door:
        endpoint = door.endpoint
    simulator.webhooks.configure(endpoint)
    simulator.reseller.put(ACCOUNT, "a", {})
    assert not simulator.webhooks.wait_until_idle(0.2)
    with Door() as later:
        simulator.webhooks.configure(later.endpoint)
        assert len(later.received(simulator)) == 1


def test_pushes_are_lost_doubled_delayed_and_held_on_request(simulator: SimulatorServer, door: Door) -> None:
    def put(count: int) -> list[str]:
        for number in range(count):
            simulator.reseller.put(ACCOUNT, f"a{number}", {})
        return [change.source_id for change in door.received(simulator)]

    simulator.webhooks.disturb(Knobs(drop=2, duplicate=1))
    assert put(4) == ["a2", "a2", "a3"]
    assert door.ids[0] == door.ids[1] != door.ids[2]
    simulator.webhooks.disturb(Knobs(jitter_seconds=0.1, seed=3))
    jittered = put(20)
    assert sorted(jittered) == sorted(f"a{number}" for number in range(20)) != jittered
    simulator.webhooks.disturb(Knobs(delay_seconds=0.2))
    began = time.monotonic()
    assert put(1) == ["a0"]
    assert time.monotonic() - began >= 0.2
    simulator.webhooks.disturb(Knobs(hold=True))
    assert put(3) == []
    assert simulator.webhooks.release(Release(sequence="reversed")) == 3
    assert [change.source_id for change in door.received(simulator)] == ["a2", "a1", "a0"]


def test_the_present_can_be_announced_again(simulator: SimulatorServer, door: Door) -> None:
    seed(simulator)
    assert len(door.received(simulator)) == len(simulator.reseller.revisions())
    assert simulator.reseller.announce() == 6
    again = door.received(simulator)
    assert {change.action for change in again} == {Action.STATE}
    assert len(again) == 6


def test_an_observed_source_can_only_announce(simulator: SimulatorServer, door: Door) -> None:
    simulator.reseller.order = OrderKind.OBSERVED
    seed(simulator)
    assert {change.action for change in door.received(simulator)} == {Action.NOTIFIED}
