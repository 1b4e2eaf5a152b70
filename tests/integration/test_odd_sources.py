"""Sources that lie, stumble or refuse: nothing ends by it, nothing is called level, and what was ended comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bss_sync.domain.change import Kind
from bss_sync.domain.errors import GuardStopped, RemoteRefused
from bss_sync.jobs.reconciling import make_reconciler
from bss_sync.pipeline.reconcile import Request, Result
from bss_sync.ports.connector import Observation, Page
from connectors.simulator.faults import Fault
from tests.command_line import CommandLine, over
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world

NAMES = [f"sub-{number}" for number in range(1, 7)]


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, connection={"page_size": 4, "guard_count": 4}) as one:
        one.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
        for name in NAMES:
            one.simulator.reseller.put(SUBSCRIPTION, name, {"account_id": "x", "product": PRODUCT})
        one.settle()
        yield one


@pytest.fixture
def bss_sync(mirror: World, database: Database, server_home: Path) -> CommandLine:
    commands = over(database, server_home)
    key = mirror.app.settings.master_key
    assert key is not None
    commands.environment["BSS_SYNC_MASTER_KEY"] = key.get_secret_value()
    return commands


class Odd:
    """The simulator's client, but for what a test has it say."""

    answer_page = None
    """Its pages are only had as it says them."""

    def __init__(self, client: Any, **said: Callable[..., object]) -> None:
        self._client = client
        self.__dict__ |= said

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)

    def list_page(self, cursor: str | None) -> Page:
        page: Page = self._client.list_page(cursor)
        return page


class Lacking(Odd):
    """Its listing lacks some, and asked for one of them it has never heard of it."""

    def __init__(self, client: Any, lacks: Sequence[str], *, tells: bool = False) -> None:
        super().__init__(client)
        self._lacks, self._tells = lacks, tells
        self.asked: list[str] = []

    def list_page(self, cursor: str | None) -> Page:
        page = super().list_page(cursor)
        return replace(page, observations=[one for one in page.observations if one.source_id not in self._lacks])

    def fetch(self, kind: Kind, source_id: str) -> Observation | None:
        self.asked.append(source_id)
        told: Observation | None = self._client.fetch(kind, source_id) if self._tells else None
        return told


def _reconcile(one: World, client: object | None = None, **given: Any) -> Result:
    reconciler = make_reconciler(one.app)
    opened = one.work.poller.sources.source(one.source.id)

    class Sources:
        """The one source."""

        def source(self, *_connection: object, **_how: bool) -> object:
            return replace(opened, client=client)  # type: ignore[arg-type]  # it has all that is asked of it

    if client is not None:
        reconciler.sources = Sources()  # type: ignore[assignment]  # it is all that is asked of it
    result = reconciler.reconcile(Request(one.source.id, **given))
    one.process()
    one.deliver()
    return result


def _client(one: World) -> Any:
    return one.work.poller.sources.source(one.source.id).client


def _found(result: Result) -> list[tuple[str, str, str | None]]:
    return sorted((str(one.problem), one.source_id, one.cause and str(one.cause)) for one in result.differences)


def _live(one: World) -> int:
    found: int = one.value("select count(*) from subscription where deleted_at is null")
    return found


def test_who_is_absent_and_cannot_be_asked_for_is_named_unverified_and_nothing_is_called_level(
    mirror: World, bss_sync: CommandLine
) -> None:
    for name in NAMES[:3]:
        mirror.simulator.reseller.delete(SUBSCRIPTION, name, push=False)
        mirror.simulator.faults.add(Fault(path=f"/subscriptions/{name}", status=500))
    for more in (("--dry-run",), ()):
        mirror.calm()
        answer = bss_sync("reconcile", mirror.source.name, "--json", *more)
        assert answer.code == 3
        assert [(one["source_id"], one["cause"]) for one in answer.json["differences"]] == [
            (name, "unverified") for name in sorted(NAMES[:3], key=lambda name: mirror.record_id(SUBSCRIPTION, name))
        ]
        assert "could be asked for" in answer.json["source_error"]
    assert _live(mirror) == 6


def test_each_absent_record_is_asked_for_however_many_they_are(mirror: World) -> None:
    many = [f"more-{number:03}" for number in range(210)]
    for name in many:
        mirror.simulator.reseller.put(SUBSCRIPTION, name, {"account_id": "x", "product": PRODUCT})
    mirror.settle()
    mirror.execute("""update connection set settings = settings || '{"guard_count": 1000}'""")
    forgetful = Lacking(_client(mirror), many, tells=True)
    assert _found(_reconcile(mirror, forgetful, target=False)) == []
    assert sorted(forgetful.asked) == many
    assert _live(mirror) == 216


@pytest.mark.parametrize("way", ["listing", "snapshot"])
def test_what_was_ended_by_absence_lives_again_at_the_same_version_when_it_is_shown(mirror: World, way: str) -> None:
    lost = NAMES[:3]
    everything = list(_client(mirror).list_all())
    short: dict[str, Any]
    whole: dict[str, Any]
    if way == "listing":
        short, whole = {"client": Lacking(_client(mirror), lost)}, {}
    else:
        short, whole = {"snapshot": [one for one in everything if one.source_id not in lost]}, {"snapshot": everything}
    assert [one[:2] for one in _found(_reconcile(mirror, **short))] == [("extra", name) for name in lost]
    assert _live(mirror) == 3
    assert mirror.target_fields(SUBSCRIPTION, lost[0])["ended"] is True
    versions = "select source_id, version from stream where kind = 'subscription' order by 1"
    before = mirror.rows(versions)
    assert [one[:2] for one in _found(_reconcile(mirror, **whole))] == [("missing", name) for name in lost]
    assert _live(mirror) == 6
    assert mirror.rows(versions) == before, "at the version that it had"
    assert mirror.target_fields(SUBSCRIPTION, lost[0])["ended"] is False
    assert _found(_reconcile(mirror, **whole)) == []


