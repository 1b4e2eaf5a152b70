"""The end of a round: the mirror and the distributor's BSS against the model of what was answered.

The mirror is read through the API, the effects from the distributor's own log; no counter of the product is asked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tests.chaos.load import Load, Told
from tests.chaos.stack import Stack

LOOK_SECONDS = 0.5
SETTLED = frozenset({"applied", "superseded"})
STAGED = ("account", "out_of_scope")
"""An account's state from before its first subscription came: it is kept, and enters with that."""
Key = tuple[str, str]


class Way(StrEnum):
    """How what came after a backup is brought."""

    LISTING = "listing"  # the source can say what it holds now
    SENT_AGAIN = "sent again"  # the sender repeats what it sent since the backup


@dataclass(frozen=True)
class Findings:
    """What a round came to. ``faults``: every promise that was not kept, in words; none is what is wanted."""

    messages: int
    entities: int
    effects: int
    level_seconds: float
    faults: tuple[str, ...]


def verify(
    stack: Stack,
    loads: Sequence[Load],
    *,
    seconds_max: float,
    held: frozenset[Key] = frozenset(),
    restored: Way | None = None,
) -> Findings:
    """Wait until all is level, at most so long; then look at everything.

    ``held``: what is meant to be held. ``restored``: a backup was, and how what came after it was brought: what was
    under way at its moment is delivered once more, and a listing brings no message and no version of what is gone.
    """
    listed = restored is Way.LISTING
    started = time.monotonic()
    told = {one.message_id: one for load in loads for one in load.answered.values()}
    wanted = {key: one for load in loads for key, one in load.highest().items() if key not in held}
    faults = _wait(stack, wanted, started + seconds_max, listed=listed)
    level_seconds = time.monotonic() - started
    effects = stack.effects()
    ids = {key: str(record["id"]) for key, record in _mirror(stack).items()}
    faults += [fault for load in loads for fault in load.wrong]
    if not listed:
        faults += _message_faults(stack, told, held)
    faults += _double_faults(effects, wanted, ids)
    if restored is None:
        faults += [
            f"effect {one['number']} on {one['reference']} changed nothing" for one in effects if not one["changed"]
        ]
        faults += _order_faults(effects)
    faults += stack.crew.unexpected()
    code, words = stack.cli("audit", "verify")
    if code != 0:
        faults.append(f"the audit is not whole: {words}")
    return Findings(len(told), len(wanted), len(effects), level_seconds, tuple(faults))


def under_way(stack: Stack) -> list[str]:
    """Messages that are not decided."""
    return [
        f"message {one['message_id']} is {state}"
        for state in ("pending", "waiting")
        for one in stack.get("/v1/messages", state=state, limit="20")["items"]
    ]


def _wait(stack: Stack, wanted: Mapping[Key, Told], deadline: float, *, listed: bool) -> list[str]:
    while True:
        faults = _differences(stack, wanted, listed=listed)
        if not faults or time.monotonic() > deadline:
            return faults
        time.sleep(LOOK_SECONDS)


def _differences(stack: Stack, wanted: Mapping[Key, Told], *, listed: bool) -> list[str]:
    """What is still under way, or wrong: messages, the mirror, the target."""
    if faults := under_way(stack):
        return faults
    mirror = _mirror(stack)
    last = {effect["reference"]: effect["after"] for effect in stack.effects()}
    for key, told in wanted.items():
        record = mirror.get(key)
        if record is None:
            faults.append(f"{key} is not in the mirror")
            continue
        faults += [f"{key} in the mirror: {words}" for words in _unlike_mirror(record, told, listed=listed)]
        faults += [f"{key} at the distributor: {words}" for words in _unlike_target(last.get(record["id"]), told)]
    return faults


def _mirror(stack: Stack) -> dict[Key, dict[str, Any]]:
    return {
        (kind, record["source_id"]): record
        for kind in ("account", "subscription")
        for record in stack.items(f"/v1/{kind}s", include_deleted="true")
    }


def _unlike_mirror(record: Mapping[str, Any], told: Told, *, listed: bool) -> list[str]:
    words = []
    if record["version"] != told.version and not (listed and told.deleted):
        words.append(f"version {record['version']} instead of {told.version}")
    if (record["deleted_at"] is not None) != told.deleted:
        words.append(f"deleted at {record['deleted_at']}")
    if not told.deleted and told.kind == "subscription" and record["quantity"] != told.data["quantity"]:
        words.append(f"quantity {record['quantity']} instead of {told.data['quantity']}")
    if told.kind == "account" and record["name"] != told.data["name"]:
        words.append(f"name {record['name']!r} instead of {told.data['name']!r}")
    return words


def _unlike_target(fields: Mapping[str, Any] | None, told: Told) -> list[str]:
    if fields is None:
        return ["nothing of it"]
    if fields["ended"] != told.deleted:
        return [f"ended: {fields['ended']}"]
    if told.deleted:
        return []
    if told.kind == "account":
        same = fields["name"] == told.data["name"]
    else:
        same = fields["quantity"] == str(told.data["quantity"])
    return [] if same else [f"{fields} instead of version {told.version}"]


def _message_faults(stack: Stack, told: Mapping[str, Told], held: frozenset[Key]) -> list[str]:
    """Every answered message is there once, and has come to its end."""
    stored = stack.items("/v1/messages")
    times = Counter(one["message_id"] for one in stored)
    faults = [f"message {name} was answered with 2xx and is lost" for name in told if name not in times]
    faults += [f"message {name} is there {number} times" for name, number in times.items() if number > 1]
    faults += [
        f"message {one['message_id']} is {one['state']}: {one['reason']}"
        for one in stored
        if one["state"] not in SETTLED
        and (one["kind"], one["state"]) != STAGED
        and (one["kind"], one["source_id"]) not in held
    ]
    return faults


def _double_faults(
    effects: Sequence[Mapping[str, Any]], wanted: Mapping[Key, Told], ids: Mapping[Key, str]
) -> list[str]:
    """One create per entity, and no effect twice."""
    creates = Counter(effect["reference"] for effect in effects if effect["action"] == "create")
    keys = Counter(effect["idempotency_key"] for effect in effects)
    faults = [
        f"{key} was created {creates[ids[key]]} times at the distributor"
        for key in wanted
        if key in ids and creates[ids[key]] != 1
    ]
    return faults + [f"{number} effects under one idempotency key {key}" for key, number in keys.items() if number > 1]


def _order_faults(effects: Sequence[Mapping[str, Any]]) -> list[str]:
    """No older state after a newer one: names and quantities of the load tell their version."""
    faults, last = [], dict[str, int]()
    for one in effects:
        fields = one["after"]
        version = int(fields["name"].rpartition(" ")[2]) if one["kind"] == "account" else int(fields["quantity"])
        if version < last.get(one["reference"], 0):
            words = f"effect {one['number']} took {one['reference']} back from {last[one['reference']]} to {version}"
            faults.append(words)
        last[one["reference"]] = version
    return faults
