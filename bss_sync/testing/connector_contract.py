"""The contract suite for connectors: what every connector must do, whatever system is behind it.

A connector's own test starts its system (real or simulated), puts some accounts and subscriptions into it, and runs
each check::

    @pytest.mark.parametrize("check", connector_contract.CHECKS, ids=lambda check: check.__name__)
    def test_it_keeps_the_contract(check: Check, subject: Subject) -> None:
        check(subject)

A check that a connector's capabilities exclude has nothing to prove and passes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from bss_sync.domain import account, subscription
from bss_sync.domain.change import Json, Kind, OrderKind
from bss_sync.domain.errors import BssSyncError, DependencyDown
from bss_sync.ports.connector import ConnectionSettings, Observation
from bss_sync.ports.http import HttpResponse
from bss_sync.testing.contract_subject import PAGES_MAX, Check, ScriptedHttp, Subject
from bss_sync.testing.target_contract import TARGET_CHECKS, sample_writes

__all__ = ["CHECKS", "Check", "ScriptedHttp", "Subject", "check_observation", "sample_writes"]

FORBIDDEN_IMPORTS = frozenset(
    {"alembic", "dramatiq", "httpx", "psycopg", "redis", "requests", "sqlalchemy", "tenacity", "urllib3"}
)
"""What a connector never imports: the network is reached through HttpClient, the database not at all."""

MEMBERS: Mapping[Kind, frozenset[str]] = {
    Kind.ACCOUNT: frozenset(account.FIELDS),
    Kind.SUBSCRIPTION: frozenset(subscription.FIELDS) - {"source_status"},
}
"""The members that a body must have; a mapper may add the source's own ``source_status``."""


def check_capabilities_match_the_clients(subject: Subject) -> None:
    """Who can be asked gives a source, who can be written to a target, who has hooks a parser; else None."""
    can = subject.spec.capabilities
    assert (subject.source is not None) == (can.fetch or can.list or can.poll), "fetch, list, poll ⇔ a source client"
    assert (subject.target is not None) == can.target, "target ⇔ a target client"
    assert (subject.spec.hooks(subject.config) is not None) == can.hooks, "hooks ⇔ a hook parser"
    assert can.push or can.hooks or can.fetch or can.list or can.poll or can.target, "it can do something"


def check_settings_explain_themselves(subject: Subject) -> None:
    """Every setting has a description, unknown ones are refused, and no secret is among them."""
    config = subject.spec.config
    assert issubclass(config, ConnectionSettings), "config extends ConnectionSettings"
    schema = config.model_json_schema()
    silent = [name for name, one in schema["properties"].items() if not one.get("description")]
    assert not silent, f"settings without a description: {silent}"
    assert schema.get("additionalProperties") is False, "unknown settings are refused"
    overlap = set(subject.spec.secret_names) & set(schema["properties"])
    assert not overlap, f"secrets are no settings: {overlap}"
    # Settings are stored as JSON and read back.
    assert config.model_validate(subject.config.model_dump(mode="json")) == subject.config


def check_names_are_plain(subject: Subject) -> None:
    """The name is what a person types, the title what a person reads; the package exports the object."""
    spec = subject.spec
    assert re.fullmatch(r"[a-z][a-z0-9_-]*", spec.name), "the name is lower case"
    assert spec.title.strip() == spec.title != "", "the title is text"
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in spec.secret_names), "secret names are lower case"


def check_imports_stay_outside(subject: Subject) -> None:
    """No module of the connector imports a database, a queue or an HTTP library, or the engine's inside."""
    found = []
    for path in _modules(subject.package):
        for name in _imports(ast.parse(path.read_text("utf-8"))):
            inner = re.match(r"bss_sync\.(?!domain\b|ports\b)", name + ".")
            if name.split(".")[0] in FORBIDDEN_IMPORTS or name == "bss_sync" or inner:
                found.append(f"{path.name}: {name}")
    assert not found, f"forbidden imports: {found}"


def check_it_says_what_it_saw(subject: Subject) -> None:
    """``check`` answers in one line that holds no secret."""
    for client in (subject.source, subject.target):
        if client is not None:
            seen = client.check()
            assert seen.strip(), "check() says something"
            assert "\n" not in seen, "check() answers in one line"
            assert not any(one.get_secret_value() in seen for one in subject.secrets.values()), "no secret is shown"


