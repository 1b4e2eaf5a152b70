"""Compare: one observation of the source against what we hold of the entity. Pure.

The in-scope rule (domain.md sections 3 and 7): a subscription that is a trial or of a foreign product and never
entered is no difference, nor is an account that nothing in scope needs; taken fields are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from bss_sync.domain.change import Action, Content, Json, Kind, OrderKind
from bss_sync.domain.errors import UnknownValue
from bss_sync.domain.product import LEFT_SCOPE, why_left_scope, why_out_of_scope
from bss_sync.pipeline.sequence import FOUND_ABSENT
from bss_sync.pipeline.translate import content_digest, translate
from bss_sync.ports.connector import Observation
from bss_sync.ports.reconciliation import Cause, Difference, Held, Problem, Undecided
from bss_sync.ports.streams import ConnectionRules

_LINKS = frozenset({"parent_id", "account_id"})


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one observation shows. ``feed``: it shall enter the inbox; ``wake``: the line shall look again.

    ``dead``: the inbox has it as a dead letter, so that it enters once more only where somebody asks for that.
    """

    differences: tuple[Difference, ...] = ()
    feed: bool = False
    wake: bool = False
    dead: bool = False


SAME = Comparison()


def compare(seen: Observation, held: Held, rules: ConnectionRules, order: OrderKind) -> Comparison:
    """Compare. ``held.version`` None and not mirrored: never heard of."""
    if rules.instance_id in seen.passed:
        # It is our own, come back: the line refuses it, and it is no difference.
        return SAME
    if held.changed and not _newer(seen, held, order):
        # A message overtook the listing: the mirror may be ahead of it, and the next comparison will tell.
        return SAME
    comparison = _compare(seen, held, rules, order)
    known = _undecided(seen, held, order)
    if known is not None:
        comparison = replace(comparison, feed=comparison.feed and known.dead, dead=known.dead)
    differences = tuple(replace(one, since=seen.changed_at) for one in comparison.differences)
    return replace(comparison, differences=differences)


def _compare(seen: Observation, held: Held, rules: ConnectionRules, order: OrderKind) -> Comparison:
    if seen.body is None:
        return _gone(seen, held, order)
    if not held.mirrored:
        return _unbound(seen, seen.body, held, rules, order)
    counted_anew = held.version is None
    if held.deleted and not held.known_deleted and not counted_anew and not is_below(seen, held, order):
        # No message ever deleted it: somebody ended it in the mirror's tables.
        return Comparison(
            (_about(Problem.DIFFERING, held, "deleted", False, True, cause=Cause.OVERWRITTEN),), feed=True
        )
    if _regressed(seen, held, order):
        return Comparison((_regression(seen, held),))
    if held.deleted:
        return Comparison((_about(Problem.MISSING, held, cause=behind(held)),), feed=True)
    return _bound(seen, seen.body, held, rules, order)


def _undecided(seen: Observation, held: Held, order: OrderKind) -> Undecided | None:
    """What the inbox has of this very state, newer than what we hold: once more it would say nothing new."""
    known, counted = held.undecided, order is not OrderKind.OBSERVED
    if known is None or seen.body is None or (counted and not _newer(seen, held, order)):
        return None
    same = not counted or known.version == seen.version
    return known if same and _digest(known.body) == _digest(seen.body) else None


def _digest(body: Mapping[str, Json]) -> bytes:
    return content_digest(Action.STATE, body)


def _about(
    problem: Problem,
    held: Held,
    field: str | None = None,
    expected: Json = None,
    found: Json = None,
    *,
    cause: Cause,
) -> Difference:
    return Difference(problem, "mirror", held.kind, held.source_id, held.stream_id, field, expected, found, cause)


def _regression(seen: Observation, held: Held) -> Difference:
    return _about(Problem.VERSION_REGRESSED, held, "version", seen.version, held.version, cause=Cause.COUNTED_ANEW)


def behind(held: Held) -> Cause:
    """Why the mirror is behind the source."""
    if held.stopped:
        return Cause.HELD
    return Cause.UNDECIDED if held.waiting else Cause.MESSAGE_LOST


def is_below(seen: Observation, held: Held, order: OrderKind) -> bool:
    """Whether the source counts it below what we hold: nothing that is told so can move it."""
    counted = order is not OrderKind.OBSERVED and seen.version is not None and held.version is not None
    return counted and seen.version < held.version  # type: ignore[operator]  # both were just found to be numbers


def _newer(seen: Observation, held: Held, order: OrderKind) -> bool:
    return order is not OrderKind.OBSERVED and seen.version is not None and seen.version > (held.version or 0)


def _regressed(seen: Observation, held: Held, order: OrderKind) -> bool:
    counted = order is not OrderKind.OBSERVED and seen.version is not None and held.version is not None
    if not counted:
        return False
    # At the tombstone's own version the deletion stands, and only above it the entity lives again; unless nobody has
    # told that deletion, and it was found absent there.
    stands = held.deleted and held.digest != FOUND_ABSENT
    return seen.version <= held.version if stands else seen.version < held.version  # type: ignore[operator]  # both were just found to be numbers


