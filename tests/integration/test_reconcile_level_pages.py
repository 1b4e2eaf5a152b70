"""Pages that were level are not read again; and nothing that anybody changes, on either side, hides behind that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bss_sync.adapters.code_digest import code_digest
from bss_sync.jobs.reconciling import make_reconciler
from bss_sync.pipeline.reconcile import Request, Result
from bss_sync.ports.connector import Answer, AnsweringSource, SourceClient
from bss_sync.ports.sources import OpenSource, Sources
from tests.reconciling import found
from tests.servers import Database
from tests.world import ACCOUNT, PRODUCT, SUBSCRIPTION, World, world

SUBSCRIPTIONS, PAGE = 23, 5


@dataclass
class Watched:
    """A source whose pages are counted when they are read. ``program``: what reads them, as far as it says."""

    sources: Sources
    program: bytes = b""
    asked: int = 0
    read: list[str] = field(default_factory=list)

    def source(self, connection_id: Any, *, push_only: bool = False) -> OpenSource:
        opened = self.sources.source(connection_id, push_only=push_only)
        more = self.program
        return replace(opened, client=_Counting(opened.client, self), program=lambda: opened.program() + more)


@dataclass
class _Counting:
    _client: SourceClient
    _watched: Watched

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def answer_page(self, cursor: str | None) -> Answer:
        assert isinstance(self._client, AnsweringSource), "the simulator hands out its answers"
        self._watched.asked += 1
        answer = self._client.answer_page(cursor)

        def read() -> Any:
            self._watched.read.append(cursor or "")
            return answer.read()

        return replace(answer, read=read)


@pytest.fixture
def mirror(database: Database, server_home: Path) -> Iterator[World]:
    with world(database, server_home, connection={"page_size": PAGE, "guard_count": 30}) as one:
        bss = one.simulator.reseller
        for account in ("x", "y", "z"):
            bss.put(ACCOUNT, account, {"name": f"Customer {account}"})
        for number in range(SUBSCRIPTIONS):
            bss.put(SUBSCRIPTION, name(number), {"account_id": "xyz"[number % 3], "product": PRODUCT, "quantity": 5})
        one.settle()
        assert reconcile(one)[0].total == 0
        yield one


def name(number: int) -> str:
    return f"sub-{number:03}"


def reconcile(one: World, program: bytes = b"", **given: Any) -> tuple[Result, Watched]:
    """Compare, and what of the source was read for it."""
    reconciler = make_reconciler(one.app)
    watched = Watched(reconciler.sources, program)
    result = replace(reconciler, sources=watched).reconcile(Request(one.source.id, **given))
    return result, watched


def behind_the_line(database: Database, statement: str, *values: object) -> None:
    """As a superuser whom no trigger sees."""
    with psycopg.connect(database.superuser_url.replace("+psycopg", "")) as connection:
        connection.execute("set session_replication_role = replica")
        assert connection.execute(statement.encode(), values).rowcount > 0, "something was written"


def test_pages_that_are_as_they_were_when_they_were_level_are_not_read(mirror: World) -> None:
    again, watched = reconcile(mirror)
    assert (again.total, again.listed, again.source_error) == (0, SUBSCRIPTIONS + 3, None)
    assert watched.read == []
    assert watched.asked == len(mirror.rows("select 1 from level_page"))


def test_a_change_at_the_source_has_its_own_page_read_and_no_other(mirror: World) -> None:
    mirror.simulator.reseller.patch(SUBSCRIPTION, name(7), {"quantity": 6}, push=False)
    result, watched = reconcile(mirror)
    assert found(result) == [("stale", name(7), "quantity")]
    assert watched.read == [f"subscription:{name(4)}"]
    mirror.settle()
    assert reconcile(mirror)[0].total == 0
    assert reconcile(mirror)[1].read == [], "and it is remembered anew"


def test_a_change_at_the_source_without_a_version_is_found(mirror: World) -> None:
    bss = mirror.simulator.reseller
    version = bss.get(SUBSCRIPTION, name(7))["version"]
    bss.patch(SUBSCRIPTION, name(7), {"quantity": 6, "version": version}, push=False)
    result, _watched = reconcile(mirror)
    assert [(one.source_id, one.field, str(one.cause)) for one in result.differences] == [
        (name(7), "quantity", "uncounted")
    ]


SILENT = {
    "quantity": "update subscription set quantity = 6 where source_id = %s",
    "product": "update subscription set product = 'other' where source_id = %s",
    "status": "update subscription set status = 'suspended' where source_id = %s",
    "source's own word": "update subscription set source_status = 'odd' where source_id = %s",
    "trial": "update subscription set trial = true where source_id = %s",
    "start": "update subscription set start_date = '2020-01-01' where source_id = %s",
    "end": "update subscription set end_date = '2020-01-01' where source_id = %s",
    "activation": "update subscription set activation_date = '2020-01-01' where source_id = %s",
    "cancellation": "update subscription set cancellation_date = '2020-01-01' where source_id = %s",
    "renewal": "update subscription set auto_renew = not coalesce(auto_renew, false) where source_id = %s",
    "cycle": "update subscription set billing_cycle = 'P9M' where source_id = %s",
    "term": "update subscription set term = 'P9Y' where source_id = %s",
    "characteristics": """update subscription set characteristics = '{"a": 1}' where source_id = %s""",
    "version": "update subscription set version = 99 where source_id = %s",
    "deletion": "update subscription set deleted_at = now() where source_id = %s",
    "end of the mirror": "update subscription set ended_at = now(), ended_reason = 'left_scope' where source_id = %s",
    "its account by name": "update subscription set account_source_id = 'nobody' where source_id = %s",
    "its account": """update subscription set account_id = (select id from account where source_id = 'x')
                      where source_id = %s and account_source_id <> 'x'""",
    "its link": "update subscription set account_id = null where source_id = %s",
    "the source's last word": """update subscription set source = source || '{"quantity": "6"}' where source_id = %s""",
    "both alike": """update subscription set source = source || '{"quantity": "6"}', quantity = 6
                     where source_id = %s""",
    "its row": "delete from subscription where source_id = %s",
    "its stream's version": "update stream set version = 99 where source_id = %s",
    "its own id": "update subscription set source_id = source_id || '-a' where source_id = %s",
}
ACCOUNTS = {
    "name": "update account set name = 'Nobody' where source_id = 'x'",
    "parent": "update account set parent_source_id = 'y' where source_id = 'x'",
    "row": "delete from account where source_id = 'x'",
    "own id": "update account set source_id = 'w' where source_id = 'x'",
}


def test_what_is_written_past_the_line_is_found_as_if_nothing_were_remembered(
    mirror: World, database: Database
) -> None:
    for number in range(SUBSCRIPTIONS, len(SILENT) * PAGE):
        fields = {"account_id": "xyz"[number % 3], "product": PRODUCT, "quantity": 5}
        mirror.simulator.reseller.put(SUBSCRIPTION, name(number), fields)
    mirror.settle()
    assert [reconcile(mirror)[0].total, len(reconcile(mirror)[1].read)] == [0, 0]
    touched: set[str] = set()
    for place, (what, statement) in enumerate(SILENT.items()):
        # The first of its page, one within, and the last.
        number = place * PAGE + (0, 2, PAGE - 1)[place % 3]
        behind_the_line(database, statement, name(number))
        result, watched = reconcile(mirror, dry_run=True)
        assert watched.read.count(f"subscription:{name(place * PAGE - 1)}" if place else "subscription:") == 1, what
        assert touched < (touched := {one.source_id for one in result.differences}), f"{what}: named"
        assert len(watched.read) <= place + 2, "no other page but that of the accounts"
    remembering, _watched = reconcile(mirror, dry_run=True)
    mirror.execute("delete from level_page")
    anew, _watched = reconcile(mirror, dry_run=True)
    assert [one.as_json() for one in remembering.differences] == [one.as_json() for one in anew.differences]


@pytest.mark.parametrize("what", ACCOUNTS, ids=ACCOUNTS)
def test_what_is_written_into_an_account_past_the_line_is_found(mirror: World, database: Database, what: str) -> None:
    behind_the_line(database, ACCOUNTS[what])
    remembering, watched = reconcile(mirror, dry_run=True)
    assert watched.read == [""], "the page of the accounts"
    mirror.execute("delete from level_page")
    anew, _watched = reconcile(mirror, dry_run=True)
    assert anew.total > 0
    assert [one.as_json() for one in remembering.differences] == [one.as_json() for one in anew.differences]


@pytest.mark.parametrize("extra", ["sub-004-a", "sub-009-a", "sub-0", "zzz"], ids=["between", "in", "before", "behind"])
def test_a_record_that_the_source_lacks_is_found_wherever_it_stands(
    mirror: World, database: Database, extra: str
) -> None:
    behind_the_line(
        database,
        """with s as (
               insert into stream (id, tenant_id, connection_id, shard, kind, source_id, version, digest)
               select gen_random_uuid(), tenant_id, connection_id, shard, kind, %s, version, digest from stream
               where source_id = 'sub-007' returning *)
           insert into subscription (id, tenant_id, connection_id, source_id, account_source_id, account_id, product,
               status, source_status, trial, quantity, version, order_kind, source, effective_at, message, updated_at)
           select s.id, s.tenant_id, s.connection_id, s.source_id, 'x', r.account_id, r.product, r.status,
                  r.source_status, r.trial, r.quantity, r.version, r.order_kind, r.source, r.effective_at, r.message,
                  r.updated_at from s, subscription r where r.source_id = 'sub-007'""",
        extra,
    )
    result, _watched = reconcile(mirror, dry_run=True)
    assert found(result)[:1] == [("extra", extra, None)]


def test_an_edit_in_the_distributors_bss_is_found_though_no_page_is_read(mirror: World) -> None:
    reference = str(mirror.record_id(SUBSCRIPTION, name(7)))
    record = next(one for one in mirror.simulator.distributor.records() if one["reference"] == reference)
    mirror.simulator.distributor.edit(record["id"], {"quantity": "99"}, user="clerk")
    result, watched = reconcile(mirror)
    assert found(result) == [("target_differs", name(7), "quantity")]
    assert watched.read == []
    mirror.deliver()
    assert mirror.target_fields(SUBSCRIPTION, name(7))["quantity"] == "5"


RULES: dict[str, Callable[[World], None]] = {
    "a value": lambda one: one.execute(
        """insert into value_map (tenant_id, connection_id, field, source_value, canonical)
           select tenant_id, id, 'status', 'active', 'suspended' from connection"""
    ),
    "a product": lambda one: one.execute(
        f"""insert into product (code, name) values ('OTHER', 'other');
            insert into product_map (tenant_id, connection_id, source_code, code)
            select tenant_id, id, '{PRODUCT}', 'OTHER' from connection"""
    ),
    "a setting": lambda one: one.execute("""update connection set settings = settings || '{"account_scope": "all"}'"""),
}


@pytest.mark.parametrize("rule", RULES, ids=RULES)
def test_other_rules_have_every_page_read(mirror: World, rule: str) -> None:
    RULES[rule](mirror)
    result, watched = reconcile(mirror, dry_run=True)
    assert len(watched.read) == watched.asked
    assert (result.total > 0) == (rule != "a setting")


def test_another_program_has_every_page_read(mirror: World) -> None:
    _result, watched = reconcile(mirror, b"other")
    assert len(watched.read) == watched.asked
    assert code_digest("bss_sync", "connectors.simulator") != code_digest("bss_sync", "connectors.stripe")


def test_what_is_out_of_scope_is_as_level_as_any(mirror: World) -> None:
    mirror.simulator.reseller.put(SUBSCRIPTION, "sub-007-trial", {"account_id": "x", "product": PRODUCT, "trial": True})
    mirror.simulator.reseller.put(SUBSCRIPTION, "sub-012-foreign", {"account_id": "x", "product": "not ours"})
    mirror.settle()
    assert reconcile(mirror)[0].total == 0
    assert reconcile(mirror)[1].read == []
    # It converts without a word; and the other's product comes into the catalogue.
    mirror.simulator.reseller.patch(SUBSCRIPTION, "sub-007-trial", {"trial": False}, push=False)
    mirror.execute("insert into product (code, name) values ('not ours', 'ours')")
    result, _watched = reconcile(mirror)
    assert found(result) == [("missing", "sub-007-trial", None), ("missing", "sub-012-foreign", None)]
    mirror.settle()
    assert reconcile(mirror)[0].total == 0


def test_a_difference_that_stays_is_named_each_time(mirror: World) -> None:
    mirror.simulator.reseller.patch(SUBSCRIPTION, name(7), {"status": "hibernating"}, push=False)
    mirror.simulator.reseller.patch(SUBSCRIPTION, name(17), {"quantity": 6}, push=False)
    for _ in range(3):
        result, _watched = reconcile(mirror, dry_run=True)
        assert found(result) == [("stale", name(17), "quantity"), ("unknown_value", name(7), "status")]


def test_a_record_whose_field_was_taken_over_is_looked_at_each_time(mirror: World) -> None:
    mirror.execute(
        """insert into takeover (id, tenant_id, connection_id, record_id, kind, field, value, reason, taken_by)
           select gen_random_uuid(), tenant_id, connection_id, id, 'subscription', 'quantity', '"6"', 'test', 'admin'
           from subscription where source_id = :name""",
        name=name(7),
    )
    mirror.execute("update subscription set quantity = 6 where source_id = :name", name=name(7))
    for _ in range(2):
        result, watched = reconcile(mirror, target=False)
        assert (result.total, watched.read) == (0, [f"subscription:{name(4)}"])
    mirror.execute("update takeover set released_at = now()")
    assert found(reconcile(mirror, dry_run=True, target=False)[0]) == [("differing", name(7), "quantity")]


def test_who_ends_at_the_source_is_found_though_the_other_pages_are_not_read(mirror: World) -> None:
    mirror.simulator.reseller.delete(SUBSCRIPTION, name(SUBSCRIPTIONS - 1), push=False)
    result, watched = reconcile(mirror)
    assert found(result) == [("extra", name(SUBSCRIPTIONS - 1), None)]
    assert watched.read == [f"subscription:{name(19)}"]
    mirror.settle()
    assert reconcile(mirror)[0].total == 0


def test_pages_that_nobody_has_used_for_long_and_those_of_a_removed_connection_are_forgotten(mirror: World) -> None:
    mirror.execute("update level_page set kept_at = now() - interval '8 days'")
    reconcile(mirror)
    assert mirror.value("select max(now() - kept_at) < interval '1 minute' from level_page")
    mirror.execute("update level_page set kept_at = now() - interval '36 days' where kind = 'subscription'")
    assert {cursor.partition(":")[0] for cursor in reconcile(mirror)[1].read} == {"subscription"}
    with mirror.app.database.engine() as connection:
        rule = connection.exec_driver_sql(
            "select confdeltype from pg_constraint where conrelid = 'level_page'::regclass and contype = 'f'"
        ).scalar_one()
    assert rule == "c"
