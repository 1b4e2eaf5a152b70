"""Admin acts on fields, secrets, tokens and targets: what they change and what they leave."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bss_sync.adapters.secrets import KeyVault, parse_master_keys
from bss_sync.adapters.sql.admin import (
    connection_states,
    secrets,
    takeovers,
    targets,
    tokens,
)
from bss_sync.domain.change import Kind
from bss_sync.domain.errors import InvalidRequest, NotFound, StateConflict
from bss_sync.domain.tenancy import Role
from tests.app import ACTOR
from tests.office import Office, office_of
from tests.servers import Database


@pytest.fixture
def office(database: Database, server_home: Path) -> Iterator[Office]:
    with office_of(database, server_home) as one:
        yield one


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
