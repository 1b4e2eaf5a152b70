"""The line over stores in memory: what one entity meets stays its own."""

from __future__ import annotations

from bss_sync.domain.change import Action, MessageState, stream_id
from bss_sync.pipeline.line import rehearse
from bss_sync.pipeline.settle import settle
from bss_sync.ports.streams import Claim
from bss_sync.testing.memory import MemoryLine
from tests.scenario import ACCOUNT, SUBSCRIPTION, account_body, subscription_body
from tests.scenario_memory import MemoryScenario


def test_a_defect_met_by_one_entity_stops_no_other() -> None:
    line = MemoryLine()
    sound, broken = (
        MemoryScenario(line=line, connection_id=line.connect("OURS-1")),
        MemoryScenario(line=line, connection_id=line.connect("OURS-1")),
    )
    broken.subscription("staged", 1, product="LATER")
    # Whatever it is that cannot be looked at: here the rules of its connection are gone.
    del line.rules[broken.connection_id]
    good = sound.send(sound.change(SUBSCRIPTION, "s1", 1, subscription_body(), message_id="good"), work=False)
    ids = [
        stream_id(broken.connection_id, SUBSCRIPTION, "staged"),
        stream_id(sound.connection_id, SUBSCRIPTION, "s1"),
    ]
    settled, _written = line.work([Claim(key, 0, killer=False) for key in ids], settle)
    assert line.state_of(good) is MessageState.APPLIED
    assert settled.entities.keys() == set(ids)
    assert sound.mirrored(SUBSCRIPTION) == {"s1"}


def test_a_dry_run_tells_of_what_becomes_history_by_an_entry_in_the_same_batch() -> None:
    scenario = MemoryScenario.connected()
    changes = [
        scenario.change(ACCOUNT, "x", 1, account_body()),
        scenario.change(SUBSCRIPTION, "s1", 1, subscription_body("x"), message_id="paid"),
        scenario.change(SUBSCRIPTION, "s1", 2, subscription_body("x", product="FOREIGN"), message_id="between"),
        scenario.change(SUBSCRIPTION, "s1", 3, subscription_body("x", product="FOREIGN", quantity="2")),
    ]
    scenario.send(*changes, work=False)
    assert _ends_as_rehearsed(scenario)["between"] == "superseded"
    assert [row.version for row in sorted(scenario.history(SUBSCRIPTION, "s1"))] == [1, 2, 3]


def _ends_as_rehearsed(scenario: MemoryScenario) -> dict[str, str]:
    ids = {item.message.message_id: key for key, item in scenario.line.messages.items()}
    planned = rehearse(scenario.line, list(ids.values())).verdicts
    scenario.work()
    found = {name: scenario.state(name) for name in ids}
    assert {name: planned[key][1].state for name, key in ids.items()} == found
    return found


def test_a_state_between_an_entry_and_one_that_waited_in_the_same_batch_is_history() -> None:
    scenario = MemoryScenario.connected()
    changes = [
        scenario.change(SUBSCRIPTION, "s1", 1, subscription_body("x"), message_id="waits"),
        scenario.change(SUBSCRIPTION, "s1", 2, subscription_body(trial=True), message_id="between"),
        scenario.change(SUBSCRIPTION, "s1", 3, subscription_body(), message_id="enters"),
        scenario.change(ACCOUNT, "x", 1, account_body(), message_id="comes"),
    ]
    scenario.send(*changes, work=False)
    found = _ends_as_rehearsed(scenario)
    assert found == {"waits": "superseded", "between": "superseded", "enters": "applied", "comes": "applied"}
    assert [row.version for row in sorted(scenario.history(SUBSCRIPTION, "s1"))] == [1, 2, 3]


def test_a_state_between_an_end_and_an_entry_that_are_decided_anew_in_the_same_batch_is_history() -> None:
    scenario = MemoryScenario.connected()
    changes = [
        scenario.change(SUBSCRIPTION, "s1", 1, None, action=Action.DELETED, message_id="end"),
        scenario.change(SUBSCRIPTION, "s1", 2, subscription_body(product="FOREIGN"), message_id="between"),
        scenario.change(SUBSCRIPTION, "s1", 3, subscription_body(), message_id="enters"),
    ]
    scenario.send(*changes, work=False)
    assert set(_ends_as_rehearsed(scenario).values()) == {"superseded", "applied"}
    assert [row.version for row in sorted(scenario.history(SUBSCRIPTION, "s1"))] == [1, 2, 3]


def test_what_waits_once_it_is_decided_anew_is_released_in_the_same_batch() -> None:
    scenario = MemoryScenario.connected()
    scenario.retire("OLD")
    changes = [
        scenario.change(SUBSCRIPTION, "s1", 1, subscription_body("x"), message_id="waits"),
        scenario.change(SUBSCRIPTION, "s1", 2, subscription_body("y", product="OLD"), message_id="between"),
        scenario.change(SUBSCRIPTION, "s1", 3, subscription_body("y", product="OLD"), message_id="last"),
        scenario.change(ACCOUNT, "x", 1, account_body(), message_id="x comes"),
        scenario.change(ACCOUNT, "y", 1, account_body(), message_id="y comes"),
    ]
    scenario.send(*changes, work=False)
    assert set(_ends_as_rehearsed(scenario).values()) == {"superseded", "applied"}
    assert [row.version for row in sorted(scenario.history(SUBSCRIPTION, "s1"))] == [1, 2, 3]


def test_a_dry_run_tells_of_what_is_held_and_overtaken_in_the_same_batch() -> None:
    scenario = MemoryScenario.connected()
    changes = [
        scenario.change(SUBSCRIPTION, "s1", 1, subscription_body(status="hibernating"), message_id="held"),
        scenario.change(SUBSCRIPTION, "s1", 2, subscription_body(), message_id="enters"),
    ]
    scenario.send(*changes, work=False)
    assert _ends_as_rehearsed(scenario) == {"held": "superseded", "enters": "applied"}
