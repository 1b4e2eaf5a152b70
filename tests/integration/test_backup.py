"""Yesterday's dump under a running source and a running target: reconcile brings it level (goals, reliability 27)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from bss_sync.adapters.sql.audit import compare_heads, verify_chains
from bss_sync.domain.tenancy import Role
from tests import servers
from tests.app import add_token, serving
from tests.reconciling import differences
from tests.restoring import program, reopened, take
from tests.servers import Database, PostgresServer
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world

KINDS = {ACCOUNT: "account", SUBSCRIPTION: "subscription"}


@dataclass
class Story:
    """A world with a backup, and what has happened since."""

    world: World
    token: str
    file: Path
    heads: Path
    ended_cursor: str = ""
    begun_cursor: str = ""


@pytest.fixture(scope="module")
def new_server() -> Iterator[PostgresServer]:
    """A server that has never seen any of our roles, and has counted few transactions."""
    with servers.embedded_postgres() as server:
        yield server


def _before(one: World) -> None:
    bss = one.simulator.reseller
    bss.put(ACCOUNT, "lite", {"kind": "reseller", "name": "Cloud Lite"})
    bss.put(ACCOUNT, "x", {"name": "Customer X", "parent_id": "lite"})
    bss.put(ACCOUNT, "y", {"name": "Customer Y"})
    for number in range(1, 8):
        bss.put(SUBSCRIPTION, f"sub-{number}", {"account_id": "x", "product": PRODUCT, "quantity": number})
    one.settle()
    bss.delete(SUBSCRIPTION, "sub-6")
    one.settle()
    # Known to the mirror, and on its way to the target, when the backup is taken.
    bss.put(SUBSCRIPTION, "on-its-way", {"account_id": "y", "product": PRODUCT})
    bss.patch(SUBSCRIPTION, "sub-7", {"quantity": 70})
    one.poll()


def _after(one: World) -> None:
    """All of it is accepted, mirrored and delivered, and in no backup."""
    bss = one.simulator.reseller
    one.settle()
    bss.put(ACCOUNT, "z", {"name": "Customer Z", "parent_id": "lite"})
    bss.put(SUBSCRIPTION, "sub-z", {"account_id": "z", "product": PRODUCT, "quantity": 3})
    for quantity in (100, 101):
        bss.patch(SUBSCRIPTION, "sub-1", {"quantity": quantity})
        one.settle()
    bss.delete(SUBSCRIPTION, "sub-2")
    bss.patch(SUBSCRIPTION, "sub-3", {"account_id": "y"})
    bss.patch(SUBSCRIPTION, "sub-4", {"quantity": 40})
    bss.patch(SUBSCRIPTION, "sub-7", {"quantity": 71})
    bss.patch(ACCOUNT, "x", {"name": "Customer X Ltd", "parent_id": None})
    bss.put(SUBSCRIPTION, "brief", {"account_id": "y", "product": PRODUCT})
    one.settle()
    bss.delete(SUBSCRIPTION, "brief")
    one.settle()


def _while_it_is_down(one: World) -> None:
    bss = one.simulator.reseller
    bss.patch(SUBSCRIPTION, "sub-4", {"quantity": 4})
    bss.delete(SUBSCRIPTION, "sub-5")
    bss.put(SUBSCRIPTION, "sub-late", {"account_id": "z", "product": PRODUCT, "quantity": 9})


@pytest.fixture(scope="module")
def story(module_database: Database) -> Iterator[Story]:
    with servers.short_folder() as home, world(module_database, home) as one:
        token = add_token(one.app, Role.AUDITOR)
        _before(one)
        file = take(one.app.settings, module_database, home / "one.dump")
        told = Story(one, token, file, home / "heads.json")
        _after(one)
        told.heads.write_text(program(one.app.settings, module_database).ok("audit", "verify", "--json").out)
        with serving(one.app) as url:
            told.ended_cursor = _get(url, told.token)["next_cursor"]
            told.begun_cursor = _get(url, told.token, limit="2")["next_cursor"]
        _while_it_is_down(one)
        yield told


@contextmanager
def _restored(story: Story, server: PostgresServer) -> Iterator[World]:
    """The old database is not touched any more; the backup is in an empty one of ``server``."""
    with server.database(migrated=False) as database:
        program(story.world.app.settings, database).ok("db", "restore", story.file)
        with reopened(story.world, database) as one:
            yield one


def _get(url: str, token: str, **params: str) -> dict[str, Any]:
    answer = httpx.get(
        f"{url}/v1/subscriptions",
        params={"limit": "500", "include_deleted": "true", **params},
        headers={"authorization": f"Bearer {token}"},
        timeout=20,
    )
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def _quantities(one: World) -> dict[str, int]:
    rows = one.rows("select source_id, quantity from subscription where deleted_at is null")
    return {row.source_id: int(row.quantity) for row in rows}


def _is_level(one: World) -> None:
    """Mirror = source, target = mirror, one create each, nothing dead, the audit whole."""
    source = {item["id"]: item["quantity"] for item in one.simulator.reseller.page(SUBSCRIPTION, "", 500)["items"]}
    assert _quantities(one) == source == {
        "sub-1": 101, "sub-3": 3, "sub-4": 4, "sub-7": 71, "sub-z": 3, "on-its-way": 1, "sub-late": 9
    }  # fmt: skip
    creates = Counter(effect["reference"] for effect in one.effects("create"))
    assert set(creates.values()) == {1}
    for source_id, quantity in source.items():
        fields = one.target_fields(SUBSCRIPTION, source_id)
        assert (fields["quantity"], fields["ended"]) == (str(quantity), False)
    for source_id in ("sub-2", "sub-5", "sub-6"):
        assert one.target_fields(SUBSCRIPTION, source_id)["ended"] is True
        assert one.value("select deleted_at is not null from subscription where source_id = :id", id=source_id)
    assert one.target_fields(SUBSCRIPTION, "sub-1")["name"] == f"Customer X Ltd - {PRODUCT}"
    for table in ("message", "delivery"):
        assert one.value(f"select count(*) from {table} where state = 'dead'") == 0
    with one.app.database.engine() as connection:
        assert set(verify_chains(connection).values()) == {None}


@pytest.mark.parametrize("server", ["postgres_server", "new_server"], ids=["same-server", "new-server"])
def test_a_restored_backup_is_level_by_reconcile_and_nothing_is_there_twice(
    story: Story, server: str, request: pytest.FixtureRequest
) -> None:
    with _restored(story, request.getfixturevalue(server)) as one, serving(one.app) as url:
        _chains_say_where_the_backup_ends(one)
        _kept_heads_tell_a_restore_from_a_cut(story, one)
        cursor = _cursors_begin_anew(story, one, url)
        _reconcile_levels(one)
        later = _get(url, story.token, cursor=cursor)
        assert {"sub-1", "sub-2", "sub-3", "sub-z", "sub-late"} <= {item["source_id"] for item in later["items"]}
        assert _get(url, story.token, cursor=later["next_cursor"])["items"] == []
        _redelivery_doubles_nothing(one)


def _chains_say_where_the_backup_ends(one: World) -> None:
    rows = one.rows(
        """select chain_id, count(*) as number, min(seq) as place, min((detail ->> 'entries')::bigint) as entries
           from audit where action = 'database.restored' group by chain_id"""
    )
    assert {row.number for row in rows} == {1}
    assert all(row.place == row.entries + 1 for row in rows)
    assert len(rows) == one.value("select count(*) from audit_head")


def _kept_heads_tell_a_restore_from_a_cut(story: Story, one: World) -> None:
    with one.app.database.engine() as connection:
        kept = [(UUID(head["chain"]), head["entry"], bytes.fromhex(head["hash"])) for head in _heads(story)]
        lost = compare_heads(connection, kept)
        assert {found.chain_id for found in lost} == {one.source.id}
        assert all(found.restored is not None for found in lost)
        place = connection.execute(
            text("select seq from audit where action = 'database.restored' and chain_id = :id"), {"id": one.source.id}
        ).scalar_one()
        assert [found.entry for found in lost] == [place]
    with story.world.app.database.engine() as connection:
        assert compare_heads(connection, kept) == []
        (cut,) = compare_heads(connection, [(one.source.id, 10**6, b"x")])
        assert cut.restored is None


def _heads(story: Story) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(story.heads.read_text())["heads"]
    return found


def _cursors_begin_anew(story: Story, one: World, url: str) -> str:
    """Nothing is missed, and rows of the backup, whose transactions may lie ahead, are given once."""
    every = one.value("select count(*) from subscription")
    page = _get(url, story.token, cursor=story.begun_cursor)
    assert (page["anew"], len(page["items"])) == (True, every)
    page = _get(url, story.token, cursor=story.ended_cursor)
    assert (page["anew"], len(page["items"])) == (True, every)
    resumed = _get(url, story.token, cursor=page["next_cursor"])
    assert (resumed["items"], "anew" in resumed) == ([], False)
    return str(resumed["next_cursor"])


def _reconcile_levels(one: World) -> None:
    before = len(one.simulator.distributor.effects())
    # What a worker does as soon as it runs; the source is not polled here.
    one.work.drift.poll()
    one.deliver()
    assert differences(one) != []
    differences(one)
    _is_level(one)
    # "brief" lived and died after the backup: nothing here knows it, it is ended there, and only named.
    assert [(str(found.problem), found.kind) for found in differences(one)] == [("target_extra", SUBSCRIPTION)]
    changed = {str(one.record_id(SUBSCRIPTION, name)) for name in ("sub-1", "sub-7")}
    told = one.simulator.distributor.effects()[before:]
    told_again = {effect["after"]["quantity"] for effect in told if effect["reference"] in changed}
    assert told_again <= {"101", "71"}, "the target was never set back"
    accused = [row.detail for row in one.audits("lock.violated")]
    assert accused == [], "our own deliveries from after the backup accuse nobody"


def _redelivery_doubles_nothing(one: World) -> None:
    """The source's feed once more from its beginning: every id that was used before and after the backup."""
    one.execute("update connection set poll_cursor = null")
    one.settle()
    assert one.value("select count(*) from message where state not in ('applied', 'superseded')") == 0
    assert one.value("select count(*) = count(distinct message_id) from message")
    _is_level(one)
