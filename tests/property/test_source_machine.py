"""A source that acts, a network that shuffles, doubles and loses, and a reconciliation that brings everything level.

domain.md section 7, guarantee 3: when the source is quiet, the mirror equals its in-scope state, field by field.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bss_sync.domain.change import Change, Kind
from bss_sync.ports.inbox import Origin
from tests.property.histories import ACCOUNTS, PRODUCTS, SUBSCRIPTIONS, Source, account, subscription
from tests.scenario import START, WAIT_SECONDS
from tests.scenario_memory import MemoryScenario

FOREIGN = "FOREIGN"


class SourceMachine(RuleBasedStateMachine):
    """The reseller's BSS, its messages on their way, and the line that receives them."""

    @initialize(at_once=st.booleans(), can_fetch=st.booleans())
    def connect(self, at_once: bool, can_fetch: bool) -> None:
        self.line = MemoryScenario.connected(accounts_at_once=at_once, can_fetch=can_fetch)
        self.at_once = at_once
        self.source = Source()
        self.taken_up = 0
        self.under_way: list[Change] = []
        self.ever_paid: set[str] = set()

    def _sends(self) -> None:
        self.under_way += self.source.log[self.taken_up :]
        self.taken_up = len(self.source.log)

    def _below(self, top: str) -> set[str]:
        below = {top}
        while more := {key for key, body in self.source.accounts.items() if body["parent_id"] in below} - below:
            below |= more
        return below

    # --- the source acts --------------------------------------------------------------------------------------------

    @rule(key=st.sampled_from(ACCOUNTS), name=st.sampled_from(("N1", "N2")), data=st.data())
    def puts_an_account(self, key: str, name: str, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from([None, *sorted(set(self.source.accounts) - self._below(key))]))
        self.source.put(Kind.ACCOUNT, key, account(name, parent))
        self._sends()

    @rule(
        key=st.sampled_from(SUBSCRIPTIONS),
        product=st.sampled_from(PRODUCTS),
        trial=st.booleans(),
        quantity=st.integers(0, 3),
        data=st.data(),
    )
    def puts_a_subscription(self, key: str, product: str, trial: bool, quantity: int, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from([None, *sorted(self.source.accounts)]))
        mains = [other for other in sorted(self.source.subscriptions) if other < key]
        parent = data.draw(st.sampled_from([None, *mains]))
        body = subscription(product, str(quantity), account_id=holder, parent_id=parent, trial=trial)
        self.source.put(Kind.SUBSCRIPTION, key, body)
        self._sends()

    @precondition(lambda self: self.source.subscriptions)
    @rule(data=st.data())
    def deletes_a_subscription(self, data: st.DataObject) -> None:
        self.source.delete(Kind.SUBSCRIPTION, data.draw(st.sampled_from(sorted(self.source.subscriptions))))
        self._sends()

    # --- the network ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), twice=st.booleans(), origin=st.sampled_from((Origin.DOOR, Origin.POLL)))
    def delivers_some_in_any_order(self, data: st.DataObject, twice: bool, origin: Origin) -> None:
        picked = data.draw(
            st.lists(st.integers(0, len(self.under_way) - 1), min_size=1, max_size=4, unique=True), label="which"
        )
        changes = [self.under_way[index] for index in picked]
        if not twice:
            self.under_way = [change for index, change in enumerate(self.under_way) if index not in picked]
        self.line.send(*changes, origin=origin)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def loses_one(self, data: st.DataObject) -> None:
        self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))

    @rule()
    def time_goes_by(self) -> None:
        self.line.pass_time(WAIT_SECONDS + 1)

    @precondition(lambda self: self.line.line.messages)
    @rule(data=st.data())
    def an_admin_replays_one(self, data: st.DataObject) -> None:
        sent = sorted(item.message.message_id for item in self.line.line.messages.values())
        self.line.replay(data.draw(st.sampled_from(sent)))

    # --- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def no_cycle_ever_exists(self) -> None:
        for kind in Kind:
            parents = {key: self.line.shown(kind, key).parent for key in self.line.mirrored(kind)}
            for start in parents:
                seen: set[str] = set()
                at: str | None = start
                while at is not None:
                    assert at not in seen
                    seen.add(at)
                    at = parents.get(at)

    @invariant()
    def a_mirrored_subscription_has_its_account(self) -> None:
        for key in self.line.mirrored(Kind.SUBSCRIPTION):
            holder = self.line.shown(Kind.SUBSCRIPTION, key)["account_id"]
            assert holder is None or self.line.mirror(Kind.ACCOUNT, holder) is not None

    @invariant()
    def no_mirror_is_ahead_of_its_source(self) -> None:
        for kind in Kind:
            for key in self.line.mirrored(kind):
                assert self.line.shown(kind, key).version <= self.source.versions[kind, key]

    # --- the end ----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Whatever was lost: the source's present is sent once more, as reconciliation does, and all is level."""
        if not hasattr(self, "source"):
            return
        for kind, present in ((Kind.SUBSCRIPTION, self.source.subscriptions), (Kind.ACCOUNT, self.source.accounts)):
            for (known, key), version in self.source.versions.items():
                if known is kind:
                    self._repair(kind, key, version, present.get(key))
        for key, body in self.source.subscriptions.items():
            self._check_subscription(key, body)
        for key in self.line.mirrored(Kind.SUBSCRIPTION) - set(self.source.subscriptions):
            assert self.line.shown(Kind.SUBSCRIPTION, key).deleted
        for key in self.line.mirrored(Kind.ACCOUNT):
            shown = self.line.shown(Kind.ACCOUNT, key)
            assert dict(shown.values) == self.source.accounts[key]
            assert shown.parent == self.source.accounts[key]["parent_id"]
        assert self.at_once <= (self.line.mirrored(Kind.ACCOUNT) == set(self.source.accounts))
        assert self.line.settled()

    def _repair(self, kind: Kind, key: str, version: int, body: dict[str, Any] | None) -> None:
        self.line.sent += 1
        self.line.answer(
            kind,
            key,
            version,
            body,
            origin=Origin.RECONCILE,
            message_id=f"repair-{kind}-{key}",
            sent_at=START + timedelta(days=1),
        )

    def _check_subscription(self, key: str, body: dict[str, Any]) -> None:
        shown = self.line.mirror(Kind.SUBSCRIPTION, key)
        in_scope = body["product"] != FOREIGN and not body["trial"]
        if shown is None:
            assert not in_scope
            return
        assert not shown.deleted
        if body["product"] == FOREIGN:
            assert (shown.ended, shown["status"]) == ("left_scope", "terminated")
            return
        assert shown.ended is None
        assert {name: shown[name] for name in body} == body
        assert shown.account == body["account_id"]
        parent = self.line.mirror(Kind.SUBSCRIPTION, body["parent_id"]) if body["parent_id"] else None
        assert shown.parent == (None if parent is None else body["parent_id"])


# LONG_TESTS=1 plays many more and longer stories.
LONG = bool(os.environ.get("LONG_TESTS"))
SourceMachine.TestCase.settings = settings(
    max_examples=3_000 if LONG else 150, stateful_step_count=50 if LONG else 25, deadline=None
)
TestSourceMachine = SourceMachine.TestCase