def test_a_deletion_that_was_told_still_stands_at_its_own_version(mirror: World) -> None:
    shown = next(one for one in _client(mirror).list_all() if one.source_id == NAMES[0])
    mirror.simulator.reseller.delete(SUBSCRIPTION, NAMES[0])
    mirror.poll()
    gone = [one for one in _client(mirror).list_all() if one.source_id != NAMES[0]]
    told = mirror.value("select version from stream where source_id = :name", name=NAMES[0])
    result = _reconcile(mirror, snapshot=[*gone, replace(shown, version=told)])
    assert _found(result) == [("version_regressed", NAMES[0], "counted_anew")]
    assert _live(mirror) == 5


@pytest.mark.parametrize("status", [302, 401, 403, 404, 410, 418])
def test_a_source_that_refuses_its_listing_cannot_be_listed_and_the_target_is_compared(
    mirror: World, bss_sync: CommandLine, status: int
) -> None:
    target = mirror.simulator.distributor
    edited = next(one for one in target.records() if one["reference"] == str(mirror.record_id(SUBSCRIPTION, "sub-1")))
    target.edit(edited["id"], {"quantity": "99"}, user="anna")
    mirror.simulator.faults.add(Fault(method="GET", path="/subscriptions", status=status))
    answer = bss_sync("reconcile", mirror.source.name, "--dry-run", "--json")
    assert answer.code == 3
    assert ("redirects" if status == 302 else str(status)) in answer.json["source_error"]
    assert [(one["problem"], one["source_id"]) for one in answer.json["differences"]] == [("target_differs", "sub-1")]
    assert _live(mirror) == 6


def _standing(_cursor: str | None) -> Page:
    return Page([], "account:a1", more=True)


def _stumbling(_cursor: str | None) -> Page:
    raise TypeError("canary")


def _unreadable(_cursor: str | None) -> Page:
    raise RemoteRefused("/accounts was answered with something that is no object.", status=200)


@pytest.mark.parametrize(
    ("list_page", "words"),
    [(_standing, "does not advance"), (_stumbling, "TypeError in test_odd_sources.py"), (_unreadable, "no object")],
)
def test_a_listing_that_leads_nowhere_or_cannot_be_read_ends_nothing_and_says_why(
    mirror: World, list_page: Callable[[str | None], Page], words: str
) -> None:
    result = _reconcile(mirror, Odd(_client(mirror), list_page=list_page))
    assert words in (result.source_error or "")
    assert "canary" not in (result.source_error or "")
    assert (_found(result), result.target_error, _live(mirror)) == ([], None, 6)
    assert mirror.value("select state from run") == "done"


def test_a_second_comparison_over_the_same_ends_names_the_run_that_waits(mirror: World) -> None:
    for name in NAMES[:5]:
        mirror.simulator.reseller.delete(SUBSCRIPTION, name, push=False)
    with pytest.raises(GuardStopped) as first:
        _reconcile(mirror)
    waiting = mirror.value("select id from run where state = 'stopped'")
    assert first.value.run_id == waiting
    for quiet in (False, True):
        with pytest.raises(GuardStopped, match=str(waiting)) as again:
            _reconcile(mirror, quiet=quiet)
        assert again.value.run_id == waiting
    states = [row.state for row in mirror.rows("select state from run order by created_at")]
    assert states == ["stopped", "rejected"], "there is one run to decide on"
    mirror.simulator.reseller.delete(SUBSCRIPTION, NAMES[5], push=False)
    with pytest.raises(GuardStopped) as more:
        _reconcile(mirror)
    assert more.value.run_id != waiting, "other ends are another question"


def test_names_that_there_are_not_are_refused_with_those_that_there_are(mirror: World, bss_sync: CommandLine) -> None:
    for command, known in (
        (("reconcile", mirror.source.name, "--subtree", "nope"), "x"),
        (("reconcile", mirror.source.name, "--accept-source", "nope"), "sub-1"),
        (("run", "list", "--kind", "nope"), "reconcile, backfill"),
        (("run", "list", "--state", "nope"), "running, stopped"),
    ):
        answer = bss_sync(*command, "--json")
        assert (answer.code, answer.out) == (2, "")
        told = answer.problem["detail"] + answer.problem["next_step"]
        assert "'nope'" in told
        assert known in told
    assert mirror.value("select count(*) from run") == 0


def test_a_dry_run_refuses_what_its_execution_refuses(mirror: World, bss_sync: CommandLine) -> None:
    message = str(mirror.value("select id from message limit 1"))
    for command in (
        ("message", "discard", message, "--reason", " "),
        ("message", "discard", message, "--reason", ""),
        ("message", "replay", message, "--rate", "0"),
        ("message", "replay", message, "--rate", "-1"),
    ):
        for more in ((), ("--dry-run",)):
            answer = bss_sync(*command, *more, "--json")
            assert (answer.code, answer.problem["type"].rpartition("/")[2]) == (2, "invalid-request")
