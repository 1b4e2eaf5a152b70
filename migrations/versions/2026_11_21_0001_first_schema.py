"""The first schema: tables, roles, row-level security and the trigger that names a field's owner.

Revision ID: 2026_11_21_0001
"""

from __future__ import annotations

from pathlib import Path

from alembic import op
from sqlalchemy import text

revision = "2026_11_21_0001"
down_revision = None
branch_labels = None
depends_on = None

ENGINE, API, DOOR = "bss_sync_engine", "bss_sync_api", "bss_sync_door"

TENANT_TABLES = (
    "connection",
    "breaker",
    "secret",
    "product_map",
    "value_map",
    "ownership_policy",
    "message_key",
    "message",
    "stream",
    "staging",
    "account",
    "subscription",
    "history",
    "gap",
    "fetch_request",
    "takeover",
    "delivery",
    "drift",
    "run",
    "ending",
    "replay_item",
    "alert",
    "audit_head",
    "audit",
    "contact",
    "activity",
    "idempotency",
)
SHARED_TABLES = (
    "instance",
    "tenant",
    "product",
    "target",
    "api_token",
)

API_READS = (
    "connection",
    "breaker",
    "product_map",
    "value_map",
    "ownership_policy",
    "message",
    "stream",
    "account",
    "subscription",
    "history",
    "gap",
    "takeover",
    "delivery",
    "drift",
    "run",
    "audit_head",
    "audit",
    "contact",
    "activity",
    "idempotency",
    "instance",
    "tenant",
    "product",
    "target",
)
DOOR_READS = (
    "connection",
    "secret",
    "message_key",
    "tenant",
    "instance",
)

OWN_COLUMNS = {
    "account": "notes, tags, responsible_user",
    "subscription": "price, bill_to_contact, custom_fields, notes",
}

NAME_THE_OWNER = """
create function refuse_locked_write() returns trigger language plpgsql as $$
declare
    owner_name text;
    changed text;
    own text[] := string_to_array(replace(tg_argv[0], ' ', ''), ',') || array['updated_at', 'change_xid'];
begin
    select display_name into owner_name from tenant
        where id = case when tg_op = 'INSERT' then new.tenant_id else old.tenant_id end;
    if tg_op = 'UPDATE' then
        select string_agg(n.key, ', ' order by n.key) into changed
            from jsonb_each(to_jsonb(new)) n join jsonb_each(to_jsonb(old)) o using (key)
            where n.value is distinct from o.value and n.key <> all (own);
        if changed is null then
            return new;
        end if;
    else
        changed := 'the whole record';
    end if;
    raise exception '%: % owned by % and locked here', tg_table_name, changed, coalesce(owner_name, 'the reseller')
        using errcode = 'insufficient_privilege',
              hint = 'Ask the owner to change it in its own BSS, or let an admin take the field over.';
end
$$
"""

STAMPED_TABLES = (
    "run",
    "drift",
    "contact",
    "activity",
)
"""Rows that change seldom and by many hands: a trigger keeps their place in lists (change_xid) true."""

STAMP_CHANGE = """
create function stamp_change() returns trigger language plpgsql as $$
begin
    new.change_xid := pg_current_xact_id();
    return new;
end
$$
"""

COUNT_TENANT = """
create function count_tenant() returns trigger language plpgsql as $$
begin
    new.revision := old.revision + 1;
    new.change_xid := pg_current_xact_id();
    return new;
end
$$
"""
"""A tenant reseller is an account for the tier above: its changes are counted like those of any record."""

LOOK_UP = """
create function token_lookup(wanted bytea)
    returns table (id uuid, name text, role text, tenant_id uuid, connection_id uuid)
    language sql stable security definer set search_path = public, pg_temp as $$
    select t.id, t.name, t.role, t.tenant_id, t.connection_id from api_token t
        where t.digest = wanted and t.revoked_at is null
$$
"""

REACH = (
    "current_setting('bss_sync.reach', true) = 'distributor' "
    "or tenant_id = nullif(current_setting('bss_sync.tenant', true), '')::uuid"
)


def upgrade() -> None:
    """Create everything. Runs as the owner of the tables."""
    op.execute("set local lock_timeout = '5s'")
    for role in (ENGINE, API, DOOR):
        op.execute(
            f"do $$ begin create role {role} nologin; "
            "exception when duplicate_object or unique_violation then null; end $$"
        )
        op.execute(f"grant usage on schema public to {role}")
    tables = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(tables)
    for table in TENANT_TABLES:
        _force_row_level_security(table)
    _grant()
    op.execute(NAME_THE_OWNER)
    for table, own in OWN_COLUMNS.items():
        op.execute(
            f"create trigger {table}_locked before insert or update or delete on {table} "
            f"for each row when (current_user <> '{ENGINE}') execute function refuse_locked_write('{own}')"
        )
    op.execute(STAMP_CHANGE)
    for table in STAMPED_TABLES:
        op.execute(
            f"create trigger {table}_stamped before update on {table} for each row execute function stamp_change()"
        )
    op.execute(COUNT_TENANT)
    op.execute("create trigger tenant_counted before update on tenant for each row execute function count_tenant()")
    op.execute(LOOK_UP)
    op.execute("revoke execute on function token_lookup(bytea) from public")
    op.execute(f"grant execute on function token_lookup(bytea) to {API}, {ENGINE}")


def _force_row_level_security(table: str) -> None:
    op.execute(f"alter table {table} enable row level security, force row level security")
    op.execute(f"create policy engine_every_tenant on {table} to {ENGINE} using (true) with check (true)")
    op.execute(f"create policy owner_maintains on {table} to current_user using (true) with check (true)")
    if table in API_READS:
        op.execute(f"create policy api_own_reach on {table} to {API} using ({REACH}) with check ({REACH})")
    if table in DOOR_READS or table == "message":
        op.execute(f"create policy door_before_tenant on {table} to {DOOR} using (true) with check (true)")


def _grant() -> None:
    every = ", ".join(TENANT_TABLES + SHARED_TABLES)
    op.execute(f"grant select, insert, update, delete on {every} to {ENGINE}")
    op.execute(f"grant select on {', '.join(API_READS)} to {API}")
    for table, own in OWN_COLUMNS.items():
        op.execute(f"grant update ({own}, updated_at, change_xid) on {table} to {API}")
    op.execute(f"grant insert, update on contact, activity to {API}")
    op.execute(f"grant insert on idempotency, audit, audit_head to {API}")
    op.execute(f"grant update on audit_head to {API}")
    op.execute(f"grant select on {', '.join(DOOR_READS)} to {DOOR}")
    op.execute(f"grant insert, delete on message_key to {DOOR}")
    op.execute(f"grant insert on message to {DOOR}")
    op.execute(f"grant update (last_received_at, silent_since, order_kind) on connection to {DOOR}")
    op.execute(f"grant select, insert on audit to {DOOR}")
    op.execute(f"grant select, insert, update on audit_head to {DOOR}")
    for table in ("audit", "audit_head"):
        op.execute(f"create policy door_before_tenant on {table} to {DOOR} using (true) with check (true)")
    op.execute("revoke update, delete on audit from bss_sync_engine, bss_sync_api, bss_sync_door")


def downgrade() -> None:
    """Refuse: a mirror is restored from its backup, not by dropping its tables."""
    op.get_bind().execute(text("select 1"))
    raise RuntimeError("The first schema has no way back. Restore a backup instead (docs/runbook.md).")
