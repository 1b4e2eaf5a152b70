"""What Cloud's people may do with what they see: what is locked, refused, allowed, and found out."""

from __future__ import annotations

import json
import time

import psycopg

from bss_sync.adapters import embedded_database
from bss_sync.demo.opening import OPERATOR
from bss_sync.demo.stage import DISTRIBUTOR, NotAsPromised
from bss_sync.demo.world import CONNECTION, RESELLER, World, check, require
from bss_sync.domain.change import Json, Kind
from bss_sync.domain.permissions import REFUSED_OPERATIONS
from bss_sync.domain.relation import ActivityKind

SNEAK = "anna"


def locks(world: World) -> None:
    """Who owns each field of one record."""
    narrator = world.narrator
    narrator.chapter(f"The locks on X's subscription, as {DISTRIBUTOR} sees it")
    record = world.record(Kind.SUBSCRIPTION, "sub-x") or {}
    rows = []
    for name, ownership in record["ownership"].items():
        value = record[name]
        rows.append([name, _shown(value), ownership["owner"], "locked" if ownership["locked"] else "yours"])
    narrator.table(["field", "value", "owner", ""], rows)
    owners = {name: (one["owner"], one["locked"]) for name, one in record["ownership"].items()}
    check("the owner of the quantity", (RESELLER, True), owners["quantity"])
    check("the owner of the price", (DISTRIBUTOR, False), owners["price"])


def _shown(value: Json) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in (None, {}, []) else value if isinstance(value, str) else json.dumps(value)


def forbidden(world: World) -> None:
    """Each forbidden act is tried and refused by name."""
    narrator = world.narrator
    narrator.chapter("What is refused, always naming who can", f"{OPERATOR} of {DISTRIBUTOR} tries it, over the API.")
    for kind, source_id, whose in ((Kind.SUBSCRIPTION, "sub-x", "X's subscription"), (Kind.ACCOUNT, "cust-x", "X")):
        for operation in REFUSED_OPERATIONS[kind]:
            _refused_operation(world, kind, source_id, operation, whose)
    _locked_fields(world)
    _by_command_line(world)
    _by_sql(world)


def _refused_operation(world: World, kind: Kind, source_id: str, operation: str, whose: str) -> None:
    record = world.record(kind, source_id) or {}
    answer = world.api.call("POST", f"/v1/{kind}s/{record['id']}/operations", {"operation": operation})
    require(f"{operation} on {source_id}", 403, answer)
    problem = answer.content
    check(f"the problem of {operation}", "operation-refused", problem["type"].rpartition("/")[2])
    check(f"who is named for {operation}", RESELLER, problem["errors"][0]["owner"])
    check("the record after a refusal", record, world.record(kind, source_id))
    world.narrator.refusal(f"{whose}: {operation.replace('_', ' ')}", f"403: {problem['detail']}")


def _locked_fields(world: World) -> None:
    record = world.record(Kind.SUBSCRIPTION, "sub-x") or {}
    changes: dict[str, Json] = {"quantity": 1, "end_date": None, "notes": "this one would be allowed"}
    answer = world.api.call("PATCH", f"/v1/subscriptions/{record['id']}", changes)
    require("an edit of locked fields", 409, answer)
    named = {one["field"]: one["owner"] for one in answer.content["errors"]}
    check("the locked fields and their owners", {"quantity": RESELLER, "end_date": RESELLER}, named)
    check("the record after a refusal", record, world.record(Kind.SUBSCRIPTION, "sub-x"))
    world.narrator.refusal("edit quantity, end date and notes", f"409: {answer.content['detail']}")


def _by_command_line(world: World) -> None:
    done = world.stage.command("subscription", "set", f"{CONNECTION}/sub-x", "quantity=1")
    if done.code != 1 or RESELLER not in done.errors:
        raise NotAsPromised("bss-sync subscription set", "exit code 1, naming the owner", f"{done.code}: {done.errors}")
    said = done.errors.splitlines()[0]
    world.narrator.refusal("bss-sync subscription set cloud-resell/sub-x quantity=1", f"exit code 1: {said}")


def _by_sql(world: World) -> None:
    """Past the program: the database itself does not let the API's role write a mirrored column."""
    with embedded_database.running(world.stage.home) as server:
        address = embedded_database.login_url(server).replace("postgresql+psycopg://", "postgresql://")
        with psycopg.connect(address) as session:
            session.execute("set role bss_sync_api")
            session.execute("select set_config('bss_sync.reach', 'distributor', true)")
            try:
                session.execute("update subscription set quantity = 1 where source_id = 'sub-x'")
            except psycopg.Error as error:
                said = str(error).splitlines()[0]
                session.rollback()
            else:
                raise NotAsPromised("an UPDATE as the API's database role", "a refusal", "it was done")
    world.narrator.refusal("SQL as the API's database role: update … set quantity = 1", f"PostgreSQL: {said}")


