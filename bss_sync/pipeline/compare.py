"""Compare: one observation of the source against what we hold of the entity. Pure.

The in-scope rule (domain.md sections 3 and 7): a subscription that is a trial or of a foreign product and never
entered is no difference, nor is an account that nothing in scope needs; taken fields are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bss_sync.domain.change import Action, Content, Json, Kind, OrderKind
from bss_sync.domain.errors import UnknownValue
from bss_sync.domain.product import why_out_of_scope
from bss_sync.pipeline.translate import content_digest, translate
from bss_sync.ports.connector import Observation
from bss_sync.ports.reconciliation import Difference, Held, Problem
from bss_sync.ports.streams import ConnectionRules

_LINKS = frozenset({"parent_id", "account_id"})
LEFT_SCOPE = "left_scope"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one observation shows. ``feed``: it shall enter the inbox; ``wake``: the line shall look again."""

    differences: tuple[Difference, ...] = ()
    feed: bool = False
    wake: bool = False


SAME = Comparison()


def compare(seen: Observation, held: Held, rules: ConnectionRules, order: OrderKind) -> Comparison:
    """Compare. ``held.version`` None and not mirrored: never heard of."""
    if rules.instance_id in seen.passed:
        # It is our own, come back: the line refuses it, and it is no difference.
        return SAME
    if held.changed and not _newer(seen, held, order):
        # A message overtook the listing: the mirror may be ahead of it, and the next comparison will tell.
        return SAME
    if seen.body is None:
        return _gone(held)
    if not held.mirrored:
        return _unbound(seen, seen.body, held, rules, order)
    if _regressed(seen, held, order):
        return Comparison((_about(Problem.VERSION_REGRESSED, held, "version", seen.version, held.version),))
    if held.deleted:
        return Comparison((_about(Problem.MISSING, held),), feed=True)
    return _bound(seen, seen.body, held, rules, order)


def _about(
    problem: Problem, held: Held, field: str | None = None, expected: Json = None, found: Json = None
) -> Difference:
    return Difference(problem, "mirror", held.kind, held.source_id, held.stream_id, field, expected, found)


def _newer(seen: Observation, held: Held, order: OrderKind) -> bool:
    return order is not OrderKind.OBSERVED and seen.version is not None and seen.version > (held.version or 0)


def _regressed(seen: Observation, held: Held, order: OrderKind) -> bool:
    counted = order is not OrderKind.OBSERVED and seen.version is not None and held.version is not None
    if not counted:
        return False
    # At the tombstone's own version the deletion stands; only above it the entity lives again.
    return seen.version <= held.version if held.deleted else seen.version < held.version  # type: ignore[operator]  # both were just found to be numbers


def _gone(held: Held) -> Comparison:
    if held.mirrored and not held.deleted:
        return Comparison((_about(Problem.EXTRA, held),), feed=True)
    return SAME


def _unbound(
    seen: Observation, body: Mapping[str, Json], held: Held, rules: ConnectionRules, order: OrderKind
) -> Comparison:
    heard_of_this = held.version is not None and not _newer(seen, held, order) and held.digest is not None
    if seen.kind is Kind.ACCOUNT:
        # Whether something in scope needs it is the line's to find out: it is staged, and enters when it is needed.
        missing = rules.accounts_at_once
    else:
        product = rules.catalogue.resolve(body["product"])
        missing = why_out_of_scope(product, trial=body["trial"]) is None
    if held.deleted and _regressed(seen, held, order):
        return Comparison((_about(Problem.VERSION_REGRESSED, held, "version", seen.version, held.version),))
    differences = (_about(Problem.MISSING, held),) if missing else ()
    return Comparison(differences, feed=not heard_of_this or (missing and not held.stopped), wake=missing)


def _bound(
    seen: Observation, body: Mapping[str, Json], held: Held, rules: ConnectionRules, order: OrderKind
) -> Comparison:
    same_version = order is OrderKind.OBSERVED or seen.version == held.version
    left = held.ended_reason == LEFT_SCOPE
    if same_version and not left and content_digest(Action.STATE, body) == held.digest:
        return SAME
    try:
        content = translate(seen.kind, body, rules)
    except UnknownValue as error:
        named = _about(Problem.UNKNOWN_VALUE, held, error.field, error.value, (held.content or {}).get(error.field))
        return Comparison((named,), feed=not held.stopped)
    if left:
        offered = (
            seen.kind is Kind.SUBSCRIPTION
            and why_out_of_scope(rules.catalogue.resolve(body["product"]), trial=False) is None
        )
        return Comparison((_about(Problem.MISSING, held),), feed=True, wake=True) if offered else SAME
    return _fields(content, held, same_version=same_version, version=seen.version)


def _fields(content: Content, held: Held, *, same_version: bool, version: int | None) -> Comparison:
    assert held.content is not None, "a mirrored record has content"
    usual = Problem.DIFFERING if same_version else Problem.STALE
    differences = [
        _about(Problem.MIS_PARENTED if name in _LINKS else usual, held, name, value, held.content.get(name))
        for name, value in content.items()
        if name not in held.taken and value != held.content.get(name)
    ]
    if not differences and not same_version:
        differences.append(_about(Problem.STALE, held, "version", version, held.version))
    return Comparison(tuple(differences), feed=bool(differences))