def check_bodies_are_whole_and_canonical(subject: Subject) -> None:
    """Every body has exactly the contract's members, in canonical form; versions are of the declared kind."""
    for observation in _listed(subject):
        check_observation(observation, subject.order)


def check_accounts_come_before_subscriptions(subject: Subject) -> None:
    """A listing streams accounts first, and each entity once."""
    listed = _listed(subject)
    kinds = [observation.kind for observation in listed]
    assert kinds == sorted(kinds, key=list(Kind).index), "accounts come first"
    keys = [(observation.kind, observation.source_id) for observation in listed]
    assert len(keys) == len(set(keys)), "each entity is listed once"


def check_fetch_agrees_with_the_listing(subject: Subject) -> None:
    """A fetch of what is listed gives the same version and body; what was never heard of is None."""
    source = subject.source
    if source is None or not subject.spec.capabilities.fetch:
        return
    for listed in _listed(subject):
        fetched = source.fetch(listed.kind, listed.source_id)
        assert fetched is not None, f"{listed.kind} {listed.source_id!r} is listed but cannot be fetched"
        assert (fetched.source_id, fetched.version) == (listed.source_id, listed.version)
        assert fetched.body == listed.body, f"{listed.kind} {listed.source_id!r} differs between listing and fetch"
    for kind in Kind:
        assert source.fetch(kind, subject.unknown_id) is None, f"an unknown {kind} is None"


def check_a_poll_from_the_beginning_ends_at_the_present(subject: Subject) -> None:
    """The last that a poll says of each entity is what the listing says."""
    if not subject.spec.capabilities.poll:
        return
    polled, _ = _polled(subject, None)
    last = {(one.kind, one.source_id): one.body for one in polled}
    for one in polled:
        check_observation(one, subject.order)
    for listed in _listed(subject):
        assert last.get((listed.kind, listed.source_id)) == listed.body, f"the poll misses {listed.source_id!r}"


def check_a_poll_misses_nothing_after_its_cursor(subject: Subject) -> None:
    """A change after a poll is in the next one; polling again from the same cursor shows it again."""
    if not subject.spec.capabilities.poll or subject.change is None:
        return
    _, cursor = _polled(subject, None)
    changed = subject.change()
    first, later = _polled(subject, cursor)
    again, _ = _polled(subject, cursor)
    for polled in (first, again):
        assert changed in {(one.kind, one.source_id) for one in polled}, f"{changed} is missing after {cursor!r}"
    # The cursor is only text that is stored: a new client continues from it.
    changed_later = subject.change()
    assert changed_later in {(one.kind, one.source_id) for one in _polled(subject, later)[0]}


def check_a_dead_network_is_a_transient_error(subject: Subject) -> None:
    """What HttpClient raises passes through: nothing is swallowed, no listing just ends."""
    down = ScriptedHttp(error=DependencyDown("the system does not answer"))
    for name, call in _calls(replace(subject, http=down)):
        try:
            call()
        except DependencyDown:
            continue
        raise AssertionError(f"{name} hides that the system does not answer")


def check_garbage_is_an_error_of_our_tree(subject: Subject) -> None:
    """An answer that is no answer of the system raises an error of ours, and never ends a listing."""
    for body in (b"", b"<html>", b"null", b"[]", b"{}", b'"text"', b'{"items": [{}]}', b'{"data": [{}]}'):
        garbled = ScriptedHttp(answer=HttpResponse(200, {"content-type": "application/json"}, body))
        for name, call in _calls(replace(subject, http=garbled)):
            if name.endswith(".check"):
                continue  # a health route may say what it likes
            try:
                call()
            except BssSyncError:
                continue
            except Exception as error:
                raise AssertionError(f"{name} raises {error!r} for {body!r}, which is no error of ours") from error
            raise AssertionError(f"{name} takes {body!r} for an answer")


