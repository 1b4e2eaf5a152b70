"""Every route × wrong tenant × wrong role (goals, security 3), from one table that a new route must enter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import text

from bss_sync.domain.change import Kind
from bss_sync.domain.tenancy import Role
from bss_sync.web.api import routers
from bss_sync.web.app import create_app
from tests.api_world import ApiWorld, api_world
from tests.door_sender import slug
from tests.servers import PostgresServer, short_folder

EVERYONE = frozenset({"admin", "operator", "auditor", "reseller"})
STAFF = frozenset({"admin", "operator", "auditor"})
FOLLOWERS = frozenset({"admin", "operator", "auditor", "chain"})
EDITORS = frozenset({"admin", "operator"})
ADMINS = frozenset({"admin"})

REASON = {"reason": "a test"}


class Rule(NamedTuple):
    """Who may use a route, and a body that it takes."""

    allowed: frozenset[str]
    body: dict[str, Any] | None = None


ROUTES: dict[tuple[str, str], Rule] = {
    ("GET", "/v1/accounts"): Rule(EVERYONE),
    ("GET", "/v1/accounts/{id}"): Rule(EVERYONE),
    ("GET", "/v1/accounts/{id}/history"): Rule(EVERYONE),
    ("GET", "/v1/accounts/{id}/explain"): Rule(EVERYONE),
    ("PATCH", "/v1/accounts/{id}"): Rule(EDITORS, {"notes": "by a test"}),
    ("POST", "/v1/accounts/{id}/operations"): Rule(EDITORS, {"operation": "delete"}),
    ("GET", "/v1/subscriptions"): Rule(EVERYONE),
    ("GET", "/v1/subscriptions/{id}"): Rule(EVERYONE),
    ("GET", "/v1/subscriptions/{id}/history"): Rule(EVERYONE),
    ("GET", "/v1/subscriptions/{id}/explain"): Rule(EVERYONE),
    ("PATCH", "/v1/subscriptions/{id}"): Rule(EDITORS, {"price": "1"}),
    ("POST", "/v1/subscriptions/{id}/operations"): Rule(EDITORS, {"operation": "cancel"}),
    ("GET", "/v1/accounts/{id}/contacts"): Rule(STAFF),
    ("GET", "/v1/accounts/{id}/contacts/{relation_id}"): Rule(STAFF),
    ("POST", "/v1/accounts/{id}/contacts"): Rule(EDITORS, {"name": "Ada"}),
    ("PATCH", "/v1/accounts/{id}/contacts/{relation_id}"): Rule(EDITORS, {"phone": "1"}),
    ("DELETE", "/v1/accounts/{id}/contacts/{relation_id}"): Rule(EDITORS),
    ("GET", "/v1/accounts/{id}/activities"): Rule(STAFF),
    ("GET", "/v1/accounts/{id}/activities/{relation_id}"): Rule(STAFF),
    ("POST", "/v1/accounts/{id}/activities"): Rule(EDITORS, {"kind": "task", "subject": "s"}),
    ("PATCH", "/v1/accounts/{id}/activities/{relation_id}"): Rule(EDITORS, {"body": "b"}),
    ("DELETE", "/v1/accounts/{id}/activities/{relation_id}"): Rule(EDITORS),
    ("GET", "/v1/tree"): Rule(EVERYONE),
    ("GET", "/v1/messages"): Rule(EVERYONE),
    ("GET", "/v1/messages/{id}"): Rule(EVERYONE),
    ("GET", "/v1/messages/{id}/story"): Rule(EVERYONE),
    ("POST", "/v1/messages/{id}/replay"): Rule(EDITORS, {"dry_run": True}),
    ("POST", "/v1/replays"): Rule(EDITORS, {"state": "dead", "dry_run": True}),
    ("GET", "/v1/connections"): Rule(EVERYONE),
    ("GET", "/v1/connections/{connection}"): Rule(EVERYONE),
    ("GET", "/v1/runs"): Rule(STAFF),
    ("GET", "/v1/runs/{id}"): Rule(STAFF),
    ("POST", "/v1/runs/{id}/approve"): Rule(ADMINS),
    ("POST", "/v1/runs/{id}/reject"): Rule(ADMINS),
    ("GET", "/v1/drift"): Rule(STAFF),
    ("GET", "/v1/audit"): Rule(EVERYONE),
    ("GET", "/v1/chain"): Rule(FOLLOWERS),
    ("GET", "/v1/chain/changes"): Rule(FOLLOWERS),
    ("GET", "/v1/chain/records/{kind}"): Rule(FOLLOWERS),
    ("GET", "/v1/chain/records/{kind}/{id}"): Rule(FOLLOWERS),
    ("GET", "/v1/chain/digests"): Rule(FOLLOWERS),
    ("POST", "/v1/tokens"): Rule(ADMINS, {"role": "auditor", "name": "by a test"}),
    ("GET", "/v1/tokens"): Rule(ADMINS),
    ("DELETE", "/v1/tokens/{id}"): Rule(ADMINS),
    ("POST", "/v1/accounts/{id}/fields/{field}/take"): Rule(ADMINS, REASON),
    ("POST", "/v1/accounts/{id}/fields/{field}/release"): Rule(ADMINS, REASON),
    ("POST", "/v1/subscriptions/{id}/fields/{field}/take"): Rule(ADMINS, REASON),
    ("POST", "/v1/subscriptions/{id}/fields/{field}/release"): Rule(ADMINS, REASON),
}
NAMES = [" ".join(key) for key in ROUTES]

OPEN = {"/healthz", "/readyz", "/metrics", "/openapi.json"}
"""Routes that need no token."""

SIGNED = "/v1/connections/{connection}/"
"""The door: signatures, no tokens."""


@pytest.fixture(scope="module")
def world(postgres_server: PostgresServer) -> Iterator[ApiWorld]:
    with postgres_server.database() as database, short_folder() as home, api_world(database, home) as one:
        _add_what_routes_name(one)
        yield one


def _add_what_routes_name(world: ApiWorld) -> None:
    world.execute(
        """insert into run (id, tenant_id, connection_id, kind, requested_by)
           values (:id, :tenant, :connection, 'reconcile', 'test')""",
        id=uuid4(),
        tenant=world.resell.tenant_id,
        connection=world.resell.id,
    )


def _path(world: ApiWorld, path: str) -> str:
    """The route's address, naming things of ``resell`` that exist now."""
    account = world.id_of(Kind.ACCOUNT, "cust-x")
    kind = Kind.SUBSCRIPTION if path.startswith("/v1/subscriptions") else Kind.ACCOUNT
    record = world.id_of(kind, "sub-x" if kind is Kind.SUBSCRIPTION else "cust-x")
    record_id = {
        "/v1/messages/{id}": lambda: world.value("select id from message where message_id = 'first-of-sub-x'"),
        "/v1/messages/{id}/story": lambda: world.value("select id from message where message_id = 'first-of-sub-x'"),
        "/v1/messages/{id}/replay": lambda: world.value("select id from message where message_id = 'first-of-sub-x'"),
        "/v1/runs/{id}": lambda: world.value("select id from run"),
        "/v1/runs/{id}/approve": lambda: world.value("select id from run"),
        "/v1/runs/{id}/reject": lambda: world.value("select id from run"),
        "/v1/tokens/{id}": uuid4,
    }.get(path, lambda: record)()
    filled = path.replace("{id}", str(record_id)).replace("{connection}", "cloud-resell")
    filled = filled.replace("{field}", "name").replace("{kind}", "account")
    if "{relation_id}" in path:
        table = "contact" if "contacts" in path else "activity"
        relation = uuid4()
        words = {"contact": "name) values (:id, :t, :a, 'x', 'Ada')"}
        values = words.get(table, "kind, subject) values (:id, :t, :a, 'x', 'task', 's')")
        world.execute(
            f"insert into {table} (id, tenant_id, account_id, created_by, {values}",
            id=relation,
            t=world.resell.tenant_id,
            a=account,
        )
        filled = filled.replace("{relation_id}", str(relation))
    return filled


