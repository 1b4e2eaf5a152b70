"""Cursors are opaque, and only a list's own are taken."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_sync.adapters.sql.reading.paging import Paging, decode_cursor, encode_cursor, is_uuid
from bss_sync.domain.errors import InvalidRequest


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=4), max_leaves=8))
def test_what_was_encoded_is_decoded(value: Any) -> None:
    assert decode_cursor(encode_cursor([value])) == [value]


@given(st.text(alphabet=st.characters(blacklist_categories=("L", "N")), min_size=1, max_size=60))
def test_what_is_no_cursor_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_cursor(text)
    assert [problem.field for problem in caught.value.fields] == ["cursor"]


@pytest.mark.parametrize("text", ["x" * 5000, base64.urlsafe_b64encode(b"[" * 1400).decode(), "====", "e30\n"])
def test_long_deep_or_odd_cursors_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        decode_cursor(text)


@pytest.mark.parametrize("limit", [0, -1, 501])
def test_a_limit_has_its_bounds(limit: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Paging(limit)
    assert [problem.field for problem in caught.value.fields] == ["limit"]


def test_an_id_is_what_we_write() -> None:
    assert is_uuid("0d9cc8c1-4f8b-5c0e-9a53-2f6f1f0f9a11")
    for other in ("", "0d9cc8c14f8b5c0e9a532f6f1f0f9a11", "{0d9cc8c1-4f8b-5c0e-9a53-2f6f1f0f9a1}", "g" * 36):
        assert not is_uuid(other)
    assert not is_uuid("-" * 36)
