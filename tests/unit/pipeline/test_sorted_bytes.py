"""The quick way to write a document down gives the bytes of the slow one, or gives way to it: digests outlive both."""

from __future__ import annotations

import json
from typing import Any

import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from bss_sync.pipeline.json_text import canonical_bytes, sorted_bytes

_TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=8)
_WORDS = st.none() | st.booleans() | _TEXT | st.integers(-(2**60), 2**60)
_PLAIN = st.dictionaries(_TEXT, st.recursive(_WORDS, lambda inner: st.dictionaries(_TEXT, inner, max_size=4)))
_WITH_FRACTIONS = st.dictionaries(_TEXT, _WORDS | st.floats(allow_nan=False) | st.lists(_WORDS, max_size=3))
_SLOW = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@given(_PLAIN | _WITH_FRACTIONS)
def test_what_is_written_quickly_is_what_the_standard_encoder_writes(document: dict[str, Any]) -> None:
    written = sorted_bytes(document)
    assert written is None or written == _SLOW.encode(document).encode()


@given(_PLAIN)
def test_the_canonical_form_is_rfc_8785s(document: dict[str, Any]) -> None:
    try:
        wanted = rfc8785.dumps(document)
    except rfc8785.IntegerDomainError:
        return
    assert canonical_bytes(document) == wanted


def test_most_records_are_written_quickly() -> None:
    assert (
        sorted_bytes({"b": 1, "a": {"z": "ü", "y": None}, "c": True})
        == '{"a":{"y":null,"z":"ü"},"b":1,"c":true}'.encode()
    )
