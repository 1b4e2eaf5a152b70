"""What the tier below says, in the contract's shape; anything else is refused and named."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_sync.domain.errors import InvalidMessage
from bss_sync.ports.connector import RangeDigest, RangeForm
from connectors.bss_sync.mapper import observation, observations, range_digests

ID = "0d9cc8c1-4f8b-5c0e-9a53-2f6f1f0f9a11"
ACCOUNT: dict[str, Any] = {"parent_id": ID, "kind": "customer", "name": "Customer X", "number": None, "email": None}
SUBSCRIPTION: dict[str, Any] = {
    "account_id": ID,
    "parent_id": None,
    "product": "M365",
    "status": "active",
    "source_status": "running",
    "trial": False,
    "start_date": "2026-01-01",
    "end_date": None,
    "activation_date": None,
    "cancellation_date": None,
    "auto_renew": None,
    "billing_cycle": "P1M",
    "term": None,
    "quantity": "2.5",
    "characteristics": {},
}


def item(kind: str = "account", **changes: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "id": ID,
        "version": 4,
        "deleted": False,
        "body": dict(ACCOUNT if kind == "account" else SUBSCRIPTION),
        "changed_at": "2026-03-02T10:15:00Z",
        "effective_at": "2026-03-01T00:00:00+01:00",
        "passed": ["a", "b"],
        **changes,
    }


def test_an_entity_keeps_its_members_its_times_and_where_it_passed() -> None:
    seen = observation(item("subscription", body={**SUBSCRIPTION, "price": "9.90"}))
    assert seen.body == SUBSCRIPTION, "what is not of the contract stays behind"
    assert (seen.version, seen.passed) == (4, ("a", "b"))
    assert seen.effective_at is not None
    assert seen.effective_at.isoformat() == "2026-02-28T23:00:00+00:00"


def test_a_deleted_account_comes_with_its_last_state_one_version_below() -> None:
    before, gone = observations(item(deleted=True))
    assert (before.version, before.body) == (3, ACCOUNT)
    assert (gone.version, gone.body) == (4, None)


def test_a_deleted_subscription_is_just_gone() -> None:
    (gone,) = observations(item("subscription", deleted=True))
    assert (gone.version, gone.body) == (4, None)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (item(kind="invoice"), "kind"),
        (item(id="cust-x"), "id"),
        (item(id=""), "id"),
        (item(id=ID.upper()), "id"),
        (item(version="4"), "version"),
        (item(version=True), "version"),
        (item(deleted=None), "deleted"),
        (item(body=None), "body"),
        (item(body={}), "email"),
        (item(body={**ACCOUNT, "name": 7}), "name"),
        (item(body={**ACCOUNT, "kind": None}), "kind"),
        (item(passed=[]), "passed"),
        (item(passed=["a"] * 33), "passed"),
        (item(passed=[1]), "passed"),
        (item(changed_at="yesterday"), "changed_at"),
        (item(effective_at="2026-03-01T00:00:00"), "effective_at"),
        (item("subscription", body={**SUBSCRIPTION, "quantity": 2.5}), "quantity"),
        (item("subscription", body={**SUBSCRIPTION, "quantity": "2.50"}), "quantity"),
        (item("subscription", body={**SUBSCRIPTION, "trial": None}), "trial"),
        (item("subscription", body={**SUBSCRIPTION, "auto_renew": "yes"}), "auto_renew"),
        (item("subscription", body={**SUBSCRIPTION, "end_date": "1.1.2026"}), "end_date"),
        (item("subscription", body={**SUBSCRIPTION, "characteristics": []}), "characteristics"),
    ],
)
def test_what_is_no_entity_is_refused_and_the_field_named(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidMessage) as refused:
        observation(wrong)
    assert [problem.field for problem in refused.value.fields] == [field]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(item())), _JSON, st.sampled_from(["account", "subscription"]))
def test_any_other_value_is_taken_or_refused_and_never_a_defect(name: str, value: object, kind: str) -> None:
    try:
        seen = observation({**item(kind), name: value})
    except InvalidMessage:
        return
    assert str(UUID(seen.source_id)) == seen.source_id
    assert seen.changed_at is None or seen.changed_at.utcoffset() is not None


def test_digests_are_counts_and_sums_by_range() -> None:
    assert range_digests({"of": "text", "ranges": {"0d9": [2, "5.7"]}}) == {"0d9": RangeDigest(2, "5.7")}
    assert range_digests({"ranges": {"0d9": [2, "5.7"]}}) == {"0d9": RangeDigest(2, "5.7", RangeForm.UUID)}
    wrongs: list[dict[str, Any]] = [{}, {"ranges": []}, {"ranges": {"0d9": [2]}}, {"ranges": {"0d9": ["2", "5"]}}]
    for wrong in wrongs:
        with pytest.raises(InvalidMessage):
            range_digests(wrong)
