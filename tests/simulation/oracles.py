"""What must hold: at every step, and at rest. The model is the reseller's log; nothing here asks the line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from bss_sync.domain.change import Action, Kind, OrderKind
from bss_sync.testing.simulation.reseller import ODD_STATUS, Version
from tests.simulation.admin import MEANING
from tests.simulation.core import Name, Present, Record, Told

if TYPE_CHECKING:
    from tests.simulation.world import World

BILL_TO = "Cloud Resell"
FINAL = frozenset({"applied", "superseded", "out_of_scope", "quarantined", "dead", "discarded"})


class Broken(AssertionError):
    """A promise that did not hold."""


def _hold(condition: object, words: str) -> None:
    if not condition:
        raise Broken(words)


# --- at every step ----------------------------------------------------------------------------------------------------


def check_moment(
    before: Mapping[UUID, Present], after: Mapping[UUID, Present], recounted: Collection[UUID] = ()
) -> None:
    """Nothing vanished, versions never went down, tombstones held, and no cycle exists.

    What is counted anew may be told alive at the tombstone's own version: the source's answer to our question decides.
    """
    for key, old in before.items():
        new = after.get(key)
        _hold(new is not None, f"{old.kind} {key} vanished from the mirror")
        assert new is not None
        _hold((new.epoch, new.version) >= (old.epoch, old.version), f"{old.kind} {key} went from {old} to {new}")
        rose = (new.epoch, new.version) > (old.epoch, old.version)
        held = not old.deleted or new.deleted or key in recounted
        _hold(rose or held, f"the tombstone of {old.kind} {key} v{old.version} did not hold")
    for key in after:
        seen, at = set(), key
        while True:
            _hold(at not in seen, f"a cycle through {after[key].kind} {key}")
            seen.add(at)
            parent = after[at].parent if at in after else None
            if parent is None:
                break
            at = parent


# --- at rest ----------------------------------------------------------------------------------------------------------


def check_rest(world: World) -> None:
    """Everything that is promised once faults have stopped and the line is at rest."""
    records = world.core.records()
    check_messages(world)
    check_subscriptions(world, records)
    check_accounts(world, records)
    check_links(records)
    check_target(world, records)
    check_history(world, records)
    check_proof(world)


def check_messages(world: World) -> None:
    """Every accepted message is there once, has a final state, and was decided once."""
    messages = world.core.messages()
    twice = [name for name, count in Counter(one.message_id for one in messages).items() if count > 1]
    _hold(world.profile.forgetful or not twice, f"messages are in the inbox twice: {twice}")
    again = world.resumed()
    for one in messages:
        words = f"message {one.message_id} of {one.name} (v{one.version})"
        _hold(one.state in FINAL, f"{words} was left {one.state}")
        _hold(
            one.audited[one.state] or one.state == "superseded",
            f"{words} is {one.state}, but the audit says {one.audited}",
        )
        _hold(one.audited["applied"] <= 1 + (one.name in again), f"{words} was applied {one.audited['applied']} times")
        _hold(one.audited.total() >= 1, f"{words} has no audit entry")


def _paid(world: World, version: Version) -> bool:
    body = version.body
    return body is not None and not body["trial"] and body["product"] in world.catalogue


def check_subscriptions(world: World, records: Mapping[Name, Record]) -> None:
    """The mirror's subscriptions equal the source's in-scope ones, field by field."""
    live = world.reseller.live(Kind.SUBSCRIPTION)
    for key, body in live.items():
        record = records.get((Kind.SUBSCRIPTION, key))
        offered = body["product"] in world.catalogue - world.retired
        if record is None:
            _hold(not offered or body["trial"], f"subscription {key} is in scope and not in the mirror")
        elif body["product"] in world.catalogue:
            _equal(world, (Kind.SUBSCRIPTION, key), body, record)
        else:
            _hold(record.ended == "left_scope", f"subscription {key} left scope, its mirror is {record}")
    for (kind, key), record in records.items():
        if kind is Kind.SUBSCRIPTION:
            _hold(
                key in live or record.deleted or record.ended,
                f"subscription {key} is gone, its mirror lives at v{record.version}",
            )
            ever = any(_paid(world, version) for version in world.reseller.versions(kind, key))
            _hold(ever, f"subscription {key} was never paid for and is in the mirror")


def _equal(world: World, entity: Name, body: Mapping[str, Any], record: Record) -> None:
    name = f"{entity[0]} {entity[1]}"
    body = {**body, **{field: value for (key, field), value in world.office.taken.items() if key == entity}}
    if body.get("status") == ODD_STATUS:
        body["status"] = MEANING
    _hold(not record.deleted and record.ended is None, f"{name} lives, its mirror has ended: {record}")
    wrong = {field: (value, record.content[field]) for field, value in body.items() if record.content[field] != value}
    _hold(not wrong, f"{name} differs (source, mirror): {wrong}")


def check_accounts(world: World, records: Mapping[Name, Record]) -> None:
    """What is mirrored equals the source, what is needed is there, and what nothing ever needed is not."""
    live = world.reseller.live(Kind.ACCOUNT)
    for (kind, key), record in records.items():
        if kind is not Kind.ACCOUNT:
            continue
        if key in live:
            _equal(world, (kind, key), live[key], record)
        else:
            _hold(record.deleted, f"account {key} is gone, its mirror lives at v{record.version}")
    mirrored = {key for kind, key in records if kind is Kind.ACCOUNT}
    needed = _needed(world, records)
    _hold(needed <= mirrored, f"accounts {sorted(needed - mirrored)} are needed and not in the mirror")
    if world.profile.accounts_at_once:
        _hold(live.keys() <= mirrored, f"accounts {sorted(live.keys() - mirrored)} are not in the mirror")
    else:
        extra = mirrored - _ever_needed(world)
        _hold(not extra, f"accounts {sorted(extra)} were copied without need")


def _needed(world: World, records: Mapping[Name, Record]) -> set[str]:
    live, needed = world.reseller.live(Kind.ACCOUNT), set()
    for key, body in world.reseller.live(Kind.SUBSCRIPTION).items():
        record = records.get((Kind.SUBSCRIPTION, key))
        at = body["account_id"] if record is not None and record.ended is None else None
        while at is not None:
            needed.add(at)
            at = live[at]["parent_id"]
    return needed


def _ever_needed(world: World) -> set[str]:
    """Accounts that any version of a subscription with a paid version ever hung on, and all that were ever above."""
    log = world.reseller.log
    paid = {one.source_id for one in log if one.kind is Kind.SUBSCRIPTION and _paid(world, one)}
    reached = {
        one.body["account_id"]
        for one in log
        if one.kind is Kind.SUBSCRIPTION and one.source_id in paid and one.body is not None
    }
    above: dict[str, set[str]] = {}
    for one in log:
        if one.kind is Kind.ACCOUNT and one.body is not None:
            above.setdefault(one.source_id, set()).add(one.body["parent_id"])
    while more := {parent for key in reached for parent in above.get(key, ())} - reached:
        reached |= more
    return reached


def check_links(records: Mapping[Name, Record]) -> None:
    """What is mirrored is linked."""
    for (kind, key), record in records.items():
        if record.deleted or record.ended:
            continue
        for field, link, other in (
            ("parent_id", record.parent, kind),
            ("account_id", record.account, Kind.ACCOUNT),
        ):
            named = record.content.get(field)
            relative = records.get((other, named)) if named is not None else None
            expected = None if relative is None else relative.id
            _hold(link == expected, f"{kind} {key}: {field} {named} is linked to {link}, not {expected}")


def check_target(world: World, records: Mapping[Name, Record]) -> None:
    """The distributor's BSS equals the mirror, and each record was created once for each time it was not there."""
    there: dict[str, list[dict[str, Any]]] = {}
    for view in world.bss.records():
        there.setdefault(view["reference"], []).append(view)
    _hold(len(there) <= len(records), "the distributor's BSS holds what the mirror does not")
    by_id = {record.id: record for record in records.values()}
    for (kind, key), record in records.items():
        found = there.get(str(record.id), [])
        if not found and world.profile.moves and record.delivery is None and (record.deleted or record.ended):
            # It came and went while nothing was delivered.
            continue
        _hold(len(found) == 1, f"{kind} {key} is in the distributor's BSS {len(found)} times ({record.delivery})")
        _hold(
            found[0]["id"] == record.external_id, f"{kind} {key} is bound to {record.external_id}, not {found[0]['id']}"
        )
        wanted = _wanted(kind, record, by_id)
        wrong = {name: (value, found[0]["fields"].get(name)) for name, value in wanted.items()}
        wrong = {name: pair for name, pair in wrong.items() if pair[0] != pair[1]}
        _hold(not wrong, f"{kind} {key} differs (mirror, distributor's BSS): {wrong} ({record.delivery})")
    effects = world.bss.effects()
    created = Counter(one["reference"] for one in effects if one["action"] == "create")
    removed = Counter(one["reference"] for one in effects if one["action"] == "remove")
    twice = {name: count for name, count in created.items() if count > 1 + removed[name]}
    _hold(not twice, f"created more than once in the distributor's BSS: {twice}")


