"""The second barrier, read from the catalogue and tried: row-level security, grants, trigger (goals, security 1, 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from bss_sync.adapters.sql.database import Database as Pools
from bss_sync.domain.change import Kind
from bss_sync.domain.ownership import OWN
from tests.api_world import ApiWorld, api_world
from tests.servers import LOGIN, OWNER, Database, PostgresServer, short_folder

ROLES = ("bss_sync_engine", "bss_sync_api", "bss_sync_door")
WITHOUT_TENANT = {
    "instance",
    "tenant",
    "product",
    "target",
    "api_token",
    "alembic_version",
    "schema_revision",
    "retention",
    "list_epoch",
    "list_floor",
    "claim",
    "audit",
}
"""Tables that hold no tenant's rows; ``audit`` only where the column is looked for on partitions."""

_TABLES = """select c.relname as name, c.relrowsecurity as enabled, c.relforcerowsecurity as forced,
    exists (select 1 from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped)
        as of_tenant,
    pg_get_userbyid(c.relowner) as owner
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'public' and c.relkind in ('r', 'p')"""


@dataclass
class Secured:
    """The scenario, and the catalogue as superuser."""

    world: ApiWorld
    database: Database

    def catalogue(self, statement: str) -> list[tuple[object, ...]]:
        engine = create_engine(self.database.superuser_url)
        try:
            with engine.connect() as connection:
                return [tuple(row) for row in connection.execute(text(statement))]
        finally:
            engine.dispose()


@pytest.fixture(scope="module", params=["postgres_server", "postgres15_server"], ids=["postgres18", "postgres15"])
def secured(request: pytest.FixtureRequest) -> Iterator[Secured]:
    server: PostgresServer = request.getfixturevalue(request.param)
    with server.database() as database, short_folder() as home, api_world(database, Path(home)) as world:
        yield Secured(world, database)


def test_every_table_of_tenants_forces_row_level_security(secured: Secured) -> None:
    rows = secured.catalogue(_TABLES)
    of_tenants = {name for name, _, _, of_tenant, _ in rows if of_tenant}
    assert len(of_tenants) >= 20
    shared = {"api_token"}
    bare = {name for name, enabled, forced, of_tenant, _ in rows if of_tenant and not (enabled and forced)}
    assert bare == shared, "api_token is read by token_lookup only"
    assert {name for name, *_ in rows} - of_tenants <= WITHOUT_TENANT


def test_no_working_role_owns_a_table_or_passes_by_the_policies(secured: Secured) -> None:
    owners = {owner for *_, owner in secured.catalogue(_TABLES)}
    assert owners == {OWNER}
    roles = secured.catalogue("select rolname, rolsuper, rolbypassrls, rolcanlogin from pg_roles")
    by_name = {name: (is_super, bypasses, can_login) for name, is_super, bypasses, can_login in roles}
    assert {by_name[role] for role in ROLES} == {(False, False, False)}
    assert by_name[LOGIN] == (False, False, True)
    members = secured.catalogue(
        "select r.rolname from pg_auth_members m join pg_roles r on r.oid = m.roleid "
        f"join pg_roles u on u.oid = m.member where u.rolname in ('{LOGIN}', 'bss_sync_api', 'bss_sync_door')"
    )
    assert {name for (name,) in members} == set(ROLES), "the login may become each, none may become another"


def test_policies_name_their_role_and_public_has_none(secured: Secured) -> None:
    policies = secured.catalogue("select tablename, roles::text[] from pg_policies where schemaname = 'public'")
    assert policies
    assert [
        table for table, roles in policies if "public" in list(str(roles).strip("[]").replace("'", "").split(", "))
    ] == []


def test_foreign_keys_between_tables_of_tenants_carry_the_tenant(secured: Secured) -> None:
    keys = secured.catalogue(
        """select k.conrelid::regclass::text, k.confrelid::regclass::text,
             array(select a.attname::text from unnest(k.conkey) u(n)
                   join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.n)
           from pg_constraint k where k.contype = 'f' and k.connamespace = 'public'::regnamespace"""
    )
    shared = {"tenant", "product"}
    without = {(source, to) for source, to, columns in keys if to not in shared and "tenant_id" not in list(columns)}  # type: ignore[call-overload]  # an array comes as a list
    assert without == {("api_token", "connection")}, "api_token: an admin's table, checked when it is made"


def _tables_of_api(connection: Connection) -> list[str]:
    rows = connection.execute(
        text(
            """select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
               where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
                 and has_table_privilege(c.oid, 'select')"""
        )
    )
    return list(rows.scalars())


def _tenants_seen(connection: Connection) -> dict[str, set[UUID]]:
    return {
        table: set(connection.execute(text(f"select distinct tenant_id from {table}")).scalars())
        for table in _tables_of_api(connection)
    }


def test_a_tenant_sees_its_own_rows_in_every_table(secured: Secured) -> None:
    with secured.world.app.database.api(secured.world.resell.tenant_id) as connection:
        seen = _tenants_seen(connection)
    assert seen["account"] == seen["subscription"] == seen["message"] == {secured.world.resell.tenant_id}
    foreign = {table for table, tenants in seen.items() if tenants - {secured.world.resell.tenant_id}}
    assert foreign == set()