def allowed(world: World) -> None:
    """Each allowed act is done, and read back."""
    narrator = world.narrator
    narrator.chapter(
        "What is allowed", "Invoicing comes later; the history that it needs is complete from the first day."
    )
    account, held = world.record(Kind.ACCOUNT, "cust-x") or {}, world.record(Kind.SUBSCRIPTION, "sub-x") or {}
    contact = {"name": "Ada Example", "email": "ada@customer-x.example", "phone": None}
    _adds(world, account["id"], "contacts", contact, "adds a contact to X", "Ada Example")
    for kind in ActivityKind:
        subject = f"About the renewal ({kind})"
        body: dict[str, Json] = {"kind": str(kind), "subject": subject, "body": None, "due_at": None}
        _adds(
            world, account["id"], "activities", body, f"relates {'an' if kind[0] == 'e' else 'a'} {kind} to X", subject
        )
    _edits(
        world,
        Kind.ACCOUNT,
        account["id"],
        {"notes": "calls on Mondays", "tags": ["key account"]},
        "notes and tags of X",
    )
    price = {"amount": "18.90", "currency": "EUR"}
    _edits(
        world,
        Kind.SUBSCRIPTION,
        held["id"],
        {"price": price, "notes": "list price less 10 %"},
        "price of X's subscription",
    )
    tree = world.api.get("/v1/tree", connection=CONNECTION)["tree"]
    below = [one["name"] for one in tree[0]["accounts"]]
    check(
        f"who stands directly below {RESELLER}",
        ["Cloud Customer Y", "Cloud End-Customer Z", "Cloud Lite"],
        sorted(below),
    )
    narrator.act("sees the hierarchy", f"below {RESELLER}: {', '.join(sorted(below))}")
    check("the quantity after all that", held["quantity"], (world.record(Kind.SUBSCRIPTION, "sub-x") or {})["quantity"])
    _reseller_sees_its_own(world, account["id"])


def _adds(world: World, account_id: str, relation: str, body: dict[str, Json], words: str, seen: str) -> None:
    path = f"/v1/accounts/{account_id}/{relation}"
    key = {"Idempotency-Key": f"demo-{relation}-{body.get('kind', 'ada')}"}
    made = world.api.call("POST", path, body, headers=key)
    require(words, 201, made)
    again = world.api.call("POST", path, body, headers=key)
    check(f"{words}, sent twice", made.content["id"], again.content["id"])
    check(f"{words}, read back", 1, [one["id"] for one in world.items(path)].count(made.content["id"]))
    world.narrator.act(words, f"201: {seen}")


def _edits(world: World, kind: Kind, record_id: str, changes: dict[str, Json], words: str) -> None:
    require(f"an edit of the {words}", 200, world.api.call("PATCH", f"/v1/{kind}s/{record_id}", changes))
    found = world.api.get(f"/v1/{kind}s/{record_id}")
    check(f"the {words}, read back", changes, {name: found[name] for name in changes})
    world.narrator.act(f"sets {words}", "200: its own fields")


def _reseller_sees_its_own(world: World, account_id: str) -> None:
    options = ["--role", "reseller", "--name", "portal", "--connection", CONNECTION]
    token = world.stage.administer("token", "create", *options)["token"]
    portal = type(world.api)(world.api.url, {"Authorization": f"Bearer {token}"})
    found = portal.get(f"/v1/accounts/{account_id}")
    check(f"what {RESELLER} sees of X", ("Cloud Customer X", False), (found["name"], "notes" in found))
    world.narrator.act(f"{RESELLER} looks at X with its own token", f"sees X, and none of {DISTRIBUTOR}'s notes")
    answer = portal.call("PATCH", f"/v1/accounts/{account_id}", {"notes": "hello"})
    require("a reseller's edit", 403, answer)
    world.narrator.refusal(f"{RESELLER} writes to X's notes", f"403: {answer.content['detail']}")


def behind_the_back(world: World) -> None:
    """Somebody edits locked fields in Cloud's own BSS, past bss_sync: found, put back, recorded."""
    narrator = world.narrator
    narrator.chapter("Behind the back", f"{SNEAK} edits locked fields directly in {DISTRIBUTOR}'s own BSS.")
    _healed(world, Kind.SUBSCRIPTION, "sub-x", "quantity", "3")
    _healed(world, Kind.ACCOUNT, "cust-y", "name", "Customer Why")
    rows = [
        [
            f"{one['kind']} {one['source_id']}",
            one["field"],
            str(one["expected"]),
            str(one["found"]),
            str(one["changed_by"]),
            one["found_at"][11:23],
            one["action"],
        ]
        for one in world.items("/v1/drift", connection=CONNECTION)
    ]
    narrator.gap()
    narrator.table(["record", "field", "expected", "found", "by whom", "when", "action"], rows)
    check("who is recorded", {SNEAK}, {row[4] for row in rows})
    narrator.gap()
    narrator.say(f"bss-sync explain subscription {CONNECTION}/sub-x quantity")
    told = world.stage.command("explain", "subscription", f"{CONNECTION}/sub-x", "quantity").output
    if "behind our back" not in told:
        raise NotAsPromised("bss-sync explain", "the lock violation", told)
    narrator.quote("\n".join(line for line in told.splitlines()[2:] if not line.startswith("refused ")))


def _healed(world: World, kind: Kind, source_id: str, field: str, wrong: str) -> None:
    record = world.external(kind, source_id)
    if record is None:
        raise NotAsPromised(f"{source_id} in {DISTRIBUTOR}'s own BSS", "a record", None)
    right = record["fields"][field]
    began = time.monotonic()
    edited = world.own_bss.call("PATCH", f"/records/{record['id']}", {field: wrong}, headers={"X-User": SNEAK})
    require("the edit behind the back", 200, edited)
    check("the edit took effect", wrong, edited.content["fields"][field])

    def put_back() -> object:
        return ((world.external(kind, source_id) or {})["fields"])[field]

    world.stage.eventually(f"{field} of {source_id} is put back", right, put_back)
    milliseconds = (time.monotonic() - began) * 1_000
    asked = {"connection": CONNECTION, "source_id": source_id, "state": "settled"}
    world.stage.eventually("the violation is recorded", 1, lambda: len(world.items("/v1/drift", **asked)))
    world.narrator.tally.healed += 1
    world.narrator.act(
        f"{field} of {source_id}: {right} → {wrong}", f"found after {milliseconds:.0f} ms, put back to {right}"
    )
