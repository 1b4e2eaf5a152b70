"""Accounts, subscriptions and the tree over HTTP: the present, the past, lists that never skip (contract, HTTP)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from bss_sync.domain.change import Action, Kind, stream_id
from tests.api_world import ApiWorld, api_world, in_flight
from tests.door_sender import fresh_id, slug
from tests.servers import PostgresServer, short_folder

ACCOUNT, SUBSCRIPTION = Kind.ACCOUNT, Kind.SUBSCRIPTION


@pytest.fixture(scope="module")
def world(postgres_server: PostgresServer) -> Iterator[ApiWorld]:
    with postgres_server.database() as database, short_folder() as home, api_world(database, home) as one:
        yield one


def test_a_subscription_is_shown_as_the_contract_says(world: ApiWorld) -> None:
    shown = world.get(world.path_of(SUBSCRIPTION, "sub-x"))
    assert shown["id"] == str(world.id_of(SUBSCRIPTION, "sub-x"))
    assert shown["connection"] == "cloud-resell"
    assert (shown["source_id"], shown["version"]) == ("sub-x", 1)
    assert shown["quantity"] == 25
    assert (shown["account_id"], shown["parent_id"]) == ("cust-x", None)
    assert shown["account_record"] == str(world.id_of(ACCOUNT, "cust-x"))
    assert shown["status"] == shown["source_status"] == "active"
    assert shown["characteristics"] == {"domain": "customer-x.example"}
    assert shown["name"] == "Cloud Customer X - Business Premium"
    assert shown["bill_to"] == "Cloud Resell"
    assert shown["ownership"]["quantity"] == {"owner": "Cloud Resell", "locked": True}
    assert shown["ownership"]["price"] == {"owner": "Cloud", "locked": False}
    assert shown["effective_at"] == "2026-03-01T00:00:00Z"
    assert shown["updated_at"].endswith("Z")
    assert shown["deleted_at"] is None
    assert shown["orphaned"] is False
    assert world.get(world.path_of(SUBSCRIPTION, "addon-x"))["quantity"] == 1.5


def test_an_account_is_shown_with_the_distributors_fields(world: ApiWorld) -> None:
    shown = world.get(world.path_of(ACCOUNT, "cust-x"))
    assert (shown["name"], shown["parent_id"]) == ("Cloud Customer X", "lite-1")
    assert shown["parent_record"] == str(world.id_of(ACCOUNT, "lite-1"))
    assert (shown["notes"], shown["tags"], shown["responsible_user"]) == (None, [], None)
    assert world.get("/v1/accounts/" + shown["id"])["ownership"]["notes"] == {"owner": "Cloud", "locked": False}


def test_a_reseller_sees_its_own_rows_without_the_distributors_notes(world: ApiWorld) -> None:
    items = world.get("/v1/accounts", "reseller", limit=500)["items"]
    assert {item["connection"] for item in items} == {"cloud-resell"}
    assert not {"notes", "tags", "responsible_user"} & items[0].keys()
    assert not {"notes", "tags", "responsible_user"} & items[0]["ownership"].keys()
    shown = world.get(world.path_of(SUBSCRIPTION, "sub-x"), "reseller")
    assert "price" in shown
    assert not {"notes", "custom_fields", "bill_to_contact"} & shown.keys()
    foreign = world.client("reseller").get(world.path_of(SUBSCRIPTION, "sub-x", world.other))
    assert foreign.status_code == 404


def test_lists_filter_by_connection_source_id_and_state(world: ApiWorld) -> None:
    one = world.get("/v1/accounts", connection="cloud-other")["items"]
    assert [item["name"] for item in one] == ["Stranger's Customer"]
    by_id = world.get("/v1/subscriptions", connection=str(world.resell.id), source_id="sub-x")["items"]
    assert [item["id"] for item in by_id] == [str(world.id_of(SUBSCRIPTION, "sub-x"))]
    assert len(world.get("/v1/accounts", source_id="cust-x")["items"]) == 2
    assert world.client("auditor").get("/v1/accounts", params={"connection": "nobody"}).status_code == 404
    assert world.client("reseller").get("/v1/accounts", params={"connection": "cloud-other"}).status_code == 404


def test_a_deleted_account_orphans_its_children_and_is_left_out_of_lists(world: ApiWorld) -> None:
    parent, child, held = fresh_id("parent"), fresh_id("child"), fresh_id("held")
    world.say(ACCOUNT, parent, 1)
    world.say(ACCOUNT, child, 1, parent_id=parent)
    world.say(SUBSCRIPTION, held, 1, account_id=child)
    world.say(ACCOUNT, parent, 2, action=Action.DELETED)
    assert world.get("/v1/accounts", source_id=parent)["items"] == []
    deleted = world.get("/v1/accounts", source_id=parent, include_deleted="true")["items"]
    assert deleted[0]["deleted_at"] is not None
    assert [item["source_id"] for item in world.get("/v1/accounts", source_id=parent, state="deleted")["items"]] == [
        parent
    ]
    assert [item["source_id"] for item in world.get("/v1/accounts", source_id=child, state="orphaned")["items"]] == [
        child
    ]
    assert world.get(world.path_of(ACCOUNT, child))["orphaned"] is True
    assert world.get("/v1/subscriptions", source_id=held, state="orphaned")["items"] == []
    tenant = next(root for root in world.get("/v1/tree")["tree"] if root["name"] == "Cloud Resell")
    orphan = next(node for node in tenant["accounts"] if node["source_id"] == child)
    assert orphan["orphaned"] is True
    assert [node["source_id"] for node in orphan["subscriptions"]] == [held]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 501}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"cursor": "garbage"}, "cursor"),
        ({"cursor": "WyJhY2NvdW50cyJd"}, "cursor"),
        ({"cursor": "é"}, "cursor"),
        ({"state": "sleeping"}, "state"),
        ({"updated_since": "yesterday"}, "updated_since"),
        ({"as_of": "2026-02-30"}, "as_of"),
        ({"as_of": "2026-03-01T00:00:00"}, "as_of"),
        ({"recorded_as_of": "9999-12-31"}, "recorded_as_of"),
        ({"source_id": "a\x00b"}, "source_id"),
        ({"include_deleted": "perhaps"}, "include_deleted"),
    ],
)
def test_a_wrong_parameter_is_named(world: ApiWorld, parameters: dict[str, Any], field: str) -> None:
    response = world.client("auditor").get("/v1/subscriptions", params=parameters)
    assert response.status_code == 422
    assert [problem["field"] for problem in response.json()["errors"]] == [field]


def test_a_cursor_of_another_list_is_refused(world: ApiWorld) -> None:
    cursor = world.get("/v1/accounts")["next_cursor"]
    assert world.client("auditor").get("/v1/subscriptions", params={"cursor": cursor}).status_code == 422
    assert world.client("auditor").get("/v1/messages", params={"cursor": cursor}).status_code == 422


def test_an_id_that_is_none_is_not_found(world: ApiWorld) -> None:
    response = world.client("auditor").get("/v1/accounts/nobody")
    assert (response.status_code, slug(response)) == (404, "not-found")


def _all(world: ApiWorld, path: str, **parameters: Any) -> tuple[list[dict[str, Any]], str]:
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    for _ in range(100):
        given = parameters if cursor is None else {**parameters, "cursor": cursor}
        page = world.get(path, **given)
        items += page["items"]
        cursor = page["next_cursor"]
        if not page["has_more"]:
            return items, str(cursor)
    raise AssertionError("the list does not end")


def test_pages_give_every_row_once(world: ApiWorld) -> None:
    paged, _ = _all(world, "/v1/subscriptions", limit=2)
    whole = world.get("/v1/subscriptions", limit=500)["items"]
    assert [item["id"] for item in paged] == [item["id"] for item in whole]
    assert len({item["id"] for item in paged}) == len(paged) >= 6


def test_a_finished_list_resumed_gives_what_changed_since(world: ApiWorld) -> None:
    _, cursor = _all(world, "/v1/accounts")
    assert world.get("/v1/accounts", cursor=cursor)["items"] == []
    new = fresh_id("cust")
    world.say(ACCOUNT, new, 1)
    world.say(SUBSCRIPTION, fresh_id("sub"), 1, account_id=new)
    later = world.get("/v1/accounts", cursor=cursor)
    assert [item["source_id"] for item in later["items"]] == [new]
    assert world.get("/v1/accounts", cursor=later["next_cursor"])["items"] == []


@pytest.mark.parametrize("limit", [1, 500])
def test_a_lower_transaction_that_commits_later_is_never_skipped(world: ApiWorld, limit: int) -> None:
    """Goals, reliability 18: the list is read to its end, also page by page, while an older writer is in flight."""
    late = in_flight(
        world.app,
        "update account set change_xid = pg_current_xact_id() where id = :id",
        id=world.id_of(ACCOUNT, "cust-y"),
    )
    quick = world.id_of(ACCOUNT, "cust-z")
    world.execute("update account set change_xid = pg_current_xact_id() where id = :id", id=quick)
    items, cursor = _all(world, "/v1/accounts", limit=limit)
    assert items[-1]["id"] == str(quick), "a quick writer is seen at once, although an older one is in flight"
    late.commit()
    resumed, last = _all(world, "/v1/accounts", limit=limit, cursor=cursor)
    assert str(world.id_of(ACCOUNT, "cust-y")) in [item["id"] for item in resumed]
    assert world.get("/v1/accounts", cursor=last)["items"] == []


def test_what_commits_between_two_pages_behind_the_first_is_not_skipped(world: ApiWorld) -> None:
    touch = "update account set change_xid = pg_current_xact_id() where id = :id"
    late = in_flight(world.app, touch, id=world.id_of(ACCOUNT, "cust-y"))
    for source_id in ("cust-x", "cust-z"):
        world.execute(touch, id=world.id_of(ACCOUNT, source_id))
    whole = world.get("/v1/accounts", limit=500)["items"]
    first = world.get("/v1/accounts", limit=len(whole) - 1)
    assert (first["items"][-1]["source_id"], first["has_more"]) == ("cust-x", True)
    late.commit()
    rest = world.get("/v1/accounts", cursor=first["next_cursor"])
    assert [item["source_id"] for item in rest["items"]] == ["cust-z"]
    resumed = world.get("/v1/accounts", cursor=rest["next_cursor"])
    assert "cust-y" in [item["source_id"] for item in resumed["items"]]


def test_a_cursor_from_before_a_restore_starts_anew(world: ApiWorld) -> None:
    _, cursor = _all(world, "/v1/accounts")
    from bss_sync.adapters.sql.reading.paging import decode_cursor, encode_cursor

    name, xid, key, _ = decode_cursor(cursor)
    unknown = "00000000-0000-0000-0000-000000000001"
    for old in ([name, xid + 10**6, key, None], [name, xid, key, None, unknown]):
        page = world.get("/v1/accounts", cursor=encode_cursor(old), limit=500)
        assert (len(page["items"]) >= 4, page["anew"]) == (True, True)


def test_updated_since_is_inclusive(world: ApiWorld) -> None:
    shown = world.get(world.path_of(ACCOUNT, "cust-x"))
    found = world.get("/v1/accounts", updated_since=shown["updated_at"], limit=500)["items"]
    assert shown["id"] in [item["id"] for item in found]
    assert world.get("/v1/accounts", updated_since="2999-01-01")["items"] == []


def test_the_past_is_answered_from_history(world: ApiWorld) -> None:
    source_id = fresh_id("sub")
    world.say(SUBSCRIPTION, source_id, 1, at="2026-03-01T10:00:00Z", quantity="10")
    world.say(SUBSCRIPTION, source_id, 3, at="2026-03-20T10:00:00Z", quantity="30", account_id="cust-y")
    path = world.path_of(SUBSCRIPTION, source_id)
    before_late = world.value("select now()").isoformat()
    world.say(SUBSCRIPTION, source_id, 2, at="2026-03-10T10:00:00Z", quantity="20")
    assert world.get(path)["quantity"] == 30, "a late lower version never changes the present"
    then = world.get(path, as_of="2026-03-15")
    assert (then["quantity"], then["version"]) == (20, 2)
    assert world.get(path, as_of="2026-03-15", recorded_as_of=before_late)["quantity"] == 10
    assert world.get(path, as_of="2026-03-25")["name"] == "Cloud Customer Y - Business Premium"
    assert then["name"] == "Cloud Customer X - Business Premium"
    assert "price" not in then, "what the distributor owns has no history"
    assert world.client("auditor").get(path, params={"as_of": "2026-02-28"}).status_code == 404
    listed = world.get("/v1/subscriptions", source_id=source_id, as_of="2026-03-15")["items"]
    assert listed == [then]
    assert world.get("/v1/subscriptions", source_id=source_id, as_of="2026-02-28")["items"] == []


def test_a_bare_date_is_the_end_of_the_day_where_the_distributor_is(world: ApiWorld) -> None:
    source_id = fresh_id("sub")
    world.say(SUBSCRIPTION, source_id, 1, at="2026-03-31T21:59:59Z", quantity="1")
    world.say(SUBSCRIPTION, source_id, 2, at="2026-03-31T22:00:00Z", quantity="2")
    path = world.path_of(SUBSCRIPTION, source_id)
    assert world.get(path, as_of="2026-03-31")["quantity"] == 1, "midnight in Berlin is 22:00 UTC in summer"
    assert world.get(path, as_of="2026-03-31T22:00:00Z")["quantity"] == 2
    assert world.get(path, as_of="2026-04-01T00:00:00+02:00")["quantity"] == 2


def test_the_past_can_be_read_page_by_page(world: ApiWorld) -> None:
    paged, _ = _all(world, "/v1/subscriptions", limit=2, as_of="2026-03-02")
    whole = world.get("/v1/subscriptions", limit=500, as_of="2026-03-02")["items"]
    assert [item["id"] for item in paged] == [item["id"] for item in whole]
    assert len(whole) >= 6


def test_who_was_under_whom_then(world: ApiWorld) -> None:
    child = fresh_id("moved")
    world.say(ACCOUNT, child, 1, at="2026-03-01T00:00:00Z", parent_id="lite-1")
    world.say(SUBSCRIPTION, fresh_id("sub"), 1, account_id=child)
    world.say(ACCOUNT, child, 2, at="2026-04-10T00:00:00Z", parent_id="cust-z")
    assert _parent_in_tree(world.get("/v1/tree", connection="cloud-resell"), child) == "cust-z"
    assert _parent_in_tree(world.get("/v1/tree", connection="cloud-resell", as_of="2026-03-31"), child) == "lite-1"


def test_two_accounts_below_each_other_in_the_past_are_shown_once_each(world: ApiWorld) -> None:
    """They swapped places in two messages that took effect on different days: between them the past has a ring."""
    upper, lower = fresh_id("upper"), fresh_id("lower")
    world.say(ACCOUNT, upper, 1, at="2026-03-01T00:00:00Z", name=upper)
    world.say(ACCOUNT, lower, 1, at="2026-03-01T00:00:00Z", name=lower, parent_id=upper)
    held = fresh_id("sub")
    world.say(SUBSCRIPTION, held, 1, account_id=lower)
    world.say(ACCOUNT, lower, 2, at="2026-03-20T00:00:00Z", name=lower)
    world.say(ACCOUNT, upper, 2, at="2026-03-10T00:00:00Z", name=upper, parent_id=lower)
    ringed = world.client("auditor").get("/v1/tree", params={"as_of": "2026-03-15"})
    names = [f'"name":"{name}"' for name in (upper, lower)]
    assert [ringed.text.count(name) for name in names] == [1, 1]
    assert ringed.text.count('"cycle":true') == 1
    assert ringed.text.count(f'"source_id":"{held}"') == 1
    assert '"cycle":true' not in world.client("auditor").get("/v1/tree").text


def _parent_in_tree(tree: dict[str, Any], source_id: str) -> str | None:
    stack = [(root, None) for root in tree["tree"]]
    while stack:
        node, parent = stack.pop()
        if node.get("source_id") == source_id:
            return parent
        stack.extend((child, node.get("source_id")) for child in node.get("accounts", []))
    raise AssertionError(f"{source_id} is not in the tree")


def test_the_tree_has_the_shape_of_the_resellers(world: ApiWorld) -> None:
    tenant = next(root for root in world.get("/v1/tree")["tree"] if root["name"] == "Cloud Resell")
    assert tenant["kind"] == "tenant"
    lite = next(node for node in tenant["accounts"] if node["source_id"] == "lite-1")
    assert lite["kind"] == "reseller"
    below = {node["name"]: node for node in lite["accounts"]}
    assert {"Cloud Customer X", "Cloud Customer Y"} <= below.keys()
    held = next(node for node in below["Cloud Customer X"]["subscriptions"] if node["source_id"] == "sub-x")
    assert [node["source_id"] for node in held["subscriptions"]] == ["addon-x"]
    assert "sub-own" in [node["source_id"] for node in tenant["subscriptions"]]
    own = world.get("/v1/tree", "reseller")["tree"]
    assert [root["name"] for root in own] == ["Cloud Resell"]
    assert world.client("reseller").get("/v1/tree", params={"connection": "cloud-other"}).status_code == 404


def _cut_out(tree: dict[str, Any], source_id: str) -> dict[str, Any]:
    """The tenant of the whole tree with that one account below it, which stands directly below the tenant."""
    for root in tree["tree"]:
        found = [node for node in root["accounts"] if node["source_id"] == source_id]
        if found:
            return {**root, "accounts": found, "subscriptions": []}
    raise AssertionError(f"{source_id} is not in the tree")


@pytest.mark.parametrize("moment", [{}, {"as_of": "2126-01-01"}], ids=["now", "as of"])
def test_the_tree_of_one_account_is_that_part_of_the_whole_tree(world: ApiWorld, moment: dict[str, str]) -> None:
    lite = world.path_of(ACCOUNT, "lite-1").rpartition("/")[2]
    cut = world.get("/v1/tree", subtree=lite, **moment)["tree"]
    assert cut == [_cut_out(world.get("/v1/tree", **moment), "lite-1")]
    below = world.path_of(ACCOUNT, "cust-x").rpartition("/")[2]
    (root,) = world.get("/v1/tree", subtree=below, **moment)["tree"]
    assert [node["source_id"] for node in root["accounts"]] == ["cust-x"]
    assert "sub-x" in [node["source_id"] for node in root["accounts"][0]["subscriptions"]]
    assert world.get("/v1/tree", "reseller", subtree=lite, **moment)["tree"] == cut


def test_the_tree_of_a_foreign_account_is_not_there(world: ApiWorld) -> None:
    foreign = stream_id(world.other.id, Kind.ACCOUNT, "cust-x")
    for subtree in (uuid4(), foreign):
        assert world.client("reseller").get("/v1/tree", params={"subtree": str(subtree)}).status_code == 404


def test_history_names_what_changed_and_by_which_message(world: ApiWorld) -> None:
    source_id = fresh_id("sub")
    first = world.say(SUBSCRIPTION, source_id, 1, quantity="10")
    third = world.say(SUBSCRIPTION, source_id, 3, quantity="30", at="2026-03-20T00:00:00Z")
    second = world.say(SUBSCRIPTION, source_id, 2, quantity="20", at="2026-03-10T00:00:00Z")
    path = world.path_of(SUBSCRIPTION, source_id) + "/history"
    items, cursor = _all(world, path, limit=1)
    assert [item["message"]["message_id"] for item in items] == [first, third, second]
    assert [item["late"] for item in items] == [False, False, True]
    assert items[0]["changes"]["quantity"] == {"from": None, "to": 10}
    assert items[1]["changes"] == {"quantity": {"from": 10, "to": 30}}
    assert items[2]["changes"] == {"quantity": {"from": 10, "to": 20}}
    world.say(SUBSCRIPTION, source_id, 4, action=Action.DELETED, at="2026-03-25T00:00:00Z")
    (deleted,) = world.get(path, cursor=cursor)["items"]
    assert deleted["deleted"] is True


def test_a_list_is_given_as_csv_without_formulas(world: ApiWorld) -> None:
    risky = fresh_id("cust")
    world.say(ACCOUNT, risky, 1, name="=1+1")
    world.say(SUBSCRIPTION, fresh_id("sub"), 1, account_id=risky)
    response = world.client("auditor").get("/v1/accounts", params={"source_id": risky}, headers={"accept": "text/csv"})
    assert response.headers["content-type"].startswith("text/csv")
    (row,) = csv.DictReader(io.StringIO(response.text))
    assert row["name"] == "'=1+1"
    assert response.headers["x-next-cursor"]


def test_a_tree_of_any_depth_is_written() -> None:
    from uuid import uuid4

    from bss_sync.adapters.sql.reading.tree import Node, walk
    from bss_sync.web.api.hierarchy import write_tree

    root = node = Node("tenant", uuid4(), "deep", {})
    for depth in range(20_000):
        below = Node("customer", uuid4(), str(depth), {})
        node.accounts.append(below)
        node = below
    assert max(depth for depth, _ in walk([root])) == 20_000
    written = "".join(write_tree([root]))
    assert written.count('"accounts":[') == 20_001
    assert written.endswith("]}")