@pytest.mark.parametrize("reach", [None, "", "tenant", "everything"])
def test_an_unset_or_empty_tenant_sees_nothing_also_on_a_reused_connection(secured: Secured, reach: str | None) -> None:
    pools = Pools(secured.database.login_url, pool_size=1)
    try:
        with pools.api(None) as connection:
            used = connection.execute(text("select pg_backend_pid()")).scalar_one()
            assert connection.execute(text("select count(*) from account")).scalar_one() > 0
        with pools.pool("api").begin() as connection:
            assert connection.execute(text("select pg_backend_pid()")).scalar_one() == used, "the same connection"
            if reach is not None:
                connection.execute(
                    text("select set_config('bss_sync.reach', :reach, true), set_config('bss_sync.tenant', '', true)"),
                    {"reach": reach},
                )
            assert {table for table, tenants in _tenants_seen(connection).items() if tenants} == set()
    finally:
        pools.dispose()


def test_secrets_tokens_and_staging_are_closed_to_the_api(secured: Secured) -> None:
    for table in ("secret", "api_token", "staging", "message_key", "fetch_request"):
        with (
            pytest.raises(ProgrammingError, match="permission denied"),
            secured.world.app.database.api(None) as connection,
        ):
            connection.execute(text(f"select 1 from {table} limit 1"))


@pytest.mark.parametrize("kind", list(Kind))
def test_the_api_role_cannot_write_a_mirrored_column(secured: Secured, kind: Kind) -> None:
    own = {*OWN[kind], "updated_at", "change_xid"}
    columns = secured.catalogue(
        f"select attname::text from pg_attribute where attrelid = '{kind}'::regclass and attnum > 0"
    )
    for (column,) in columns:
        with secured.world.app.database.api(None) as connection:
            may = connection.execute(
                text("select has_column_privilege(:table, :column, 'update')"), {"table": str(kind), "column": column}
            ).scalar_one()
        assert may is (column in own), column
    for statement in (f"delete from {kind}", f"insert into {kind} (id) values (gen_random_uuid())", f"truncate {kind}"):
        with pytest.raises(DBAPIError, match="permission denied"), secured.world.app.database.api(None) as connection:
            connection.execute(text(statement))


def test_a_tenant_cannot_write_into_another_tenants_rows(secured: Secured) -> None:
    world = secured.world
    with world.app.database.api(world.other.tenant_id) as connection:
        changed = connection.execute(
            text("update account set notes = 'mine' where id = :id"), {"id": world.id_of(Kind.ACCOUNT, "cust-x")}
        )
        assert changed.rowcount == 0
    with (
        pytest.raises(DBAPIError, match="row-level security"),
        world.app.database.api(world.other.tenant_id) as connection,
    ):
        connection.execute(
            text(
                """insert into contact (id, tenant_id, account_id, name, created_by)
                   values (:id, :tenant, :account, 'x', 'x')"""
            ),
            {"id": uuid4(), "tenant": world.resell.tenant_id, "account": world.id_of(Kind.ACCOUNT, "cust-x")},
        )


def test_a_row_cannot_refer_to_another_tenants_record(secured: Secured) -> None:
    world = secured.world
    with pytest.raises(DBAPIError, match="foreign key"), world.app.database.api(world.other.tenant_id) as connection:
        connection.execute(
            text(
                """insert into contact (id, tenant_id, account_id, name, created_by)
                   values (:id, :tenant, :account, 'x', 'x')"""
            ),
            {"id": uuid4(), "tenant": world.other.tenant_id, "account": world.id_of(Kind.ACCOUNT, "cust-x")},
        )


def test_the_trigger_names_the_owner_even_to_the_tables_owner(secured: Secured) -> None:
    """A grant given by mistake does not open the lock: the trigger refuses and says whose field it is."""
    owner = create_engine(secured.database.owner_url)
    try:
        with (
            pytest.raises(DBAPIError, match="quantity owned by Cloud Resell"),
            owner.begin() as connection,
        ):
            connection.execute(
                text("update subscription set quantity = 99 where id = :id"),
                {"id": secured.world.id_of(Kind.SUBSCRIPTION, "sub-x")},
            )
        with pytest.raises(DBAPIError, match="the whole record owned by Cloud Resell"), owner.begin() as connection:
            connection.execute(
                text("delete from subscription where id = :id"), {"id": secured.world.id_of(Kind.SUBSCRIPTION, "sub-x")}
            )
    finally:
        owner.dispose()


def test_the_audit_can_only_be_appended_to(secured: Secured) -> None:
    pools = secured.world.app.database
    for role in ("engine", "api", "door"):
        for statement in ("update audit set actor = 'x'", "delete from audit", "truncate audit"):
            with pytest.raises(DBAPIError, match="permission denied"), pools.pool(role).begin() as connection:
                connection.execute(text(statement))
