"""The servers that tests rest on are what they say they are."""

from __future__ import annotations

import psycopg
import redis
import sqlalchemy

from bss_sync.adapters.sql.revision import head_revision
from tests.servers import Database, PostgresServer, RedisServer


def _one(url: str, statement: str) -> object:
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            return connection.execute(sqlalchemy.text(statement)).scalar_one()
    finally:
        engine.dispose()


def test_each_postgres_server_is_the_version_that_it_names(each_postgres_server: PostgresServer) -> None:
    number = _one(each_postgres_server.url("postgres", "postgres"), "SHOW server_version_num")
    assert str(number).startswith(str(each_postgres_server.version))


def test_no_server_listens_on_tcp(each_postgres_server: PostgresServer) -> None:
    assert _one(each_postgres_server.url("postgres", "postgres"), "SHOW listen_addresses") == ""


def test_a_database_belongs_to_the_owner_who_is_no_superuser(empty_database: Database) -> None:
    statement = (
        "SELECT rolsuper FROM pg_roles JOIN pg_database ON datdba = pg_roles.oid WHERE datname = current_database()"
    )
    assert _one(empty_database.owner_url, statement) is False
    assert _one(empty_database.owner_url, "SELECT current_user") == "bss_sync_owner"


def test_a_database_is_gone_after_its_use(postgres_server: PostgresServer) -> None:
    with postgres_server.database(migrated=False) as fresh, psycopg.connect(fresh.owner_url.replace("+psycopg", "")):
        name = fresh.name
    found = _one(
        postgres_server.url("postgres", "postgres"), f"SELECT count(*) FROM pg_database WHERE datname = '{name}'"
    )
    assert found == 0


def test_a_killed_redis_comes_back_empty_at_the_same_address(redis_process: RedisServer) -> None:
    address = redis_process.url
    with redis.Redis.from_url(address) as client:
        client.set("key", "value")
        redis_process.kill()
        redis_process.start()
        assert redis_process.url == address
        assert client.get("key") is None


def test_the_shared_redis_answers(redis_server: str) -> None:
    with redis.Redis.from_url(redis_server) as client:
        assert client.ping() is True


def test_a_migrated_database_is_at_the_newest_revision_on_each_version(each_database: Database) -> None:
    assert _one(each_database.owner_url, "SELECT version_num FROM schema_revision") == head_revision()


def test_the_login_role_owns_nothing_and_is_no_superuser(each_database: Database) -> None:
    assert _one(each_database.login_url, "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = user") is False
    statement = "SELECT count(*) FROM pg_class JOIN pg_roles ON relowner = pg_roles.oid WHERE rolname = user"
    assert _one(each_database.login_url, statement) == 0


def test_what_one_test_wrote_another_never_sees(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as first, postgres_server.database() as second:
        with psycopg.connect(first.owner_url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("CREATE TABLE written ()")
        found = "SELECT count(*) FROM pg_class WHERE relname = 'written'"
        assert _one(first.owner_url, found) == 1
        assert _one(second.owner_url, found) == 0
