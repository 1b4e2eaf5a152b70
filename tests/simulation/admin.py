"""An admin's hand on a simulated world: what an admin may do to a connection, whenever it pleases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from bss_sync.domain.change import Kind
from bss_sync.domain.tenancy import ConnectionState
from bss_sync.ports.reconciliation import Problem
from bss_sync.testing.simulation.reseller import ODD_STATUS
from tests.simulation.core import Name

if TYPE_CHECKING:
    from tests.simulation.world import World

MEANING = "suspended"
"""What the source's own word for a status turns out to mean."""
OFFERED_FIELDS = {Kind.ACCOUNT: ("name", "Taken over"), Kind.SUBSCRIPTION: ("quantity", "777")}
"""The field that is taken over, and the value that the distributor gives it."""
DISCARDED = frozenset({"waiting", "quarantined", "dead", "out_of_scope"})
STEP_MESSAGES = 2


class Admin(Protocol):
    """The admin's acts on one connection, in the words of the product."""

    def map_status(self, source_value: str, canonical: str) -> None:
        """Map a word of the source; what it held is released."""
        ...

    def take(self, name: Name, field: str, value: str) -> None:
        """Take a field of a mirrored record over and give it a value."""
        ...

    def give_back(self, name: Name, field: str) -> None:
        """Release the field."""
        ...

    def begin_replay(self, ids: Sequence[UUID]) -> bool:
        """Begin a replay; False when all of these are decided for good."""
        ...

    def carry_replay(self, limit: int) -> bool:
        """One step of the replay under way; False when there is none."""
        ...

    def discard(self, ids: Sequence[UUID]) -> None:
        """Give messages up."""
        ...

    def move(self, state: ConnectionState) -> None:
        """Move the connection to paused, shadow or live."""
        ...

    def answer_guard(self, *, yes: bool) -> bool:
        """Let the ends that the guard has held happen, or give them up; False when it has held none."""
        ...

    def forget(self) -> None:
        """The deduplication memory is pruned, and the feed is read from its beginning again."""
        ...


class Office:
    """Draws an admin's acts. ``counts`` is what was done, by name."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.taken: dict[tuple[Name, str], str] = {}
        self.mapped = False
        self.state = ConnectionState.LIVE

    def act(self) -> bool:
        """Do something that the profile allows; False when it allows nothing."""
        world, profile = self.world, self.world.profile
        acts = [
            (profile.catalogue_changes, self._change_catalogue),
            (profile.odd > 0 and not self.mapped, self.map_odd_value),
            (profile.takeovers, self._take_or_give_back),
            (profile.replays, self._replay),
            (profile.replays, self._discard),
            (profile.moves, self._move),
            (profile.forgetful, self._forget),
            (profile.guarded, self._answer_guard),
        ]
        allowed = [act for possible, act in acts if possible]
        if allowed:
            world.random.choice(allowed)()
        return bool(allowed)

    def _said(self, what: str, act: str) -> None:
        self.world.counted(act)
        self.world.happened(f"an admin {what}")

    def _change_catalogue(self) -> None:
        world = self.world
        code, retired = world.random.choice(((world.later, False), (world.retiring, True)))
        self._said(f"{'retires' if retired else 'offers'} {code}", "catalogue")
        world.core.offer(code, retired=retired)
        world.catalogue.add(code)
        if retired:
            world.retired.add(code)

    def map_odd_value(self) -> None:
        """The word is mapped once."""
        self._said(f"maps {ODD_STATUS}", "value mapped")
        self.world.core.admin.map_status(ODD_STATUS, MEANING)
        self.mapped = True

    def _take_or_give_back(self) -> None:
        world = self.world
        if self.taken and world.random.random() < 0.4:
            (name, field), _value = world.random.choice(sorted(self.taken.items()))
            self._said(f"gives {field} of {name[1]} back", "field given back")
            world.core.admin.give_back(name, field)
            del self.taken[name, field]
            return
        name = world.random.choice(sorted(world.core.records()) or [(Kind.ACCOUNT, "")])
        field, value = OFFERED_FIELDS[name[0]]
        if name[1] and (name, field) not in self.taken:
            self._said(f"takes {field} of {name[1]} over", "field taken")
            world.core.admin.take(name, field, value)
            self.taken[name, field] = value

    def _some(self, states: frozenset[str] | None) -> list[UUID]:
        chance = self.world.random
        ids = [one.id for one in self.world.core.messages() if states is None or one.state in states]
        return chance.sample(ids, chance.randrange(1, len(ids) + 1)) if ids else []

    def _replay(self) -> None:
        """Begin one, or carry on what was begun: workers and messages come between the steps."""
        admin = self.world.core.admin
        if admin.carry_replay(STEP_MESSAGES):
            self._said("carries a replay on", "replay carried on")
            return
        ids = self._some(None)
        if ids and admin.begin_replay(ids):
            self._said(f"replays {len(ids)} messages", "replay begun")
            admin.carry_replay(STEP_MESSAGES)

    def _discard(self) -> None:
        ids = self._some(DISCARDED)[:2]
        if ids:
            self._said(f"discards {len(ids)} messages", "discarded")
            self.world.core.admin.discard(ids)

    def _move(self) -> None:
        states = {ConnectionState.PAUSED, ConnectionState.SHADOW, ConnectionState.LIVE} - {self.state}
        self.move(self.world.random.choice(sorted(states)))

    def move(self, state: ConnectionState) -> None:
        """Move the connection."""
        self._said(f"moves the connection from {self.state} to {state}", f"moved to {state}")
        self.world.core.admin.move(state)
        self.state = state

    def let_ends_pass(self) -> None:
        """The guard has stopped: what it held happens."""
        if self.world.core.admin.answer_guard(yes=True):
            self._said("lets the held ends pass", "ends let pass")

    def _answer_guard(self) -> None:
        if self.world.random.random() < 0.7:
            self.let_ends_pass()
        elif self.world.core.admin.answer_guard(yes=False):
            self._said("gives the held ends up", "ends given up")

    def accept_recounts(self) -> None:
        """What the source counts anew is taken as it counts it."""
        found = self.world.reconcile().differences if self.world.profile.recounts else ()
        regressed = {one.source_id for one in found if one.problem is Problem.VERSION_REGRESSED}
        if regressed:
            self._said(f"accepts that {', '.join(sorted(regressed))} are counted anew", "recount accepted")
            self.world.reconcile(frozenset(regressed))

    def _forget(self) -> None:
        self._said("prunes the deduplication memory", "deduplication pruned")
        self.world.core.admin.forget()

    def calm(self) -> None:
        """What has to be settled before everything can be level."""
        if self.state is not ConnectionState.LIVE:
            self.move(ConnectionState.LIVE)
        if self.world.profile.odd and not self.mapped:
            self.map_odd_value()
        while self.world.core.admin.carry_replay(STEP_MESSAGES):
            pass
