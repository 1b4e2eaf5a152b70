"""What may be written over HTTP, what is refused with its owner's name, and that both are recorded (domain 4 and 5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from bss_sync.domain.change import Action, Kind
from bss_sync.domain.permissions import REFUSED_OPERATIONS
from tests.api_world import ApiWorld, api_world
from tests.at_once import at_once
from tests.door_sender import fields, fresh_id, slug
from tests.servers import PostgresServer, short_folder

ACCOUNT, SUBSCRIPTION = Kind.ACCOUNT, Kind.SUBSCRIPTION


@pytest.fixture(scope="module")
def world(postgres_server: PostgresServer) -> Iterator[ApiWorld]:
    with postgres_server.database() as database, short_folder() as home, api_world(database, home) as one:
        yield one


@pytest.fixture
def subscription(world: ApiWorld) -> str:
    """A subscription of its own for each test: its source id."""
    source_id = fresh_id("sub")
    world.say(SUBSCRIPTION, source_id, 1)
    return source_id


def test_own_fields_are_edited_and_recorded(world: ApiWorld) -> None:
    path = world.path_of(ACCOUNT, "cust-x")
    operator = world.client("operator")
    response = operator.patch(path, json={"notes": "calls", "tags": ["a", "b", "a"], "responsible_user": "mara"})
    assert response.status_code == 200, response.text
    assert response.json()["tags"] == ["a", "b"]
    assert world.get(path)["notes"] == "calls"
    assert operator.patch(path, json={"notes": None, "tags": None, "responsible_user": None}).status_code == 200
    cleared = world.get(path)
    assert (cleared["notes"], cleared["tags"], cleared["responsible_user"]) == (None, [], None)
    edits = world.audits("field.edited", world.id_of(ACCOUNT, "cust-x"))
    assert edits[-2]["changes"]["notes"] == {"from": None, "to": "calls"}
    assert operator.patch(path, json={"notes": None}).status_code == 200
    assert len(world.audits("field.edited", world.id_of(ACCOUNT, "cust-x"))) == len(edits), "nothing changed"


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("9.90", {"amount": "9.90", "currency": "EUR"}),
        (9.9, {"amount": "9.9", "currency": "EUR"}),
        (0, {"amount": "0", "currency": "EUR"}),
        ({"amount": "12.5", "currency": "USD"}, {"amount": "12.5", "currency": "USD"}),
        (None, None),
    ],
)
def test_a_price_is_kept_as_it_was_written(world: ApiWorld, subscription: str, sent: Any, stored: Any) -> None:
    path = world.path_of(SUBSCRIPTION, subscription)
    response = world.client("operator").patch(path, json={"price": sent})
    assert response.status_code == 200, response.text
    assert response.json()["price"] == stored
    assert world.get(path, "reseller")["price"] == stored


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"price": -1}, "price"),
        ({"price": "1e3"}, "price"),
        ({"price": True}, "price"),
        ({"price": {"currency": "EUR"}}, "price"),
        ({"price": {"amount": "1", "currency": "euro"}}, "price"),
        ({"price": {"amount": "1", "tax": "2"}}, "price"),
        ({"custom_fields": {"a": {"b": 1}}}, "custom_fields"),
        ({"custom_fields": []}, "custom_fields"),
        ({"bill_to_contact": 5}, "bill_to_contact"),
        ({"notes": ["x"]}, "notes"),
        ({"notes": "x" * 20_001}, "notes"),
        ({"tags": []}, "tags"),
        ({"id": "other"}, "id"),
        ({"tenant_id": "other"}, "tenant_id"),
        ({"deleted_at": None}, "deleted_at"),
        ({"revision": 9, "notes": "x"}, "revision"),
    ],
)
def test_a_wrong_or_unknown_field_changes_nothing(
    world: ApiWorld, subscription: str, body: dict[str, Any], field: str
) -> None:
    path = world.path_of(SUBSCRIPTION, subscription)
    before = world.get(path)
    response = world.client("operator").patch(path, json=body)
    assert (response.status_code, slug(response)) == (422, "invalid-request")
    assert fields(response) == [field]
    assert world.get(path) == before


def test_one_locked_field_changes_nothing_and_every_locked_field_is_named(world: ApiWorld, subscription: str) -> None:
    path = world.path_of(SUBSCRIPTION, subscription)
    before = world.get(path)
    response = world.client("admin").patch(path, json={"notes": "x", "quantity": 30, "status": "cancelled", "new": 1})
    assert (response.status_code, slug(response)) == (409, "field-locked")
    assert response.json()["errors"] == [
        {"field": name, "detail": "owned by Cloud Resell, locked here", "owner": "Cloud Resell"}
        for name in ("quantity", "status")
    ]
    assert world.get(path) == before
    (recorded,) = world.audits("field.refused", world.id_of(SUBSCRIPTION, subscription))
    assert recorded == {"fields": {"quantity": "30", "status": "cancelled"}, "owner": "Cloud Resell"}


@pytest.mark.parametrize("kind", list(Kind))
def test_every_operation_of_the_reseller_is_refused_naming_it(world: ApiWorld, kind: Kind) -> None:
    source_id = "cust-y" if kind is ACCOUNT else "sub-y"
    path = world.path_of(kind, source_id) + "/operations"
    for operation in REFUSED_OPERATIONS[kind]:
        response = world.client("admin").post(path, json={"operation": operation})
        assert (response.status_code, slug(response)) == (403, "operation-refused")
        assert "Cloud Resell" in response.json()["detail"]
        assert response.json()["errors"][0]["owner"] == "Cloud Resell"
    recorded = world.audits("operation.refused", world.id_of(kind, source_id))
    assert [entry["operation"] for entry in recorded] == list(REFUSED_OPERATIONS[kind])
    unknown = world.client("admin").post(path, json={"operation": "explode"})
    assert (unknown.status_code, slug(unknown)) == (422, "invalid-request")
    for body in ({}, {"operation": 1}, {"operation": "cancel", "why": "x"}):
        assert world.client("admin").post(path, json=body).status_code == 422


def test_a_deleted_record_keeps_its_fields(world: ApiWorld, subscription: str) -> None:
    path = world.path_of(SUBSCRIPTION, subscription)
    world.say(SUBSCRIPTION, subscription, 2, action=Action.DELETED)
    response = world.client("admin").patch(path, json={"notes": "x"})
    assert (response.status_code, slug(response)) == (409, "state-conflict")


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"notes": "a", "notes": "b"}', "application/json", 400),
        (b'{"notes": NaN}', "application/json", 400),
        (b"[]", "application/json", 422),
        (b'{"notes": "\\u0000"}', "application/json", 422),
        (b'{"notes": "\\ud800"}', "application/json", 422),
        (b"notes=1", "application/x-www-form-urlencoded", 415),
        (b'{"notes": ' + b"[" * 50 + b"]" * 50 + b"}", "application/json", 413),
        (b'{"notes": "' + b"x" * 300_000 + b'"}', "application/json", 413),
    ],
)
def test_a_malformed_body_is_a_problem_and_never_a_defect(
    world: ApiWorld, content: bytes, media_type: str, status: int
) -> None:
    path = world.path_of(SUBSCRIPTION, "sub-x")
    response = world.client("operator").patch(path, content=content, headers={"content-type": media_type})
    assert response.status_code == status, response.text
    assert slug(response)


def test_explain_names_owner_writer_and_refusals(world: ApiWorld, subscription: str) -> None:
    path = world.path_of(SUBSCRIPTION, subscription)
    second = world.say(SUBSCRIPTION, subscription, 2, quantity="26", at="2026-03-10T00:00:00Z")
    world.say(SUBSCRIPTION, subscription, 3, quantity="26", status="suspended", at="2026-03-20T00:00:00Z")
    world.client("operator").patch(path, json={"quantity": 99})
    world.client("operator").patch(path, json={"price": "5"})
    world.client("operator").post(path + "/operations", json={"operation": "cancel"})
    answer = world.get(path + "/explain")
    explained = {item["field"]: item for item in answer["fields"]}
    quantity = explained["quantity"]
    assert (quantity["owner"], quantity["locked"], quantity["value"]) == ("Cloud Resell", True, 26)
    assert quantity["written_by"]["message"]["message_id"] == second
    assert quantity["written_by"]["version"] == 2
    assert [attempt["value"] for attempt in quantity["refused"]] == ["99"]
    assert quantity["refused"][0]["actor"] == "token:test operator"
    assert explained["status"]["written_by"]["version"] == 3
    assert explained["price"]["owner"] == "Cloud"
    assert explained["price"]["written_by"]["actor"] == "token:test operator"
    assert explained["notes"]["written_by"] is None
    assert [attempt["operation"] for attempt in answer["refused_operations"]] == ["cancel"]
    one = world.get(path + "/explain", field="quantity")["fields"]
    assert one == [quantity]
    assert world.client("auditor").get(path + "/explain", params={"field": "colour"}).status_code == 422


def test_a_reseller_is_not_told_what_the_distributor_tried(world: ApiWorld, subscription: str) -> None:
    path = world.path_of(SUBSCRIPTION, subscription)
    world.client("operator").patch(path, json={"quantity": 99})
    answer = world.get(path + "/explain", "reseller")
    assert "refused_operations" not in answer
    names = {item["field"] for item in answer["fields"]}
    assert "price" in names
    assert not {"notes", "custom_fields", "bill_to_contact"} & names
    assert all("refused" not in item and "lock_violations" not in item for item in answer["fields"])
    hidden = world.client("reseller").get(path + "/explain", params={"field": "notes"})
    assert hidden.status_code == 422


def test_an_admin_takes_a_field_over_edits_it_and_gives_it_back(world: ApiWorld, subscription: str) -> None:
    path = world.path_of(SUBSCRIPTION, subscription)
    admin, operator = world.client("admin"), world.client("operator")
    taken = admin.post(path + "/fields/quantity/take", json={"reason": "wrong in the source"})
    assert taken.status_code == 200, taken.text
    assert taken.json()["value"] == 25
    refused = operator.patch(path, json={"quantity": 7})
    assert (refused.status_code, slug(refused)) == (403, "not-permitted")
    assert admin.patch(path, json={"quantity": -7}).status_code == 422
    world.wake.shards.clear()
    edited = admin.patch(path, json={"quantity": 7, "notes": "by hand"})
    assert edited.status_code == 200, edited.text
    assert len(world.wake.shards) == 1
    world.process()
    shown = world.get(path)
    assert (shown["quantity"], shown["notes"]) == (7, "by hand")
    assert shown["ownership"]["quantity"] == {"owner": "Cloud", "locked": False}
    world.say(SUBSCRIPTION, subscription, 2, quantity="40")
    assert world.get(path)["quantity"] == 7, "a taken field does not follow its source"
    explained = world.get(path + "/explain", field="quantity")["fields"][0]
    assert explained["taken_over"]["reason"] == "wrong in the source"
    assert explained["taken_over"]["taken_by"] == "token:test admin"
    assert explained["taken_over"]["source_value"] == 40
    assert admin.post(path + "/fields/quantity/release", json={"reason": "mended"}).status_code == 200
    world.process()
    assert world.get(path)["quantity"] == 40
    assert admin.patch(path, json={"quantity": 7}).status_code == 409


def test_taking_over_needs_a_reason_and_a_locked_field(world: ApiWorld, subscription: str) -> None:
    path = world.path_of(SUBSCRIPTION, subscription) + "/fields"
    admin = world.client("admin")
    assert admin.post(path + "/quantity/take", json={}).status_code == 422
    assert admin.post(path + "/quantity/take", json={"reason": " "}).status_code == 422
    assert admin.post(path + "/price/take", json={"reason": "x"}).status_code == 422
    assert admin.post(path + "/colour/take", json={"reason": "x"}).status_code == 422
    assert admin.post(path + "/quantity/release", json={"reason": "x"}).status_code == 404


def test_contacts_are_created_listed_edited_and_deleted(world: ApiWorld) -> None:
    operator = world.client("operator")
    path = world.path_of(ACCOUNT, "cust-x") + "/contacts"
    made = operator.post(path, json={"name": "Ada", "email": "ada@customer-x.example", "phone": None})
    assert made.status_code == 201, made.text
    place = made.headers["location"]
    assert place == f"{path}/{made.json()['id']}"
    assert world.get(place) == made.json()
    assert made.json()["id"] in [item["id"] for item in world.get(path)["items"]]
    edited = operator.patch(place, json={"email": None, "phone": "+49 30 1234"})
    assert (edited.json()["email"], edited.json()["phone"], edited.json()["name"]) == (None, "+49 30 1234", "Ada")
    assert operator.patch(place, json={"name": None}).status_code == 422
    other = world.path_of(ACCOUNT, "cust-y") + "/contacts/" + made.json()["id"]
    assert world.client("auditor").get(other).status_code == 404, "a contact belongs to its account"
    assert operator.delete(place).status_code == 204
    assert operator.delete(place).status_code == 404
    assert world.client("auditor").get(place).status_code == 404
    assert made.json()["id"] not in [item["id"] for item in world.get(path)["items"]]
    account_id = world.id_of(ACCOUNT, "cust-x")
    for act in ("contact.created", "contact.edited", "contact.deleted"):
        assert world.audits(act, account_id)[-1]["id"] == made.json()["id"]


def test_activities_have_the_kinds_of_the_contract(world: ApiWorld) -> None:
    operator = world.client("operator")
    path = world.path_of(ACCOUNT, "cust-x") + "/activities"
    place = ""
    for kind in ("email", "task", "event", "document", "case"):
        made = operator.post(path, json={"kind": kind, "subject": "s", "body": "b", "due_at": "2026-06-30"})
        assert made.status_code == 201, made.text
        assert made.json()["due_at"] == "2026-06-30T21:59:59.999999Z"
        place = made.headers["location"]
    assert operator.patch(place, json={"kind": "task", "due_at": None}).json()["due_at"] is None
    assert operator.post(path, json={"kind": "party", "subject": "s"}).status_code == 422
    assert fields(operator.post(path, json={"body": "b"})) == ["kind", "subject"]
    assert fields(operator.post(path, json={"kind": "task", "subject": "s", "due_at": "soon"})) == ["due_at"]
    assert fields(operator.post(path, json={"kind": "task", "subject": "s", "account_id": "x"})) == ["account_id"]
    assert operator.delete(place).status_code == 204


def test_an_idempotency_key_creates_once(world: ApiWorld) -> None:
    operator = world.client("operator")
    path = world.path_of(ACCOUNT, "cust-y") + "/contacts"
    key = {"Idempotency-Key": fresh_id("key")}
    first = operator.post(path, json={"name": "Ada", "email": None}, headers=key)
    again = operator.post(path, json={"email": None, "name": "Ada"}, headers=key)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["location"] == first.headers["location"]
    other_body = operator.post(path, json={"name": "Bob"}, headers=key)
    assert (other_body.status_code, slug(other_body)) == (409, "state-conflict")
    other_path = operator.post(world.path_of(ACCOUNT, "cust-x") + "/contacts", json={"name": "Ada"}, headers=key)
    assert other_path.status_code == 409
    another = world.client("admin").post(path, json={"name": "Ada"}, headers=key)
    assert another.json()["id"] != first.json()["id"], "keys are a token's own"


def test_the_same_key_at_once_creates_once(world: ApiWorld) -> None:
    path = world.path_of(ACCOUNT, "cust-z") + "/contacts"
    key = {"Idempotency-Key": fresh_id("key")}

    def create(own: httpx.Client) -> httpx.Response:
        return own.post(path, json={"name": "Ada"}, headers=key)

    answers = at_once(world.client("operator"), [create] * 8)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(world.get(path)["items"]) == 1
    assert len(world.audits("contact.created", world.id_of(ACCOUNT, "cust-z"))) == 1


def test_the_audit_chain_of_every_edit_is_whole(world: ApiWorld) -> None:
    from bss_sync.adapters.sql.audit import verify_chains

    odd = {"custom_fields": {"much": 1e20, "little": 1e-7, "half": 1.5, "so": True}}
    assert world.client("operator").patch(world.path_of(SUBSCRIPTION, "sub-x"), json=odd).status_code == 200
    with world.app.database.engine() as connection:
        assert set(verify_chains(connection).values()) == {None}
