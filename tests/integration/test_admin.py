"""Admin acts on connections and the catalogue: what they change, what they wake, what they leave in the audit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from bss_sync.adapters.clients import Clients
from bss_sync.adapters.sql.admin import (
    activation,
    connection_states,
    connections,
    products,
    tokens,
    value_maps,
)
from bss_sync.adapters.sql.audit import verify_chains
from bss_sync.domain.errors import InvalidRequest, NotFound, StateConflict
from bss_sync.domain.ownership import default_document
from bss_sync.domain.tenancy import ConnectionState, Role
from tests.app import ACTOR
from tests.office import PRODUCT, Office, new_connection, office_of
from tests.servers import Database


@pytest.fixture
def office(database: Database, server_home: Path) -> Iterator[Office]:
    with office_of(database, server_home) as one:
        yield one


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
        connections.add(sql, app.vault, new_connection(app), actor=ACTOR)
    with app.database.engine() as sql:
        second, _ = connections.add(sql, app.vault, new_connection(app, "second", tenant="cloud-resell"), actor=ACTOR)
    assert second.tenant_id == office.source.tenant_id
    with app.database.engine() as sql:
        third, _ = connections.add(sql, app.vault, new_connection(app, "third", tenant="shared"), actor=ACTOR)
    assert third.tenant_name == "shared"
    with pytest.raises(StateConflict, match="tenant"), app.database.engine() as sql:
        connections.add(sql, app.vault, new_connection(app, "shared"), actor=ACTOR)


def test_wrong_settings_and_secrets_are_named_and_nothing_is_kept(office: Office) -> None:
    app = office.app
    wrong = new_connection(
        app, "x", "simulator", settings={"base_url": "nowhere", "page_size": "many", "colour": "red"}
    )
    with pytest.raises(InvalidRequest) as caught, app.database.engine() as sql:
        connections.add(sql, app.vault, wrong, actor=ACTOR)
    assert {problem.field for problem in caught.value.fields} == {"base_url", "page_size", "colour"}
    foreign = new_connection(app, "x", secrets={"api_key": SecretStr("k")})
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
        connections.add(sql, app.vault, new_connection(app, "dead", "simulator", settings=settings), actor=ACTOR)
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


def test_every_act_is_chained_and_the_chains_are_whole(office: Office) -> None:
    office.live()
    with office.app.database.engine() as sql:
        connection_states.pause(sql, office.now(), actor=ACTOR)
    expected = {"connection.added", "product.added", "connection.activated", "connection.paused"}
    assert expected <= set(office.actions())
    with office.app.database.engine() as sql:
        assert set(verify_chains(sql).values()) == {None}


def test_chains_that_grow_while_they_are_verified_are_whole(office: Office) -> None:
    office.live()
    ending = threading.Event()

    def act() -> None:
        while not ending.is_set():
            with office.app.database.engine() as sql:
                tokens.create(sql, role=Role.OPERATOR, name="portal", source=None, actor=ACTOR)

    acting = threading.Thread(target=act)
    acting.start()
    try:
        for _ in range(40):
            with office.app.database.engine() as sql:
                assert set(verify_chains(sql).values()) == {None}
    finally:
        ending.set()
        acting.join()