def _wanted(kind: Kind, record: Record, by_id: Mapping[UUID, Record]) -> dict[str, Any]:
    parent = None if record.parent is None else by_id[record.parent].external_id
    wanted = {**record.content, "parent_id": parent, "bill_to": BILL_TO}
    wanted["ended"] = record.deleted or record.ended is not None
    if kind is Kind.SUBSCRIPTION:
        holder = None if record.account is None else by_id[record.account]
        wanted["account_id"] = None if holder is None else holder.external_id
        name = BILL_TO if holder is None else holder.content["name"]
        wanted["name"] = f"{name} - {record.content['product']}"
    return wanted


def check_history(world: World, records: Mapping[Name, Record]) -> None:
    """Each version once; and what was held when, in true effective time, equals the model's timeline."""
    history = world.core.history()
    again = world.resumed()
    ends = {one.id for one in world.core.messages() if one.action is Action.DELETED}
    states = Counter(
        (row.name, row.epoch, row.version) for row in history if row.message not in ends and row.name not in again
    )
    if world.profile.order is OrderKind.SEQUENCE:
        twice = [key for key, count in states.items() if count > 1]
        _hold(not twice, f"versions are in history twice: {twice}")
    _hold(
        max(Counter(row.message for row in history if row.name not in again).values(), default=0) <= 1,
        "a message is in history twice",
    )
    if not world.profile.every_version_arrives or world.profile.skewed:
        # What nobody told the time of ends when the process that missed it believes it to be.
        return
    gone = ("dead", "quarantined", "discarded")
    lost = {one.name for one in world.core.messages() if any(one.audited[state] for state in gone)}
    for name in records:
        if name[0] is Kind.SUBSCRIPTION and name not in lost | again:
            _check_timeline(world, name, [row for row in history if row.name == name])


def _check_timeline(world: World, name: Name, rows: Sequence[Told]) -> None:
    versions = world.reseller.versions(*name)
    for moment in sorted({one.effective_at for one in versions}):
        told = [
            (row.epoch, row.version, place, row.quantity)
            for place, row in enumerate(rows)
            if row.effective_at <= moment
        ]
        found = max(told)[3] if told else "0"
        expected = _held(world, versions, moment)
        _hold(found == expected, f"{name[1]} held {expected} on {moment}, history says {found}: {rows}")


def _held(world: World, versions: Sequence[Version], moment: datetime) -> str:
    there = [one for one in versions if one.effective_at <= moment]
    if not there:
        return "0"
    last = max(there, key=lambda one: one.version)
    return str(last.body["quantity"]) if _paid(world, last) and last.body is not None else "0"


def check_proof(world: World) -> None:
    """A last reconciliation says that nothing differs."""
    result = world.reconcile()
    errors = result.source_error or result.target_error
    _hold(errors is None, f"the last reconciliation could not finish: {errors}")
    _hold(result.total == 0, f"the last reconciliation found {result.total} differences: {result.differences}")
