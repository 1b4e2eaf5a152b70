"""A message's story by one id: everything that happened to it, in order, whoever asks and however."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bss_sync.adapters.sql.reading.reach import EVERYTHING
from bss_sync.adapters.sql.reading.story import tell_story
from bss_sync.domain.change import Action, Kind
from bss_sync.domain.errors import NotFound
from bss_sync.jobs.reconciling import make_replayer
from connectors.simulator.faults import Fault
from tests.api_world import ApiWorld, api_world
from tests.command_line import over
from tests.servers import Database, PostgresServer, short_folder
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world


@pytest.fixture(scope="module")
def told(postgres_server: PostgresServer) -> Iterator[ApiWorld]:
    with postgres_server.database() as database, short_folder() as home, api_world(database, home) as one:
        yield one


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, connection={"account_scope": "all"}) as one:
        yield one


def _story(one: World, message: object) -> dict[str, Any]:
    with one.app.database.engine() as connection:
        return tell_story(connection, EVERYTHING, str(message))


def _words(story: dict[str, Any]) -> list[str]:
    return [step["step"] for step in story["steps"]]


def _only(story: dict[str, Any], word: str) -> dict[str, Any]:
    (found,) = (step for step in story["steps"] if step["step"] == word)
    return dict(found)


def _newest(one: World, source_id: str) -> object:
    return one.value("select id from message where source_id = :id order by seq desc limit 1", id=source_id)


def _make_due(one: World) -> None:
    one.execute("update delivery set due_at = now(), lease_until = null where due_at is not null")


def test_a_message_that_went_through_is_told_from_its_arrival_to_its_confirmation(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
    mirror.simulator.reseller.put(SUBSCRIPTION, "sub", {"account_id": "x", "product": PRODUCT, "quantity": 5})
    mirror.settle()
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub", {"quantity": 8})
    mirror.settle()
    story = _story(mirror, _newest(mirror, "sub"))
    assert _words(story) == ["received", "applied", "changed", "confirmed"]
    assert [step["at"] for step in story["steps"]] == sorted(step["at"] for step in story["steps"])
    assert _only(story, "received")["origin"] == "poll"
    assert _only(story, "changed")["fields"] == {"quantity": {"from": 5, "to": 8}}
    confirmed = _only(story, "confirmed")
    external = {one["reference"]: one["id"] for one in mirror.simulator.distributor.records()}
    assert confirmed["external_id"] == external[str(mirror.record_id(SUBSCRIPTION, "sub"))]
    assert "updated in the distributor's BSS" in confirmed["words"]


def test_what_was_replaced_says_by_which_message(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
    mirror.simulator.reseller.put(SUBSCRIPTION, "sub", {"account_id": "x", "product": PRODUCT, "quantity": 5})
    mirror.settle()
    first = _newest(mirror, "sub")
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub", {"quantity": 8})
    mirror.settle()
    assert _only(_story(mirror, first), "replaced")["by"]["id"] == str(_newest(mirror, "sub"))


def test_failed_attempts_and_a_lost_answer_are_told_before_the_confirmation(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
    mirror.poll()
    mirror.simulator.faults.add(Fault(method="POST", path="/records", status=503, times=1))
    mirror.deliver()
    _make_due(mirror)
    mirror.simulator.faults.add(Fault(method="POST", path="/records", apply_then_drop=True, times=4))
    mirror.deliver()
    middle = _story(mirror, _newest(mirror, "x"))
    assert _words(middle)[-1] in ("undelivered", "unknown")
    _make_due(mirror)
    mirror.deliver()
    story = _story(mirror, _newest(mirror, "x"))
    assert _words(story)[3:] == ["failed", "unknown", "confirmed"]
    assert "whose answer was lost" in _only(story, "confirmed")["words"]


def test_a_record_that_was_refused_for_good_says_so(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
    mirror.poll()
    mirror.simulator.faults.add(Fault(method="POST", path="/records", status=422, times=1))
    mirror.deliver()
    story = _story(mirror, _newest(mirror, "x"))
    assert _words(story)[-2:] == ["changed", "refused"]


def test_an_edit_behind_the_systems_back_belongs_to_the_story(mirror: World) -> None:
    mirror.simulator.reseller.put(ACCOUNT, "x", {"name": "Customer X"})
    mirror.settle()
    (record,) = mirror.simulator.distributor.records()
    mirror.simulator.distributor.edit(record["id"], {"name": "Somebody"}, user="mara")
    mirror.execute("update target set poll_due_at = now()")
    mirror.work.poll()
    mirror.deliver()
    story = _story(mirror, _newest(mirror, "x"))
    assert _only(story, "drifted")["changed_by"] == "mara"
    assert _words(story)[-1] == "settled"


def test_without_an_external_bss_the_mirror_is_the_end(told: ApiWorld) -> None:
    story = told.get("/v1/messages/cloud-resell/first-of-sub-x/story")
    assert _words(story) == ["received", "waited", "applied", "changed", "confirmed"]
    assert "which is the distributor's BSS here" in story["steps"][-1]["words"]


def test_a_message_that_waited_says_for_what_and_how_long(told: ApiWorld) -> None:
    waiting = told.say(Kind.SUBSCRIPTION, "sub-late", 1, account_id="cust-late")
    path = f"/v1/messages/cloud-resell/{waiting}/story"
    assert _words(told.get(path)) == ["received", "waits"]
    assert "account_unknown: account cust-late" in told.get(path)["steps"][-1]["words"]
    told.say(Kind.ACCOUNT, "cust-late", 1)
    story = told.get(path)
    assert _words(story)[:3] == ["received", "waited", "applied"]
    waited = _only(story, "waited")
    assert waited["reason"] == "account_unknown: account cust-late"
    assert waited["seconds"] > 0


def test_a_superseded_message_names_the_one_that_was_there(told: ApiWorld) -> None:
    newer = told.say(Kind.ACCOUNT, "cust-s", 3, name="Third")
    told.say(Kind.SUBSCRIPTION, "sub-s", 1, account_id="cust-s")
    late = told.say(Kind.ACCOUNT, "cust-s", 2, name="Second")
    story = told.get(f"/v1/messages/cloud-resell/{late}/story")
    assert _words(story) == ["received", "superseded", "changed"]
    assert _only(story, "superseded")["by"]["message_id"] == newer
    assert _only(story, "changed")["late"] is True


def test_a_held_message_that_was_overtaken_says_so(told: ApiWorld) -> None:
    held = told.say(Kind.SUBSCRIPTION, "sub-y", 5, account_id="cust-y", status="hibernating")
    path = f"/v1/messages/cloud-resell/{held}/story"
    story = told.get(path)
    assert _words(story) == ["received", "held"]
    assert "status = 'hibernating'" in story["steps"][-1]["words"]
    newer = told.say(Kind.SUBSCRIPTION, "sub-y", 6, account_id="cust-y")
    story = told.get(path)
    assert _words(story) == ["received", "held", "superseded"]
    assert story["steps"][-1]["by"]["message_id"] == newer


def test_replaying_and_giving_up_are_told_with_who_did_it(told: ApiWorld) -> None:
    held = told.say(Kind.SUBSCRIPTION, "sub-g", 1, status="hibernating")
    replayer = make_replayer(told.app)
    message = told.value("select id from message where message_id = :id", id=held)
    replayer.replay([message], actor="cli:mara")
    told.process()
    replayer.discard([message], "sent by mistake", actor="cli:mara")
    story = told.get(f"/v1/messages/{message}/story")
    assert _words(story) == ["received", "held", "replayed", "held", "discarded"]
    assert story["steps"][-1]["words"] == "discarded by cli:mara: sent by mistake"


def test_dropped_members_are_named_and_never_shown(told: ApiWorld) -> None:
    said = told.say(Kind.ACCOUNT, "cust-d", 1)
    told.execute("update message set dropped = '{sales_price}' where message_id = :id", id=said)
    story = told.get(f"/v1/messages/cloud-resell/{said}/story")
    assert _only(story, "received")["dropped"] == ["sales_price"]


def test_what_stays_out_of_scope_says_why(told: ApiWorld) -> None:
    said = told.say(Kind.SUBSCRIPTION, "sub-trial", 1, trial=True)
    assert _words(told.get(f"/v1/messages/cloud-resell/{said}/story")) == ["received", "out_of_scope"]


def test_a_deletion_is_told(told: ApiWorld) -> None:
    told.say(Kind.SUBSCRIPTION, "sub-gone", 1)
    said = told.say(Kind.SUBSCRIPTION, "sub-gone", 2, action=Action.DELETED)
    story = told.get(f"/v1/messages/cloud-resell/{said}/story")
    assert story["steps"][0]["words"].endswith("the deletion of subscription sub-gone, version 2")
    assert _only(story, "changed")["words"].endswith("; deleted")


def test_a_senders_id_may_hold_slashes(told: ApiWorld) -> None:
    told.say(Kind.ACCOUNT, "cust-slash", 1, message_id="urn:shop/eu/1")
    story = told.get("/v1/messages/cloud-resell/urn:shop/eu/1/story")
    assert story["message_id"] == "urn:shop/eu/1"


def test_a_reseller_is_told_of_the_mirror_and_of_its_own_messages_only(told: ApiWorld) -> None:
    own = told.get("/v1/messages/cloud-resell/first-of-sub-x/story", who="reseller")
    assert _words(own) == ["received", "waited", "applied", "changed"]
    foreign = told.client("stranger").get("/v1/messages/cloud-resell/first-of-sub-x/story")
    assert foreign.status_code == 404


@pytest.mark.parametrize(
    "wanted", ["nothing", "cloud-resell/nothing", "nowhere/first-of-sub-x", "%00/x", "cloud-resell/"]
)
def test_what_there_is_not_is_not_found(told: ApiWorld, wanted: str) -> None:
    answer: httpx.Response = told.client("auditor").get(f"/v1/messages/{wanted}/story")
    assert answer.status_code in (404, 422)
    assert answer.status_code < 500


def test_the_command_line_tells_the_same(told: ApiWorld, database: Database, server_home: Path) -> None:
    url = told.app.settings.database_url
    assert url is not None
    run = over(database, server_home)
    run.environment["BSS_SYNC_DATABASE_URL"] = url.get_secret_value()
    del run.environment["BSS_SYNC_DATABASE_OWNER_URL"]
    shown = run.ok("message", "story", "cloud-resell/first-of-sub-x")
    lines = shown.out.splitlines()
    assert lines[0].startswith("first-of-sub-x (")
    assert [line.split("Z  ")[1].split(" ")[0] for line in lines[3:]] == [
        "received",
        "waited",
        "applied",
        "new",
        "there",
    ]
    as_json = run.ok("message", "story", "cloud-resell/first-of-sub-x", "--json").json
    assert as_json == told.get("/v1/messages/cloud-resell/first-of-sub-x/story")
    missing = run("message", "story", "cloud-resell/never-sent")
    assert missing.code == 2


def test_a_conflicting_repetition_is_part_of_the_story(told: ApiWorld) -> None:
    said = told.say(Kind.ACCOUNT, "cust-c", 1, message_id="twice")
    with pytest.raises(AssertionError, match="another body"):
        told.say(Kind.ACCOUNT, "cust-c", 1, message_id="twice", name="Other")
    assert "refused" in _words(told.get(f"/v1/messages/cloud-resell/{said}/story"))


def test_nothing_is_told_beyond_the_reach(told: ApiWorld) -> None:
    from bss_sync.adapters.sql.reading.reach import Reach

    with told.app.database.engine() as connection, pytest.raises(NotFound):
        tell_story(connection, Reach(told.other.tenant_id), "cloud-resell/first-of-sub-x")
