"""Cursors between versions and over restores: both versions read each other's, and none means something else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import psycopg
import pytest

from bss_sync.adapters.sql import epochs
from bss_sync.adapters.sql.reading.paging import decode_cursor, encode_cursor
from bss_sync.domain.change import Kind
from tests.api_world import ApiWorld, api_world
from tests.releases import Release
from tests.servers import Database, PostgresServer, short_folder
from tests.tiers import SUBSCRIPTION, Chain, Tier, chain

_READ_AND_GIVE_AGAIN = """
import json, sys
from bss_sync.adapters.sql.reading import chain, changes, messages, oversight, paging, present
from bss_sync.domain.change import Kind

SOURCES = {"accounts": present.SOURCES[Kind.ACCOUNT], "subscriptions": present.SOURCES[Kind.SUBSCRIPTION],
           "messages": messages.MESSAGES, "audit": oversight._AUDIT, "chain": chain._HEADS}

def again(name, cursor):
    if name == "history":
        return paging.encode_cursor(["history", changes._position(cursor)])
    source = SOURCES[name]
    return paging._encode(source.name, paging._decode(source, cursor))

given = json.loads(sys.stdin.read())
print(json.dumps({name: [again(name, cursor) for cursor in cursors] for name, cursors in given.items()}))
"""
LISTS = ("accounts", "subscriptions", "messages", "audit")


@pytest.fixture
def world(postgres_server: PostgresServer, database: Database) -> Iterator[ApiWorld]:
    with short_folder() as home, api_world(database, home) as one:
        yield one


@pytest.fixture
def tiers(postgres_server: PostgresServer) -> Iterator[Chain]:
    with chain(postgres_server) as one:
        one.tell_story()
        yield one


def _read_by(release: Release, given: dict[str, list[str]]) -> dict[str, list[str]]:
    """What the release before gives for these cursors: it reads them with its own code."""
    done = subprocess.run(
        [sys.executable, "-c", _READ_AND_GIVE_AGAIN],
        input=json.dumps(given),
        cwd=release.folder,
        env={**os.environ, "PYTHONPATH": str(release.folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read: dict[str, list[str]] = json.loads(done.stdout)
    return read


def _restored(one: ApiWorld | Tier) -> None:
    """The database is not the one that it was."""
    with one.app.database.engine() as connection:
        epochs.declare(connection)
    epochs.settle(one.app.database)


def _as_superuser(database: Database, statement: str) -> None:
    with psycopg.connect(database.superuser_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement.encode())


def test_both_versions_read_each_others_cursors(world: ApiWorld, previous_release: Release) -> None:
    paths = {name: f"/v1/{name}" for name in LISTS}
    paths["history"] = world.path_of(Kind.SUBSCRIPTION, "sub-x") + "/history"
    given = {name: [world.get(path, limit=limit)["next_cursor"] for limit in (1, 500)] for name, path in paths.items()}
    assert _read_by(previous_release, given) == given
    for name, path in paths.items():
        begun, ended = (world.get(path, cursor=cursor, limit=500) for cursor in given[name])
        assert ended["items"] == [], name
        assert "anew" not in begun
        assert "anew" not in ended


def test_a_restart_of_the_server_changes_no_cursor(world: ApiWorld, database: Database) -> None:
    before = world.get("/v1/accounts", limit=500)["next_cursor"]
    _restart(world, database)
    after = world.get("/v1/accounts", cursor=before)
    assert (after["items"], "anew" in after) == ([], False)
    assert len(decode_cursor(after["next_cursor"])) == len(decode_cursor(before)) == 4
    _restart(world, database)
    assert "anew" not in world.get("/v1/accounts", cursor=after["next_cursor"])


def _restart(world: ApiWorld, database: Database) -> None:
    """As it looks from within: the same place, another start."""
    _as_superuser(database, "update list_epoch set booted_at = booted_at - interval '1 hour'")
    world.app.database.dispose()


def test_a_restore_ends_every_cursor_and_those_after_it_name_it(world: ApiWorld, database: Database) -> None:
    history = world.path_of(Kind.SUBSCRIPTION, "sub-x") + "/history"
    paths = [f"/v1/{name}" for name in LISTS] + [history]
    before = {path: world.get(path, limit=500)["next_cursor"] for path in paths}
    _restored(world)
    for path in paths:
        page = world.get(path, cursor=before[path], limit=500)
        assert page["anew"] is True, path
        assert page["items"] != []
        after = world.get(path, cursor=page["next_cursor"])
        assert (after["items"], "anew" in after) == ([], False), path
        assert len(decode_cursor(after["next_cursor"])) > len(decode_cursor(before[path]))
    cursor = world.get("/v1/accounts", limit=500)["next_cursor"]
    _restart(world, database)
    assert "anew" not in world.get("/v1/accounts", cursor=cursor)
    # As if the server had come back with a state from before the cursor.
    _as_superuser(database, "update list_epoch set first_xid = '3' where number = (select max(number) from list_epoch)")
    assert world.get("/v1/accounts", cursor=cursor)["anew"] is True


def test_a_tier_above_goes_on_from_its_cursor_in_both_versions(tiers: Chain, previous_release: Release) -> None:
    for one in (tiers.resell, tiers.cloud):
        cursor = one.value("select poll_cursor from connection")
        assert _read_by(previous_release, {"chain": [cursor]}) == {"chain": [cursor]}
        told, asked = one.value("select count(*) from message"), len(one.http.answers)
        one.follow()
        assert one.value("select count(*) from message") == told
        assert {path for path, _bytes in one.http.answers[asked:]} == {"/v1/chain/changes"}
    tiers.shop.reseller.patch(SUBSCRIPTION, "sub-x", {"quantity": 31})
    tiers.follow()
    for below, above in pairwise((tiers.sub, tiers.resell, tiers.cloud)):
        assert below.value("select count(*) from subscription where quantity = 31") == 1
        assert above.value("select count(*) from subscription where quantity = 31") == 1
        assert above.value("select count(*) from message where verdict = 'late'") == 0


@pytest.mark.parametrize(
    "cursor",
    [
        ["chain", 3, ["0d9cc8c1-4f8b-5c0e-9a53-2f6f1f0f9a11"], None],
        ["of-a-version-to-come", 3],
    ],
    ids=["previous", "unknown"],
)
def test_a_tier_above_begins_anew_where_its_cursor_says_nothing(tiers: Chain, cursor: list[object]) -> None:
    tiers.resell.execute("update connection set poll_cursor = :cursor", cursor=encode_cursor(cursor))
    told = tiers.resell.value("select count(*) from message")
    tiers.resell.follow()
    assert tiers.resell.value("select poll_failures from connection") == 0
    assert tiers.resell.value("select count(*) from message") == told
    tiers.shop.reseller.patch(SUBSCRIPTION, "sub-x", {"quantity": 32})
    tiers.follow()
    assert tiers.cloud.value("select count(*) from subscription where quantity = 32") == 1


def test_a_tier_above_goes_on_from_its_cursor_over_a_restore_below(tiers: Chain) -> None:
    _restored(tiers.sub)
    tiers.resell.follow()
    asked = len(tiers.resell.http.answers)
    tiers.resell.follow()
    assert {path for path, _bytes in tiers.resell.http.answers[asked:]} == {"/v1/chain/changes"}
    assert len(decode_cursor(tiers.resell.value("select poll_cursor from connection"))) == 5
