"""A target that denies our credentials, or answers with what nobody can read, kills no delivery for good."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bss_sync.adapters.sql.alerts import SqlAlerts
from bss_sync.domain.alerting import Rule
from bss_sync.domain.errors import InvalidMessage, RemoteRefused
from bss_sync.ports.connector import TargetRecord, TargetWrite
from bss_sync.ports.delivery import OpenTarget
from connectors.simulator.faults import Fault
from tests.command_line import CommandLine, over
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home) as one:
        one.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
        one.simulator.reseller.put(ACCOUNT, "y", {"name": "Customer Y"})
        one.simulator.reseller.put(SUBSCRIPTION, "sub", {"account_id": "x", "product": PRODUCT})
        one.simulator.reseller.put(SUBSCRIPTION, "sub-y", {"account_id": "y", "product": PRODUCT})
        one.poll()
        yield one


@pytest.fixture
def bss_sync(mirror: World, database: Database, server_home: Path) -> CommandLine:
    commands = over(database, server_home)
    key = mirror.app.settings.master_key
    assert key is not None
    commands.environment["BSS_SYNC_MASTER_KEY"] = key.get_secret_value()
    return commands


def _states(one: World) -> dict[str, int]:
    found = one.rows("select state, count(*) as number from delivery group by state")
    return {row.state: row.number for row in found}


def _make_due(one: World) -> None:
    """As if the pauses after failures were over."""
    one.execute("update breaker set open_until = now() - interval '1 second' where open_until is not null")
    one.execute("update delivery set due_at = now(), lease_until = null where due_at is not null")


@pytest.mark.parametrize("status", [401, 403])
def test_denied_credentials_open_the_breaker_at_once_and_leave_every_record_pending(mirror: World, status: int) -> None:
    mirror.simulator.faults.add(Fault(path="/records", status=status))
    mirror.work.deliver()
    for _try in range(4):
        _make_due(mirror)
        mirror.work.deliver()
    states = _states(mirror)
    assert "dead" not in states
    assert states["pending"] >= 2
    breaker = mirror.rows("select * from breaker where connection_id is null")[0]
    assert breaker.open_until is not None
    assert str(status) in breaker.reason
    assert len(mirror.audits("breaker.opened")) == 1
    mirror.execute("update breaker set opened_at = now() - interval '2 minutes'")
    alerts = SqlAlerts(mirror.app.database)
    alerts.refresh([Rule.HELD_BACK])
    assert [alert.rule for alert in alerts.claim(10)] == [Rule.HELD_BACK]
    mirror.simulator.faults.clear()
    for _level in range(4):
        _make_due(mirror)
        mirror.work.deliver()
    assert _states(mirror) == {"confirmed": 4}
    assert len(mirror.effects("create")) == 4
    alerts.refresh([Rule.HELD_BACK])
    assert mirror.value("select count(*) from alert where cleared_at is null") == 0


def _no_object() -> TargetRecord:
    raise RemoteRefused("/records was answered with something that is no object.", status=200)


def _no_record() -> TargetRecord:
    raise InvalidMessage("The distributor's BSS answered with a malformed record: 'id'")


def _stumbled() -> TargetRecord:
    raise KeyError("canary")


@pytest.mark.parametrize("answer", [_no_object, _no_record, _stumbled])
def test_a_create_whose_answer_cannot_be_read_is_unknown_and_looked_up(
    mirror: World, answer: Callable[[], TargetRecord]
) -> None:
    targets = mirror.work.deliverer.targets
    garbled = 4

    class Garbling:
        """It does what it is told, and answers so that nobody can read it."""

        def __init__(self, client: Any) -> None:
            self._client = client

        def __getattr__(self, name: str) -> object:
            return getattr(self._client, name)

        def write(self, write: TargetWrite) -> TargetRecord:
            nonlocal garbled
            record: TargetRecord = self._client.write(write)
            if garbled <= 0:
                return record
            garbled -= 1
            return answer()

    class Targets:
        """The one target."""

        def target(self) -> OpenTarget | None:
            opened = targets.target()
            return opened and replace(opened, client=Garbling(opened.client))  # type: ignore[arg-type]  # has all

    mirror.work.deliverer.targets = Targets()
    mirror.work.deliver()
    assert _states(mirror).get("unknown") == 2
    assert "dead" not in _states(mirror)
    for _level in range(8):
        mirror.calm()
        _make_due(mirror)
        mirror.work.deliver()
    assert _states(mirror) == {"confirmed": 4}
    assert len(mirror.effects("create")) == 4, "each once"
    assert "canary" not in str(mirror.rows("select detail from audit"))


@pytest.mark.parametrize("command", [("target", "breaker", "--reset"), ("target", "test")])
def test_what_was_refused_and_what_it_blocked_go_on_by_an_admins_word(
    mirror: World, bss_sync: CommandLine, command: tuple[str, ...]
) -> None:
    mirror.simulator.faults.add(Fault(method="POST", path="/records", status=422, times=2))
    mirror.work.deliver()
    assert _states(mirror) == {"dead": 2, "blocked": 2}
    bss_sync.ok(*command)
    mirror.deliver()
    assert _states(mirror) == {"confirmed": 4}
    assert len(mirror.audits("breaker.reset")) == 1
    if command[-1] == "test":
        bss_sync.ok(*command)
        assert len(mirror.audits("breaker.reset")) == 1, "nothing was held back"


@pytest.mark.parametrize("part", ["web", "worker", "scheduler"])
def test_a_process_with_another_master_key_refuses_to_start(mirror: World, bss_sync: CommandLine, part: str) -> None:
    assert mirror.value("select count(*) from secret") > 0
    bss_sync.environment["BSS_SYNC_MASTER_KEY"] = base64.b64encode(bytes(32)).decode()
    bss_sync.environment["BSS_SYNC_REDIS_URL"] = "redis://127.0.0.1:1/0"
    answer = bss_sync(part, bind="127.0.0.1:0")
    assert answer.code == 2
    assert "BSS_SYNC_MASTER_KEY" in answer.err
