"""A record that is woken is looked at once, for whatever it was woken."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from bss_sync.domain.change import Kind, stream_id
from bss_sync.pipeline.merge import reconsider
from bss_sync.ports.streams import ConnectionRules, Relative, Standing
from tests.scenario import SUBSCRIPTION
from tests.scenario_memory import MemoryScenario


class _World:
    """Where every parent is in the mirror."""

    def __init__(self, line: MemoryScenario) -> None:
        self.now = line.line.now
        self._line = line

    def rules(self, connection_id: UUID) -> ConnectionRules:
        return self._line.line.rules[connection_id]

    def relative(self, record_id: UUID) -> Relative:
        del record_id
        return Relative(Standing.MIRRORED)

    def is_needed(self, account_id: UUID) -> bool:
        del account_id
        return False

    def closes_cycle(self, child: UUID, parent: UUID) -> bool:
        del child, parent
        return False


def test_a_record_whose_parent_has_come_and_whose_field_was_taken_gets_both_in_one_decision() -> None:
    line = MemoryScenario.connected()
    line.subscription("p", 1, product="LATER")
    line.subscription("s1", 1, parent="p", quantity="5")
    entity = line.line.entities[stream_id(line.connection_id, Kind.SUBSCRIPTION, "s1")]
    assert line.shown(SUBSCRIPTION, "s1").parent is None, "its parent is in no catalogue yet"
    decision = reconsider(replace(entity, taken={"quantity": "7"}), _World(line))
    assert decision is not None
    assert decision.changed
    assert decision.entity.mirrored is not None
    assert decision.entity.mirrored.parent_linked
    assert decision.entity.laid == {"quantity": "7"}
    assert reconsider(decision.entity, _World(line)) is None, "nothing is left to do"
