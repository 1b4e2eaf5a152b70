"""What counts as an edit behind the system's back, and what is an echo of our own (pipeline/drift.py). Pure."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

from bss_sync.domain.change import Kind
from bss_sync.pipeline.drift import is_echo, violated
from bss_sync.ports.connector import TargetRecord
from bss_sync.ports.delivery import Binding

CONFIRMED, INTENDED = {"quantity": "5", "status": "active"}, {"quantity": "7", "status": "active"}
BINDING = Binding(uuid4(), uuid4(), uuid4(), Kind.SUBSCRIPTION, "sub", "ext-1", CONFIRMED, INTENDED, busy=False)


def _seen(fields: dict[str, str]) -> TargetRecord:
    return TargetRecord(external_id="ext-1", kind=Kind.SUBSCRIPTION, reference=str(BINDING.record_id), fields=fields)


def test_what_was_only_intended_is_an_echo_too() -> None:
    assert violated(BINDING, _seen(INTENDED)) is None
    assert is_echo(BINDING, INTENDED)


def test_what_was_confirmed_is_an_echo() -> None:
    assert violated(BINDING, _seen(CONFIRMED)) is None


def test_anything_else_is_an_edit_named_by_field() -> None:
    violation = violated(BINDING, _seen({"quantity": "500", "status": "active"}))
    assert violation is not None
    assert violation.fields == {"quantity": ("5", "500")}


def test_what_was_never_confirmed_cannot_have_been_edited() -> None:
    assert violated(replace(BINDING, confirmed=None), _seen({"quantity": "500"})) is None