def _gone(seen: Observation, held: Held, order: OrderKind) -> Comparison:
    if not held.mirrored or held.deleted:
        return SAME
    if is_below(seen, held, order):
        return Comparison((_regression(seen, held),))
    return Comparison((_about(Problem.EXTRA, held, cause=behind(held)),), feed=True)


def _unbound(
    seen: Observation, body: Mapping[str, Json], held: Held, rules: ConnectionRules, order: OrderKind
) -> Comparison:
    # Without versions of the source's own, it is what it says that tells whether it was heard.
    said = held.digest is not None and (order is not OrderKind.OBSERVED or _digest(body) == held.digest)
    heard_of_this = held.version is not None and not _newer(seen, held, order) and said
    if held.once_mirrored and not held.deleted and not is_below(seen, held, order):
        # Bindings are for ever: its row is gone, whoever took it.
        return Comparison((_about(Problem.MISSING, held, cause=Cause.OVERWRITTEN),), feed=True)
    if seen.kind is Kind.ACCOUNT:
        # Whether something in scope needs it is the line's to find out: it is staged, and enters when it is needed.
        missing = rules.accounts_at_once
    else:
        product = rules.catalogue.resolve(body["product"])
        missing = why_out_of_scope(product, trial=body["trial"]) is None
    wanted = missing or held.waiting
    if (held.deleted and _regressed(seen, held, order)) or (wanted and is_below(seen, held, order)):
        # Fed, it would come late each time; and what waits at a version above is not what the source says now.
        return Comparison((_regression(seen, held),))
    cause = Cause.NEVER_RECEIVED if held.version is None and not (held.stopped or held.waiting) else behind(held)
    differences = (_about(Problem.MISSING, held, cause=cause),) if missing else ()
    return Comparison(differences, feed=not heard_of_this or (missing and not held.stopped), wake=missing)


def _bound(
    seen: Observation, body: Mapping[str, Json], held: Held, rules: ConnectionRules, order: OrderKind
) -> Comparison:
    same_version = order is OrderKind.OBSERVED or seen.version == held.version
    left = seen.kind is Kind.SUBSCRIPTION and held.ended_reason == LEFT_SCOPE
    try:
        content = translate(seen.kind, body, rules)
    except UnknownValue as error:
        shown = (held.content or {}).get(error.field)
        named = _about(Problem.UNKNOWN_VALUE, held, error.field, error.value, shown, cause=behind(held))
        return Comparison((named,), feed=not held.stopped)
    if left:
        # What came back resumes its binding, also with a product that was retired meanwhile.
        if why_left_scope(rules.catalogue.resolve(body["product"])) is not None:
            return SAME
        return Comparison((_about(Problem.MISSING, held, cause=behind(held)),), feed=True, wake=True)
    same_digest = held.digest is not None and _digest(body) == held.digest
    cause = behind(held) if not same_version else Cause.OVERWRITTEN if same_digest else Cause.UNCOUNTED
    differences = list(_fields(content, held, Problem.DIFFERING if same_version else Problem.STALE, cause))
    if same_version:
        differences += _past_the_line(held)
    elif not differences:
        differences.append(_about(Problem.STALE, held, "version", seen.version, held.version, cause=cause))
    return Comparison(tuple(differences), feed=bool(differences))


def _fields(content: Content, held: Held, problem: Problem, cause: Cause) -> Iterator[Difference]:
    """Each field that the mirror shows, or keeps as the source's last word, otherwise than the source says."""
    assert held.content is not None, "a mirrored record has content"
    kept = held.content if held.recorded is None else held.recorded
    for name, value in content.items():
        shown, recorded = held.content.get(name), kept.get(name)
        if name in held.taken or (value == shown and (value == recorded or problem is Problem.STALE)):
            continue
        named = Problem.MIS_PARENTED if name in _LINKS else problem
        yield _about(named, held, name, value, recorded if value == shown else shown, cause=cause)


def _past_the_line(held: Held) -> Iterator[Difference]:
    """What no message can have brought about: an end or a version that only the mirror's tables know."""
    if held.ended_reason is not None:
        yield _about(Problem.DIFFERING, held, "ended_reason", None, held.ended_reason, cause=Cause.OVERWRITTEN)
    if held.shown_version is not None and held.shown_version != held.version:
        yield _about(Problem.DIFFERING, held, "version", held.version, held.shown_version, cause=Cause.OVERWRITTEN)


def astray_fields(held: Held) -> Iterator[Difference]:
    """Where the mirror's columns do not show what it keeps as the source's last word."""
    for name, value in (held.recorded or {}).items():
        shown = (held.content or {}).get(name)
        if name not in held.taken and value != shown:
            named = Problem.MIS_PARENTED if name in _LINKS else Problem.DIFFERING
            yield _about(named, held, name, value, shown, cause=Cause.OVERWRITTEN)
