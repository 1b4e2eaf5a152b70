"""The contract suite's part for targets: what the distributor's external BSS must do behind its connector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

from bss_sync.domain.change import Json, Kind
from bss_sync.ports.connector import TargetClient, TargetRecord, TargetWrite
from bss_sync.testing.contract_subject import PAGES_MAX, Check, Subject


def check_a_created_record_is_found_by_its_reference(subject: Subject) -> None:
    """A write returns what the BSS holds; the reference leads to it; an unknown reference leads to None."""
    target = subject.target
    if target is None:
        return
    for write in sample_writes():
        assert target.look_up(write.kind, write.reference) is None, "nothing carries a new reference"
        created = target.write(write)
        _check_holds(created, write)
        found = target.look_up(write.kind, write.reference)
        assert found is not None, "what was created is found by its reference"
        assert found.external_id == created.external_id
        assert created.external_id in {one.external_id for one in target.list_all()}, "it is listed"


def check_a_write_that_is_sent_again_has_one_effect(subject: Subject) -> None:
    """The same intent again gives the same record."""
    target = subject.target
    if target is None:
        return
    for write in sample_writes():
        first, second = target.write(write), target.write(write)
        assert first.external_id == second.external_id, "the idempotency key makes it one record"


def check_an_update_is_in_the_changes(subject: Subject) -> None:
    """An update changes the record, an end keeps it, and both show up after the cursor."""
    target = subject.target
    if target is None:
        return
    for write in sample_writes():
        created = target.write(write)
        cursor = _target_changes(target, None)[1]
        ended = replace(
            write,
            external_id=created.external_id,
            fields={**write.fields, "name": "renamed", "ended": True},
            idempotency_key=uuid4().hex,
        )
        _check_holds(target.write(ended), ended)
        changed = {one.external_id: one for one in _target_changes(target, cursor)[0]}
        assert created.external_id in changed, "an update is in the changes"
        _check_holds(changed[created.external_id], ended)
        assert target.look_up(write.kind, write.reference) is not None, "an ended record is not removed"


TARGET_CHECKS: tuple[Check, ...] = (
    check_a_created_record_is_found_by_its_reference,
    check_a_write_that_is_sent_again_has_one_effect,
    check_an_update_is_in_the_changes,
)
"""All that concern targets."""


def sample_writes() -> Iterator[TargetWrite]:
    """One create of each kind, with references and keys that were never used before."""
    shared: dict[str, Json] = {"name": "Cloud Customer X", "bill_to": "Cloud Resell", "ended": False}
    of_account = {"number": "C-1001", "email": "it@customer-x.example", "kind": "customer", "parent_id": None}
    of_subscription: dict[str, Json] = {
        "account_id": None,
        "parent_id": None,
        "product": "M365-BUS-PREM",
        "status": "active",
        "source_status": None,
        "trial": False,
        "start_date": "2026-01-01",
        "end_date": "2026-12-31",
        "activation_date": "2026-01-01",
        "cancellation_date": None,
        "auto_renew": True,
        "billing_cycle": "P1M",
        "term": "P1Y",
        "quantity": "25",
        "characteristics": {"domain": "customer-x.example"},
    }
    for kind, fields in ((Kind.ACCOUNT, of_account), (Kind.SUBSCRIPTION, of_subscription)):
        yield TargetWrite(kind, f"reference-{uuid4()}", None, {**shared, **fields}, uuid4().hex)


def _check_holds(record: TargetRecord, write: TargetWrite) -> None:
    assert record.kind == write.kind
    assert record.reference == write.reference, "the BSS keeps our reference"
    differing = {name for name, value in write.fields.items() if record.fields.get(name) != value}
    assert not differing, f"the BSS holds something else in {sorted(differing)}"


def _target_changes(target: TargetClient, cursor: str | None) -> tuple[list[TargetRecord], str | None]:
    records: list[TargetRecord] = []
    for _ in range(PAGES_MAX):
        page, cursor, more = target.changes(cursor)
        records += page
        if not more:
            return records, cursor
    raise AssertionError("the changes never end")
