"""Admin acts on a real database: what they change, what they wake, what they leave in the audit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from bss_sync.adapters.clients import Clients
from bss_sync.adapters.secrets import KeyVault, parse_master_keys
from bss_sync.adapters.sql.admin import (
    activation,
    closing,
    connection_states,
    connections,
    products,
    runs,
    secrets,
    takeovers,
    targets,
    tokens,
    value_maps,
)
from bss_sync.adapters.sql.audit import verify_chains
from bss_sync.adapters.sql.upkeep import SqlUpkeep
from bss_sync.bootstrap import App
from bss_sync.domain.change import Kind, stream_id
from bss_sync.domain.errors import InvalidRequest, NotFound, StateConflict
from bss_sync.domain.ownership import default_document
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.domain.tenancy import ConnectionState, Role
from bss_sync.jobs.work import make_work
from bss_sync.runner import Parts
from tests.app import ACTOR, wired
from tests.servers import Database

PRODUCT = "M365"


@dataclass
class Office:
    """An application with one connection in the state draft."""

    app: App
    source: SourceConnection
    secret: str

    def rows(self, statement: str, **values: Any) -> list[Any]:
        with self.app.database.engine() as sql:
            return list(sql.execute(text(statement), values).all())

    def execute(self, statement: str, **values: Any) -> None:
        with self.app.database.engine() as sql:
            sql.execute(text(statement), values)

    def state(self) -> str:
        return str(self.rows("select state from connection where id = :id", id=self.source.id)[0].state)

    def now(self) -> SourceConnection:
        with self.app.database.engine() as sql:
            return connections.find(sql, self.source.name)

    def actions(self) -> list[str]:
        return [row.action for row in self.rows("select action from audit order by at, chain_id, seq")]

    def message(self, source_id: str = "sub-1", **changes: Any) -> UUID:
        """A parked message as the door stores it."""
        body = {
            "account_id": None, "parent_id": None, "product": PRODUCT, "status": "active", "trial": False,
            "start_date": None, "end_date": None, "activation_date": None, "cancellation_date": None,
            "auto_renew": True, "billing_cycle": "P1M", "term": None, "quantity": "5", "characteristics": {},
        } | changes  # fmt: skip
        message_id = uuid4()
        with self.app.database.engine() as sql:
            sql.execute(
                text(
                    """insert into message (id, tenant_id, connection_id, stream_id, shard, message_id, kind, source_id,
                           action, order_kind, version, sent_at, effective_at, body, digest)
                       select :id, c.tenant_id, c.id, :stream, case when c.state in ('shadow', 'live') then c.shard end,
                           :key, 'subscription', :source_id, 'state', 'sequence', 1, now(), now(),
                           cast(:body as jsonb), '\\x00' from connection c where c.id = :connection"""
                ),
                {
                    "id": message_id,
                    "stream": self.record(source_id),
                    "key": str(message_id),
                    "source_id": source_id,
                    "body": json.dumps(body),
                    "connection": self.source.id,
                },
            )
        return message_id

    def record(self, source_id: str) -> UUID:
        return stream_id(self.source.id, Kind.SUBSCRIPTION, source_id)

    def process(self) -> None:
        work = make_work(self.app, Parts(None).wake)
        for shard in range(16):
            work.process(shard)

    def activate(self) -> tuple[connection_states.Moved, list[activation.Finding]]:
        clients = Clients(self.app.database, self.app.vault, self.app.connectors, self.app.http)
        return activation.activate(self.app.database, clients, self.source.name, actor=ACTOR)

    def add_product(self, code: str = PRODUCT) -> products.Added:
        with self.app.database.engine() as sql:
            return products.add(sql, [products.NewProduct(code, code)], actor=ACTOR)

    def live(self, number: int = 1) -> None:
        """Live, with so many subscriptions in the mirror."""
        self.add_product()
        for index in range(number):
            self.message(f"sub-{index + 1}")
        self.activate()
        self.process()


def _new(app: App, name: str = "cloud-resell", connector: str = "webhook", **given: Any) -> connections.NewConnection:
    spec = app.connectors.require(connector)
    return connections.NewConnection(
        name, spec, given.pop("settings", {}), given.pop("secrets", {}), default_document(), **given
    )


@pytest.fixture
def office(database: Database, server_home: Path) -> Iterator[Office]:
    with wired(database, server_home) as (app, _clock, _wake):
        with app.database.engine() as sql:
            source, secret = connections.add(sql, app.vault, _new(app), actor=ACTOR)
        yield Office(app, source, secret)


def test_a_new_connection_is_a_draft_with_a_tenant_a_policy_and_a_secret(office: Office) -> None:
    assert office.source.state is ConnectionState.DRAFT
    assert office.source.tenant_name == "cloud-resell"
    assert office.source.settings["guard_count"] == 20
    assert office.rows("select version, document from ownership_policy") == [(1, default_document())]
    (stored,) = office.rows("select name, scheme, ciphertext from secret")
    assert (stored.name, stored.scheme) == ("webhook", "v1")
    assert office.secret.startswith("whsec_")
    assert office.actions() == ["connection.added"]


def test_a_taken_name_is_a_conflict_and_a_tenants_second_connection_must_say_whose_it_is(office: Office) -> None:
    app = office.app
    with pytest.raises(StateConflict), app.database.engine() as sql:
        connections.add(sql, app.vault, _new(app), actor=ACTOR)
    with app.database.engine() as sql:
        second, _ = connections.add(sql, app.vault, _new(app, "second", tenant="cloud-resell"), actor=ACTOR)
    assert second.tenant_id == office.source.tenant_id
    with app.database.engine() as sql:
        third, _ = connections.add(sql, app.vault, _new(app, "third", tenant="shared"), actor=ACTOR)
    assert third.tenant_name == "shared"
    with pytest.raises(StateConflict, match="tenant"), app.database.engine() as sql:
        connections.add(sql, app.vault, _new(app, "shared"), actor=ACTOR)


def test_wrong_settings_and_secrets_are_named_and_nothing_is_kept(office: Office) -> None:
    app = office.app
    wrong = _new(app, "x", "simulator", settings={"base_url": "nowhere", "page_size": "many", "colour": "red"})
    with pytest.raises(InvalidRequest) as caught, app.database.engine() as sql:
        connections.add(sql, app.vault, wrong, actor=ACTOR)
    assert {problem.field for problem in caught.value.fields} == {"base_url", "page_size", "colour"}
    foreign = _new(app, "x", secrets={"api_key": SecretStr("k")})
    with pytest.raises(InvalidRequest) as caught, app.database.engine() as sql:
        connections.add(sql, app.vault, foreign, actor=ACTOR)
    assert [problem.field for problem in caught.value.fields] == ["secret.api_key"]
    assert len(office.rows("select 1 from tenant where kind = 'reseller'")) == 1


def test_text_becomes_what_the_setting_is(office: Office) -> None:
    app = office.app
    typed = {"poll_seconds": "2.5", "allow_http_private": "true", "order": "timestamp"}
    with app.database.engine() as sql:
        connections.change(
            sql, office.source, app.connectors["webhook"], settings=typed, display_name="Cloud Resell", actor=ACTOR
        )
    after = office.now()
    assert (after.settings["poll_seconds"], after.settings["allow_http_private"]) == (2.5, True)
    assert after.order == "timestamp"
    assert after.revision > office.source.revision
    assert office.rows("select display_name from tenant where kind = 'reseller'")[0][0] == "Cloud Resell"


def test_activating_with_an_empty_catalogue_names_it_and_leaves_the_draft(office: Office) -> None:
    moved, findings = office.activate()
    assert moved.state == office.state() == "draft"
    assert [finding.check for finding in findings if finding.ok is False] == ["catalogue"]
    assert office.actions()[-1] == "connection.activation_refused"


def test_activating_releases_what_was_parked(office: Office) -> None:
    office.message()
    office.add_product()
    moved, _ = office.activate()
    assert (moved.state, moved.released) == ("live", 1)
    assert moved.shard == office.rows("select shard from message")[0].shard
    office.process()
    assert office.rows("select state from message") == [("applied",)]


def test_an_unknown_billing_cycle_is_in_the_way_and_a_foreign_product_is_not(office: Office) -> None:
    office.add_product()
    office.message("sub-1", billing_cycle="monthly")
    office.message("sub-2", product="OWN-BRAND", billing_cycle="whenever")
    moved, findings = office.activate()
    assert moved.state == "draft"
    found = {finding.check: finding for finding in findings}
    assert found["billing_cycle"].ok is False
    assert "'monthly'" in found["billing_cycle"].detail
    assert "whenever" not in found["billing_cycle"].detail
    assert found["products"].ok is None
    with office.app.database.engine() as sql:
        value_maps.map_value(sql, office.source, "billing_cycle", "monthly", "P1M", actor=ACTOR)
    assert office.activate()[0].state == "live"


def test_a_source_that_does_not_answer_is_in_the_way(office: Office) -> None:
    office.add_product()
    app = office.app
    settings = {"base_url": "http://127.0.0.1:9", "allow_http_private": "true"}
    with app.database.engine() as sql:
        connections.add(sql, app.vault, _new(app, "dead", "simulator", settings=settings), actor=ACTOR)
    clients = Clients(app.database, app.vault, app.connectors, app.http)
    moved, findings = activation.activate(app.database, clients, "dead", actor=ACTOR)
    assert moved.state == "draft"
    assert [finding.check for finding in findings if finding.ok is False] == ["source"]


def test_pausing_parks_and_resuming_goes_back_to_where_it_was(office: Office) -> None:
    office.live()
    with office.app.database.engine() as sql:
        connection_states.shadow(sql, office.now(), actor=ACTOR)
    with office.app.database.engine() as sql:
        connection_states.pause(sql, office.now(), actor=ACTOR)
    office.message("sub-9")
    office.process()
    assert office.rows("select state, shard from message where source_id = 'sub-9'") == [("pending", None)]
    with office.app.database.engine() as sql:
        moved = connection_states.resume(sql, office.now(), actor=ACTOR)
    assert (moved.state, moved.released) == ("shadow", 1)
    with pytest.raises(StateConflict), office.app.database.engine() as sql:
        connection_states.resume(sql, office.now(), actor=ACTOR)


def test_a_product_that_is_added_lets_in_what_was_out_of_scope(office: Office) -> None:
    office.live()
    office.message("sub-7", product="EXCHANGE")
    office.process()
    assert office.rows("select state from message where source_id = 'sub-7'") == [("out_of_scope",)]
    added = office.add_product("EXCHANGE")
    assert added.released == 1
    office.process()
    assert office.rows("select product from subscription where source_id = 'sub-7'") == [("EXCHANGE",)]


def test_a_mapped_product_lets_in_what_was_out_of_scope(office: Office) -> None:
    office.live()
    office.message("sub-7", product="PROD-881")
    office.process()
    with pytest.raises(NotFound), office.app.database.engine() as sql:
        products.map_code(sql, office.source, "PROD-881", "NO-SUCH", actor=ACTOR)
    with office.app.database.engine() as sql:
        assert products.map_code(sql, office.source, "PROD-881", PRODUCT, actor=ACTOR).released == 1
    office.process()
    assert office.rows("select product from subscription where source_id = 'sub-7'") == [(PRODUCT,)]


def test_a_retired_product_lets_nothing_new_in_and_keeps_what_entered(office: Office) -> None:
    office.live()
    with office.app.database.engine() as sql:
        assert products.retire(sql, PRODUCT, actor=ACTOR).subscriptions == 1
    office.message("sub-8")
    office.process()
    assert office.rows("select state, reason from message where source_id = 'sub-8'")[0][0] == "out_of_scope"
    assert len(office.rows("select 1 from subscription where ended_at is null")) == 1


def test_a_mapped_value_releases_what_it_held_and_nothing_else(office: Office) -> None:
    office.live()
    office.message("sub-3", status="aktiv")
    office.message("sub-4", status="inaktiv")
    office.process()
    assert {row[0] for row in office.rows("select state from message where source_id <> 'sub-1'")} == {"quarantined"}
    with office.app.database.engine() as sql:
        released = value_maps.map_value(sql, office.source, "status", "aktiv", "active", actor=ACTOR)
    assert released.messages == 1
    office.process()
    found = office.rows("select source_id, status, source_status from subscription where source_id <> 'sub-1'")
    assert found == [("sub-3", "active", "aktiv")]


@pytest.mark.parametrize(("field", "canonical"), [("status", "aktiv"), ("term", "yearly"), ("name", "x")])
def test_a_value_is_mapped_to_a_canonical_one_only(office: Office, field: str, canonical: str) -> None:
    with pytest.raises(InvalidRequest), office.app.database.engine() as sql:
        value_maps.map_value(sql, office.source, field, "x", canonical, actor=ACTOR)


def test_a_taken_field_keeps_its_value_until_it_is_released(office: Office) -> None:
    office.live()
    record = office.record("sub-1")
    with office.app.database.engine() as sql:
        taken = takeovers.take(sql, Kind.SUBSCRIPTION, record, "quantity", reason="dispute", actor=ACTOR)
    assert taken.value == "5"
    with pytest.raises(StateConflict), office.app.database.engine() as sql:
        takeovers.take(sql, Kind.SUBSCRIPTION, record, "quantity", reason="again", actor=ACTOR)
    with office.app.database.engine() as sql:
        takeovers.set_value(sql, Kind.SUBSCRIPTION, record, "quantity", 3, actor=ACTOR)
    office.process()
    assert office.rows("select quantity from subscription")[0][0] == 3
    with office.app.database.engine() as sql:
        takeovers.release(sql, Kind.SUBSCRIPTION, record, "quantity", reason="settled", actor=ACTOR)
    office.process()
    assert office.rows("select quantity from subscription")[0][0] == 5
    assert [action for action in office.actions() if action.startswith("field.")] == [
        "field.taken", "field.set", "field.released"
    ]  # fmt: skip


def test_a_taken_link_leads_to_what_is_mirrored_and_never_into_a_cycle(office: Office) -> None:
    office.live()
    record = office.record("sub-1")
    with office.app.database.engine() as sql:
        for field in ("account_id", "parent_id"):
            takeovers.take(sql, Kind.SUBSCRIPTION, record, field, reason="dispute", actor=ACTOR)
    for field, value, words in (
        ("account_id", "nobody", "There is no account 'nobody'"),
        ("parent_id", "nothing", "There is no subscription 'nothing'"),
        ("parent_id", "sub-1", "would be a cycle"),
    ):
        with pytest.raises(InvalidRequest, match=words) as caught, office.app.database.engine() as sql:
            takeovers.set_value(sql, Kind.SUBSCRIPTION, record, field, value, actor=ACTOR)
        assert [one.field for one in caught.value.fields] == [field]
    with office.app.database.engine() as sql:
        takeovers.set_value(sql, Kind.SUBSCRIPTION, record, "account_id", None, actor=ACTOR)
    office.process()


@pytest.mark.parametrize(
    ("field", "value"),
    [("quantity", -1), ("quantity", True), ("quantity", "1.0000001"), ("status", "aktiv"), ("start_date", "31.12.2026"),
     ("trial", "yes"), ("billing_cycle", "monthly"), ("characteristics", {"a": {}}), ("nothing", 1), ("product", None)],
)  # fmt: skip
def test_a_taken_field_takes_only_values_of_its_kind(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest):
        takeovers.check_value(Kind.SUBSCRIPTION, field, value)


def test_a_field_of_the_distributor_cannot_be_taken_and_a_reason_is_needed(office: Office) -> None:
    office.live()
    record = office.record("sub-1")
    for field, reason in (("notes", "r"), ("quantity", " ")):
        with pytest.raises(InvalidRequest), office.app.database.engine() as sql:
            takeovers.take(sql, Kind.SUBSCRIPTION, record, field, reason=reason, actor=ACTOR)
    with pytest.raises(NotFound), office.app.database.engine() as sql:
        takeovers.release(sql, Kind.SUBSCRIPTION, record, "quantity", reason="r", actor=ACTOR)


def test_a_rotated_secret_leaves_the_old_one_good_for_the_overlap(office: Office) -> None:
    with office.app.database.engine() as sql:
        shown, _ = secrets.rotate(sql, office.app.vault, office.source, overlap=timedelta(hours=1), actor=ACTOR)
    assert shown != office.secret
    with office.app.database.engine() as sql:
        found = secrets.list_all(sql, office.source.id)
    assert [item.standing for item in found] == ["active", "phasing_out"]
    assert office.now().revision > office.source.revision
    with office.app.database.engine() as sql:
        assert secrets.revoke(sql, office.source, None, actor=ACTOR) == [found[1].id]
    with pytest.raises(StateConflict), office.app.database.engine() as sql:
        secrets.revoke(sql, office.source, found[0].id, actor=ACTOR)


def test_secrets_are_sealed_anew_with_the_first_key(office: Office) -> None:
    given = office.app.settings.master_key
    assert given is not None
    both = KeyVault([b"n" * 32, *parse_master_keys(given.get_secret_value())])
    with office.app.database.engine() as sql:
        assert secrets.reseal(sql, both, sealing_key_id=both.sealing_key_id, limit=10, actor=ACTOR) == 1
    with office.app.database.engine() as sql:
        assert secrets.reseal(sql, both, sealing_key_id=both.sealing_key_id, limit=10, actor=ACTOR) == 0
    assert office.rows("select key_id from secret") == [(both.sealing_key_id,)]


def test_a_token_is_kept_as_its_digest_only(office: Office) -> None:
    with office.app.database.engine() as sql:
        made = tokens.create(sql, role=Role.RESELLER, name="portal", source=office.source, actor=ACTOR)
        other = tokens.create(sql, role=Role.ADMIN, name="me", source=None, actor=ACTOR)
    (row,) = office.rows("select digest, tenant_id from api_token where id = :id", id=made.id)
    assert bytes(row.digest) == hashlib.sha256(made.token.encode()).digest()
    assert row.tenant_id == office.source.tenant_id
    for role, source in ((Role.RESELLER, None), (Role.ADMIN, office.source)):
        with pytest.raises(InvalidRequest), office.app.database.engine() as sql:
            tokens.create(sql, role=role, name="x", source=source, actor=ACTOR)
    with office.app.database.engine() as sql:
        assert [item.id for item in tokens.revoke(sql, "me", actor=ACTOR)] == [other.id]
        assert [item.name for item in tokens.list_all(sql)] == ["portal"]


def test_a_target_makes_every_live_record_due_and_another_connector_forgets_what_was_confirmed(office: Office) -> None:
    office.live(2)
    app = office.app
    settings = {"base_url": "http://127.0.0.1:9", "allow_http_private": True}
    new = targets.NewTarget(app.connectors["simulator"], settings, {"api_key": SecretStr("k")})
    with app.database.engine() as sql:
        assert targets.set_target(sql, app.vault, new, actor=ACTOR) == 2
    office.execute("update delivery set confirmed_revision = desired_revision, state = 'confirmed', due_at = null")
    with app.database.engine() as sql:
        assert (
            targets.set_target(sql, app.vault, targets.NewTarget(app.connectors["simulator"], {}, {}), actor=ACTOR) == 0
        )
        found = targets.show(sql)
    assert found is not None
    assert (found.settings["base_url"], found.deliveries) == ("http://127.0.0.1:9", {"confirmed": 2})
    with pytest.raises(InvalidRequest), app.database.engine() as sql:
        targets.set_target(sql, app.vault, targets.NewTarget(app.connectors["webhook"], {}, {}), actor=ACTOR)
    with app.database.engine() as sql:
        targets.remove(sql, actor=ACTOR)
        assert targets.show(sql) is None


def test_going_live_with_a_target_delivers_what_the_shadow_wrote(office: Office) -> None:
    office.add_product()
    with office.app.database.engine() as sql:
        connection_states.shadow(sql, office.now(), actor=ACTOR)
    office.message()
    office.process()
    office.execute("insert into target (connector) values ('simulator')")
    assert office.rows("select 1 from delivery") == []
    with office.app.database.engine() as sql:
        connection_states.begin_checks(sql, office.now())
    with office.app.database.engine() as sql:
        assert connection_states.go_live(sql, office.now(), actor=ACTOR).deliveries == 1


def test_closing_today_ends_what_is_live_and_keeps_its_history(office: Office) -> None:
    office.live(2)
    with office.app.database.engine() as sql:
        asked = closing.request(sql, office.now(), datetime.now(UTC).date(), actor=ACTOR)
    assert (asked.state, asked.subscriptions) == ("done", 2)
    assert office.state() == "closed"
    assert {row[0] for row in office.rows("select ended_reason from subscription")} == {"closed"}
    ends = office.rows(
        "select ended_reason, state ->> 'quantity' as quantity from history where ended_reason is not null"
    )
    assert [tuple(row) for row in ends] == [("closed", "5"), ("closed", "5")]
    with pytest.raises(StateConflict), office.app.database.engine() as sql:
        connection_states.shadow(sql, office.now(), actor=ACTOR)


def test_closing_on_a_past_day_ends_with_the_end_of_that_day(office: Office) -> None:
    office.live()
    with office.app.database.engine() as sql:
        closing.request(sql, office.now(), date(2026, 3, 31), actor=ACTOR)
    assert office.rows("select ended_at from subscription") == [(datetime(2026, 4, 1, tzinfo=UTC),)]


def test_closing_many_waits_for_an_admin_and_a_later_day_waits_for_that_day(office: Office) -> None:
    office.live(21)
    tomorrow = datetime.now(UTC).date() + timedelta(days=2)
    with office.app.database.engine() as sql:
        asked = closing.request(sql, office.now(), tomorrow, actor=ACTOR)
    assert (asked.state, asked.records) == ("stopped", 21)
    with pytest.raises(StateConflict), office.app.database.engine() as sql:
        closing.request(sql, office.now(), tomorrow, actor=ACTOR)
    with office.app.database.engine() as sql:
        assert runs.approve(sql, asked.run_id, actor=ACTOR).state == "approved"
    with office.app.database.engine() as sql:
        assert closing.execute_next_due(sql) is None
    assert office.state() == "live"
    day = (datetime.now(UTC).date() - timedelta(days=1)).isoformat()
    office.execute("update run set options = jsonb_build_object('on', cast(:day as text))", day=day)
    assert SqlUpkeep(office.app.database).close_due() == 1
    assert office.state() == "closed"
    assert len(office.rows("select 1 from subscription where ended_reason = 'closed'")) == 21


def test_a_rejected_closing_leaves_everything_live(office: Office) -> None:
    office.live(21)
    with office.app.database.engine() as sql:
        asked = closing.request(sql, office.now(), datetime.now(UTC).date(), actor=ACTOR)
        runs.reject(sql, asked.run_id, actor=ACTOR)
    assert office.state() == "live"
    with pytest.raises(StateConflict), office.app.database.engine() as sql:
        runs.approve(sql, asked.run_id, actor=ACTOR)
    with pytest.raises(NotFound), office.app.database.engine() as sql:
        runs.approve(sql, uuid4(), actor=ACTOR)


def test_every_act_is_chained_and_the_chains_are_whole(office: Office) -> None:
    office.live()
    with office.app.database.engine() as sql:
        connection_states.pause(sql, office.now(), actor=ACTOR)
    expected = {"connection.added", "product.added", "connection.activated", "connection.paused"}
    assert expected <= set(office.actions())
    with office.app.database.engine() as sql:
        assert set(verify_chains(sql).values()) == {None}