def _call(world: ApiWorld, client: httpx.Client, method: str, path: str) -> httpx.Response:
    body = ROUTES[method, path].body
    return client.request(method, _path(world, path), json=body) if body else client.request(method, _path(world, path))


_WATCHED = ["account", "subscription", "takeover", "run"]


def _fingerprint(world: ApiWorld) -> list[str]:
    """What refused requests must leave alone; relations that ``_path`` adds are all still there."""
    with world.app.database.engine() as connection:
        counts = [
            str(connection.execute(text(f"select count(*), coalesce(sum(hashtext(x::text)), 0) from {table} x")).one())
            for table in _WATCHED
        ]
        gone = "select count(*) from {} where deleted_at is not null or updated_at > created_at"
        return counts + [str(connection.execute(text(gone.format(table))).one()) for table in ("contact", "activity")]


def test_every_route_of_the_application_is_in_the_table(world: ApiWorld) -> None:
    declared = {
        (method, route.path_format)
        for router in routers()
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert declared == ROUTES.keys()
    described = {
        (method.upper(), path)
        for path, operations in create_app(world.app).openapi()["paths"].items()
        for method in operations
        if path not in OPEN and not path.startswith(SIGNED)
    }
    assert described == ROUTES.keys(), "a route beside the API's routers"


@pytest.mark.parametrize(("method", "path"), list(ROUTES), ids=NAMES)
def test_without_a_token_there_is_no_answer(world: ApiWorld, method: str, path: str) -> None:
    with httpx.Client(base_url=world.base_url) as client:
        missing = _call(world, client, method, path)
        client.headers["authorization"] = "Bearer bst_invented"
        unknown = _call(world, client, method, path)
    assert (missing.status_code, unknown.status_code) == (401, 401)


@pytest.mark.parametrize("role", sorted(Role))
@pytest.mark.parametrize(("method", "path"), list(ROUTES), ids=NAMES)
def test_a_role_may_what_the_table_says_and_nothing_else(world: ApiWorld, method: str, path: str, role: str) -> None:
    before = _fingerprint(world)
    response = _call(world, world.client(role), method, path)
    if role in ROUTES[method, path].allowed:
        assert response.status_code < 500
        assert response.status_code != 401
        assert response.status_code != 403 or slug(response) == "operation-refused"
        if method == "GET":
            assert response.status_code == 200, response.text
    else:
        assert (response.status_code, slug(response)) == (403, "not-permitted")
        assert _fingerprint(world) == before


@pytest.mark.parametrize(("method", "path"), list(ROUTES), ids=NAMES)
def test_another_tenant_sees_and_changes_nothing(world: ApiWorld, method: str, path: str) -> None:
    before = _fingerprint(world)
    response = _call(world, world.client("stranger"), method, path)
    rule = ROUTES[method, path]
    if "reseller" not in rule.allowed:
        assert (response.status_code, slug(response)) == (403, "not-permitted")
    elif "{" in path:
        assert (response.status_code, slug(response)) == (404, "not-found")
    else:
        assert response.status_code == 200
        foreign = ("cloud-resell", "Cloud Resell", str(world.resell.id), str(world.resell.tenant_id), "Customer Y")
        assert [word for word in foreign if word in response.text] == []
    assert _fingerprint(world) == before


@pytest.mark.parametrize("key", [key for key in ROUTES if "{id}" in key[1]], ids=" ".join)
def test_an_id_that_nobody_has_looks_like_a_foreign_one(world: ApiWorld, key: tuple[str, str]) -> None:
    method, path = key
    body = ROUTES[key].body
    client = world.client("admin")
    for unknown in (str(uuid4()), "not-an-id"):
        address = path.replace("{id}", unknown).replace("{relation_id}", str(uuid4()))
        address = address.replace("{field}", "name").replace("{kind}", "account")
        response = client.request(method, address, json=body) if body else client.request(method, address)
        assert (response.status_code, slug(response)) == (404, "not-found")
