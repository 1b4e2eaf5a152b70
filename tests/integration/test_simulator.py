"""The simulated BSS behind real HTTP: its state, its pushes, its faults, and the connector that speaks to it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import SecretStr

from bss_sync.adapters.http import RequestsHttpClient
from bss_sync.domain.change import Action, Kind, OrderKind
from bss_sync.domain.errors import (
    ConfigurationError,
    DependencyDown,
    RemoteBusy,
    RemoteDenied,
    RemoteRefused,
    RemoteUnknown,
    Transient,
)
from bss_sync.ports.connector import Observation, TargetRecord, TargetWrite
from bss_sync.testing.connector_contract import CHECKS, Check, Subject, sample_writes
from connectors.simulator import CONNECTOR
from connectors.simulator.client import SimulatorSource, SimulatorTarget
from connectors.simulator.config import SimulatorConfig
from connectors.simulator.faults import Fault
from connectors.simulator.server import SimulatorServer
from tests.simulated import ACCOUNT, SUBSCRIPTION, seed, settings


@pytest.fixture
def simulator() -> Iterator[SimulatorServer]:
    with SimulatorServer() as server:
        yield server


@pytest.fixture
def http() -> Iterator[RequestsHttpClient]:
    client = RequestsHttpClient(connect_seconds=1, read_seconds=2, total_seconds=10, retry_wait_seconds_max=0.01)
    yield client
    client.close()


def source(simulator: SimulatorServer, http: RequestsHttpClient) -> SimulatorSource:
    return SimulatorSource(settings(simulator), {}, http)


def target(simulator: SimulatorServer, http: RequestsHttpClient) -> SimulatorTarget:
    return SimulatorTarget(settings(simulator), {}, http)


def a_write() -> TargetWrite:
    return next(sample_writes())


@pytest.mark.parametrize("order", list(OrderKind))
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_connector_keeps_the_contract_in_every_order(
    check: Check, order: OrderKind, simulator: SimulatorServer, http: RequestsHttpClient
) -> None:
    simulator.reseller.order = order
    seed(simulator)

    def change() -> tuple[Kind, str]:
        simulator.reseller.patch(SUBSCRIPTION, "sub-2", {"quantity": len(simulator.reseller.revisions())})
        return SUBSCRIPTION, "sub-2"

    check(Subject(CONNECTOR, "connectors.simulator", settings(simulator, order), http, change=change))


def test_versions_grow_with_every_change_and_survive_a_deletion(
    simulator: SimulatorServer, http: RequestsHttpClient
) -> None:
    seed(simulator)
    asked = source(simulator, http)
    gone = asked.fetch(ACCOUNT, "gone")
    assert gone is not None
    assert (gone.version, gone.action) == (2, Action.DELETED)
    simulator.reseller.put(ACCOUNT, "gone", {"name": "back"})
    back = asked.fetch(ACCOUNT, "gone")
    assert back is not None
    assert (back.version, back.action) == (3, Action.STATE)
    simulator.reseller.put(ACCOUNT, "gone", {"name": "restored", "version": 1})
    restored = asked.fetch(ACCOUNT, "gone")
    assert restored is not None
    assert restored.version == 1


def test_ids_with_slashes_and_umlauts_are_fetched(simulator: SimulatorServer, http: RequestsHttpClient) -> None:
    seed(simulator)
    seen = source(simulator, http).fetch(ACCOUNT, "cust/z ä")
    assert seen is not None
    assert seen.body is not None
    assert seen.body["name"] == "Cloud End-Customer Z"


def test_the_feed_tells_every_change_with_its_own_state(simulator: SimulatorServer, http: RequestsHttpClient) -> None:
    seed(simulator)
    asked, cursor = source(simulator, http), None
    seen: list[Observation] = []
    while True:
        page = asked.poll(cursor)
        assert len(page.observations) <= 2
        seen += page.observations
        cursor = page.cursor
        if not page.more:
            break
    assert [(one.source_id, one.version) for one in seen][-4:] == [
        ("sub-2", 1),
        ("sub-3", 1),
        ("sub-3", 2),
        ("sub-1", 2),
    ]
    quantities = [one.body["quantity"] for one in seen if one.source_id == "sub-1" and one.body]
    assert quantities == ["25", "26.5"]
    with pytest.raises(RemoteRefused):
        asked.poll("4711")


def test_a_listing_that_breaks_off_raises_and_never_just_ends(
    simulator: SimulatorServer, http: RequestsHttpClient
) -> None:
    seed(simulator)
    for fault in ({"status": 500}, {"reset": True}, {"truncate": True}, {"status": 503}):
        simulator.faults.clear()
        simulator.faults.add(Fault.model_validate({"method": "GET", "path": "/accounts", "skip": 1, **fault}))
        listing = source(simulator, http).list_all()
        assert [next(listing).source_id for _ in range(2)] == ["cust-x", "cust-y"]
        with pytest.raises(Transient):
            next(listing)
    simulator.faults.clear()
    assert len(list(source(simulator, http).list_all())) == 6


def test_a_write_whose_answer_is_lost_took_effect_once(simulator: SimulatorServer, http: RequestsHttpClient) -> None:
    write = a_write()
    simulator.faults.add(Fault(method="POST", path="/records", apply_then_drop=True))
    with pytest.raises(RemoteUnknown):
        target(simulator, http).write(write)
    found = target(simulator, http).look_up(write.kind, write.reference)
    assert found is not None
    assert found.fields == write.fields
    assert [effect["action"] for effect in simulator.distributor.effects()] == ["create"]
    simulator.faults.clear()
    assert target(simulator, http).write(write).external_id == found.external_id
    assert len(simulator.distributor.effects()) == 1


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"status": 400}, RemoteRefused),
        ({"status": 429, "retry_after_seconds": 3}, RemoteBusy),
        ({"status": 500}, Transient),
        ({"reset": True}, RemoteUnknown),
        ({"truncate": True}, RemoteUnknown),
        ({"delay_seconds": 3.0}, RemoteUnknown),
    ],
)
def test_every_fault_is_an_error_of_our_tree(
    fault: Mapping[str, Any], expected: type[Exception], simulator: SimulatorServer, http: RequestsHttpClient
) -> None:
    impatient = RequestsHttpClient(read_seconds=0.2, total_seconds=1, retry_wait_seconds_max=0.01)
    simulator.faults.add(Fault.model_validate({"path": "/records", **fault}))
    with pytest.raises(expected) as caught:
        target(simulator, impatient).write(a_write())
    assert type(caught.value) is expected
    impatient.close()


def test_a_fault_has_its_turns_and_its_share(simulator: SimulatorServer) -> None:
    simulator.faults.add(Fault(method="GET", path="/x", skip=1, times=2))
    assert [simulator.faults.take("GET", "/x/1") is not None for _ in range(5)] == [False, True, True, False, False]
    assert simulator.faults.take("POST", "/x") is None
    simulator.faults.clear()
    simulator.faults.add(Fault(share=0.3, seed=5))
    acted = sum(simulator.faults.take("GET", "/y") is not None for _ in range(1000))
    assert 250 < acted < 350


def test_people_edit_records_and_every_effect_is_logged(simulator: SimulatorServer, http: RequestsHttpClient) -> None:
    write = a_write()
    record = target(simulator, http).write(write)
    _, cursor, _ = target(simulator, http).changes(None)
    simulator.distributor.edit(record.external_id, {"name": "typed over"}, user="anna")
    changed, later, more = target(simulator, http).changes(cursor)
    assert [(one.changed_by, one.fields["name"]) for one in changed] == [("anna", "typed over")]
    assert not more
    assert target(simulator, http).changes(later)[0] == []
    simulator.distributor.remove(record.external_id, user="anna")
    assert target(simulator, http).look_up(write.kind, write.reference) is None
    log = simulator.distributor.effects()
    assert [(one["action"], one["changed_by"]) for one in log] == [
        ("create", "bss_sync"),
        ("edit", "anna"),
        ("remove", "anna"),
    ]
    assert (log[1]["before"]["name"], log[1]["after"]["name"]) == (write.fields["name"], "typed over")


def test_a_record_that_changed_twice_is_in_the_changes_once_as_it_is_now(
    simulator: SimulatorServer, http: RequestsHttpClient
) -> None:
    record = target(simulator, http).write(a_write())
    for name in ("first", "second"):
        simulator.distributor.edit(record.external_id, {"name": name}, user="anna")
    seen: list[TargetRecord] = []
    cursor, more = None, True
    while more:
        page, cursor, more = target(simulator, http).changes(cursor)
        seen += page
    assert [one.fields["name"] for one in seen] == ["second"]


def test_a_key_of_another_request_and_a_record_that_is_gone_are_refused(
    simulator: SimulatorServer, http: RequestsHttpClient
) -> None:
    write, other = sample_writes()
    record = target(simulator, http).write(write)
    for wrong, status in (
        (TargetWrite(other.kind, other.reference, None, other.fields, write.idempotency_key), 409),
        (TargetWrite(write.kind, write.reference, "d-000000099", write.fields, "key-2"), 404),
    ):
        with pytest.raises(RemoteRefused) as caught:
            target(simulator, http).write(wrong)
        assert caught.value.status == status
    assert [one["id"] for one in simulator.distributor.records()] == [record.external_id]


def test_a_new_record_is_found_by_its_reference_only_after_the_lag(
    simulator: SimulatorServer, http: RequestsHttpClient
) -> None:
    write = a_write()
    simulator.distributor.lookup_lag_seconds = 0.2
    record = target(simulator, http).write(write)
    assert target(simulator, http).look_up(write.kind, write.reference) is None
    time.sleep(0.25)
    found = target(simulator, http).look_up(write.kind, write.reference)
    assert found is not None
    assert found.external_id == record.external_id


def test_an_outage_keeps_state_and_port(simulator: SimulatorServer, http: RequestsHttpClient) -> None:
    seed(simulator)
    before = list(source(simulator, http).list_all())
    url = simulator.url
    simulator.stop()
    with pytest.raises(DependencyDown):
        source(simulator, http).check()
    simulator.start()
    assert simulator.url == url
    assert list(source(simulator, http).list_all()) == before


def test_the_api_key_is_asked_for(http: RequestsHttpClient) -> None:
    with SimulatorServer(api_key="right") as simulator:
        for key in ({}, {"api_key": SecretStr("wrong")}):
            with pytest.raises(RemoteDenied, match="401"):
                SimulatorSource(settings(simulator), key, http).check()
        assert "simulator" in SimulatorSource(settings(simulator), {"api_key": SecretStr("right")}, http).check()


def test_plain_http_needs_permission(simulator: SimulatorServer, http: RequestsHttpClient) -> None:
    config = SimulatorConfig.model_validate({"base_url": simulator.url})
    with pytest.raises(ConfigurationError, match="allow_http_private"):
        SimulatorSource(config, {}, http).check()


@pytest.fixture
def program() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "connectors.simulator", "--port", "0", "--role", "reseller"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_the_program_says_where_it_listens_and_ends_on_sigterm(
    program: subprocess.Popen[str], http: RequestsHttpClient
) -> None:
    assert program.stdout is not None
    url = json.loads(program.stdout.readline())["url"]

    def call(method: str, path: str, content: Any = None) -> Any:
        return http.request(method, url + path, json=content, allow_http_private=True).json()

    assert call("PUT", "/accounts/a", {"name": "Cloud Customer X"})["version"] == 1
    assert call("POST", "/seed", {"subscriptions": [{"id": "s", "account_id": "a"}]})["subscriptions"] == 1
    assert call("GET", "/webhooks")["configured"] is False
    assert call("POST", "/order", {"order": "timestamp"}) == {"order": "timestamp"}
    assert "source_updated_at" in call("GET", "/accounts/a")
    assert call("POST", "/webhooks/knobs", {"drop": 1})["drop"] == 1
    assert call("POST", "/faults", {"path": "/accounts", "status": 400})["faults"][0]["acted"] == 0
    with pytest.raises(RemoteRefused):
        call("GET", "/accounts/a")
    assert call("DELETE", "/faults") == {"faults": []}
    assert call("GET", "/calls")["calls"]["GET /accounts"] == 2
    for path, content in (("/faults", {"nothing": 1}), ("/webhook-endpoint", {"url": "http://x", "secret": "??"})):
        with pytest.raises(RemoteRefused) as caught:
            call("POST", path, content)
        assert caught.value.status == 422
    # A reseller's server has no records.
    assert http.request("GET", url + "/records", allow_http_private=True).status == 404
    program.send_signal(signal.SIGTERM)
    assert program.wait(timeout=10) == 0