CHECKS: tuple[Check, ...] = (
    check_capabilities_match_the_clients,
    check_settings_explain_themselves,
    check_names_are_plain,
    check_imports_stay_outside,
    check_it_says_what_it_saw,
    check_bodies_are_whole_and_canonical,
    check_accounts_come_before_subscriptions,
    check_fetch_agrees_with_the_listing,
    check_a_poll_from_the_beginning_ends_at_the_present,
    check_a_poll_misses_nothing_after_its_cursor,
    check_a_dead_network_is_a_transient_error,
    check_garbage_is_an_error_of_our_tree,
    *TARGET_CHECKS,
)
"""All of them."""


def check_observation(observation: Observation, order: OrderKind | None) -> None:
    """One observation is whole, canonical and ordered as declared. Raises AssertionError."""
    where = f"{observation.kind} {observation.source_id!r}"
    assert 1 <= len(observation.source_id) <= 255, f"{where}: an id has 1 to 255 characters"
    assert observation.source_id.isprintable(), f"{where}: an id is printable"
    if order is OrderKind.OBSERVED:
        assert observation.version is None, f"{where}: an observed source has no versions"
    else:
        assert isinstance(observation.version, int), f"{where}: a version is an integer"
    for moment in (observation.changed_at, observation.effective_at):
        assert moment is None or moment.utcoffset() is not None, f"{where}: times are aware"
    if observation.body is not None:
        _check_body(where, observation.kind, observation.body)


def _check_body(where: str, kind: Kind, body: Mapping[str, Json]) -> None:
    missing, unknown = MEMBERS[kind] - body.keys(), body.keys() - MEMBERS[kind] - {"source_status"}
    assert not missing, f"{where}: missing {sorted(missing)}"
    assert not unknown, f"{where}: not of the contract: {sorted(unknown)}"
    if kind is Kind.SUBSCRIPTION:
        quantity = body["quantity"]
        canonical = isinstance(quantity, str) and re.fullmatch(r"(0|[1-9]\d*)(\.\d{0,5}[1-9])?", quantity)
        assert canonical, f"{where}: quantity {quantity!r} is no canonical decimal text"
        for name in ("start_date", "end_date", "activation_date", "cancellation_date"):
            date = body[name]
            assert date is None or re.fullmatch(r"\d{4}-\d\d-\d\d", date), f"{where}: {name} is YYYY-MM-DD"
        assert isinstance(body["trial"], bool), f"{where}: trial is true or false"
        assert isinstance(body["auto_renew"], bool), f"{where}: auto_renew is true or false"
        assert isinstance(body["characteristics"], dict), f"{where}: characteristics are an object"


def _listed(subject: Subject) -> Sequence[Observation]:
    source = subject.source
    if source is None or not subject.spec.capabilities.list:
        return []
    listed = list(source.list_all())
    assert {one.kind for one in listed} == set(Kind), "seed the system with accounts and subscriptions first"
    return listed


def _polled(subject: Subject, cursor: str | None) -> tuple[list[Observation], str | None]:
    source = subject.source
    assert source is not None, "who polls has a source client"
    observations: list[Observation] = []
    for _ in range(PAGES_MAX):
        page = source.poll(cursor)
        observations += page.observations
        cursor = page.cursor
        if not page.more:
            return observations, cursor
    raise AssertionError("the poll never ends")


def _calls(subject: Subject) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every call that the connector's capabilities allow, by name."""
    can, source, target = subject.spec.capabilities, subject.source, subject.target
    if source is not None:
        yield "source.check", source.check
        if can.fetch:
            yield "source.fetch", lambda: source.fetch(Kind.ACCOUNT, "a")
        if can.list:
            yield "source.list_all", lambda: list(source.list_all())
        if can.poll:
            yield "source.poll", lambda: source.poll(None)
    if target is not None:
        yield "target.check", target.check
        yield "target.look_up", lambda: target.look_up(Kind.ACCOUNT, "r")
        yield "target.write", lambda: target.write(next(sample_writes()))
        yield "target.changes", lambda: target.changes(None)
        yield "target.list_all", lambda: list(target.list_all())


def _modules(package: str) -> list[Path]:
    found = find_spec(package)
    assert found is not None, f"{package} cannot be imported"
    assert found.submodule_search_locations, f"{package} is a folder of modules"
    return [path for place in found.submodule_search_locations for path in sorted(Path(place).rglob("*.py"))]


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
